"""Recipes, data and tasks as YAML files; a package so that they are installed with the code."""
