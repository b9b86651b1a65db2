"""Training: stages, objectives, the optimizer step, checkpoints and the loop."""
