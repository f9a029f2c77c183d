"""Randomness as a pure function of (seed, epoch, index, view).

Order and augmentation drawn here are the same in every process, worker and resumed run, and leave the global
generators alone. The counters are hashed with the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014), whose output passes the usual test batteries.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = TypeVar("Words", int, NDArray[np.uint64])

GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
WORD = (1 << 64) - 1


def _mix(word: Words) -> Words:
    """SplitMix64's finaliser: a bijection of 64-bit words in which each input bit flips each output bit."""
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        word = (word ^ (word >> shift)) * multiplier & WORD  # type: ignore[assignment]  # NumPy's stay unsigned
    return word


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _mix_tensor(words: Tensor) -> Tensor:
    """`_mix` for int64 tensors, on a CPU by NumPy, which takes half the time.

    Elsewhere products wrap; a masked arithmetic shift is a logical one.
    """
    if words.device.type == "cpu":
        return torch.from_numpy(_mix(words.numpy().view(np.uint64)).view(np.int64))
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        words = (words >> shift).bitwise_and_(WORD >> shift).bitwise_xor_(words).mul_(_signed(multiplier))
    return words


def hash_key(*counters: int) -> int:
    """One 64-bit word for a sequence of integers (negative ones too); the order of the counters matters."""
    word = 0
    for counter in counters:
        word = _mix((word + GOLDEN + counter) & WORD)
    return word


def hash_pairs(first: Tensor, second: Tensor) -> Tensor:
    """One 64-bit word for each pair of integers, as an `index` for `uniforms`: int64 [B], int64 [B] → int64 [B]."""
    return _mix_tensor(_mix_tensor(first + _signed(GOLDEN)) + _signed(GOLDEN) + second)


def uniforms(seed: int, epoch: int, index: Tensor, view: int, n: int) -> Tensor:
    """`n` uniform numbers in [0, 1) for each sample: float32 [B, n] for `index` int64 [B], on its device."""
    # float32 holds 24 bits exactly: more would round some words up to 1.0.
    return ((_words(seed, epoch, index, view, n) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def integers(seed: int, epoch: int, index: Tensor, view: int, below: int) -> Tensor:
    """An integer in [0, below) for each sample: int64 [B] for `index` int64 [B], on its device."""
    return ((_words(seed, epoch, index, view, 1).squeeze(1) >> 1) & (WORD >> 1)) % below


def _words(seed: int, epoch: int, index: Tensor, view: int, n: int) -> Tensor:
    start = _mix_tensor(index * _signed(GOLDEN) + _signed(hash_key(seed, epoch, view)))
    steps = torch.arange(1, n + 1, device=index.device) * _signed(GOLDEN)
    return _mix_tensor(start[:, None] + steps)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """A permutation of range(n): int64 [n] on the CPU."""
    generator = torch.Generator().manual_seed(_signed(hash_key(seed, epoch)))
    return torch.randperm(n, generator=generator)
