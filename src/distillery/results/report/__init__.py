"""From run folders to a table and plots."""
