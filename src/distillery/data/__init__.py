"""Data sets as LightningDataModules, whose batches are dicts of tensors (`image` or `input_ids`, `target`, `index`)."""
