"""A cached teacher of texts: where a token counts, what is recalled is what the teacher gives in any batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.raw_data import Texts
from distillery.data.text import TextData
from distillery.losses.signals import Signals
from distillery.models.adapters import TextAdapter
from distillery.models.weights import save_weights
from distillery.runs.run import train
from distillery.teachers import cache
from distillery.teachers.cache import TeacherCache
from distillery.teachers.frozen import Teacher
from fixtures.composing import Compose
from fixtures.texts import bert_overrides, sentences, text_data, tiny_bert, write_csv, write_tokenizer

TEXTS = [text for text, _ in sentences(60)]
LAYERS = ["bert.encoder.layer.0", "bert.encoder.layer.1:input", "bert.embeddings", "classifier", "classifier:weight"]
ATTENTION = ["bert.encoder.layer.0.attention.self", "bert.encoder.layer.1.attention.self"]
LOSSES = ("kd", "hidden_mse", "tinybert_attention", "minilm", "pkd")
BATCH = 16  # texts of one forward of the teacher: of four batches, each padded to another length


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tapped(data: TextData, head: str = "sequence_classification", **config: Any) -> Teacher:
    net = tiny_bert(head, 3, **config)
    teacher = Teacher(net, TextAdapter(net), name="main")
    teacher.tap(LAYERS, data.example())
    teacher.tap_attention(ATTENTION, data.example())
    return teacher


def cached(teacher: Teacher, data: TextData) -> TeacherCache:
    return TeacherCache(partial(teacher.compute, training=True), teacher.fingerprint(), data)


def assert_same_where_it_counts(found: Signals, expected: Signals, mask: Tensor) -> None:
    """Of each text alone: its own tokens, and nothing but zeros in the place of padding."""
    counts = mask.bool()
    assert found.mask is not None
    assert torch.equal(found.mask, mask)
    pairs = {"logits": (found.logits, expected.logits)}
    assert found.layers.keys() == expected.layers.keys()
    pairs |= {tap: (found.layers[tap], expected.layers[tap]) for tap in LAYERS}
    assert found.attention.keys() == expected.attention.keys()
    for tap in ATTENTION:
        both = found.attention[tap], expected.attention[tap]
        assert both[0].scale == both[1].scale
        for part in ("query", "key", "value"):
            one, other = (getattr(attention, part).transpose(1, 2) for attention in both)
            pairs[f"{tap} {part}"] = one, other
        one, other = (attention.masked_scores().softmax(-1).transpose(1, 2) for attention in both)
        pairs[f"{tap} probabilities"] = one, other
    for name, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape, name
        if ours.shape[:2] == counts.shape:
            torch.testing.assert_close(ours[counts], theirs[counts], rtol=0, atol=1e-5)
            assert "probabilities" in name or not ours[~counts].any(), name
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
def test_in_whatever_batch(head: str, folder: str) -> None:
    data = text_data(folder, Texts(TEXTS), eval_batch_size=BATCH)
    teacher = tapped(data, head)
    recalled = cached(teacher, data)
    padded = 0
    for size, bucket, epoch in ((8, 50, 0), (7, 0, 0), (7, 0, 1), (60, 50, 0), (2, 0, 5)):
        loader = text_data(folder, Texts(TEXTS), batch_size=size, bucket=bucket).train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert_same_where_it_counts(recalled.signals(batch), teacher(batch), batch["attention_mask"])
            padded += int((batch["attention_mask"] == 0).sum())
    assert padded > 1000
    one = next(iter(loader))
    wider = {name: torch.nn.functional.pad(one[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    wider |= {"token_type_ids": torch.zeros_like(wider["input_ids"]), "index": one["index"]}
    assert_same_where_it_counts(recalled.signals(wider), teacher(wider), wider["attention_mask"])


def test_pairs_of_a_subset(folder: str) -> None:
    """Positions in the data are not those in the cache, and the second texts are read too."""
    data = text_data(folder, Texts(TEXTS, TEXTS[::-1]), train_size=24, max_length=30)
    teacher = tapped(data)
    recalled = cached(teacher, data)
    for batch in data.train_dataloader():
        assert_same_where_it_counts(recalled.signals(batch), teacher(batch), batch["attention_mask"])


def test_each_text_runs_once(folder: str) -> None:
    data = text_data(folder, Texts(TEXTS), eval_batch_size=BATCH)
    teacher = tapped(data)
    seen: list[Tensor] = []

    def compute(batch: dict[str, Tensor]) -> Signals:
        seen.append(batch["index"])
        return teacher.compute(batch, training=True)

    recalled = TeacherCache(compute, "one", data)  # type: ignore[arg-type]
    for _ in range(2):
        for batch in data.train_dataloader():
            recalled.signals(batch)
    assert sorted(torch.cat(seen).tolist()) == list(range(60))
    assert len(seen) == 4


@pytest.mark.parametrize(("share", "refused"), [(0.98, True), (1.02, False)])
def test_memory_is_that_of_the_tokens_that_count(
    share: float, refused: bool, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the padding: logits a text; two layers, the embeddings and six operands, 16 numbers each, a token."""
    data = text_data(folder, Texts(TEXTS), eval_batch_size=BATCH)
    teacher = tapped(data)
    tokens = sum(len(ids) for ids in data.loaded_tokenizer(TEXTS)["input_ids"])
    needed = 4 * (60 * 3 + 60 * 3 + tokens * (2 + 1 + 6) * 16)
    monkeypatch.setattr(cache.os, "sysconf", lambda _: (2 * share * needed) ** 0.5)
    recalled, batch = cached(teacher, data), next(iter(data.train_dataloader()))
    cache._held.cache_clear()
    if refused:
        with pytest.raises(UserError, match=r"The teacher's signals for 60 samples would take .*cache=false"):
            recalled.signals(batch)
    else:
        recalled.signals(batch)


def test_a_decoder_is_refused(folder: str) -> None:
    """Which of the tokens before it a token sees is not kept."""
    data = text_data(folder, Texts(TEXTS), eval_batch_size=BATCH)
    teacher = tapped(data, is_decoder=True)
    recalled = cached(teacher, data)
    with pytest.raises(UserError, match=r"'bert\.encoder\.layer\.0\.attention\.self' is not that of an encoder.*cache"):
        recalled.signals(next(iter(data.train_dataloader())))


def test_masked_texts_are_refused(folder: str) -> None:
    data = text_data(folder, Texts(TEXTS), mask=0.15)
    with pytest.raises(UserError, match=r"data\.mask makes another version.*data\.mask=null, or .*cache=false"):
        TeacherCache(lambda batch: Signals(batch["index"]), "one", data)


@pytest.fixture
def run(compose_train: Compose, folder: str, tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """`run(name, overrides…)`: what each loss was in each step of a run on 58 texts, with a teacher of four layers."""
    rows = write_csv(tmp_path / "own.csv", sentences(80))
    weights = tmp_path / "teacher.safetensors"
    save_weights(tiny_bert(num_hidden_layers=4, hidden_size=24), weights)
    given = [
        "data=text_csv",
        f"data.source.path={rows}",
        f"data.tokenizer={folder}",
        "data.batch_size=16",
        "model/student=transformer",
        *bert_overrides("student"),
        "model/teacher=transformer",
        *bert_overrides("teachers.main", num_hidden_layers=4, hidden_size=24),
        f"teachers.main.weights={weights}",
        "loss/response=[kd]",
        "loss/feature=[hidden_mse,pkd]",
        "loss/attention=[tinybert_attention,minilm]",
        "optim=adamw",
        "optim.optimizer.lr=1e-3",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "callbacks.scale_report=null",
    ]

    def trained(name: str, *overrides: str) -> pd.DataFrame:
        result = train(compose_train(*given, *overrides, run=name))
        logged = pd.read_csv(result.folder / "metrics" / "version_0" / "metrics.csv").dropna(subset=["train/loss"])
        return logged.set_index("step")[[f"train/{loss}" for loss in ("task", *LOSSES)]]

    return trained


@pytest.mark.slow
def test_a_run_with_a_cached_teacher_has_the_same_losses(run: Callable[..., pd.DataFrame]) -> None:
    plain, kept = run("plain"), run("cached", "teachers.main.cache=true")
    assert len(plain) == 2 * 4
    pd.testing.assert_frame_equal(kept, plain, check_exact=False, rtol=0, atol=1e-5)
    assert (plain.min() > 1e-3).all()
    assert (plain.std() > 1e-3).all()
