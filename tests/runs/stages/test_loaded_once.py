"""What is heavy is made once in a run: teachers are loaded and hashed, data sets are read."""

from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from distillery.config import loaded_teachers
from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import build_teacher
from distillery.data.sources import digits
from distillery.models import weights
from distillery.results.record import RunRecord
from distillery.runs import score_run
from distillery.runs.run import train
from distillery.runs.verify_run import verify_run
from distillery.tasks.evaluate import evaluate
from distillery.teachers import frozen
from fixtures.building import build
from fixtures.runs import STUDENT, config

HINT_THEN_KD = (
    "+stages={a: {epochs: 1, task: {weight: 0}, loss: {hint: {}}}, b: {epochs: 1, task: {weight: 1}, loss: {kd: {}}}}",
    "loss/feature=[hint]",
)
CURRICULUM = (
    "+stages={easy: {epochs: 1, easiest: 0.3}, next: {epochs: 1, easiest: 0.5}, most: {epochs: 1, easiest: 0.7}}",
)
SIMKD = ("model/student=simkd", "loss/response=[]", "loss/feature=[simkd]", "task.weight=0")
EARLIER_ONLY = ("+stages={taught: {epochs: 1}, alone: {epochs: 1, teacher: none, loss: {}}}",)


class UntilFirstStep(L.Callback):
    """Keeps what was counted when the first batch of the run is trained on."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.before: Counter[str] = Counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.before = self.before or self.counts.copy()


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a teacher was loaded, hashed, scored and run (on any batch), and the data were read."""
    found: Counter[str] = Counter()
    nets: list[torch.nn.Module] = []
    original_build, original_hash, original_digits = build_teacher, weights.weights_hash, digits.digits

    def counted_build(*arguments: Any) -> frozen.Teacher:
        found["loaded"] += 1
        teacher = original_build(*arguments)
        nets.append(teacher.net)
        teacher.net.register_forward_pre_hook(lambda *_: found.update(forwards=1))
        return teacher

    def counted_hash(net: torch.nn.Module, *stored: Any) -> str:
        found["hashes"] += bool(stored) or any(net is each for each in nets)
        return original_hash(net, *stored)

    @wraps(original_digits)
    def counted_digits(*arguments: Any) -> Any:
        found["reads"] += 1
        return original_digits(*arguments)

    def counted_evaluation(network: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
        found["scored"] += isinstance(network, frozen.Teacher)
        return evaluate(network, *arguments, **named)

    monkeypatch.setattr(loaded_teachers, "build_teacher", counted_build)
    monkeypatch.setattr(frozen, "weights_hash", counted_hash)
    monkeypatch.setattr(score_run, "weights_hash", counted_hash)
    monkeypatch.setattr(digits, "digits", counted_digits)
    monkeypatch.setattr(frozen, "evaluate", counted_evaluation)
    monkeypatch.setattr(score_run, "evaluate", counted_evaluation)
    return found


@pytest.mark.parametrize(
    ("overrides", "forwards", "stages"),
    [
        # the shapes of all layers; the tap; a validation batch
        (("loss/feature=[hint]", "loss/response=[kd]", "teachers.main.cache=true", "data.augment=null"), 3, 1),
        # the shapes; in the rehearsal tap, early stop and what the losses of both stages reach; in the first stage tap,
        # early stop and what is reached; a validation batch
        (HINT_THEN_KD, 1 + 4 + 3 + 1, 2),
        # the training samples; the shapes; what is reached in three stages and in the first again; a validation batch
        (CURRICULUM, 1 + 1 + 4 + 1, 3),
        (EARLIER_ONLY, 1 + 2 + 1, 1),
        # the shapes; its last map, for the student and for the loss; tap, early stop; a validation batch
        (SIMKD, 1 + 2 + 2 + 1, 1),
    ],
    ids=["cached", "stages", "curriculum", "earlier", "simkd"],
)
def test_a_teacher_is_loaded_and_hashed_once(
    overrides: tuple[str, ...], forwards: int, stages: int, counts: Counter[str], teacher: Path, tmp_path: Path
) -> None:
    first = UntilFirstStep(counts)
    given = (*STUDENT, "trainer.max_epochs=1", "logger=none", f"teachers.main.weights='{teacher}'", *overrides)
    result = train(config(tmp_path / "run", *given), callbacks=[first])
    assert first.before == {"loaded": 1, "hashes": 1, "reads": 1, "scored": 1, "forwards": forwards}
    assert (counts["loaded"], counts["reads"], counts["scored"]) == (1, 1, 2)  # on the validation and the test split
    assert counts["hashes"] == 1 + stages  # once more at the end of each stage that it teaches in: nothing has changed
    assert result.record.teachers["main"]["sha256"] == RunRecord.read(teacher).student_sha256
    verify_run(result.folder)  # the data are the run's also where a curriculum chose some of them


def test_a_shared_teacher_is_as_it_was_loaded(teacher: Path, tmp_path: Path) -> None:
    hint = ("loss/response=[]", "loss/feature=[hint]", "teachers.main.cache=true", "data.augment=null")
    given = (*STUDENT, f"teachers.main.weights='{teacher}'")
    loaded = LoadedTeachers()
    one = build(config(tmp_path, *given, *hint), loaded=loaded).distiller.frozen["main"]
    expected = {name: each.clone() for name, each in one.net.state_dict().items()}
    assert one.stops
    assert one.training_signals is not None
    sha256 = one.sha256
    one.to(torch.bfloat16)
    again = build(config(tmp_path, *given), loaded=loaded).distiller.frozen["main"]
    assert again is one
    assert not again.stops
    assert again.training_signals is None
    assert not [module for module in again.net.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert again.sha256 == sha256
    for name, each in again.net.state_dict().items():
        assert each.dtype == expected[name].dtype, name
        torch.testing.assert_close(each, expected[name], rtol=1e-2, atol=1e-2)


def test_what_makes_another_teacher_is_not_shared(teacher: Path, tmp_path: Path) -> None:
    loaded = LoadedTeachers()
    cfg = build(config(tmp_path, *STUDENT, f"teachers.main.weights='{teacher}'"), loaded=loaded).cfg.teachers.main
    one = loaded.load(cfg, "main")
    assert loaded.load(cfg, "other") is one
    assert loaded.load(cfg, "beside", beside=[one]) is not one  # each has taps of its own
    for setting, value in {"bn_mode": "train", "input": {**cfg.input, "mean": [0.1]}, "weights": f"{teacher}/"}.items():
        assert loaded.load(OmegaConf.create({**cfg, setting: value}), "main") is not one, setting
    assert loaded.load(OmegaConf.create({**cfg, "cache": True}), "main") is one
    loaded.forget(one)
    assert loaded.load(cfg, "main") is not one
