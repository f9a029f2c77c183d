"""Runs the benchmarks and writes what they print into docs/benchmarks.md. Takes half an hour on an idle machine.

    python scripts/benchmarks_page.py [NAME ...]

Between `<!-- benchmark: NAME.py OPTIONS -->` and `<!-- end -->` of the page go the command, the machine and the tables.
With names, only these are run. Exits with 1 if one fails or misses a limit; what it printed is on the page in any case.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

from distillery.results.environment import environment, git_state

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
BLOCK = re.compile(r"(<!-- benchmark: (?P<name>\w+)\.py(?P<options>.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def machine() -> str:
    """Processor, versions, commit and day."""
    own, commit = environment(), git_state(ROOT)["commit"] or "unknown"
    device = own["gpu"] or f"{own['cpu']}, {own['cores']} cores"
    return f"{device}, torch {own['packages']['torch']}, commit {commit[:7]}, {datetime.date.today()}"


def main() -> None:
    names, missed = sys.argv[1:], []

    def block(match: re.Match[str]) -> str:
        if names and match["name"] not in names:
            return match[0]
        command = f"python benchmarks/{match['name']}.py{match['options']}"
        print(f"\n{command}", flush=True)
        own = [sys.executable, *command.split()[1:]]
        done = subprocess.run(own, cwd=ROOT, capture_output=True, text=True)
        print(done.stdout, flush=True)
        said = ""
        if done.returncode:
            said = f"\n{done.stderr.strip().splitlines()[-1]}\n"
            missed.append(f"{command}: {said.strip()}")
        return f"{match[1]}\n`{command}` ({machine()})\n{done.stdout.rstrip()}\n{said}\n{match[4]}"

    PAGE.write_text(BLOCK.sub(block, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
