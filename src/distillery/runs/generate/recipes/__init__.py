"""What a teacher is asked for. Each is an option of the config group `generate`, see `recipe.py`."""
