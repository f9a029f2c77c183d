"""Kill a small run with SIGKILL at many moments, resume it, and compare it with the run that was not killed.

    python scripts/kill.py --moments 100 --seed 0
    python scripts/kill.py --moments 30 experiment=digits_demo trainer.max_epochs=4 loss/feature=[hint]

The seed decides the moments. Each resumed run must be bit-identical to the run that was not killed; the table lists
what differs, and the exit code is 1 if anything does. Further arguments are overrides of `distill-train`; the default
is a run of three stages. The script trains the teacher that it needs.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fixtures.killed import STAGES, differences, drawn, killed, server
from fixtures.runs import config, train_teacher


def main() -> int:
    """Return 1 if any run differs, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    table = Table("killed at", "by signal", "resumed for", "differs", title="Killed and resumed")
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
                str(moment), "yes" if first.code else "ended first", f"{second.seconds:.1f} s", ", ".join(found)
            )
    console = Console()
    console.print(table)
    console.print(f"{equal} of {asked.moments} runs end like the one that was not killed.")
    return int(equal < asked.moments)


if __name__ == "__main__":
    sys.exit(main())
