"""What a model wrote, cleaned: filters as pure functions, and a report of what they dropped and why."""
