"""Evaluation: tasks, few-shot exemplars, metrics, the runner and the reports."""
