"""What each loss costs, compared with its plain formula.

    python benchmarks/losses.py [--only kd rkd] [--repeats 30]

Times forward and backward of both on the same inputs in float32, alternating, on one thread, and takes the fastest of
the repeats, since other load on the machine only adds time. Exits with 1 if a loss takes more than twice the time of
its formula. The formulas are in the tests of the losses; they give the same values, but break down for extreme inputs.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from parts.options import positive
from parts.table import show
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fixtures import losses
from fixtures.formulas import FORMULAS, Formula, Inputs, make_inputs

LIMIT = 2.0


def seconds(formula: Formula, x: Inputs) -> float:
    start = time.perf_counter()
    formula(x).backward()
    return time.perf_counter() - start


def main() -> None:
    losses.load()
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=sorted(FORMULAS), default=sorted(FORMULAS), metavar="LOSS")
    arguments.add_argument("--repeats", type=positive, default=30)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    x, slow, rows = make_inputs(), [], []
    for name in track(given.only, "timing", transient=True):
        ours, plain = FORMULAS[name]
        times = [(seconds(ours, x), seconds(plain, x)) for _ in range(given.repeats)]
        own, other = (1000 * min(column) for column in zip(*times, strict=True))
        ratio = own / other
        slow += [name] if ratio > LIMIT else []
        rows.append([name, f"{own:.3f}", f"{other:.3f}", f"{ratio:.2f}"])
    columns = "loss", "ms", "plain formula, ms", "ratio"
    show("Forward and backward, batch 64, one thread", columns, rows)
    if slow:
        sys.exit(f"More than {LIMIT:g} times as slow as the plain formula: {', '.join(slow)}")


if __name__ == "__main__":
    main()
