"""Runs of several stages: each is what it would be alone, and a run that was stopped goes on exactly."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.core.roles import STAGE
from distillery.models.weights import read_weights
from distillery.results.record import RunRecord
from distillery.results.report.collect import collect
from distillery.runs.job import resumed
from distillery.runs.plan import stage_row
from distillery.runs.run import train
from distillery.runs.stages.sequence import StageSequence
from distillery.runs.verify_run import verify_run
from distillery.training.distiller import Distiller
from fixtures.killed import differences
from fixtures.runs import STEPS, STUDENT, Died, Dies, Once, config, sha256

# 10 steps an epoch; a stage that freezes the head, one with a student of its own, one that learns from that one.
HINT = "hint: {epochs: 2, task: {weight: 0}, loss: {hint: {weight: 1}}}"
ASSISTANT = "assistant: {epochs: 1, student: {net: {widths: [12, 24]}}, task: {weight: 0.1}, loss: {kd: {}}}"
FINAL = "final: {steps: 15, student: {}, teacher: 'stage:assistant', loss: {kd: {temperature: 2}, hint: {weight: 1}}}"
THREE = (*STUDENT, "loss/feature=[hint]", f"+stages={{{HINT}, {ASSISTANT}, {FINAL}}}")
EACH_STEP = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
Staged = Callable[..., DictConfig]


@pytest.fixture
def staged(teacher: Path, tmp_path: Path) -> Staged:
    """`staged("{a: …}", overrides…)`: the config of a run with these stages in `tmp_path / "run"`."""

    def made(stages: str, *more: str) -> DictConfig:
        return config(tmp_path / "run", *STUDENT, f"teachers.main.weights='{teacher}'", f"+stages={stages}", *more)

    return made


@pytest.fixture(scope="module")
def whole(teacher: Path, once: Once) -> Path:
    """The run of `THREE` that was not stopped."""
    return once(
        "three_stages", lambda folder: train(config(folder, *THREE, f"teachers.main.weights='{teacher}'"), THREE)
    )


class Looks(L.Callback):
    """What `look(module)` gives before each epoch, and after the last; with `ends` also after each."""

    def __init__(self, look: Callable[[Distiller], Any], ends: bool = False) -> None:
        self.look = look
        self.ends = ends
        self.seen: list[Any] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self.seen.append(self.look(module))

    on_train_end = on_train_epoch_start

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.ends:
            self.on_train_epoch_start(trainer, module)


def weights_of(module: Distiller) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.student.net.state_dict().items()}


def test_one_fit_leaves_each_stages_student_and_a_record_of_all(whole: Path, teacher: Path) -> None:
    record = RunRecord.read(whole)
    assert (record.status, record.method) == ("finished", "hint-assistant-final")
    assert record.metrics["last"]["epoch"] == 2 + 1 + 2  # 15 steps end with the second epoch
    assert [epoch["stage"] for epoch in record.timeline] == ["hint", "hint", "assistant", "final", "final"]
    assert record.timeline[-1]["step"] == 5 * STEPS
    assert {name: entry["role"] for name, entry in record.teachers.items()} == {
        "main": "frozen",
        "stage:assistant": STAGE,
    }
    assert record.teachers["main"]["sha256"] == RunRecord.read(teacher).student_sha256
    assert sorted(path.name for path in (whole / "stages").iterdir()) == ["assistant", "hint"]
    with np.load(whole / "predictions.npz") as predictions:
        assert {"student", "main", "stage:assistant"} <= {*predictions}
    (run,) = collect([whole])
    assert run.agreement is not None  # with the teacher, not with the assistant
    verify_run(whole)


def test_the_first_stage_is_what_a_run_of_its_own_is(whole: Path, teacher: Path, tmp_path: Path) -> None:
    alone = [*STUDENT, "trainer.max_epochs=2", "loss/response=[]", "loss/feature=[hint]", "loss.hint.weight=1"]
    alone += ["task.weight=0", f"teachers.main.weights='{teacher}'"]
    train(config(tmp_path / "alone", *alone))
    ours, theirs = (
        read_weights(whole / "stages/hint/student.safetensors"),
        read_weights(tmp_path / "alone/student.safetensors"),
    )
    head = [name for name in ours if name.startswith("head")]
    assert head
    for name in ours:  # alone, the head is trained, by its weight decay
        assert torch.equal(ours[name], theirs[name]) == (name not in head), name


@pytest.mark.slow
def test_a_later_stage_is_what_a_run_of_its_own_is(staged: Staged, teacher: Path, tmp_path: Path) -> None:
    # one batch an epoch and no augmentation: which epoch it is makes no difference but for the order of a sum
    common = ["data.augment=null", "data.batch_size=100", "trainer.precision=64-true", "loss/feature=[hint]"]
    run = train(
        staged(
            "{big: {epochs: 3, student: {net: {widths: [12, 24]}}, loss: {kd: {}}},"
            " small: {epochs: 4, student: {}, teacher: 'stage:big', loss: {hint: {weight: 1}, kd: {temperature: 2}}}}",
            *common,
        )
    )
    first = [*STUDENT, *common, "loss/feature=[]", "student.net.widths=[12,24]", f"teachers.main.weights='{teacher}'"]
    train(config(tmp_path / "big", *first))
    second = [*STUDENT, *common, "trainer.max_epochs=4", "loss.hint.weight=1", "loss.kd.temperature=2"]
    alone = train(config(tmp_path / "small", *second, f"teachers.main.weights='{tmp_path / 'big'}'"))
    ours, theirs = (read_weights(result.folder / "student.safetensors") for result in (run, alone))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11)
    assert run.record.metrics["last"]["test_score"] == alone.record.metrics["last"]["test_score"]


def test_what_no_loss_reaches_is_frozen_and_thawed_again(staged: Staged) -> None:
    looks = Looks(weights_of)
    train(
        staged(
            "{hint: {epochs: 1, task: {weight: 0}, loss: {hint: {weight: 1, layers: {stages.0: stages.0}}}},"
            " response: {epochs: 1, task: {weight: 1}, loss: {kd: {}}}}",
            "loss/feature=[hint]",
        ),
        callbacks=[looks],
    )
    start, border, end = looks.seen
    moved = {name for name in start if not torch.equal(start[name], border[name])}
    assert moved == {name for name in start if name.startswith("stages.0.")}  # the statistics of other norms stay, too
    assert all(not torch.equal(border[name], end[name]) for name in start)


def test_a_stage_trains_what_it_names_and_the_next_one_all(staged: Staged) -> None:
    looks = Looks(weights_of)
    train(staged("{head: {epochs: 1, train: ['head.*'], loss: {kd: {}}}, all: {epochs: 1}}"), callbacks=[looks])
    start, border, end = looks.seen
    assert {name for name in start if not torch.equal(start[name], border[name])} == {"head.weight", "head.bias"}
    assert all(not torch.equal(border[name], end[name]) for name in start)  # statistics of BatchNorm, too


def test_what_a_student_never_trains_is_not_thawed(teacher: Path, staged: Staged) -> None:
    simkd = ("model/student=simkd", "student.net.backbone.widths=[8,16]", "loss/response=[]", "loss/feature=[simkd]")
    stages = "{a: {epochs: 1, task: {weight: 0}, loss: {simkd: {}}}, b: {epochs: 1, task: {weight: 1}}}"
    result = train(staged(stages, *simkd))
    head = result.parts.distiller.student.net.head.weight
    assert torch.equal(head, read_weights(teacher / "student.safetensors")["head.weight"])  # type: ignore[arg-type]


def test_projectors_go_on_with_a_student_that_goes_on(staged: Staged) -> None:
    def projectors(module: Distiller) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in module.objective.parameters()]

    looks = Looks(projectors, ends=True)
    first_two = "a: {epochs: 1, loss: {hint: {weight: 1}}}, b: {epochs: 1, loss: {hint: {}, kd: {}}}"
    train(staged(f"{{{first_two}, c: {{epochs: 1, student: {{}}}}}}", "loss/feature=[hint]"), callbacks=[looks])
    first, end_of_first, second, end_of_second, third, *_ = (parameters[0] for parameters in looks.seen)
    assert not torch.equal(first, end_of_first)
    assert torch.equal(end_of_first, second)
    assert not torch.equal(end_of_second, third)


def test_a_length_in_steps_is_that_of_all_processes_before_they_run(staged: Staged) -> None:
    one = ("{a: {steps: 22}}", "data.train_size=102")  # two samples are left, enough for one process, not for two
    assert StageSequence(check(staged(*one))).stages[0].cfg.trainer.max_epochs == 2
    assert StageSequence(check(staged(*one, "trainer.devices=2"))).stages[0].cfg.trainer.max_epochs == 3


def test_a_projector_between_other_layers_is_another(staged: Staged) -> None:
    looks = Looks(lambda module: [each.detach().clone() for each in module.objective.parameters()], ends=True)
    first = "a: {epochs: 1, loss: {hint: {weight: 1, layers: {stages.0: stages.1}}}}"
    second = "b: {epochs: 1, loss: {hint: {weight: 1, layers: {stages.1: stages.1}}}}"
    train(staged(f"{{{first}, {second}}}", "loss/feature=[hint]", "student.net.widths=[16,16]"), callbacks=[looks])
    _, end_of_first, second_one, *_ = (parameters[0] for parameters in looks.seen)
    assert end_of_first.shape == second_one.shape
    assert not torch.equal(end_of_first, second_one)


@pytest.mark.slow
def test_memory_banks_are_of_one_teacher(staged: Staged, teacher: Path, tmp_path: Path) -> None:
    other = train(config(tmp_path / "other", "experiment=digits_teacher", "trainer.max_epochs=1", "seed=5")).folder
    looks = Looks(lambda module: {name: each.clone() for name, each in module.objective.named_buffers()}, ends=True)
    stages = f"{{a: {{epochs: 1, loss: {{crd: {{}}}}}}, b: {{epochs: 1}}, c: {{epochs: 1, teacher: '{other}'}}}}"
    train(staged(stages, "loss/response=[]", "loss/feature=[crd]", "loss.crd.num_negatives=20"), callbacks=[looks])
    _, end_of_a, b, end_of_b, c, *_ = looks.seen
    assert end_of_a
    assert all(torch.equal(b[name], each) for name, each in end_of_a.items())
    assert not all(torch.equal(c[name], each) for name, each in end_of_b.items())


def test_numbers_schedules_and_rates_begin_anew_in_each_stage(staged: Staged) -> None:
    weight = "{schedule: linear, start: 0, end: 1, epochs: 2}"
    stages = f"{{a: {{epochs: 3, loss: {{kd: {{weight: {weight}}}}}}}, b: {{steps: {STEPS + 1}}}}}"
    record = train(staged(stages)).record
    last_batch = [min(1, (step + (STEPS - 1) / STEPS) / 2) for step in (0, 1, 2, 0, 1)]
    assert [epoch["numbers"]["kd.weight"] for epoch in record.timeline] == pytest.approx(last_batch)
    cosine = [
        0.03 * (1 + np.cos(np.pi * epoch / length)) / 2 for epoch, length in [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    ]
    assert [epoch["lr"] for epoch in record.timeline] == pytest.approx(cosine)


def test_a_stage_waits_until_a_metric_improves_no_more(staged: Staged) -> None:
    never = "until: {min_delta: 2, patience: 2}"  # a score is at most 1: the first is the best
    record = train(staged(f"{{a: {{epochs: 9, {never}}}, b: {{epochs: 1}}, c: {{epochs: 9, {never}}}}}")).record
    assert [epoch["stage"] for epoch in record.timeline] == [*"aaabccc"]
    assert record.metrics["last"]["epoch"] == 7


def test_a_stage_has_data_of_its_own(staged: Staged) -> None:
    record = train(
        staged("{a: {epochs: 1}, b: {epochs: 2, data: {batch_size: 50}}, c: {epochs: 1, data: {train_size: 300}}}")
    ).record
    assert [epoch["step"] for epoch in record.timeline] == [10, 12, 14, 20]
    assert record.data["train"] == 300


def test_a_stage_with_another_task_has_its_score(staged: Staged) -> None:
    embedding = "task: {_target_: distillery.tasks.embedding.Embedding}"
    stages = f"{{a: {{epochs: 1}}, b: {{epochs: 1, {embedding}, loss: {{hint: {{}}}}}}}}"
    record = train(staged(stages, "loss/feature=[hint]")).record
    assert record.timeline[-1]["score"] == pytest.approx(record.metrics["last"]["val_score"])


def test_what_stops_the_fit_before_its_last_stage_does_not_finish_the_run(staged: Staged, tmp_path: Path) -> None:
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    stages = "{a: {epochs: 2, student: {net: {widths: [12, 24]}}}, b: {epochs: 1, student: {}}}"
    with pytest.raises(
        UserError, match=r"stopped in stage 'a', 1 of 2, after 1 epochs in all.*not finished.*resume=.*run"
    ):
        train(staged(stages), callbacks=[Stops()])
    assert RunRecord.read(tmp_path / "run").status == "failed"
    record = train(resumed(tmp_path / "run", [])).record
    assert (record.status, [epoch["stage"] for epoch in record.timeline]) == ("finished", [*"aab"])


@pytest.mark.slow
def test_the_best_student_is_one_of_the_last_stage(staged: Staged) -> None:
    stages = "{a: {epochs: 5, student: {net: {widths: [12, 24]}}}, b: {epochs: 1, student: {}}}"
    record = train(staged(stages)).record
    assert record.metrics["best"] == record.metrics["last"]
    assert max(epoch["score"] for epoch in record.timeline) > record.metrics["best"]["val_score"]


def test_the_bar_is_for_teachers_from_outside(staged: Staged) -> None:
    stages = "{big: {epochs: 1}, small: {epochs: 1, student: {}, teacher: 'stage:big'}}"
    record = train(staged(stages, "min_teacher_score=0.8")).record
    assert record.teachers["stage:big"]["score"] < 0.8 < record.teachers["main"]["score"]


def test_generations_learn_from_each_other_without_a_teacher_from_outside(staged: Staged) -> None:
    stages = "{one: {epochs: 1, teacher: none}, two: {epochs: 1, student: {}, teacher: 'stage:one'}}"
    folder = train(staged(stages)).folder
    one, two = (folder / "stages/one/student.safetensors", folder / "student.safetensors")
    assert not all(
        torch.equal(a, b) for a, b in zip(read_weights(one).values(), read_weights(two).values(), strict=True)
    )
    assert [entry["role"] for entry in RunRecord.read(folder).teachers.values()] == [STAGE]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("{a: {epochs: 1}, b: {epochs: 1, loss: {hint: {layers: {nowhere: stages.0}}}}}", r"Stage 'b': .*'nowhere'"),
        ("{a: {epochs: 1}, b: {epochs: 1, train: ['haed.*']}}", r"Stage 'b': train: no parameter.*'haed\.\*'.*head"),
        ("{a: {epochs: 1}, b: {epochs: 1, task: {weight: 0}, loss: {}}}", r"Stage 'b': There is nothing to learn from"),
        (
            "{a: {epochs: 1}, b: {epochs: 1, train: ['head.*'], task: {weight: 0}, loss: {hint: {}}}}",
            r"Stage 'b': Nothing of the student would be trained: no loss.* the parameters of train=\['head\.\*'\]",
        ),
        ("{a: {epochs: 1}, b: {epochs: 1, teacher: nowhere}}", r"Stage 'b': .*nowhere"),
        ("{a: {epochs: 1}, b: {epochs: 1, until: {metric: val/scor}}}", r"Stage 'b': until=val/scor: .*'val/score'"),
        ("{a: {epochs: 1}, b: {epochs: 1, data: {train_size: 100000}}}", r"Stage 'b': .*train_size"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_stage(
    stages: str, told: str, staged: Staged, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        train(staged(stages, "loss/feature=[hint]"))
    assert not (tmp_path / "run").exists()


def test_the_plan_shows_every_stage(staged: Staged, capsys: pytest.CaptureFixture[str]) -> None:
    StageSequence(check(staged("{first: {epochs: 2}, second: {steps: 15, student: {net: {widths: [9]}}}}"))).rehearse(
        show=True
    )
    said = capsys.readouterr().out
    assert "Stage 1: first" in said
    assert "Stage 2: second" in said
    assert "task+kd" in said.splitlines()[-2]  # a row of the table of all stages


def test_costs_of_a_stage_are_counted_by_hand(staged: Staged) -> None:
    sequence = StageSequence(check(staged("{only: {epochs: 3, loss: {kd: {}}}}")))
    sequence.begin()
    row = stage_row(sequence.stage, sequence.parts)
    assert row[:3] == ["only", "3", "30"]
    # SmallCNN on 8×8 digits: 3×3 convolutions of 1→16 at 8×8 and 16→32 at 4×4, and a head 32→10
    student = 2 * (64 * 16 * 9 + 16 * 32 * 16 * 9 + 32 * 10)
    teacher = 2 * (64 * 32 * 9 + 16 * 64 * 32 * 9 + 4 * 64 * 64 * 9 + 64 * 10)
    assert row[-1] == f"{100 * 3 * (3 * student + teacher) / 1e6:.0f}M"
    peers = StageSequence(check(staged("{only: {epochs: 3, until: {}, loss: {kd: {}}}}", "model/teacher=peer")))
    peers.begin()
    row = stage_row(peers.stage, peers.parts)
    assert row[-1] == f"{100 * 3 * (3 * student + 3 * student) / 1e6:.0f}M"


@pytest.mark.parametrize(
    ("overrides", "after"),
    [
        ((), 2 * STEPS),  # in the first step of the second stage
        pytest.param((), 3 * STEPS, marks=pytest.mark.slow),  # of the third
        pytest.param((), 4 * STEPS, marks=pytest.mark.long),
        pytest.param(EACH_STEP, STEPS + 3, marks=pytest.mark.long),
        pytest.param(EACH_STEP, 2 * STEPS + 5, marks=pytest.mark.slow),
        pytest.param(EACH_STEP, 3 * STEPS + 1, marks=pytest.mark.long),
        pytest.param(EACH_STEP, 2 * STEPS, marks=pytest.mark.long),
        pytest.param(EACH_STEP, 3 * STEPS, marks=pytest.mark.slow),
        pytest.param(EACH_STEP, 5 * STEPS - 1, marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_stopped_ends_bit_equal(
    overrides: tuple[str, ...], after: int, teacher: Path, tmp_path: Path, whole: Path
) -> None:
    cfg = config(tmp_path / "run", *THREE, f"teachers.main.weights='{teacher}'", *overrides)
    with pytest.raises(Died):
        train(cfg, THREE, callbacks=[Dies(after)])
    torch.manual_seed(99)
    result = train(resumed(tmp_path / "run", []))
    for file in ("student.safetensors", "stages/hint/student.safetensors", "stages/assistant/student.safetensors"):
        assert sha256(tmp_path / "run" / file) == sha256(whole / file), file
    assert sha256(tmp_path / "run" / "predictions.npz") == sha256(whole / "predictions.npz")
    before = RunRecord.read(whole)
    assert result.record.metrics == before.metrics
    assert result.record.timeline == before.timeline
    if not overrides:  # nor is anything else another, as the state of optimizer and schedules in the last checkpoint
        assert differences(tmp_path / "run", whole) == []
    own, theirs = (OmegaConf.load(folder / "config.yaml") for folder in (tmp_path / "run", whole))
    assert own.stages.final.config.loss == theirs.stages.final.config.loss


@pytest.mark.slow
def test_a_run_that_was_stopped_between_two_stages_of_one_teacher_ends_bit_equal(teacher: Path, tmp_path: Path) -> None:
    # In the last stage the run's teacher teaches again: what its projector begins with must not depend on the stop.
    hint, taught = "epochs: 1, loss: {hint: {weight: 1}}", "epochs: 1, student: {}, teacher: 'stage:a', loss: {kd: {}}"
    stages = f"+stages={{a: {{{hint}}}, b: {{{taught}}}, c: {{{hint}, student: {{}}, teacher: null}}}}"
    given = (*STUDENT, "loss/feature=[hint]", stages, f"teachers.main.weights='{teacher}'")
    whole = train(config(tmp_path / "whole", *given)).folder
    with pytest.raises(Died):
        train(config(tmp_path / "run", *given), callbacks=[Dies(STEPS + 5)])
    train(resumed(tmp_path / "run", []))
    assert sha256(tmp_path / "run" / "student.safetensors") == sha256(whole / "student.safetensors")


@pytest.mark.parametrize("precision", [pytest.param("64-true", marks=pytest.mark.slow), "bf16-true"])
def test_the_student_of_an_earlier_stage_is_known_in_any_precision(precision: str, staged: Staged) -> None:
    cfg = staged("{a: {epochs: 1}, b: {epochs: 2, student: {}, teacher: 'stage:a'}}", f"trainer.precision={precision}")
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(2 * STEPS + 5)])
    assert train(resumed(Path(cfg.paths.run), [])).record.status == "finished"


def test_a_student_that_only_later_stages_need_is_known_too(staged: Staged) -> None:
    cfg = staged("{a: {epochs: 1}, b: {epochs: 2}, c: {epochs: 1}}", "ensemble=[a]")
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(2 * STEPS + 5)])
    place = Path(cfg.paths.run) / "stages/a/student.safetensors"
    save_file({name: value + 1 for name, value in read_weights(place).items()}, place)
    with pytest.raises(UserError, match=r"does not hold the student that stage 'a' has left"):
        train(resumed(Path(cfg.paths.run), []))
    place.unlink()
    with pytest.raises(UserError, match=r"There is no .*student\.safetensors, which stage 'a' has left"):
        train(resumed(Path(cfg.paths.run), []))


def test_another_teacher_from_outside_is_refused(staged: Staged, teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    cfg = staged("{a: {epochs: 1}, b: {epochs: 2}}", f"teachers.main.weights='{own}'")
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(STEPS + 5)])
    place = own / "student.safetensors"
    save_file({name: value + 1 for name, value in read_weights(place).items()}, place)
    told = r"cannot be resumed: in stage '[ab]' teachers\.main is not the teacher that it was started with.*weights"
    with pytest.raises(UserError, match=told):
        train(resumed(tmp_path / "run", []))


def test_an_average_of_a_student_that_goes_on_records_nothing_into_it(staged: Staged) -> None:
    sequence = StageSequence(
        check(
            staged(
                "{a: {epochs: 1, loss: {hint: {layers: {stages.1: stages.1}}}}, b: {epochs: 1, loss: {kd: {}},"
                " teachers: {average: {role: ema, decay: 0.9}}}}",
                "loss/feature=[hint]",
            )
        )
    )
    sequence.begin(1)
    average = sequence.parts.distiller.teachers["average"]
    assert not [module for module in average.net.modules() if module._forward_hooks]


def test_students_do_not_vote_on_numbers(staged: Staged) -> None:
    embedding = "task: {_target_: distillery.tasks.embedding.Embedding}, loss: {hint: {}}"
    cfg = staged(f"{{a: {{epochs: 1}}, b: {{epochs: 1, {embedding}}}}}", "ensemble=[a]", "loss/feature=[hint]")
    with pytest.raises(UserError, match=r"Stage 'b': ensemble averages .*this task predicts a vector"):
        train(cfg)
