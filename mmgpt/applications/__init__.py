"""Applications: whole runs, from a recipe to scores and a report."""
