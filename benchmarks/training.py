"""What a training step costs, beside the same step in a hand-written loop and in other libraries.

    python benchmarks/training.py [--pairs 5] [--steps 20] [--accelerator gpu] [--json FILE]

All train the same student against the same teacher with kd, in turn, in one process, on one thread; no validation in
the timed part, and compilation is told apart. `plain` is this project as it is, `tuned` has hardware=tuned, and
`cached` reads the teacher's signals from memory besides. The ratios are medians over the pairs. A library that is not
installed is left out: pip install --no-deps torchdistill.
Exits with 1 if ResNet-56 → ResNet-20 costs plainly more than 1.05 × the hand-written loop.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.config.build import Parts, build
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.core.terminal import plain_console
from distillery.models.weights import save_weights
from distillery.results.environment import environment
from distillery.runs.trainer import make_trainer

LIMIT = 1.05
TEMPERATURE, TASK, KD = 4.0, 0.1, 0.9
RESNETS = [
    *("data=digits", "data.batch_size=64", "data.train_size=768", "data.augment={crop: 1, flip: true}"),
    *("model/student=cifar", "student.net.name=resnet20", "student.input.size=32"),
    *("model/teacher=cifar", "teachers.main.net.name=resnet56", "teachers.main.input.size=32"),
]
VIT = "{model_name: vit_tiny_patch16_224, img_size: 28, patch_size: 4, embed_dim: 96, num_heads: 3"
VITS = [
    *("data=digits", "data.batch_size=64", "data.train_size=768", "data.augment={crop: 1, flip: true}"),
    *("model/student=timm", f"++student.net={VIT}, depth: 3}}", "student.input.size=28"),
    *("model/teacher=timm", f"++teachers.main.net={VIT}, depth: 12}}", "teachers.main.input.size=28"),
]
CNN = "teachers.main.net={_target_: distillery.models.cnn.SmallCNN, widths: [32, 64, 64]}"
DEMO = ["experiment=digits_demo", CNN]
OURS = {
    "plain": [],
    "tuned": ["hardware=tuned"],
    "cached": ["hardware=tuned", "teachers.main.cache=true", "data.views=2"],
}
Step = Callable[[Tensor, Tensor], None]  # images as a network takes them, and labels


def now() -> float:
    """Seconds, when all is computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(L.Callback):
    """Seconds of the first steps, in which networks are compiled, and of the steps after them."""

    def __init__(self, first: int) -> None:
        self._first = first

    def on_train_start(self, *_: object) -> None:
        self._began = now()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self._first:
            self._start = now()
            self.before = self._start - self._began
        elif trainer.global_step == trainer.max_steps:
            self.seconds = now() - self._start


def under_trainer(parts: Parts, steps: int, folder: Path) -> tuple[float, float]:
    """Seconds a step under Lightning with the config's own callbacks and logger, and those of the first two."""
    clock = Clock(first=2)
    cfg = parts.cfg.copy()
    cfg.trainer.update(max_steps=steps + 2, max_epochs=-1, limit_val_batches=0, enable_progress_bar=False)
    cfg.callbacks.update(checkpoint_last=None, checkpoint_best=None, teacher_guard=None, scale_report=None)
    cfg.paths.run = str(folder)
    make_trainer(cfg, [CSVLogger(folder)], [clock]).fit(parts.distiller, datamodule=parts.data)
    return clock.seconds / steps, clock.before


def images_of(parts: Parts) -> tuple[Tensor, Tensor]:
    """All training images in the size of the networks, and their labels."""
    batches = list(parts.data.train_dataloader())
    images = torch.cat([batch["image"] for batch in batches])
    if size := parts.distiller.student.adapter.size:
        images = F.interpolate(images, size=(size,) * 2, mode="bilinear", antialias=True)
    return images, torch.cat([batch["target"] for batch in batches])


def batches_of(images: Tensor, targets: Tensor, parts: Parts) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, cropped and flipped."""
    side, batch_size = images.shape[-1], parts.data.batch_size
    mean, std = parts.distiller.student.adapter.mean, parts.distiller.student.adapter.std
    while True:
        chosen = torch.randint(len(images), (batch_size,), device=images.device)
        padded = F.pad(images[chosen], (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        x = padded[:, :, top : top + side, left : left + side]
        x = torch.where(torch.rand(batch_size, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        yield (x - mean) / std, targets[chosen]


def in_a_loop(make: Callable[[nn.Module, nn.Module], Step], parts: Parts, steps: int) -> float:
    """Seconds a step of a plain loop: index, crop and flip a batch, and the step."""
    device = "cuda" if parts.cfg.trainer.accelerator == "gpu" else "cpu"
    images, targets = images_of(parts)
    student, teacher = parts.distiller.student.to(device), parts.distiller.teachers["main"].to(device)
    step = make(student.net.train(), teacher.net)
    batches = batches_of(images.to(device), targets.to(device), parts)
    step(*next(batches))
    start = now()
    for _ in range(steps):
        step(*next(batches))
    return (now() - start) / steps


def by_hand(student: nn.Module, teacher: nn.Module) -> Step:
    """Two forwards, KL, backward, SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Tensor, target: Tensor) -> None:
        with torch.no_grad():
            soft = F.log_softmax(teacher(x) / TEMPERATURE, 1)
        logits = student(x)
        kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), soft, reduction="batchmean", log_target=True)
        loss = TASK * F.cross_entropy(logits, target) + KD * TEMPERATURE**2 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def alone(student: nn.Module, teacher: nn.Module) -> Step:
    """The student without a teacher: what no way of reading the teacher's signals can fall below."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(x), target).backward()
        optimizer.step()

    return step


def torchdistill(student: nn.Module, teacher: nn.Module) -> Step:
    """torchdistill's box with its KDLoss, whose α weighs the labels."""
    from torchdistill.core.distillation import get_distillation_box

    train = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {
                                "student_module_path": ".",
                                "student_module_io": "output",
                                "teacher_module_path": ".",
                                "teacher_module_io": "output",
                                "temperature": TEMPERATURE,
                                "alpha": TASK,
                                "reduction": "batchmean",
                            },
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    box = get_distillation_box(teacher, student, {}, train, next(student.parameters()).device, None, False, 1)
    box.pre_epoch_process(epoch=0)

    def step(x: Tensor, target: Tensor) -> None:
        box.pre_forward_process()
        box.post_forward_process(loss=box.forward_process(x, target, None))

    return step


def timm(student: nn.Module, teacher: nn.Module) -> Step:
    """timm's task, in the loop of its training script."""
    from timm.task import LogitDistillationTask

    channels = next(student.parameters()).shape[1]
    for net in (student, teacher):  # what timm's own networks say of themselves
        vars(net).update(num_classes=10, in_chans=channels)
        vars(net)["pretrained_cfg"] = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    task = LogitDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), distill_loss_weight=KD, task_loss_weight=TASK,
        temperature=TEMPERATURE, device=next(student.parameters()).device, verbose=False,
    )  # fmt: skip
    task.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Tensor, target: Tensor) -> None:
        loss = task(x, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def compare(
    name: str, overrides: list[str], forms: list[str], steps: int, pairs: int, accelerator: str
) -> dict[str, Any]:
    """Print and return, by form, the median ratio to the hand-written loop, its range, and seconds of compilation."""
    loops = {"alone": alone, "torchdistill": torchdistill, "timm": timm}
    seconds: dict[str, list[float]] = {form: [] for form in ("by hand", *forms)}
    first: dict[str, list[float]] = {form: [] for form in forms if form in OURS}
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "teacher.safetensors"
        common = [*overrides, f"paths.run={scratch}", f"teachers.main.weights={weights}", "min_teacher_score=0"]
        common.append(f"trainer.accelerator={accelerator}")
        net = compose("train", overrides=common).teachers.main.net
        save_weights(instantiate(net, num_classes=10, in_chans=1), weights)  # new weights cost what trained ones do

        def parts(more: list[str]) -> Parts:
            (stage,) = check(compose("train", overrides=[*common, *more])).stages
            return build(stage)

        for pair in range(pairs):
            seconds["by hand"].append(in_a_loop(by_hand, parts([]), steps))
            for form in forms:
                if form in OURS:
                    own, before = under_trainer(parts(OURS[form]), steps, Path(scratch) / f"{form}{pair}")
                    first[form].append(before - 2 * own)
                else:
                    own = in_a_loop(loops[form], parts([]), steps)
                seconds[form].append(own)
    found: dict[str, Any] = {"ratios": {}, "ranges": {}, "ms": {}, "first_steps_s": {}}
    table = Table("", "ms a step", "ratio", "range", "compilation, cache: s", title=f"{name}, {pairs} × {steps} steps")
    for form, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["by hand"], strict=True)]
        found["ratios"][form], found["ranges"][form] = statistics.median(ratios), (min(ratios), max(ratios))
        found["ms"][form] = 1e3 * statistics.median(own)
        waited = f"{statistics.median(first[form]):.1f}" if form in first else ""
        found["first_steps_s"] |= {form: statistics.median(first[form])} if form in first else {}
        span = f"{min(ratios):.3f}–{max(ratios):.3f}"
        table.add_row(form, f"{found['ms'][form]:.2f}", f"{found['ratios'][form]:.3f}", span, waited)
    plain_console().print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each run of the ResNets")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind, in turn")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    register_resolvers()
    forms = ["alone", *OURS, *(each for each in ("torchdistill", "timm") if find_spec(each) is not None)]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        size = options.steps, options.pairs, options.accelerator
        resnets = compare("ResNet-56 → ResNet-20, batch 64, 32×32", RESNETS, forms, *size)
        vits = compare("ViT of 12 layers → 3, batch 64, 28×28", VITS, forms, *size)
        demo = compare("Digits demo, batch 25, 8×8", DEMO, ["plain"], 50 * options.steps, *size[1:])
    overhead = demo["ms"]["plain"] - demo["ms"]["by hand"]
    print(f"The framework's share of a small step: {overhead:.2f} ms")
    if options.json:
        content = {
            **resnets,
            "vit": vits,
            "demo": demo,
            "small_step_overhead_ms": overhead,
            "environment": environment(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    ratio = resnets["ratios"]["plain"]
    sys.exit(f"a step costs {ratio:.3f} × the hand-written one, more than {LIMIT}" if ratio > LIMIT else 0)


if __name__ == "__main__":
    main()
