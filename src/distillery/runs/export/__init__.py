"""A student for others: a folder that transformers loads, with its model card."""
