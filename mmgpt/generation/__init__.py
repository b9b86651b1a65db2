"""Generation: sampling, decoding and the object behind `mmgpt.load`."""
