"""Signals in files: killed, resumed, torn; what is stored of a row, and how many classes are enough."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.sparse import TopK, drawn, sparse_kl
from distillery.models.taps.end_before_head import before_heads
from distillery.teachers import write_disk_cache
from distillery.teachers.cache_format import Contents, Kind, Layer, Layout
from distillery.teachers.cached_teacher import CachedTeacher
from distillery.teachers.choose_k import candidates, losses_by_k, smallest
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.row_signals import few
from distillery.teachers.write_disk_cache import Rows, finish, tell_size, write_cache

CLASSES, K = 50, 4
STORED: dict[str, Layer] = {
    "layers.a": Layer(shape=[3, 2, 2], dtype="float32", stored="float32"),
    "layers.b": Layer(shape=[3, 2, 2], dtype="float32", stored="int8"),
}
LENGTHS = np.array([3, 5, 0, 2, 7, 1, 4])  # rows of samples 10, 20, …
INDEX = 10 * (1 + np.arange(len(LENGTHS)))
ORDER = (4, 0, 3, 1, 6, 5, 2)  # in which they are computed, two at a time


def contents(kind: Kind = "topk", **other: Any) -> Contents:
    few = kind in ("topk", "sampled")
    given = Contents(
        kind, K if few else 0, "float32", 0, CLASSES, 6, None, len(INDEX), 22, True, 9, {"teacher": "a"}, {}
    )
    return replace(given, **other)


def logits_of(sample: int, view: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sample + 100 * view)
    return torch.randn(int(LENGTHS[sample]), CLASSES, generator=generator) * 3


def layers_of(sample: int, view: int) -> Tensor:
    return torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1000 + sample + 100 * view))


def rows(kind: Kind, samples: tuple[int, ...], view: int = 0) -> Rows:
    index = torch.cat([torch.full((int(LENGTHS[each]),), int(INDEX[each])) for each in samples])
    position = torch.cat([torch.arange(int(LENGTHS[each])) * 2 % 9 for each in samples])
    logits = torch.cat([logits_of(each, view) for each in samples])
    columns = {"hidden": logits[:, :6]} if kind == "hidden" else few(kind, logits, K, 0, index, position)
    layers = torch.stack([layers_of(each, view) for each in samples])
    return Rows(columns, index, position, view, {"layers.a": layers, "layers.b": 2 * layers})


def write(folder: Path, what: Contents, every: float = 0.0, interrupted: int | None = None) -> None:
    batches = [(view, ORDER[at : at + 2]) for view in range(what.views) for at in range(0, len(ORDER), 2)]
    head = {"weight": torch.ones(CLASSES, 6)} if what.signals == "hidden" else {}
    computed: list[Mapping[str, Any]] = []

    def start(first: int) -> Iterator[Mapping[str, Any]]:
        return ({"samples": samples, "view": view} for view, samples in batches[first:])

    def rows_of(batch: Mapping[str, Any]) -> Rows:
        if len(computed) == interrupted:
            raise KeyboardInterrupt
        computed.append(batch)
        return rows(what.signals, batch["samples"], batch["view"])

    made = write_cache(folder, what, Layout(INDEX, LENGTHS), start, len(batches), rows_of, head, every)
    finish(folder, made)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(write: Callable[[], Any], after: int) -> bool:
    """Run it in a process that is killed when it replaces a file for the `after`-th time. Whether it came to that."""
    if not (child := os.fork()):
        try:
            seen, replaced = 0, Path.replace

            def counted(self: Path, target: Any) -> Path:
                nonlocal seen
                seen += 1
                if seen == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replaced(self, target)

            Path.replace = counted  # type: ignore[method-assign, assignment]
            write()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_cache_is_resumed_and_ends_byte_equal(tmp_path: Path) -> None:
    """Killed at every file that takes another's place: between these nothing is said to be done."""
    what, out, kills = contents("topk", views=2, layers=STORED), tmp_path / "killed", 0
    write(tmp_path / "whole", what, every=99)
    while killed(lambda: write(out, what), after=1 + kills):
        kills += 1
        if (out / "cache.json").is_file():
            with pytest.raises(UserError, match="the cache is not complete"):
                DiskCache(out)
            with pytest.raises(UserError, match=r"holds other signals \(another teacher: a there, b here\)"):
                write(out, replace(what, key={"teacher": "b"}))
            with pytest.raises(UserError, match=r"holds other signals \(another k: "):
                write(out, replace(what, k=what.k + 1))
    assert kills > 2
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt', which is not part of a cache"):
        write(tmp_path / "mine", what)


def test_a_cache_that_the_user_stops_keeps_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what, out = contents("topk", views=2, layers=STORED), tmp_path / "stopped"
    with pytest.raises(UserError, match=r"^Stopped: .*stopped holds 1 of \d+ batches\. Repeat the command"):
        write(out, what, every=99, interrupted=1)
    write(out, what, every=99)
    assert "stopped holds 1 of " in capsys.readouterr().out
    write(tmp_path / "whole", what, every=99)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_space_is_not_reserved_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "reserved", contents("full"))
    monkeypatch.delattr(os, "posix_fallocate")
    write(tmp_path / "not", contents("full"))
    assert bytes_of(tmp_path / "not") == bytes_of(tmp_path / "reserved")


def test_rows_are_found_by_sample_and_position(tmp_path: Path) -> None:
    write(tmp_path / "a", contents("full"))
    cache = DiskCache(tmp_path / "a")
    found = cache.padded(torch.tensor([50, 30, 10]), 14)["logits"]
    for row, sample in zip(found, (4, 2, 0), strict=True):
        expected = torch.zeros(14, CLASSES)
        expected[torch.arange(int(LENGTHS[sample])) * 2 % 9] = logits_of(sample)
        assert torch.equal(row, expected)
    for absent in (5, 15, 99):
        with pytest.raises(UserError, match=f"no signals of sample {absent}"):
            cache.rows(torch.tensor([10, absent]))


def test_each_view_has_rows_and_layers_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a", contents("full", views=3, layers=STORED))
    cache, samples = DiskCache(tmp_path / "a"), (4, 0, 4)
    index, view = torch.from_numpy(INDEX[[*samples]]), torch.tensor([2, 1, 0])
    found, counts = cache.rows(index, view)
    assert counts.tolist() == [7, 3, 7]
    expected = [(sample, each) for sample, each in zip(samples, view.tolist(), strict=True)]
    assert torch.equal(found["logits"], torch.cat([logits_of(*each) for each in expected]))
    layers = cache.layers(["layers.a", "layers.b"], index, view)
    exact = torch.stack([layers_of(*each) for each in expected])
    assert torch.equal(layers["layers.a"], exact)
    step = 2 * exact.flatten(1).abs().amax(1) / 127
    assert ((layers["layers.b"] - 2 * exact).abs().flatten(1).amax(1) <= 0.501 * step).all()
    assert cache.layers(["layers.b"], index).keys() == {"layers.b"}
    (tmp_path / "a" / "layer0.npy").write_bytes((tmp_path / "a" / "layer0.npy").read_bytes()[:-1] + b"?")
    torn = DiskCache(tmp_path / "a")
    torn.layers(["layers.b"], torch.tensor([70]), torch.tensor([2]))
    with pytest.raises(UserError, match="the signals of sample 70 do not match their checksum"):
        torn.layers(["layers.a"], torch.tensor([70]), torch.tensor([2]))


def test_a_cache_of_the_first_version_is_read(tmp_path: Path) -> None:
    """It has one view, no layers, and one checksum for each sample."""
    write(tmp_path / "a", contents("full"))
    manifest, sums = tmp_path / "a" / "cache.json", tmp_path / "a" / "checksums.npy"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: said[key] for key in said if key not in ("views", "layers")} | {"version": 1}))
    np.save(sums, np.load(sums)[:, 0])
    assert torch.equal(DiskCache(tmp_path / "a").rows(torch.tensor([50]))[0]["logits"], logits_of(4))
    manifest.write_text(json.dumps(said | {"version": 3}))
    with pytest.raises(UserError, match="has version 3, and this version of Distillery reads up to 2"):
        DiskCache(tmp_path / "a")


def test_hidden_rows_have_the_head_that_they_were_written_for(tmp_path: Path) -> None:
    """Trap 17: with its soft-cap, whether all logits are computed at once or a few rows at a time."""
    about = {"source": "", "sha256": "a", "about_classes": "", "other_classes": False, "cost": None}
    write(tmp_path / "a", contents("hidden", softcap=2.0, teacher=about))
    teacher = CachedTeacher(DiskCache(tmp_path / "a"), "main")
    batch = {"index": torch.tensor([50, 10]), "target": torch.zeros(2, 9, dtype=torch.int64)}
    expected = torch.zeros(2, 9, CLASSES)
    for row, sample in enumerate((4, 0)):
        sums = logits_of(sample)[:, :6].sum(1, keepdim=True)  # its head is all ones
        expected[row, torch.arange(int(LENGTHS[sample])) * 2 % 9] = (2 * (sums / 2).tanh()).expand(-1, CLASSES)
    torch.testing.assert_close(teacher(batch, training=True).logits, expected)
    teacher.known_head = teacher.stored_head
    with before_heads([teacher]):
        headed = teacher(batch, training=True).headed
    assert headed is not None
    torch.testing.assert_close(headed.logits(), expected)


def test_a_torn_cache_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "whole", contents("hidden"))

    def torn(change: Callable[[Path], object]) -> Path:
        out = tmp_path / "torn"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", out)
        change(out)
        return out

    def cut(out: Path, name: str) -> None:
        os.truncate(out / name, (out / name).stat().st_size - 20)

    def flip(out: Path, name: str) -> None:
        content = bytearray((out / name).read_bytes())
        content[-1] ^= 1
        (out / name).write_bytes(content)

    for name in ("hidden.npy", "positions.npy", "index.npy", "lengths.npy", "checksums.npy", "head.safetensors"):
        for change in (lambda out, name=name: cut(out, name), lambda out, name=name: (out / name).unlink()):
            with pytest.raises(UserError, match=f"{name} is missing or not as"):
                DiskCache(torn(change))
    for name in ("lengths.npy", "head.safetensors"):
        with pytest.raises(UserError, match=f"{name} is missing or not as"):
            DiskCache(torn(lambda out, name=name: flip(out, name)))
    for name in ("hidden.npy", "positions.npy"):
        cache = DiskCache(torn(lambda out, name=name: flip(out, name)))
        cache.rows(torch.tensor([10, 20, 30, 40, 50, 60]))
        with pytest.raises(UserError, match="is damaged: the signals of sample 70"):
            cache.rows(torch.tensor([70]))
    with pytest.raises(UserError, match=r"cache\.json is damaged"):
        DiskCache(torn(lambda out: cut(out, "cache.json")))
    with pytest.raises(UserError, match="holds no teacher's signals"):
        DiskCache(tmp_path)


def test_the_size_is_told_before_and_a_full_disk_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    what = contents("topk", dtype="float16")
    assert what.bytes_a_row == 4 * 2 + 4 * 2 + 2 + 2  # ids, log-probabilities, tail, position
    assert contents("topk", classes=65_537).bytes_a_row == 4 * 4 + 4 * 4 + 4 + 2
    write(tmp_path / "a", what)
    sizes = {name: len(content) for name, content in bytes_of(tmp_path / "a").items() if name.endswith(".npy")}
    assert sum(sizes.values()) - 128 * len(sizes) == what.bytes  # NumPy's headers
    tell_size(what, tmp_path / "b")
    assert "22 tokens that can contribute to the loss, 20 bytes each" in capsys.readouterr().out
    images = contents("full", dtype="int8", per_token=False, rows=7, views=3, layers=STORED)
    assert images.bytes_a_row == 50 + 4  # and the scale
    assert images.bytes == 3 * 7 * (54 + 48 + 12 + 4 + 3 * 4) + 7 * 8  # layers, one with a scale; checksums; index
    tell_size(images, tmp_path / "b")
    said = " ".join(capsys.readouterr().out.split())
    assert "21 samples (3 views of 7) that can contribute to the loss, 118 bytes each (54 of them for logits" in said
    monkeypatch.setattr(write_disk_cache, "free_bytes", lambda folder: 500)
    with pytest.raises(UserError, match=r"are 552 bytes, but the disk of .* has 500 bytes free"):
        tell_size(what, tmp_path / "b")


def test_types(tmp_path: Path) -> None:
    """What each of them costs: half a unit in the last place. Autocast, as of bf16-mixed, leaves them as they are."""
    exact = torch.cat([logits_of(sample) for sample in range(len(LENGTHS))])
    for dtype, bits in (("float32", 24), ("float16", 11), ("bfloat16", 8)):
        write(tmp_path / dtype, contents("full", dtype=dtype))
        found, _ = DiskCache(tmp_path / dtype).rows(torch.from_numpy(INDEX))
        assert str(found["logits"].dtype) == f"torch.{dtype}"
        assert ((found["logits"].float() - exact).abs() <= 2.0**-bits * exact.abs()).all()
        assert torch.equal(found["logits"].float(), exact) is (dtype == "float32")
        with torch.autocast("cpu", torch.bfloat16):
            padded = DiskCache(tmp_path / dtype).padded(torch.from_numpy(INDEX), 9)["logits"]
        places = [(row, place) for row, length in enumerate(LENGTHS) for place in range(length)]
        assert torch.equal(torch.stack([padded[row, 2 * place % 9] for row, place in places]), found["logits"])
    columns = contents("full", dtype="float16").columns
    with pytest.raises(UserError, match="the teacher's values reach"):
        write_disk_cache.to_arrays({"logits": torch.tensor([[1e6]])}, columns)


def test_drawn_classes_are_unbiased(tmp_path: Path) -> None:
    """By enumeration of the draws: a class of probability p has a share p of them, and Σ 1/k · log p its mean."""
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    grid = (torch.arange(2000) + 0.5) / 2000
    shares = torch.bincount(drawn(log_p, grid[None])[0], minlength=4) / 2000
    torch.testing.assert_close(shares, log_p.exp()[0], rtol=0, atol=1 / 2000)
    index, position = torch.arange(40_000) // 200, torch.arange(40_000) % 200
    found = few("sampled", log_p.expand(40_000, 4), 3, 7, index, position)["classes"]
    for place in range(3):  # each draw of a row by itself, and two of them together: 4 standard errors
        shares = torch.bincount(found[:, place], minlength=4) / 40_000
        torch.testing.assert_close(shares, log_p.exp()[0], rtol=0, atol=4 * 0.5 / 200)
    both = torch.bincount(4 * found[:, 0] + found[:, 1], minlength=16).view(4, 4) / 40_000
    torch.testing.assert_close(both, log_p.exp().T @ log_p.exp(), rtol=0, atol=4 * 0.4 / 200)
    some = torch.tensor([7, 39_999, 12])  # a draw depends on the row's place alone, and on the seed
    again = few("sampled", log_p.expand(3, 4), 3, 7, index[some], position[some])["classes"]
    assert torch.equal(again, found[some])
    assert not torch.equal(few("sampled", log_p.expand(40_000, 4), 3, 8, index, position)["classes"], found)


def test_the_table_of_k() -> None:
    """Against the figures of the field study (KL .227088, with two classes and a tail .223805), and NumPy."""
    t, s = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0.2, 0.5, 0.2, 0.1]]).log()
    (two,) = losses_by_k(t, s, [2])
    assert two.full == pytest.approx(0.227088, abs=1e-6)
    assert two.gap == pytest.approx(0.227088 - 0.223805, abs=1e-6)
    assert two.kept == pytest.approx(0.8)
    exact = np.array([-0.3, 0.2, 0.05, 0.05])
    found = np.array([-0.3, 0.2, 0.2 - 0.2 * 0.2 / 0.3, 0.1 - 0.2 * 0.1 / 0.3])  # the student's shares of the tail
    assert two.gradient == pytest.approx(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    student = torch.randn(150, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    rows = torch.randn(150, 64, generator=torch.Generator().manual_seed(0)) * 4
    losses = losses_by_k(rows, torch.zeros(150, 64), candidates(64))
    assert [loss.k for loss in losses] == [1, 2, 4, 8, 16, 32]
    assert all(a.kept < b.kept and a.gap > b.gap >= 0 for a, b in pairwise(losses))
    assert losses[0].kept == pytest.approx(rows.softmax(-1).max(-1).values.mean().item())
    (eight,) = losses_by_k(rows, student.detach(), [8])
    log_t, log_s = rows.double().log_softmax(-1), student.log_softmax(-1)
    ranked = log_t.topk(8).indices
    bucket = sparse_kl(TopK.of(log_s, ranked), TopK.of(log_t, ranked), "tail").sum()
    whole = torch.nn.functional.kl_div(log_s, log_t, reduction="sum", log_target=True)
    mine, theirs = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (bucket, whole))
    assert eight.gap == pytest.approx((whole - bucket).item() / 150)
    assert eight.gradient == pytest.approx(((mine - theirs).norm() / theirs.norm()).item())
    assert smallest(losses, 1.0).k == 1
    assert smallest(losses, losses[3].gradient).k == 8
    assert smallest(losses, 0.0).k == 32
