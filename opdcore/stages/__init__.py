"""The stages of a recipe, one file each, read top to bottom."""
