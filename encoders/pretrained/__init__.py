"""Encoders of outside checkpoints: their settings and weights read into ours, and some written back."""
