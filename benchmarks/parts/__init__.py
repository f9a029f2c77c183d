"""What the benchmarks share, and the steps of others that they time."""
