"""Eight students that learn from one cache of their teacher's signals, beside eight that learn from the teacher itself.

    python benchmarks/cached_sweep.py

ResNet-56 → ResNet-20 on 256 digits of 32×32 pixels, with crops and flips: two losses, two learning rates, two seeds.
Each pair of runs is timed one after the other, from the config to the scored student. Exits with 1 if a student from
the cache has not, bit for bit, the weights of its twin.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from parts.options import positive
from parts.table import show

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.core.terminal import hushed
from distillery.runs.run import Result, train
from distillery.runs.write_signals import Settings, write_signals

COMMON = [
    *(
        "data=digits",
        "data.batch_size=64",
        "data.train_size=256",
        "data.subset_seed=0",
        "data.augment.flip=true",
        "logger=none",
        "threads=1",
    ),
    *("model/student=cifar", "optim=sgd", "trainer.enable_progress_bar=false"),
    *("callbacks.checkpoint_last=null", "callbacks.checkpoint_best=null", "callbacks.scale_report=null"),
]
TEACHER = ["student.net.name=resnet56", "model/teacher=none", "trainer.max_epochs=2", "optim.optimizer.lr=0.05"]
STUDENT = ["student.net.name=resnet20", "model/teacher=run", "data.views_seed=0", "min_teacher_score=0"]
SWEEP = list(product(("kd", "dist"), (0.05, 0.1), (0, 1)))


def config(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        return compose("train", [*COMMON, *overrides, f"paths.run='{folder}'"])


def timed(cfg: DictConfig) -> tuple[float, Result]:
    start = time.perf_counter()
    with hushed():
        result = train(cfg)
    return time.perf_counter() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=positive, default=6)
    parser.add_argument("--views", type=positive, default=2)
    parser.add_argument("--side", type=positive, default=32, help="pixels of an image's side")
    given = parser.parse_args()
    register_resolvers()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        root, cache = Path(place), Path(place) / "signals"
        size = f"student.input.size={given.side}"
        timed(config(root / "teacher", *TEACHER, size))
        own = [*STUDENT, size, f"teachers.main.weights='{root / 'teacher'}'", f"data.views={given.views}"]
        own += [f"trainer.max_epochs={given.epochs}", f"trainer.check_val_every_n_epoch={given.epochs}"]
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):  # it says where the cache lies
            write_signals(config(root / "written", *own, "loss/response=[kd]"), Settings(str(cache), "full"))
        writing = time.perf_counter() - start
        totals, different = [0.0, 0.0], 0
        rows = []
        for number, (loss, rate, seed) in enumerate(SWEEP):
            job = [*own, f"loss/response=[{loss}]", f"optim.optimizer.lr={rate}", f"seed={seed}"]
            online, expected = timed(config(root / f"online{number}", *job))
            cached, found = timed(config(root / f"cached{number}", *job, f"teachers.main.cache='{cache}'"))
            totals = [totals[0] + online, totals[1] + cached]
            scores = [result.record.metrics["last"]["test_score"] for result in (expected, found)]
            pairs = zip(
                *(each.parts.distiller.student.state_dict().values() for each in (expected, found)), strict=True
            )
            equal = all(torch.equal(*pair) for pair in pairs)
            different += not equal
            weights = "equal" if equal else "different"
            times = f"{online:.1f}", f"{cached:.1f}", f"{cached / online:.2f}"
            rows.append([f"{loss}, {rate}, {seed}", *times, *(f"{score:.4f}" for score in scores), weights])
    columns = "loss, learning rate, seed", "online: s", "cached: s", "ratio", "score", "score, cached", "weights"
    show("Students from their teacher and from its cache", columns, rows)
    whole, same = totals[1] + writing, len(SWEEP) - different
    print(
        f"{len(SWEEP)} students, {given.epochs} epochs, {given.views} views, {given.side}×{given.side} pixels:\n"
        f"online {totals[0]:.1f} s; cached {whole:.1f} s, of which {writing:.1f} s for writing; ratio "
        f"{whole / totals[0]:.2f}; {same} of {len(SWEEP)} pairs have the same weights.\n"
        f"Load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after."
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
