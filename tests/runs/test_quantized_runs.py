"""Quantization-aware distillation, from a float32 run to a file whose integers compute what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from distillery.core.errors import UserError
from distillery.models.taps.network import probe
from distillery.runs.export.export import export
from distillery.runs.job import resumed
from distillery.runs.run import train
from distillery.runs.verify_run import student_of, verify_run
from fixtures.building import build
from fixtures.datasets import write_fashion_mnist
from fixtures.runs import Died, Dies, config, sha256

SMALL = ["data.train_size=60", "data.val_size=20", "data.batch_size=20", "logger=none", "min_teacher_score=0"]
SMALL += ["student.net.depth=2", "student.net.embed_dim=32", "trainer.check_val_every_n_epoch=1"]


@pytest.fixture
def fashion(tmp_path: Path) -> Any:
    """`fashion(folder, overrides…)`: the config of a run on a few pictures of clothes."""
    write_fashion_mnist(tmp_path / "data")
    own = [*SMALL, f"data.root='{tmp_path / 'data'}'"]
    return lambda folder, *more: config(tmp_path / folder, *own, *more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_the_recipe(fashion: Any, tmp_path: Path) -> None:
    plain = ["experiment=fashion_mnist_vit", "model/teacher=none", "task.weight=1", "trainer.max_epochs=4"]
    start = train(fashion("float", *plain))
    recipe = ["experiment=fashion_mnist_vit_qad", f"student.weights='{start.folder}'", "trainer.max_epochs=2"]
    recipe += ["callbacks.checkpoint_last.every_n_epochs=1", "optim.ema=0.5"]
    cfg: DictConfig = fashion("qad", *recipe)
    result = train(cfg.copy())
    assert "8 linear layers are trained as int2_weight_only" in " ".join(result.record.remarks)
    assert result.record.teachers["main"]["sha256"] == start.record.student_sha256
    assert result.record.metrics["last"]["test_score"] == verify_run(result.folder).score

    whole = sha256(result.folder / "student.safetensors")
    cfg.paths.run = str(tmp_path / "stopped")
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(4)])
    train(resumed(tmp_path / "stopped", []))
    assert sha256(tmp_path / "stopped" / "student.safetensors") == whole

    (exported,) = export(result.folder, ["torch_export"], repeats=3)
    assert (exported.agreement, exported.score) == (1, result.record.metrics["last"]["test_score"])
    assert exported.max_difference < 1e-5
    assert exported.needs == ["torch", "torchao"]
    assert "import torchao" in (result.folder / "export" / "README.md").read_text()
    with pytest.raises(UserError, match=r"to=onnx: the student is trained with student\.qat=int2_weight_only, and"):
        export(result.folder, ["torch_export", "onnx"])
    assert not (result.folder / "export" / "onnx").exists()

    # As a teacher it rounds as it did as a student.
    teacher = build(fashion("third", "experiment=fashion_mnist_vit", f"teachers.main.weights='{result.folder}'"))
    batch = teacher.data.example()
    student = student_of(result.folder, result.parts.cfg, result.record)
    torch.testing.assert_close(probe(teacher.distiller.frozen["main"], batch).logits, probe(student, batch).logits)
