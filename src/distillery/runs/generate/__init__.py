"""Texts that a teacher writes, to be learnt as data: sequence-level distillation."""
