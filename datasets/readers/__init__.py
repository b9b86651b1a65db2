"""Readers: files of many layouts as sources of samples, one file a reader, listed in `registry.py`."""
