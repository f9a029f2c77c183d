"""Every file in configs/stages is run, on small real data: each stage trains what it says it trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from distillery.config.check import check
from distillery.config.networks import build_teacher
from distillery.config.stages import RUN_TEACHER, stages_of
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.data.sources import movie_reviews
from distillery.models.weights import read_weights
from distillery.results.record import RunRecord
from distillery.runs.job import resumed
from distillery.runs.run import train
from distillery.runs.stages.sequence import StageSequence
from distillery.teachers.curriculum import confidences, easiest
from distillery.training.distiller import Distiller
from fixtures.runs import STUDENT, Died, Dies, Once, config, sha256

pytestmark = pytest.mark.filterwarnings("ignore:Teacher .* scores")

VISION = ("fitnets", "teacher_assistant", "born_again", "layerwise", "curriculum", "annealed_kd", "route")
TEXT = ("tinybert", "layerwise_bert", "shrink", "teacher_assistant_bert")
CNN = (*STUDENT, "student.net.widths=[8,16,16]", "trainer.max_epochs=6", "logger=none", "data.augment=null")
TEXTS = ("data.train_size=48", "data.val_size=20", "data.batch_size=16", "data.max_length=16", "min_teacher_score=0")
TEXTS += ("trainer.max_epochs=6", "trainer.check_val_every_n_epoch=3", "trainer.precision=32-true")
TEXTS += ("threads=1", "logger=none")


@dataclass
class Moves(L.Callback):
    """Which of the student's parameters each stage has changed."""

    def __post_init__(self) -> None:
        self.moved: dict[str, set[str]] = {}
        self.before: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self.on_stage_start(trainer, module)

    def on_stage_start(self, trainer: L.Trainer, module: Distiller) -> None:
        self.before = {name: value.detach().clone() for name, value in module.student.net.named_parameters()}

    def on_stage_end(self, trainer: L.Trainer, module: Distiller) -> None:
        after = dict(module.student.net.named_parameters())
        self.moved[module.stage] = {name for name, value in self.before.items() if not torch.equal(value, after[name])}

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self.on_stage_end(trainer, module)


def test_every_recipe_is_tested() -> None:
    others = {"none", "on_policy"}  # that is run in test_on_policy_runs.py
    assert {path.stem for path in (CONFIGS / "stages").glob("*.yaml")} == {*VISION, *TEXT, *others}


@pytest.fixture(scope="module")
def route(once: Once) -> Path:
    """A teacher that has saved its checkpoints along the way."""
    given = ["experiment=digits_teacher", "trainer.max_epochs=10", "logger=none", "callbacks=route"]
    return once("route", lambda folder: train(config(folder, *given)))


def run_of(recipe: str, route: Path, folder: Path, *more: str) -> DictConfig:
    return config(folder, *CNN, f"stages={recipe}", f"teachers.main.weights='{route}'", *more)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[] if name in ("fitnets", "annealed_kd") else [pytest.mark.slow]) for name in VISION],
)
def test_a_recipe_for_images(recipe: str, route: Path, tmp_path: Path) -> None:
    moves = Moves()
    result = train(run_of(recipe, route, tmp_path / "run"), callbacks=[moves])
    everything = {name for name, _ in result.parts.distiller.student.net.named_parameters()}
    frozen = {
        "hint": {"stages.2", "head"},
        "block1": {"stages.1", "stages.2", "head"},
        "block2": {"stages.0", "stages.2", "head"},
        "block3": {"stages.0", "stages.1", "head"},
    }
    assert [*moves.moved] == [stage.name for stage in stages_of(run_of(recipe, route, tmp_path / "run"))]
    for stage, moved in moves.moved.items():
        still = {name for name in everything if name.startswith(tuple(frozen.get(stage, ())))}
        assert moved == everything - still, stage
    assert result.record.method == recipe
    assert result.record.metrics["last"]["epoch"] == 6
    assert result.record.metrics["last"]["val_score"] > 0.1


@pytest.fixture(scope="module")
def text_teacher(once: Once) -> Iterator[Path]:
    """A teacher on a few short sentences. Within, the test split has 30."""
    given = ["experiment=movie_reviews_teacher", *TEXTS, "trainer.max_epochs=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(movie_reviews, "TEST_SIZE", 30)
        yield once("text_teacher", lambda folder: train(config(folder, *given)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ("shrink", "teacher_assistant_bert", "tinybert") else [])
        for name in TEXT
    ],
)
def test_a_recipe_for_texts(recipe: str, text_teacher: Path, tmp_path: Path) -> None:
    experiment = "tinybert" if recipe == "tinybert" else "movie_reviews"
    own = [f"experiment={experiment}", *TEXTS, f"stages={recipe}", f"teachers.main.weights='{text_teacher}'"]
    moves = Moves()
    result = train(config(tmp_path / "run", *own, "teachers.main.cache=false"), callbacks=[moves])
    assert result.record.metrics["last"]["epoch"] == 6
    names = {name for name, _ in result.parts.distiller.student.net.named_parameters()}
    for number in (1, 2, 3):
        if recipe == "layerwise_bert":
            own_layer = {name for name in names if name.startswith(f"bert.encoder.layer.{number - 1}.")}
            assert moves.moved[f"layer{number}"] == own_layer
    if recipe == "shrink":
        layers = [
            sum(name.endswith("attention.self.query.weight") for name in read_weights(folder / "student.safetensors"))
            for folder in (tmp_path / "run/stages/five", tmp_path / "run/stages/four", tmp_path / "run")
        ]
        assert layers == [5, 4, 3]
    if recipe == "tinybert":
        assert {name for name in moves.moved["intermediate"] if "pooler" in name or "classifier" in name} == set()
        assert {name for name in moves.moved["prediction"] if "classifier" in name}


def test_the_route_is_learnt_from_in_its_order(route: Path, tmp_path: Path) -> None:
    sequence = StageSequence(check(run_of("route", route, tmp_path / "run")))
    taught = []
    for place in range(3):
        sequence.begin(place)
        taught.append(sequence.parts.distiller.frozen["main"].net.head.weight.clone())  # type: ignore[union-attr, operator]
    for weight, file in zip(taught, ("epoch4.ckpt", "epoch9.ckpt"), strict=False):
        state = torch.load(route / "checkpoints" / file, weights_only=True)["state_dict"]
        assert torch.equal(weight, state["student.net.head.weight"])
    assert torch.equal(taught[2], read_weights(route / "student.safetensors")["head.weight"])


def test_the_easiest_of_each_class_come_first() -> None:
    confidence = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.9, 0.3])
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    assert easiest(confidence, targets, 0.34).tolist() == [1, 4]
    assert easiest(confidence, targets, 0.67).tolist() == [1, 2, 4, 5]
    assert easiest(confidence, targets, 1).tolist() == [*range(6)]
    assert easiest(confidence, targets, 0.01).tolist() == [1, 4]  # one of each at least


def teacher_mean(sequence: StageSequence) -> torch.Tensor:
    return torch.tensor([*sequence.parts.cfg.teachers.main.input.mean]).view(-1, 1, 1)


def teacher_std(sequence: StageSequence) -> torch.Tensor:
    return torch.tensor([*sequence.parts.cfg.teachers.main.input.std]).view(-1, 1, 1)


def test_a_curriculum_is_that_of_the_teachers_confidence(route: Path, tmp_path: Path) -> None:
    sequence = StageSequence(check(run_of("curriculum", route, tmp_path / "run")))
    sequence.begin()
    teacher = sequence.parts.distiller.frozen["main"].net.eval()
    assert sequence.data(2).sizes["train"] == 100
    index, target, confidence = [], [], []
    for batch in sequence.data(2).train_dataloader():  # digits are neither resized nor, here, augmented
        with torch.no_grad():
            probability = teacher((batch["image"] - teacher_mean(sequence)) / teacher_std(sequence)).softmax(-1)
        index += batch["index"].tolist()
        target += batch["target"].tolist()
        confidence += [row[label].item() for row, label in zip(probability, batch["target"].tolist(), strict=True)]
    for place, share in ((0, 0.34), (1, 0.67)):
        chosen = sequence.data(place).splits["train"].indices.tolist()
        for label in range(10):
            own = sorted((-c, i) for c, i, t in zip(confidence, index, target, strict=True) if t == label)
            wanted = {i for _, i in own[: round(share * len(own))]}
            assert wanted == {i for i in chosen if i in {i for _, i in own}}


def test_a_curriculum_asks_its_teacher_once(route: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def noted(*args: Any) -> Any:
        asked.append(args)
        return confidences(*args)

    monkeypatch.setattr("distillery.runs.stages.stage_data.confidences", noted)
    sequence = StageSequence(check(run_of("curriculum", route, tmp_path / "run")))
    assert [sequence.data(place).sizes["train"] for place in (0, 1, 2)] == [30, 70, 100]  # of ten of each class
    assert len(asked) == 1


def test_a_curriculum_wants_a_teacher_that_is_there(route: Path, tmp_path: Path) -> None:
    more = "+stages.all.teacher='stage:easy'"
    with pytest.raises(UserError, match=r"Stage 'all': easiest: it asks for a frozen teacher"):
        train(run_of("curriculum", route, tmp_path / "run", more, "stages.all.easiest=0.5"))


def test_generations_vote(route: Path, tmp_path: Path) -> None:
    result = train(run_of("born_again", route, tmp_path / "run"))
    data, cfg = result.parts.data, result.parts.cfg
    probability = torch.zeros(data.sizes["test"], 10)
    for folder in ("stages/first", "stages/second", "."):
        own = OmegaConf.create(
            {**RUN_TEACHER, **OmegaConf.to_container(cfg.student), "weights": str(tmp_path / "run" / folder)}
        )  # type: ignore[dict-item]
        network = build_teacher(own, folder)
        with torch.no_grad():
            batches = [(batch["target"], network(batch).logits.softmax(-1)) for batch in data.test_dataloader()]
        probability += torch.cat([each for _, each in batches])
    target = torch.cat([each for each, _ in batches])
    score = (probability.argmax(-1) == target).float().mean().item()
    assert result.record.metrics["ensemble"]["test_score"] == pytest.approx(score, abs=1e-6)
    assert RunRecord.read(tmp_path / "run").metrics["ensemble"] == result.record.metrics["ensemble"]


@pytest.mark.parametrize(
    ("named", "told"),
    [("[fist]", r"ensemble: there is no stage 'fist'.*'first'"), ("[third]", r"before the last"), ("3", "list")],
)
def test_an_ensemble_of_what_is_not_there_is_refused(named: str, told: str, route: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        train(run_of("born_again", route, tmp_path / "run", f"ensemble={named}"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["curriculum", "born_again", "annealed_kd"])
def test_a_recipe_that_was_stopped_goes_on_bit_equal(recipe: str, route: Path, tmp_path: Path) -> None:
    train(run_of(recipe, route, tmp_path / "whole"))
    steps = RunRecord.read(tmp_path / "whole").timeline[-1]["step"]
    with pytest.raises(Died):
        train(run_of(recipe, route, tmp_path / "run"), callbacks=[Dies(int(steps * 0.8))])
    train(resumed(tmp_path / "run", []))
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(tmp_path / "run" / file) == sha256(tmp_path / "whole" / file)
