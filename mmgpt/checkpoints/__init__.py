"""Checkpoints: models in files, ours and those of other projects: saved, loaded, converted, fetched, checked."""
