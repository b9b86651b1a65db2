"""Inspection: what is in the data of a recipe: figures, faults, copies, leaks, and pages of samples."""
