"""Data sets as LightningDataModules: batches are dicts of `image`, `target` and `index`."""
