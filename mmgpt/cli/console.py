"""Where the commands print what they found; a file or a pipe is no narrow terminal."""

import sys

from rich.console import Console

out_console = Console(width=None if sys.stdout.isatty() else 120)
