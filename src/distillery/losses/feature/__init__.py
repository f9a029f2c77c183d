"""Losses on intermediate activations."""
