"""The steps that are timed in `benchmarks/training.py`, but for this project's."""
