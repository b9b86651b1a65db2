"""Tasks: YAML files of questions, the exemplars and prompts that they make, and baselines that do not see."""
