"""The run folder and its record, and reports on many runs."""
