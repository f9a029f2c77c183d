"""Settings that are `auto`: timed before the run, and kept where that pays."""
