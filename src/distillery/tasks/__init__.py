"""What the labels mean, one file a task."""
