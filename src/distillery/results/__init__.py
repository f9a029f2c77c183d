"""Results: what a run leaves behind, its fidelity and cost, and the report made of many runs."""
