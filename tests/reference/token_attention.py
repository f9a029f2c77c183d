"""Losses on the attention of transformers, written from their papers in NumPy, one head and one query at a time."""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def kl(teacher: Array, student: Array) -> float:
    return float(sum(t * (np.log(t) - np.log(s)) for t, s in zip(teacher, student, strict=True) if t > 0))


def tinybert(student: Array, teacher: Array) -> Array:
    """Scores [B,H,L,L]; those of at most -100 are padding, and 0: each sample's mean."""
    gaps = np.where(student <= -100, 0, student) - np.where(teacher <= -100, 0, teacher)
    return np.array([np.mean([(head**2).mean() for head in sample]) for sample in gaps])


def relation(first: Array, second: Array, kept: Sequence[int], query: int) -> Array:
    """[L,D] each: attention of one query among the tokens that are kept."""
    return softmax(np.array([first[query] @ second[key] for key in kept]) / np.sqrt(first.shape[-1]))


def minilm(student: Sequence[Array], teacher: Sequence[Array], mask: Array) -> Array:
    """Queries, keys and values [B,H,L,D] of each: both divergences, summed, of each sample."""
    values = []
    for b, counts in enumerate(mask):
        kept = np.flatnonzero(counts)
        heads = range(student[0].shape[1])
        total = 0.0
        for h in heads:
            for t in kept:
                for first, second in ((0, 1), (2, 2)):
                    ours = relation(student[first][b, h], student[second][b, h], kept, t)
                    theirs = relation(teacher[first][b, h], teacher[second][b, h], kept, t)
                    total += kl(theirs, ours)
        values.append(total / max(len(heads) * len(kept), 1))
    return np.array(values)


def minilmv2(
    student: Sequence[Array], teacher: Sequence[Array], relation_heads: int, relations: Sequence[str], mask: Array
) -> Array:
    """Queries, keys and values [B,H,L,D] of each: the divergences of the relations, summed, of each sample."""

    def split(vectors: Array) -> Array:
        joined = np.stack([np.concatenate(list(sample), axis=-1) for sample in vectors])  # [B,L,H·D]
        return np.stack(np.split(joined, relation_heads, axis=-1), axis=1)

    ours, theirs = ([split(part) for part in network] for network in (student, teacher))
    values = []
    for b, counts in enumerate(mask):
        kept = np.flatnonzero(counts)
        total = 0.0
        for first, second in (("qkv".index(name[0]), "qkv".index(name[1])) for name in relations):
            for h in range(relation_heads):
                for t in kept:
                    s = relation(ours[first][b, h], ours[second][b, h], kept, t)
                    total += kl(relation(theirs[first][b, h], theirs[second][b, h], kept, t), s)
        values.append(total / max(relation_heads * len(kept), 1))
    return np.array(values)


def pooled(grid: Array, size: int) -> Array:
    """[S,S] → [size,size]: means over the windows of adaptive pooling."""
    side = len(grid)
    edges = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
    return np.array([[grid[top:bottom, left:right].mean() for left, right in edges] for top, bottom in edges])


def to_patches(scores: Array, size: int) -> Array:
    """One query's scores [L] → its attention to the patches of a grid of that size, [size²]."""
    side = int(np.sqrt(len(scores)))
    attention = softmax(scores[len(scores) - side * side :]).reshape(side, side)
    masses = pooled(attention, size).ravel()
    return masses / masses.sum()


def between_patches(scores: Array, size: int) -> Array:
    """One head's scores [L,L] → attention [size²,size²] between the patches of a grid of that size."""
    side = int(np.sqrt(len(scores)))
    rows = np.array([to_patches(query, size) for query in scores[len(scores) - side * side :]])
    return np.stack([pooled(column.reshape(side, side), size).ravel() for column in rows.T], axis=-1)


def heads_of(student: Array, teacher: Array) -> tuple[Array, Array]:
    """[H,...] each; their means where the numbers of heads differ."""
    if len(student) == len(teacher):
        return student, teacher
    return student.mean(0, keepdims=True), teacher.mean(0, keepdims=True)


def vit_attention(student: Array, teacher: Array, size: int, distance: str) -> Array:
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = heads_of(*(np.array([between_patches(head, size) for head in heads]) for heads in (ours, theirs)))
        if distance == "mse":
            values.append(((s - t) ** 2).mean())
        else:
            rows = zip(t.reshape(-1, size**2), s.reshape(-1, size**2), strict=True)
            values.append(np.mean([kl(*row) for row in rows]))
    return np.array(values)


def class_attention(student: Array, teacher: Array, size: int) -> Array:
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = heads_of(*(np.array([to_patches(head[0], size) for head in heads]) for heads in (ours, theirs)))
        values.append(np.mean([kl(*row) for row in zip(t, s, strict=True)]))
    return np.array(values)
