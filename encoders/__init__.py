"""Encoders: what a picture and a sound are to a model, one file each."""

if __name__ == "encoders":
    raise ImportError("this folder is imported as `mmgpt.encoders`; install it with `pip install -e .`")
