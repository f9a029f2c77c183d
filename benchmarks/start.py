"""How soon commands answer: `--help` and TAB beside a bare Hydra app, and the first step of the demo's student.

    python benchmarks/start.py [--pairs 5]

Processor time of whole processes, in turn; the ratio is the median over the pairs. The bare app has the same configs
and does nothing. The demo is timed by the clock, from the command to the first update: of its teacher, which is trained
first, and of its first student. Exits with 1 if help or TAB take plainly more than 1.5 × the bare app's time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts.options import positive
from parts.table import show

from distillery.core.paths import CONFIGS

LIMIT = 1.6
BARE = f"""
import hydra

@hydra.main(config_path={str(CONFIGS)!r}, config_name="train", version_base="1.3")
def main(cfg): ...

main()
"""
OURS = ["-m", "distillery.commands.train"]
KINDS = {"--help": ["--help"], "TAB": ["-sc", "query=bash"]}


def processor_seconds(*arguments: str) -> float:
    """Those of Python with these arguments."""

    def used() -> float:
        of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return of_children.ru_utime + of_children.ru_stime

    before = used()
    line = "distill-train experiment=digits"
    env = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([sys.executable, *arguments], check=True, env=env, stdout=subprocess.DEVNULL)
    return used() - before


def commands(pairs: int) -> float:
    """Show what help and TAB take; return the largest ratio."""
    rows, largest = [], 0.0
    with tempfile.NamedTemporaryFile("w", suffix=".py") as bare:
        bare.write(BARE)
        bare.flush()
        for name, own in KINDS.items():
            times = [(processor_seconds(*OURS, *own), processor_seconds(bare.name, *own)) for _ in range(pairs)]
            ratios = [mine / theirs for mine, theirs in times]
            mine, theirs = (f"{statistics.median(column):.2f}" for column in zip(*times, strict=True))
            ratio = statistics.median(ratios)
            rows.append([name, mine, theirs, f"{ratio:.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}"])
            largest = max(largest, ratio)
    show("Processor time of commands", ["", "distill-train: s", "bare Hydra app: s", "ratio", "range"], rows)
    return largest


def first_steps() -> list[float]:
    """Seconds until teacher and student of the demo take their first step."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "first_steps"
        own = ["study=digits_demo", "overrides=['+callbacks.first_step._target_=first_step.FirstStep']"]
        env = {"FIRST_STEPS": str(file), "DISTILLERY_OUTPUTS": scratch, "DISTILLERY_CACHE": f"{scratch}/cache"}
        path = os.pathsep.join([str(Path(__file__).parent / "parts"), os.environ.get("PYTHONPATH", "")])
        command, start = [sys.executable, "-m", "distillery.commands.study", *own], time.time()
        with subprocess.Popen(command, env=os.environ | env | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL) as study:
            steps: list[float] = []
            while len(steps) < 2 and study.poll() is None:
                time.sleep(0.05)
                steps = [float(line) - start for line in file.read_text().split()] if file.exists() else []
            study.terminate()
    if len(steps) < 2:
        sys.exit("The demo ended before its student's first step.")
    return steps[:2]


def demo(runs: int) -> None:
    """Show the median and the range of `first_steps`."""
    rows = [
        [name, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}–{max(seconds):.1f}"]
        for name, *seconds in zip(("teacher", "first student"), *(first_steps() for _ in range(runs)), strict=True)
    ]
    show("From `distill-study study=digits_demo` to the first step", ["", "s", "range"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, default=5)
    given = parser.parse_args()
    ratio = commands(given.pairs)
    demo(given.pairs)
    sys.exit(f"{ratio:.2f} × the time of a bare Hydra app, more than {LIMIT}" if ratio > LIMIT else 0)


if __name__ == "__main__":
    main()
