"""Distillery: knowledge distillation with PyTorch Lightning and Hydra."""
