"""What the framework costs: a training step under the Trainer beside the same step in a hand-written loop.

    python benchmarks/overhead.py

Both train the same student against the same teacher with kd, the two in turn, in one process; no validation in the
timed part. The ratio is the median over the pairs. Exits with 1 if ResNet-56 → ResNet-20 costs more than 1.05 ×.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from distillery.config.build import Parts, build
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.models.weights import save_weights
from distillery.runs.trainer import make_trainer

LIMIT = 1.05
RESNETS = [
    *("data=digits", "data.batch_size=64", "data.train_size=768", "data.augment={crop: 1, flip: true}"),
    *("model/student=cifar", "student.net.name=resnet20", "student.input.size=32"),
    *("model/teacher=cifar", "teachers.main.net.name=resnet56", "teachers.main.input.size=32"),
]
CNN = "teachers.main.net={_target_: distillery.models.cnn.SmallCNN, widths: [32, 64, 64]}"
DEMO = ["experiment=digits_demo", CNN]


class Clock(L.Callback):
    """Seconds of the training steps alone: from the end of the first step to the end of the last."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        now = time.perf_counter()
        if trainer.global_step == 1:
            self.start = now
        self.seconds = now - self.start


def under_trainer(parts: Parts, steps: int, folder: Path) -> float:
    """Seconds a step under Lightning with the config's own callbacks and logger."""
    clock = Clock()
    cfg = parts.cfg.copy()
    cfg.trainer.update(max_steps=steps + 1, max_epochs=-1, limit_val_batches=0, enable_progress_bar=False)
    cfg.callbacks.update(checkpoint_last=None, checkpoint_best=None, teacher_guard=None, scale_report=None)
    cfg.paths.run = str(folder)
    make_trainer(cfg, [CSVLogger(folder)], [clock]).fit(parts.distiller, datamodule=parts.data)
    return clock.seconds / steps


def by_hand(parts: Parts, steps: int) -> float:
    """Seconds a step of a plain loop: index, crop and flip a batch, two forwards, KL, backward, SGD."""
    student, teacher = parts.distiller.student.net, parts.distiller.teachers["main"].net
    mean, std = parts.distiller.student.adapter.mean, parts.distiller.student.adapter.std
    batches = list(parts.data.train_dataloader())
    images = torch.cat([batch["image"] for batch in batches])
    if size := parts.distiller.student.adapter.size:
        images = F.interpolate(images, size=(size,) * 2, mode="bilinear", antialias=True)
    targets = torch.cat([batch["target"] for batch in batches])
    size, temperature, batch_size = images.shape[-1], 4.0, parts.data.batch_size
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    student.train()
    start = 0.0
    for step in range(steps + 1):
        chosen = torch.randint(len(images), (batch_size,))
        padded = F.pad(images[chosen], (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        x = padded[:, :, top : top + size, left : left + size]
        x = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, x.flip(-1), x)
        x = (x - mean) / std
        with torch.no_grad():
            soft = F.log_softmax(teacher(x) / temperature, 1)
        logits = student(x)
        kd = F.kl_div(F.log_softmax(logits / temperature, 1), soft, reduction="batchmean", log_target=True)
        loss = 0.1 * F.cross_entropy(logits, targets[chosen]) + 0.9 * temperature**2 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            start = time.perf_counter()
    return (time.perf_counter() - start) / steps


def compare(name: str, overrides: list[str], steps: int, pairs: int) -> tuple[float, float]:
    """Print and return the median ratio and the median overhead in µs a step."""
    ratios, overheads = [], []
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "teacher.safetensors"
        overrides = [*overrides, f"paths.run={scratch}", f"teachers.main.weights={weights}", "min_teacher_score=0"]
        net = compose("train", overrides=overrides).teachers.main.net
        save_weights(instantiate(net, num_classes=10, in_chans=1), weights)  # new weights cost what trained ones do
        for pair in range(pairs):
            (stage,) = check(compose("train", overrides=overrides)).stages
            parts = build(stage)
            trainer = under_trainer(parts, steps, Path(scratch) / str(pair))
            hand = by_hand(parts, steps)
            ratios.append(trainer / hand)
            overheads.append(1e6 * (trainer - hand))
            print(f"  {name}: trainer {1e3 * trainer:.2f} ms, by hand {1e3 * hand:.2f} ms, ratio {ratios[-1]:.3f}")
    ratio, overhead = statistics.median(ratios), statistics.median(overheads)
    print(f"{name}: ratio {ratio:.3f}, overhead {overhead:.0f} µs a step (median of {pairs} pairs of {steps} steps)")
    return ratio, overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each ResNet run")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind, in turn")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        ratio, _ = compare("ResNet-56 → ResNet-20, batch 64, 32×32", RESNETS, options.steps, options.pairs)
        compare("digits demo, batch 25, 8×8", DEMO, 50 * options.steps, options.pairs)
    sys.exit(f"a step costs {ratio:.3f} × the hand-written one, more than {LIMIT}" if ratio > LIMIT else 0)


if __name__ == "__main__":
    main()
