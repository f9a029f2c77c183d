"""Losses on attention maps."""
