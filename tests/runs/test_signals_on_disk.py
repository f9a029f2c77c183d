"""A teacher's signals on disk: written, killed, resumed, torn, foreign; and training from them."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoTokenizer

from distillery.config.build import Parts
from distillery.core.errors import UserError
from distillery.losses.levels import LEVELS
from distillery.models.cnn import SmallCNN
from distillery.models.taps.end_before_head import before_heads
from distillery.models.weights import save_weights
from distillery.runs.run import Result, train
from distillery.runs.write_signals import Settings, write_signals
from distillery.teachers import row_signals
from distillery.teachers.check_disk_cache import rescored
from distillery.teachers.disk_cache import DiskCache
from fixtures.building import build
from fixtures.command_line import Cli
from fixtures.documents import TINY_STUDENT, documents, tiny_llama, write_bpe, write_texts
from fixtures.runs import config

Config = Callable[..., DictConfig]
K = 12
KINDS = ("hidden", "topk", "sampled", "full")
LOSSES = {
    "hidden": ["loss/response=[kd]"],
    "topk": ["loss/response=[topk_kd]", f"loss.topk_kd.k={K}", "loss.topk_kd.missing=tail"],
    "sampled": ["loss/response=[topk_kd]", f"loss.topk_kd.k={K}", "loss.topk_kd.missing=sample"],
    "full": ["loss/response=[kd]"],
}
SETTINGS = [
    "data=plain_text",
    "data.source.test_fraction=0.2",
    "data.max_length=24",
    "data.batch_size=4",
    "data.seed=3",
    "task=causal_lm",
    "model/student=causal_lm",
    *TINY_STUDENT,
    "model/teacher=causal_lm",
    "optim=adamw",
    "optim.optimizer.lr=1e-2",
    "logger=none",
    "callbacks.scale_report=null",
    "trainer.max_epochs=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    write_bpe(folder / "bpe")
    write_texts(folder / "texts", documents(24, longest=40))
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    for name, seed in (("teacher", 1), ("another", 2)):
        tiny_llama(len(tokenizer), seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Config:
    own = [f"data.source.path='{folder / 'texts'}'", f"data.tokenizer='{folder / 'bpe'}'"]
    teacher = f"teachers.main.net.model='{folder / 'teacher'}'"
    return lambda *overrides: config(folder / "run", *SETTINGS, *own, teacher, *overrides)


@pytest.fixture(scope="module")
def caches(folder: Path, made: Config) -> dict[str, Path]:
    found = {kind: folder / kind for kind in ("hidden", "topk", "sampled")}
    for kind, out in found.items():
        write_signals(made(), Settings(str(out), kind, K))  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def online(made: Config) -> Parts:
    return build(made())


def reading(made: Config, cache: Path, *overrides: str) -> Parts:
    return build(made(f"teachers.main.cache='{cache}'", *overrides))


def first_epoch(parts: Parts) -> Iterator[tuple[Mapping[str, Tensor], Tensor, Mapping[str, Tensor]]]:
    """Each batch, with the teacher's rows of logits, and what the task says of them."""
    for batch in parts.data.train_dataloader():
        rows, of_rows = parts.distiller.task.rows(parts.distiller.teachers["main"](batch, training=True), batch)
        yield batch, rows.logits, of_rows


def step(parts: Parts, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The total of the losses, and the student's gradients."""
    distiller = parts.distiller
    teacher = distiller.teachers["main"]
    with before_heads([distiller.student, teacher]):
        student, signals = distiller.student(batch), {"main": teacher(batch, training=True)}
    total = distiller.objective(student, signals, batch).total
    trained = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]
    return total.detach(), list(torch.autograd.grad(total, trained))


def test_hidden_states_train_as_the_teacher_itself_does(caches: dict[str, Path], online: Parts, made: Config) -> None:
    """Bit for bit in the batches of the first epoch; with the teacher's weights far away."""
    parts = reading(made, caches["hidden"], "teachers.main.weights=null")
    assert parts.distiller.teachers["main"].known_head is not None
    assert parts.distiller.teachers["main"].available.levels == frozenset(LEVELS)
    expected = first_epoch(online)
    for (batch, logits, _), (_, exact, _) in zip(first_epoch(parts), expected, strict=True):
        assert torch.equal(logits, exact)
        (total, gradients), (total_online, gradients_online) = step(parts, batch), step(online, batch)
        assert total == total_online
        for mine, theirs in zip(gradients, gradients_online, strict=True):
            assert torch.equal(mine, theirs)


def test_likeliest_and_drawn_classes(caches: dict[str, Path], online: Parts, made: Config) -> None:
    """Against the teacher's logits in a plain loop; values are off by no more than float16 rounds them."""
    topk, sampled = (reading(made, caches[kind], *LOSSES[kind]) for kind in ("topk", "sampled"))
    draws: dict[tuple[int, int], list[int]] = {}
    for batch, logits, of_rows in first_epoch(online):
        log_p = logits.double().log_softmax(-1)
        few, drawn = (
            parts.distiller.task.rows(parts.distiller.teachers["main"](batch, training=True), batch)[0].sparse
            for parts in (topk, sampled)
        )
        assert few is not None
        assert drawn is not None
        assert few.log_tail is not None
        best = log_p.topk(K)
        assert torch.equal(few.classes, best.indices)
        torch.testing.assert_close(few.log_p.double(), best.values, rtol=2**-11, atol=1e-6)
        rest = 1 - best.values.exp().sum(-1)
        torch.testing.assert_close(few.log_tail.double(), rest.log(), rtol=2**-11, atol=1e-5)
        assert drawn.log_tail is None
        torch.testing.assert_close(drawn.log_p.double(), log_p.gather(-1, drawn.classes), rtol=2**-11, atol=1e-6)
        for index, position, classes in zip(of_rows["index"], of_rows["position"], drawn.classes, strict=True):
            draws[int(index), int(position)] = classes.tolist()
        # the loss from disk against that from all logits
        exact = build_loss(online, batch, *LOSSES["topk"], made=made)
        assert step(topk, batch)[0] == pytest.approx(exact, rel=1e-4)
    assert len({tuple(each) for each in draws.values()}) > 0.9 * len(draws)  # each row has draws of its own
    other = write_signals(
        made("data.batch_size=7", "data.seed=9"), Settings(str(caches["sampled"]) + "2", "sampled", K)
    )
    assert other.rows == len(draws)
    one, two = (np.load(Path(f"{caches['sampled']}{end}") / "classes.npy") for end in ("", "2"))
    assert (one == two).mean() > 0.999  # a draw does not depend on the batch; its last bits may


def build_loss(online: Parts, batch: Mapping[str, Tensor], *losses: str, made: Config) -> float:
    if not hasattr(build_loss, "parts"):
        build_loss.parts = build(made(*losses))  # type: ignore[attr-defined]
    return float(step(build_loss.parts, batch)[0])  # type: ignore[attr-defined]


def test_a_soft_cap_is_stored(made: Config, folder: Path, tmp_path: Path) -> None:
    """Trap 17: of Gemma 2; when the cache is read, rows are computed again and compared."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    config = {"head_dim": 8, "final_logit_softcapping": 1.5}
    tiny_llama(len(tokenizer), kind="gemma2", **config).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    teacher = f"teachers.main.net.model='{tmp_path / 'gemma'}'"
    write_signals(made(teacher), Settings(str(tmp_path / "out"), "hidden"))
    _, logits, _ = next(first_epoch(reading(made, tmp_path / "out", teacher)))
    assert 1 < logits.abs().max() <= 1.5


def test_a_foreign_cache_is_refused(caches: dict[str, Path], made: Config, folder: Path, tmp_path: Path) -> None:
    def refused(message: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=message):
            reading(made, caches["hidden"], *overrides)

    refused("another teacher", f"teachers.main.net.model='{folder / 'another'}'")
    refused(
        r"another layout \(max_length=24 .* there, max_length=23.* here\) and another data\. W", "data.max_length=23"
    )
    refused("another precision", "trainer.precision=bf16-mixed")
    refused("data.mask|exclude each other", "data.mask=0.15")
    write_bpe(tmp_path / "bpe", size=300)
    other = [f"data.tokenizer='{tmp_path / 'bpe'}'", "teachers.main.weights=null"]
    refused("another tokenizer", *other)
    # one that lies: another teacher's rows, with sums that are right
    out = tmp_path / "lies"
    write_signals(made(f"teachers.main.net.model='{folder / 'another'}'"), Settings(str(out), "hidden"))
    said = json.loads((out / "cache.json").read_text())
    said["key"]["teacher"] = json.loads((caches["hidden"] / "cache.json").read_text())["key"]["teacher"]
    (out / "cache.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="does not agree with the teacher"):
        reading(made, out)
    # rows of the same samples, of other tokens; without a teacher, only their places can tell
    cache, parts = DiskCache(caches["hidden"]), reading(made, caches["hidden"], "teachers.main.weights=null")
    stored = cache.rows

    def moved(index: Tensor, view: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        columns, counts = stored(index, view)
        return {**columns, "positions": columns["positions"] + 1}, counts

    compared = cache, parts.data, parts.distiller.task, None, 0
    assert "are undamaged" in rescored(*compared)
    cache.rows = moved  # type: ignore[method-assign]
    with pytest.raises(UserError, match="it was written for other tokens with loss"):
        rescored(*compared)
    # other seeds, batches and parts of the samples are no other data
    parts = reading(made, caches["hidden"], "data.batch_size=3", "data.seed=8", "seed=5")
    assert "were computed again: log-probabilities differ by at most" in "".join(parts.distiller.remarks)


def test_a_cache_of_likeliest_classes_that_lies_is_refused(
    made: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tail, of which classes are the likeliest, of one twice: all log-probabilities are those of the teacher."""
    lies: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
        "honest": lambda classes, log_p, tail: (classes[:, :K], log_p[:, :K], tail),
        "tail": lambda classes, log_p, tail: (classes[:, :K], log_p[:, :K], tail - 0.1),
        "none": lambda classes, log_p, tail: (classes[:, :K], log_p[:, :K], tail * torch.nan),
        "less likely": lambda classes, log_p, tail: (
            classes[:, 1:],
            log_p[:, 1:],
            (tail.exp() + log_p[:, 0].exp() - log_p[:, K].exp()).log(),
        ),
        "one twice": lambda classes, log_p, tail: (
            classes[:, [0, *range(K - 1)]],
            log_p[:, [0, *range(K - 1)]],
            torch.logaddexp(tail, log_p[:, K - 1]),
        ),
    }
    for name, lie in lies.items():

        def lying(kind: str, logits: Tensor, *_: Any, lie: Any = lie) -> dict[str, Tensor]:
            log_p = logits.log_softmax(-1)
            best = log_p.topk(K + 1)
            tail = log_p.scatter(-1, best.indices[:, :K], -torch.inf).logsumexp(-1)
            return dict(zip(("classes", "log_p", "log_tail"), lie(best.indices, best.values, tail), strict=True))

        with monkeypatch.context() as patch:
            patch.setattr(row_signals, "few", lying)
            write_signals(made(), Settings(str(tmp_path / name), "topk", K))
        if name == "honest":
            reading(made, tmp_path / name, *LOSSES["topk"])
        else:
            with pytest.raises(UserError, match="does not agree with the teacher"):
                reading(made, tmp_path / name, *LOSSES["topk"])


@pytest.mark.slow
def test_images_too(tmp_path: Path) -> None:
    """All logits, one row for each image: bit for bit; a subset of the samples, in batches of another size."""
    torch.manual_seed(0)
    save_weights(SmallCNN(10, 1, (4, 6)), tmp_path / "teacher.safetensors")
    small = ["experiment=digits_demo", "model/teacher=cnn", "teachers.main.net.widths=[4,6]", "data.train_size=60"]
    small.append("data.augment=null")
    given = [
        *small,
        f"teachers.main.weights='{tmp_path / 'teacher.safetensors'}'",
        "data.batch_size=20",
        "data.augment=null",
    ]
    write_signals(config(tmp_path / "run", *given), Settings(str(tmp_path / "full"), "full"))
    online, parts = (
        build(config(tmp_path / "run", *given, *more)) for more in ([], [f"teachers.main.cache='{tmp_path / 'full'}'"])
    )
    for (batch, logits, _), (_, exact, _) in zip(first_epoch(parts), first_epoch(online), strict=True):
        assert torch.equal(logits, exact)
        assert step(parts, batch)[0] == step(online, batch)[0]
    task, data = online.distiller.task, online.data
    scores: list[Any] = [each.distiller.frozen["main"].evaluation(data, "test", task, 10) for each in (online, parts)]
    assert scores[0].score == scores[1].score
    assert torch.equal(scores[0].predicted, scores[1].predicted)
    for setting, message in {
        "data.train_size=70": "has no signals of [0-9]+ of the 70 training samples",
        "data.augment={crop: 1}": "makes another version of it in each epoch",
        "loss/feature=[hint]": "only the logits are known",
    }.items():
        with pytest.raises(UserError, match=message):
            build(config(tmp_path / "run", *given, f"teachers.main.cache='{tmp_path / 'full'}'", setting))


@pytest.mark.slow
def test_the_command(cli: Cli, folder: Path) -> None:
    own = [f"data.source.path='{folder / 'texts'}'", f"data.tokenizer='{folder / 'bpe'}'"]
    own += [*SETTINGS, f"teachers.main.net.model='{folder / 'teacher'}'"]
    code, said = cli("cache", *own, "signals=topk", "k=auto", "out=signals")
    said = " ".join(said.split())
    assert code == 0, said
    assert "compared with the class frequencies" in said
    assert "Use it: teachers.main.cache=signals" in said
    for wrong, message in {"signals=some": "signals=some", "k=0": "k=0", "teacher=b": "Choose from: main"}.items():
        code, said = cli("cache", *own, "out=other", wrong)
        assert code == 2
        assert message in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_runs_from_disk(folder: Path, caches: dict[str, Path], made: Config) -> None:
    """Whole runs: the student, its teacher's score and the report's row are those of the teacher itself."""

    def run(name: str, *overrides: str) -> Result:
        cfg = made(*overrides)
        cfg.paths.run = str(folder / name)
        return train(cfg)

    half = ["trainer.precision=bf16-true", "task.rows_per_chunk=null"]
    write_signals(made(*half), Settings(str(folder / "half"), "hidden"))
    pairs = [run("half_online", *half), run("half_run", *half, f"teachers.main.cache='{folder / 'half'}'")]
    for a, b in zip(*(each.parts.distiller.student.parameters() for each in pairs), strict=True):
        assert torch.equal(a, b)
    assert pairs[0].record.teachers["main"]["score"] == pairs[1].record.teachers["main"]["score"]
    for kind in KINDS:
        if kind not in caches:
            write_signals(made(), Settings(str(folder / kind), kind, K))  # type: ignore[arg-type]
        read = run(f"{kind}_run", f"teachers.main.cache='{folder / kind}'", *LOSSES[kind])
        own = run(f"{kind}_online", *LOSSES[kind])
        theirs, mine = (dict(each.record.teachers["main"]) for each in (own, read))
        for measured in ("latency_ms", "latency"):
            assert (mine.pop(measured), theirs.pop(measured) is not None) == (None, True)
        assert mine == theirs
        exact = kind in ("hidden", "full")
        for (name, a), b in zip(
            own.parts.distiller.student.named_parameters(), read.parts.distiller.student.parameters(), strict=True
        ):
            if exact:
                assert torch.equal(a, b), name
            elif kind == "topk":
                torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)
