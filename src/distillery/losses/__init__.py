"""Distillation losses, one file each: a pure function of tensors, and the term that applies it to the networks' layers.

To add a loss, write its module in a family's folder, its config in `configs/loss/<family>/` and its test in
`tests/losses/`. The functional API, `distill-losses`, the documentation, the benchmark and the contract tests find it.
"""

FAMILIES = ("response", "feature", "attention", "relation")  # what a loss looks at
