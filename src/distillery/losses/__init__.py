"""Distillation losses, one file each: a pure function of tensors and the term that wires it to the layers."""

FAMILIES = ("response", "feature", "attention", "relation")  # what a loss looks at
