"""Masked tokens: rows, loss and score against loops."""

import math
from types import SimpleNamespace

import pytest
import torch

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.masked_lm import MaskedLM

VOCABULARY = 11
TARGET = torch.tensor([[-100, 4, -100, 10], [-100, -100, -100, -100], [0, -100, 7, -100]])
INDEX = torch.tensor([30, 10, 20])
PLACES = [(0, 1, 4), (0, 3, 10), (2, 0, 0), (2, 2, 7)]  # sample, token, target


def logits(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_rows_are_the_masked_tokens_with_their_samples() -> None:
    """A text without any has no row."""
    given = logits()
    rows, labelled = MaskedLM().rows(Signals(given), {"target": TARGET, "index": INDEX})
    assert rows.logits.tolist() == [given[sample, token].tolist() for sample, token, _ in PLACES]
    assert labelled["target"].tolist() == [target for *_, target in PLACES]
    assert labelled["index"].tolist() == [30, 30, 20, 20]
    assert labelled["position"].tolist() == [token for _, token in (TARGET != -100).nonzero().tolist()]


def test_loss_is_that_of_each_masked_token_in_nats() -> None:
    given = logits()
    task = MaskedLM()
    rows, labelled = task.rows(Signals(given), {"target": TARGET, "index": INDEX})
    expected = []
    for sample, token, target in PLACES:
        values = given[sample, token].tolist()
        expected.append(math.log(sum(map(math.exp, values))) - values[target])
    assert task.loss(rows.logits, labelled["target"]).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_a_network_of_16_bits_is_of_32(dtype: torch.dtype) -> None:
    rows = 100 * logits(dtype).flatten(0, 1)
    target = torch.arange(12) % VOCABULARY
    loss = MaskedLM().loss(rows, target)
    assert loss.dtype == torch.float32
    exact = torch.logsumexp(rows.double(), 1) - rows.double()[range(12), target]
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-4)


def test_score_is_the_share_of_masked_tokens_found() -> None:
    """Of tokens, not of texts or of vocabulary entries."""
    task = MaskedLM()
    metric = task.metric(VOCABULARY)
    given = logits()
    given[0, 1, 4] = given[2, 0, 0] = given[2, 2, 7] = 9.0  # found out: three of four
    given[0, 3, 10] = -9.0
    for samples in ([0, 1], [2]):
        rows, labelled = task.rows(Signals(given[samples]), {"target": TARGET[samples], "index": INDEX[samples]})
        metric.update(rows.logits, labelled["target"])
    assert metric.compute().item() == 0.75
    assert task.predict(given[2, [0, 2]]).tolist() == [0, 7]


def test_refusals() -> None:
    data = SimpleNamespace(name="x", classes=(), vocab_size=VOCABULARY, mask=0.15)
    assert MaskedLM().outputs(data) == VOCABULARY
    with pytest.raises(UserError, match=r"no tokens of 'x' are masked.* Set data.mask=0.15"):
        MaskedLM().outputs(SimpleNamespace(name="x", classes=("a", "b"), vocab_size=VOCABULARY, mask=None))
    with pytest.raises(UserError, match=r"'digits' has no tokens to mask. Choose a data set of texts"):
        MaskedLM().outputs(SimpleNamespace(name="digits", classes=("0", "1")))
    with pytest.raises(UserError, match=r"task=masked_lm: the targets of this batch, \[3\], are one for each sample"):
        MaskedLM().rows(Signals(logits()), {"target": INDEX, "index": INDEX})
    with pytest.raises(UserError, match=r"task=masked_lm: the network returns logits \[3, 11\].* head masked_lm"):
        MaskedLM().rows(Signals(logits()[:, 0]), {"target": TARGET, "index": INDEX})
