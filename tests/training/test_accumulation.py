"""Accumulated gradients are those of one big batch, whatever counts in each of its parts, on one and two processes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from distillery.data.loader import BatchDataset, ResumableLoader
from distillery.data.raw_data import Split
from distillery.data.sampler import SeededBatchSampler
from distillery.losses.feature.hidden_mse import HiddenMSE
from distillery.losses.response.kd import KD
from distillery.losses.response.nkd import NKD, nkd
from distillery.losses.term import Term
from distillery.models.adapters import Adapter
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.tasks.task import Task
from distillery.tasks.token_classification import TokenClassification
from distillery.teachers.frozen import Teacher
from distillery.training.distiller import Distiller
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.wiring import wire

CLASSES, LENGTH = 3, 5
WEIGHTS = {"task": 0.7, "kd": 1.3, "hidden": 0.4, "nkd": 0.9}
LABELLED = torch.tensor([True, False, True, True, False, False, False, True])  # the sixth and seventh share a batch


class Tokens(Adapter):
    def forward(self, batch: Any) -> tuple[tuple[Tensor], dict[str, Any]]:
        return (batch["input_ids"],), {}

    def mask(self, batch: Any) -> Tensor:
        return batch["attention_mask"]


class Tagger(nn.Module):
    """Logits of each token, or their mean over the tokens of a sample."""

    def __init__(self, seed: int, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pooled = pooled
        self.table, self.head = nn.Embedding(20, 4), nn.Linear(4, CLASSES)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        return self.head(hidden.mean(1) if self.pooled else hidden)


def samples(number: int, tokens: bool) -> dict[str, Tensor]:
    """Of `number` texts; from none to all of the tokens of a text have a label."""
    draw = torch.Generator().manual_seed(3)
    target = torch.randint(CLASSES, (number, LENGTH), generator=draw)
    for row in range(number):
        target[row, (3 * row) % (LENGTH + 1) :] = -100
    return {
        "input_ids": torch.randint(20, (number, LENGTH), generator=draw),
        "attention_mask": torch.ones(number, LENGTH, dtype=torch.int64),
        "target": target if tokens else torch.arange(number) % CLASSES,
    }


class Logged(L.Callback):
    def __init__(self, file: Path) -> None:
        self.file, self.terms = file, []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.terms.append({name: value.item() for name, value in outputs["terms"].items()})
        torch.save(self.terms, f"{self.file}{trainer.global_rank}")


def update(
    task: Task,
    number: int,
    batch: int,
    ranks: int,
    tmp_path: Path,
    most: int | None = None,
    labelled: Tensor | None = None,
) -> tuple[list[Tensor], dict[str, float]]:
    """The gradient and the mean losses of one update on all `number` samples, in batches of `batch`."""
    tokens = isinstance(task, TokenClassification)
    given = samples(number, tokens)
    targets = given.pop("target")
    student = Network(Tagger(0, not tokens), Tokens(), "student")
    teacher = Teacher(Tagger(1, not tokens), Tokens())
    terms: dict[str, Term] = {
        "kd": KD(WEIGHTS["kd"]),
        "hidden": HiddenMSE(WEIGHTS["hidden"], layers={"table": "table"}, projector=None),
    }
    if labelled is not None:
        terms["nkd"] = NKD(WEIGHTS["nkd"])
        if not tokens:
            targets = Split.whole(None, targets, labelled).targets
    wire(terms, student, {"main": teacher}, {key: value[:2] for key, value in given.items()})
    dataset = BatchDataset(lambda index, _: {key: value[index] for key, value in given.items()}, targets, labelled)
    module = Distiller(
        student,
        {"main": teacher},
        task,
        Objective(task, terms).double(),
        Optim(lambda parameters: torch.optim.SGD(parameters, lr=1.0)),
        CLASSES,
    )
    before = [parameter.detach().clone() for parameter in student.parameters()]

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> ResumableLoader:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            sampler = SeededBatchSampler(torch.arange(number), batch, rank=rank, world=world)
            return ResumableLoader(dataset, sampler=sampler, batch_size=None)

    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=most or -(-number // batch),
        accelerator="cpu",
        devices=ranks,
        precision="64-true",
        strategy="ddp_fork" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[logged := Logged(tmp_path / f"{batch}-{ranks}-")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Data())
    gradients = [old - new.detach() for old, new in zip(before, student.parameters(), strict=True)]
    lines = [line for rank in range(ranks) for line in torch.load(f"{logged.file}{rank}")]
    return gradients, {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}


def by_hand(task: Task, number: int, labelled: Tensor | None = None) -> tuple[list[Tensor], dict[str, float]]:
    """The same of all samples at once, in plain PyTorch."""
    tokens = isinstance(task, TokenClassification)
    given = samples(number, tokens)
    student, teacher = Tagger(0, not tokens), Tagger(1, not tokens)
    ours, theirs, target = student(given["input_ids"]), teacher(given["input_ids"]).detach(), given["target"]
    known = torch.ones(number, dtype=torch.bool) if labelled is None else labelled
    if tokens:
        known = known[:, None].expand_as(target)
        ours, theirs, target, known = (each[given["target"] != -100] for each in (ours, theirs, target, known))
    difference = student.table(given["input_ids"]) - teacher.table(given["input_ids"]).detach()
    losses = {
        "task": F.cross_entropy(ours[known], target[known]),
        "kd": F.kl_div((ours / 4).log_softmax(1), (theirs / 4).log_softmax(1), log_target=True, reduction="batchmean")
        * 16,
        "hidden": difference.square().mean(),
    }
    if labelled is not None:
        losses["nkd"] = nkd(ours[known], theirs[known], target[known])
    total = sum(WEIGHTS[name] * loss for name, loss in losses.items())
    gradients = torch.autograd.grad(total, [*student.parameters()])
    return [*gradients], {name: loss.item() for name, loss in losses.items()} | {"loss": total.item()}


def assert_as_by_hand(
    task: Task, number: int, batch: int, ranks: int, tmp_path: Path, labelled: Tensor | None = None
) -> None:
    gradients, losses = update(task, number, batch, ranks, tmp_path, labelled=labelled)
    expected, values = by_hand(task, number, labelled)
    assert min(values.values()) > 0.01
    assert losses == pytest.approx(values)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", [TokenClassification(WEIGHTS["task"]), Classification(WEIGHTS["task"])])
def test_an_update_is_that_of_one_big_batch(task: Task, tmp_path: Path) -> None:
    """1 × 8, 2 × 4 and 8 × 1 samples; and a last batch of another size."""
    for number, batch in ((8, 8), (8, 4), (8, 1), (7, 3), (7, 2)):
        assert_as_by_hand(task, number, batch, 1, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", [TokenClassification(WEIGHTS["task"]), Classification(WEIGHTS["task"])])
def test_losses_that_read_labels_are_means_over_the_labelled_rows(task: Task, tmp_path: Path) -> None:
    """Also where a batch has none of them."""
    for number, batch in ((8, 8), (8, 4), (8, 2), (8, 1), (7, 3)):
        assert_as_by_hand(task, number, batch, 1, tmp_path, LABELLED[:number])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", [TokenClassification(WEIGHTS["task"]), Classification(WEIGHTS["task"])])
def test_labelled_rows_are_counted_over_two_processes(task: Task, tmp_path: Path) -> None:
    for number, batch in ((8, 8), (8, 4), (8, 2), (7, 4)):
        assert_as_by_hand(task, number, batch, 2, tmp_path, LABELLED[:number])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", [TokenClassification(WEIGHTS["task"]), Classification(WEIGHTS["task"])])
def test_an_update_of_two_processes_is_that_of_one_big_batch(task: Task, tmp_path: Path) -> None:
    for number, batch in ((8, 8), (8, 4), (8, 2), (7, 4)):
        assert_as_by_hand(task, number, batch, 2, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_last_update_of_an_epoch_has_fewer_batches(tmp_path: Path) -> None:
    """Two batches where three are accumulated: the update is as large as with two."""
    task = TokenClassification(WEIGHTS["task"])
    found, _ = update(task, 8, 4, 1, tmp_path, most=3)
    torch.testing.assert_close(found, by_hand(task, 8)[0])


def test_the_validation_loss_is_the_mean_over_the_labelled_tokens_of_all_batches() -> None:
    given = samples(8, tokens=True) | {"index": torch.arange(8)}
    batches = [{key: value[part] for key, value in given.items()} for part in (slice(0, 3), slice(3, 8))]
    task, net = TokenClassification(), Tagger(0, pooled=False)
    optim = Optim(lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    module = Distiller(Network(net, Tokens(), "student"), {}, task, Objective(task, {}), optim, CLASSES)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (found,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    expected = F.cross_entropy(net(given["input_ids"]).flatten(0, 1), given["target"].flatten(), ignore_index=-100)
    assert found["val/loss"] == pytest.approx(expected.item(), rel=1e-6)
