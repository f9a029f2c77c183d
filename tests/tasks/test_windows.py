"""Strided windows against a loop over every window of every document, with transformers alone."""

import math
from pathlib import Path

import pytest
import torch

from distillery.core.errors import UserError
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.tasks.windows import strided
from fixtures.documents import HARD, document_data, documents, tiny_llama, write_bpe

TEXTS = [*documents(4, longest=30), *HARD]


def test_each_token_counts_once_with_the_context_of_its_window(tmp_path: Path) -> None:
    """As transformers' guide to perplexity does it: only what no window before has predicted."""
    data = document_data(write_bpe(tmp_path), TEXTS, pack=False, max_length=10_000)
    data.setup("test")
    tokenizer, net = data.loaded_tokenizer, tiny_llama(data.vocab_size)
    network = Network(net, TextAdapter(net))
    scores = {}
    for length, stride, rows in ((12, 2, 7), (12, 5, 3), (12, 11, 64), (64, 30, 2)):
        nats = lost = 0.0
        tokens = sizes = 0
        for text in TEXTS:
            ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
            reached = 0
            for begin in range(0, len(ids), stride):
                end = min(begin + length, len(ids))
                with torch.no_grad():
                    chances = net(input_ids=ids[None, begin:end]).logits[0].double().log_softmax(-1)
                for place in range(max(1, reached, begin + 1), end):
                    own = -chances[place - 1 - begin, ids[place]].item()
                    lost, tokens = lost + own, tokens + 1
                    nats += own * (place < len(ids) - 1)
                reached = end
                if end == len(ids):
                    break
            sizes += len(text.encode()) - len(tokenizer.convert_ids_to_tokens(int(ids[0])))
        windows = strided(data.test_dataloader(), length, stride, rows)
        found = evaluate(network, windows, CausalLM(), data.vocab_size)
        assert found.score == pytest.approx(nats / math.log(2) / sizes, rel=1e-6)
        assert (found.loss, len(found.target)) == (pytest.approx(lost / tokens, rel=1e-6), tokens)
        scores[length, stride] = found.score
    assert len(set(scores.values())) == 4
    served = document_data(str(tmp_path), TEXTS, max_length=12)
    served.setup("test")
    pieces = evaluate(network, served.test_dataloader(), CausalLM(), data.vocab_size).score
    assert scores[12, 11] == pytest.approx(pieces, rel=1e-6), "the pieces that the data serve"
    for wrong in (0, 12, 2.5):
        with pytest.raises(UserError, match=r"stride=.*from 1 to 11.*stride=6 gives"):
            next(strided([], 12, wrong, 4))  # type: ignore[arg-type]
    task = CausalLM()
    assert task.measured(served) == "windows of 12 tokens, stride 11, prefix token none"
    assert task.measured(served, 3) == "windows of 12 tokens, stride 3, prefix token none"
