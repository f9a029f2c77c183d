"""A student in training: the LightningModule, its objective, schedules, layers, callbacks. Plain Python, no Hydra."""
