"""Every loss as a pure function of tensors, usable without the rest of the template."""

from distillery.losses.attention.attention_transfer import attention_transfer
from distillery.losses.feature.hint import hint
from distillery.losses.relation.rkd import rkd
from distillery.losses.response.dkd import dkd
from distillery.losses.response.kd import kd

__all__ = ["attention_transfer", "dkd", "hint", "kd", "rkd"]
