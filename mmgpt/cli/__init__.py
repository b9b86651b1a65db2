"""The command line: one file a group of commands, each of which calls one public function and prints what it found."""
