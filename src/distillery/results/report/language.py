"""What a report says of language models besides their scores: fidelity to the teacher, and texts side by side."""

import re
import textwrap
from collections.abc import Mapping, Sequence, Set
from typing import Any

import pandas as pd

from distillery.results.layout import FIDELITY as PICTURE
from distillery.results.report.collect import Run
from distillery.results.report.formats import cells, fidelity_columns
from distillery.results.report.markdown import bullets, section, table_of
from distillery.results.report.table import TEACHER, compared_with

WIDTH = 100
DEFINITIONS = """
Means over {tokens} tokens of the test split, and over seeds; KL and entropy in nats. **KL**: KL(teacher ‖ student) at
the data's tokens; **own text**: at {number} continuations of test texts that the student draws itself (prompts of
{prompt} tokens or those of the data, up to {new} new tokens, temperature 1), where **reverse KL** is KL(student ‖
teacher). **Acceptance**: Σ min(s, t), the chance that speculative decoding accepts a token that the student proposes
(Leviathan et al. 2023). **Calibration error**: of the likeliest next token, Σ over 15 bins of confidence of their share
of the tokens · |accuracy − mean confidence| (Guo et al. 2017). **Entropy**: of the next token."""
CAPTION = """
Left: KL(teacher ‖ student) by how far a token stands behind the prompt, at continuations that the student has drawn
(solid, as far as those of the data reach) and at those of the data after the same prompts (dashed); shaded: 95 %
interval of the mean over seeds. Where the solid line climbs away from the dashed one, the student's own mistakes lead
it to where it knows least (exposure bias). Right: accuracy of the likeliest next token by its probability, which would
be equal (grey) were the student calibrated; larger dots stand for more tokens."""


def fidelity_section(table: pd.DataFrame, students: Sequence[Run], pictures: Set[str]) -> str:
    """Table, definitions and picture (if there is one), and which teachers were not compared; empty: nothing is."""
    shown = fidelity_columns(table)
    if not shown:
        return ""
    own = [run.record.fidelity["student"] for run in students if "student" in run.record.fidelity]
    texts: Mapping[str, Any] = next(
        (entry["texts"] for entry in own if "texts" in entry), {"number": 0, "prompt": 0, "new": 0}
    )
    tokens = " or ".join(dict.fromkeys(f"{entry['tokens']:,}" for entry in own))
    return section(
        "Fidelity",
        table_of(["method", *(column.heading for column in shown)], cells(table, shown)),
        DEFINITIONS.format(tokens=tokens, **texts),
        f"![KL by position, and reliability of the predictions]({PICTURE})\n{CAPTION}" if PICTURE in pictures else "",
        bullets(_not_compared(students)),
    )


def samples_section(students: Sequence[Run]) -> str:
    """The likeliest continuations of the same prompts by teacher, baseline and methods, of each the first seed."""
    with_some = sorted((run for run in students if run.record.samples), key=lambda run: run.record.seed)
    if not with_some:
        return ""
    blocks = []
    for number, sample in enumerate(with_some[0].record.samples):
        texts = {"prompt": sample["prompt"], "data": sample["data"]}
        for run in with_some:
            own = run.record.samples[number] if number < len(run.record.samples) else {}
            name = compared_with(run)
            if own.get("prompt") == sample["prompt"] and name in own:
                texts.setdefault(TEACHER, own[name])
        for label in dict.fromkeys(run.label for run in students):
            mine = next((run for run in with_some if run.label == label and len(run.record.samples) > number), None)
            if mine is not None and mine.record.samples[number]["prompt"] == sample["prompt"]:
                texts[label] = mine.record.samples[number]["student"]
        blocks.append(side_by_side(texts))
    about = (
        "Test texts, and how each network continues them with the likeliest token each time. ⏎ is the end of a line."
    )
    return section("Samples", about, *blocks)


def side_by_side(texts: Mapping[str, str]) -> str:
    """The texts with their names as a Markdown code block, whatever characters they have."""
    width = max(map(len, texts))
    lines = []
    for name, text in texts.items():
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\n", "⏎"))
        wrapped = textwrap.wrap(plain, WIDTH, drop_whitespace=False) or [""]
        lines += [f"{name if place == 0 else '':{width}}  {part}".rstrip() for place, part in enumerate(wrapped)]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", "".join(lines))), default=0))
    return "\n".join([f"{fence}text", *lines, fence])


def _not_compared(students: Sequence[Run]) -> list[str]:
    found = (
        f"`{name}` is not compared with the students, as {entry['not_compared']}."
        for run in students
        for name, entry in run.record.fidelity.items()
        if "not_compared" in entry
    )
    return list(dict.fromkeys(found))
