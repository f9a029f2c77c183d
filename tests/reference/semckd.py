"""SemCKD, one sample and one pair of layers at a time (Chen et al., AAAI 2021), on NumPy arrays."""

import math
from collections.abc import Mapping

import numpy as np

from reference.convolutions import Array

State = Mapping[str, Array]  # of an embedding: two linear layers


def attention(query: Array, keys: Array, softness: float) -> list[float]:
    """Of one student layer to each teacher layer."""
    exponentials = [math.exp(float(query @ key) / softness) for key in keys]
    return [e / sum(exponentials) for e in exponentials]


def semckd(query: Array, key: Array, distances: Array, softness: float) -> list[float]:
    """Of each sample: queries [B,S,D], keys [B,T,D], distances [B,S,T]."""
    values = []
    for q, k, d in zip(query, key, distances, strict=True):
        layers = [sum(a * x for a, x in zip(attention(q[i], k, softness), d[i], strict=True)) for i in range(len(q))]
        values.append(sum(layers) / len(layers))
    return values


def embedding(features: Array, state: State, width: int) -> Array:
    """Of each sample, from its similarities to the batch, which may be smaller than `width`: [B,D]."""
    vectors = features.reshape(len(features), -1)
    out = []
    for sample in vectors:
        similar = np.zeros(width)
        for other in range(len(vectors)):
            similar[other] = sample @ vectors[other]
        hidden = np.maximum(state["layers.0.weight"] @ similar + state["layers.0.bias"], 0)
        embedded = state["layers.2.weight"] @ hidden + state["layers.2.bias"]
        out.append(embedded / np.sqrt(np.sum(embedded**2)))
    return np.array(out)
