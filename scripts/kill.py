"""Kills a small run with SIGKILL at many moments, goes on with it, and compares it with the run that was not killed.

    python scripts/kill.py --moments 100 --seed 0
    python scripts/kill.py --moments 30 experiment=digits_demo trainer.max_epochs=4 loss/feature=[hint]

Moments are drawn by the seed, place by place, and each run ends to the bit as the one that was not killed, or else the
table says what differs, and the command ends with 1. What follows the options are overrides of `distill-train`; without
any it is the run of three stages of `tests/runs/test_killed.py`. A teacher is trained for it.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_killed import STAGES

from fixtures.killed import differences, drawn, killed, server
from fixtures.runs import config, train_teacher


def main() -> int:
    """Returns how many runs differ, at most 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    table = Table("killed at", "by signal", "goes on for", "differs", title="Killed and resumed")
    with TemporaryDirectory() as name, server(Path(name)) as runs:
        place = Path(name) / "runs"
        overrides = [*(asked.overrides or STAGES), f"teachers.main.weights='{train_teacher(place / 'teacher')}'"]
        whole = runs.run(config(place / "whole", *overrides))
        if whole.code:
            sys.exit(whole.said)
        equal = 0
        for number, moment in enumerate(drawn(whole, asked.moments, asked.seed)):
            folder = place / str(number)
            first, second = killed(runs, config(folder, *overrides), moment)
            found = second.said.splitlines()[-1:] if second.code else differences(folder, place / "whole")
            equal += not found
            table.add_row(
                str(moment), "yes" if first.code else "ended before", f"{second.seconds:.1f} s", ", ".join(found)
            )
    console = Console()
    console.print(table)
    console.print(f"{equal} of {asked.moments} runs end as the one that was not killed.")
    return int(equal < asked.moments)


if __name__ == "__main__":
    sys.exit(main())
