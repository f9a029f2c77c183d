"""What the labels mean: one file for each task."""
