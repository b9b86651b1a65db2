"""Generated worlds: stories, pictures and sounds made from a seed, with every answer known."""
