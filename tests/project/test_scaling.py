"""The tables of docs/guides/scaling.md follow from the assumptions on that page."""

import re

import pytest

from distillery.core.paths import CONFIGS

PAGE = (CONFIGS.parent / "docs/guides/scaling.md").read_text(encoding="utf-8")
STUDENT, TEACHER, TOKENS = 7e9, 70e9, 2**22
SPEED = 0.4 * 989e12
TRAIN, FORWARD = 6 * STUDENT, 2 * TEACHER  # FLOPs a token
NETWORK = {8: 450e9, 64: 50e9, 256: 50e9}
BYTES = {
    "top 32": 32 * (4 + 2) + 4,
    "12 sampled": 12 * (4 + 2) + 2,
    "hidden states": 8192 * 2 + 2,
    "all logits": 128256 * 2 + 2,
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def close(cell: str, value: float) -> bool:
    """Whether the cell is the value, rounded to its digits."""
    written = re.sub(r" TB$", "", cell).replace(",", "")
    digits = len(written.partition(".")[2])
    return float(written) == pytest.approx(value, abs=0.500001 * 10**-digits)


def test_time_and_memory() -> None:
    table = rows("Time and memory of a step")
    assert [int(row[0]) for row in table] == [1, 8, 64, 256]
    for number, *cells in table:
        own = TOKENS / int(number)
        seconds = own * TRAIN / SPEED, own * (TRAIN + FORWARD) / SPEED
        expected = own, *seconds, 16e-9 * STUDENT / int(number), 2e-9 * TEACHER / int(number)
        assert all(close(cell, value) for cell, value in zip(cells, expected, strict=True)), number


def test_network() -> None:
    for number, *cells in rows("Network"):
        gpus = int(number)
        student, teacher = (each * (gpus - 1) / gpus for each in (3 * 2 * STUDENT, 2 * TEACHER))
        expected = (
            *(1e-9 * student, student / NETWORK[gpus], 1e-9 * teacher, teacher / NETWORK[gpus]),
            TOKENS / gpus * FORWARD / SPEED,
        )
        assert all(close(cell, value) for cell, value in zip(cells, expected, strict=True)), number


def test_once_or_in_every_run() -> None:
    hours, *caches = [FORWARD, TRAIN], *BYTES.values()
    table = rows("Once, or in every run")
    for (_, *cells), flops in zip(table[:2], hours, strict=True):
        assert all(close(cell, n * flops / SPEED / 3600) for cell, n in zip(cells, (1e9, 1e11), strict=True))
    for (name, *cells), size in zip(table[2:], caches, strict=True):
        assert name.removeprefix("cache, ") in BYTES
        assert all(close(cell, n * size * 1e-12) for cell, n in zip(cells, (1e9, 1e11), strict=True)), name


def test_what_is_said_of_them() -> None:
    per_second = TOKENS / (TOKENS / 256 * TRAIN / SPEED)
    rates = [round(per_second * BYTES[name] / 1e6) for name in ("top 32", "12 sampled")]
    assert f"at {rates[0]} MB/s by 256 GPUs" in PAGE.replace("\n", " ")
    assert f"12 sampled classes at {rates[1]} MB/s" in PAGE
    assert f"need {per_second * BYTES['hidden states'] / 1e9:.1f} GB/s" in PAGE
    assert f"are {8 * SPEED / TRAIN * BYTES['top 32'] / 1e6:.1f} MB/s" in PAGE
