"""Word embeddings as the product of two narrow matrices (ALBERT, Lan et al. 2020), by truncated SVD."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillery.core.errors import UserError


def leading_directions(table: Tensor, rank: int, counts: Tensor | None = None) -> Tensor:
    """The first `rank` right singular vectors of `table` [V, D], as orthonormal rows [rank, D].

    `table` projected to them and back is the nearest matrix of that rank (Eckart and Young 1936): in the sum of squares
    over the rows, each counted as often as `counts` [V] says, and once more. Words that occur are what matters: of
    MiniLM's 384 channels 128 keep a cosine of 0.74 of what the first layer is given, and without counts 0.48.
    """
    weights = torch.ones(len(table)) if counts is None else counts + 1.0
    rows = table.double() * weights.double().sqrt()[:, None]
    return torch.linalg.svd(rows, full_matrices=False).Vh[:rank].to(table.dtype)


def factorised_embeddings(
    student: PreTrainedModel, source: PreTrainedModel, outside: Mapping[str, Tensor], counts: Tensor | None = None
) -> dict[str, Tensor]:
    """The values of the student's embeddings [V, k] and of its projection from k to its D hidden neurons, by name.

    The product of the two is the nearest of rank k to the source's word embeddings (to their first D columns, where
    those are more). Positions and token types are projected to the same space. The source normalises all D neurons,
    the student its k before the projection: its gain is the mean of the source's, times √(D / k) for fewer neurons,
    times the share of the word embeddings' length that is left; the source's offset becomes the projection's.

    Args:
        student, source: the networks without heads.
        outside: the source's parameters in no layer, its tables with the student's number of rows.
        counts: how often each word of the vocabulary occurs, [V]; see `leading_directions`.

    Raises:
        UserError: a student without such a projection, or a source whose embeddings are narrow themselves.
    """
    words, width, hidden = word_table(source), word_table(student).embedding_dim, student.config.hidden_size
    path = next((path for path, module in student.named_children() if isinstance(module, nn.Linear)), None)
    if path is None or width >= hidden:
        raise UserError(
            f"student.initialise.embeddings=factorise: the student's embeddings are {width} wide, its hidden states "
            f"{hidden}, and there is no projection between them. Give it an embedding_size below its hidden_size "
            "(model/student=encoder, an ELECTRA), or use embeddings=copy."
        )
    if words.embedding_dim != source.config.hidden_size:
        raise UserError(
            "student.initialise.embeddings=factorise: the source's embeddings are already factorised, "
            f"{words.embedding_dim} wide. Give the student this embedding_size, and use embeddings=copy."
        )
    table = words.weight.detach()[:, :hidden]
    directions = leading_directions(table, width, counts)
    left = (table @ directions.mT).norm() / table.norm()
    values: dict[str, Tensor] = {f"{path}.weight": directions.mT}
    for name, module in student.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, nn.Embedding) and weight in outside:
            values[weight] = outside[weight][:, :hidden] @ directions.mT
        elif isinstance(module, nn.LayerNorm) and weight in outside and module.normalized_shape == (width,):
            gain = outside[weight][:hidden].mean() * (hidden / width) ** 0.5 * left
            values |= {weight: gain.expand(width), f"{name}.bias": torch.zeros(width)}
            values[f"{path}.bias"] = outside[f"{name}.bias"][:hidden]
    return values


def word_table(net: PreTrainedModel) -> nn.Embedding:
    """The embeddings of the words, [V, D] or narrower."""
    table = net.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table
