"""The metrics that a config may choose: values against scikit-learn, SciPy and a matcher of spans written by hand."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk
from torch import Tensor

from distillery.core.errors import UserError
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.classification import Classification
from distillery.tasks.embedding import Embedding
from distillery.tasks.masked_lm import MaskedLM
from distillery.tasks.metrics import CATALOGUE, entities, known, mode_of
from distillery.tasks.regression import Regression
from distillery.tasks.task import Task
from distillery.tasks.token_classification import TokenClassification
from fixtures.thread_ranks import on_ranks

N, CLASSES = 211, 7
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
Arrays = tuple[np.ndarray, np.ndarray]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def class_rows(seed: int = 0, classes: int = CLASSES) -> dict[str, Tensor]:
    """Unbalanced: class 0 is frequent, the last one is predicted and never occurs."""
    target = (torch.rand(N, generator=generator(seed)) ** 2 * (classes - 1)).long()
    logits = 3 * torch.randn(N, classes, generator=generator(seed + 1))
    logits[torch.arange(N), target] += 2
    return {"logits": logits, "target": target}


def number_rows() -> dict[str, Tensor]:
    target = torch.randn(N, generator=generator(0)).mul(4).round() / 4  # with ties
    return {"logits": (target + torch.randn(N, generator=generator(1))).unsqueeze(1), "target": target}


def figures(
    task: Task, rows: Mapping[str, Tensor], sizes: Sequence[int] = (N,), outputs: int = CLASSES
) -> dict[str, float]:
    """The chosen metrics of the rows, given in chunks of these sizes, over and over."""
    chosen = task.chosen_metrics(outputs)
    start = 0
    for size in itertools.cycle(sizes):
        part = {name: values[start : start + size] for name, values in rows.items()}
        loss = torch.zeros(len(part["target"]))
        task.update_metrics(chosen, part["logits"], loss, part)
        start += size
        if start >= len(rows["target"]):
            return {name: chosen[name].compute().item() for name in task.metrics}
    raise AssertionError


def softmax(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(1).numpy()


def over_present(figure: Callable[..., float], logits: Tensor, target: Tensor) -> float:
    scores = softmax(logits)
    return float(np.mean([figure(target.numpy() == c, scores[:, c]) for c in np.unique(target)]))


CLASS_FIGURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": lambda logits, target: sk.accuracy_score(target, logits.argmax(1)),
    "top5_accuracy": lambda logits, target: sk.top_k_accuracy_score(target, logits, k=5, labels=range(CLASSES)),
    "top2_accuracy": lambda logits, target: sk.top_k_accuracy_score(target, logits, k=2, labels=range(CLASSES)),
    "balanced_accuracy": lambda logits, target: sk.balanced_accuracy_score(target, logits.argmax(1)),
    "macro_f1": lambda logits, target: sk.f1_score(target, logits.argmax(1), average="macro"),
    "mcc": lambda logits, target: sk.matthews_corrcoef(target, logits.argmax(1)),
    "auroc": lambda logits, target: over_present(sk.roc_auc_score, logits, target),
    "mAP": lambda logits, target: over_present(sk.average_precision_score, logits, target),
}
NUMBER_FIGURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "spearman": lambda logits, target: spearmanr(logits[:, 0], target).statistic,
    "pearson": lambda logits, target: pearsonr(logits[:, 0].double(), target.double()).statistic,
    "mse": lambda logits, target: sk.mean_squared_error(target, logits[:, 0]),
}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("sizes", [(N,), (1, 50, 3)], ids=["at once", "in chunks"])
def test_figures_of_classes_are_those_of_scikit_learn(sizes: Sequence[int]) -> None:
    rows = class_rows()
    assert CLASSES - 1 not in rows["target"]
    found = figures(Classification(metrics=[*CLASS_FIGURES]), rows, sizes)
    assert found == pytest.approx({name: each(**rows) for name, each in CLASS_FIGURES.items()}, abs=1e-6)
    assert len({round(value, 3) for value in found.values()}) == len(found), "no two of them are the same figure"


def test_figures_of_two_classes_are_those_of_the_second() -> None:
    rows = class_rows(classes=2)
    rows["target"] = (rows["logits"][:, 1] + 4 * torch.randn(N, generator=generator(5)) > 2).long()
    found = figures(Classification(metrics=["auroc", "mcc"]), rows, (100, 11), outputs=2)
    second = softmax(rows["logits"])[:, 1]
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(rows["target"], second))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(rows["target"], second > 0.5))


@pytest.mark.parametrize("sizes", [(N,), (1, 50, 3)], ids=["at once", "in chunks"])
def test_figures_of_numbers_are_those_of_scipy(sizes: Sequence[int]) -> None:
    rows = number_rows()
    found = figures(Regression(metrics=[*NUMBER_FIGURES]), rows, sizes)
    assert found == pytest.approx({name: each(**rows) for name, each in NUMBER_FIGURES.items()}, rel=1e-4)


def test_a_negative_correlation_is_shown_as_it_is() -> None:
    rows = number_rows()
    rows["logits"] = -rows["logits"]
    found = figures(Regression(metrics=["spearman"]), rows)["spearman"]
    assert found == pytest.approx(spearmanr(rows["logits"][:, 0], rows["target"]).statistic, rel=1e-4)
    assert found < -0.5


@pytest.mark.parametrize("task", [MaskedLM(metrics=["top5_accuracy"]), CausalLM(metrics=["top5_accuracy"])])
def test_words_have_their_top_k(task: Task) -> None:
    rows = class_rows()
    assert figures(task, rows, (50, 7)) == pytest.approx({"top5_accuracy": CLASS_FIGURES["top5_accuracy"](**rows)})


def test_confident_networks_are_ranked_too() -> None:
    """In float32 their probabilities are 1, and all ties."""
    rows = class_rows()
    rows["logits"] = 12 * rows["logits"]
    assert (rows["logits"].softmax(1) == 1).any(1).float().mean() > 0.3
    found, expected = figures(Classification(metrics=["auroc"]), rows)["auroc"], CLASS_FIGURES["auroc"](**rows)
    assert found == pytest.approx(expected, abs=1e-6)
    rounded = {**rows, "logits": rows["logits"].softmax(1).log()}
    assert abs(CLASS_FIGURES["auroc"](**rounded) - expected) > 1e-5


def test_chunks_of_logits_between_0_and_1_are_no_probabilities() -> None:
    """torchmetrics would take them as they are, and those of another chunk not."""
    rows = class_rows()
    rows["logits"][:100] = rows["logits"][:100].sigmoid()
    found = figures(Classification(metrics=["mAP"]), rows, (100,))["mAP"]
    assert found == pytest.approx(CLASS_FIGURES["mAP"](**rows), abs=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_network_that_gives_nan_scores_nothing(broken: float) -> None:
    """The frequent class is the first, which argmax would name."""
    rows = class_rows()
    assert (rows["target"] == 0).float().mean() > 0.35
    rows["logits"] = torch.full_like(rows["logits"], broken)
    names = [name for name in CLASS_FIGURES if name != "mcc"]
    found = figures(Classification(metrics=[*names, "mcc"]), rows)
    assert found.pop("mcc") < 0
    assert all(value <= 0.35 for value in found.values()), found
    assert found["accuracy"] == found["top5_accuracy"] == found["auroc"] == 0
    numbers = number_rows()
    numbers["target"] = numbers["target"].sort().values
    numbers["logits"][3] = math.nan
    assert all(map(math.isnan, figures(Regression(metrics=[*NUMBER_FIGURES]), numbers).values()))


def test_a_row_with_nan_counts_as_wrong() -> None:
    rows = class_rows()
    rows["logits"][::3] = math.nan
    found = figures(Classification(metrics=["accuracy"]), rows)["accuracy"]
    right = rows["logits"].argmax(1) == rows["target"]
    assert found == pytest.approx(sum(bool(each) for place, each in enumerate(right) if place % 3) / N)


def test_several_processes_count_each_row_once() -> None:
    names = [*CLASS_FIGURES]
    rows, expected = class_rows(), figures(Classification(metrics=names), class_rows())

    def on_rank(rank: int) -> dict[str, float]:
        own = {name: values[rank::2] for name, values in rows.items()}
        return figures(Classification(metrics=names), own, (60,))

    for found in on_ranks(on_rank):
        assert found == pytest.approx(expected, abs=1e-6)


# Entities


def by_hand(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """For each place where an entity may begin: does it, and where does it end?"""
    found = set()
    for begin, tag in enumerate(tags):
        if tag == "O":
            continue
        kind = tag[2:]
        before = tags[begin - 1] if begin else "O"
        if tag[0] == "I" and before[2:] == kind:
            continue  # inside of one
        end = begin
        while end + 1 < len(tags) and tags[end + 1] == f"I-{kind}":
            end += 1
        found.add((kind, begin, end))
    return found


def test_entities_are_those_of_a_matcher_by_hand() -> None:
    for tags in itertools.product(TAGS, repeat=5):
        assert entities(tags) == by_hand(tags), tags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [  # the first two are seqeval's own examples
        ("O O O B-MISC I-MISC I-MISC O", {("MISC", 3, 5)}),
        ("B-PER I-PER O", {("PER", 0, 1)}),
        ("I-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("S-PER B-LOC I-LOC E-LOC E-LOC S-LOC", {("PER", 0, 0), ("LOC", 1, 3), ("LOC", 4, 4), ("LOC", 5, 5)}),
        ("B-new-york I-new-york", {("new-york", 0, 1)}),
        ("", set()),
    ],
)
def test_entities_of_known_texts(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def tagged_rows() -> dict[str, Tensor]:
    """Tokens of 20 texts; only every other place has a label, as where words have several tokens."""
    draw = random.Random(0)
    found = []
    for index in range(20):
        for place in range(draw.randint(1, 14)):
            target = draw.randrange(len(TAGS))
            found.append((index, 2 * place + 1, target, target if draw.random() < 0.7 else draw.randrange(len(TAGS))))
    index, position, target, predicted = torch.tensor(found).T
    logits = torch.nn.functional.one_hot(predicted, len(TAGS)).float()
    return {"index": index, "position": position, "target": target, "logits": logits}


def of_texts(rows: Mapping[str, Tensor]) -> float:
    found = known_ones = right = 0
    for index in rows["index"].unique():
        own = rows["index"] == index
        theirs, ours = (
            by_hand([TAGS[each] for each in values[own].tolist()])
            for values in (rows["target"], rows["logits"].argmax(1))
        )
        found, known_ones, right = found + len(ours), known_ones + len(theirs), right + len(ours & theirs)
    precision, recall = right / found, right / known_ones
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("sizes", [(1000,), (3,)], ids=["at once", "texts in parts"])
def test_entity_f1_is_that_of_whole_entities(sizes: Sequence[int]) -> None:
    rows, task = tagged_rows(), TokenClassification(metrics=["entity_f1", "macro_f1"])
    task.classes = TAGS
    found = figures(task, rows, sizes, len(TAGS))
    assert found["entity_f1"] == pytest.approx(of_texts(rows))
    assert abs(found["entity_f1"] - found["macro_f1"]) > 1e-3, "which is of tokens"


def test_without_entities_there_is_no_entity_f1() -> None:
    rows, task = tagged_rows(), TokenClassification(metrics=["entity_f1"])
    task.classes = TAGS
    assert math.isnan(
        figures(task, {**rows, "target": 0 * rows["target"], "logits": torch.eye(5)[0 * rows["target"]]})["entity_f1"]
    )
    assert figures(task, {**rows, "logits": torch.eye(5)[0 * rows["target"]]})["entity_f1"] == 0


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Classification(metrics=["macro_f2"]),
            r"metrics=macro_f2: there is no such metric\. Did you mean 'macro_f1'",
        ),
        (
            lambda: Classification(metrics=["spearman"]),
            r"metrics=spearman: it is for predictions of another kind \(number\)",
        ),
        (
            lambda: Classification(metrics=["entity_f1"]),
            r"metrics=entity_f1: it is for .* \(tokens with one class each\)",
        ),
        (
            lambda: Regression(metrics=["macro_f1"]),
            r"metrics=macro_f1: it is for .*\. Choose from: spearman, pearson, mse\.",
        ),
        (lambda: Embedding(metrics=["auroc"]), r"metrics=auroc: it is for .* This task has no other metrics\."),
        (lambda: Classification(metrics=["mcc", "mcc"]), r"metrics=mcc: it is named twice"),
        (lambda: Classification(monitor="val/mcc"), r"monitor=val/mcc: .*Add it to task\.metrics: \[mcc\]"),
        (lambda: Classification(metrics=["mcc"], monitor="val/mc"), r"monitor=val/mc: .*Did you mean 'val/mcc'"),
        (lambda: Classification(metrics=["top9_accuracy"]).chosen_metrics(9), r"9 classes; k must be from 1 to 8\."),
        (
            lambda: TokenClassification(metrics=["entity_f1"]).chosen_metrics(3),
            r"entity_f1: it needs tags such as O, B-PER",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_directions_and_ranges_are_those_of_torchmetrics() -> None:
    for name, each in CATALOGUE.items():
        for prediction, make in each.of.items():
            metric = make(9, TAGS)
            assert metric.higher_is_better in (None, each.higher_is_better), (name, prediction)
        assert (
            mode_of(f"val/{name}", True) == mode_of(f"val/{name}", False) == ("max" if each.higher_is_better else "min")
        )
    found = known("top3_accuracy")
    assert found is not None
    assert found.range == (0.0, 1.0)
    assert [mode_of("val/score", better) for better in (True, False)] == ["max", "min"]
    assert mode_of("val/loss", True) == "min"
