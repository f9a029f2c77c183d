"""Training: the Distiller (a LightningModule), objective, schedules, layer pairs, callbacks. Plain Python, no Hydra."""
