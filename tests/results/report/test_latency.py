"""One latency for each network of a report, whatever the machine did while it was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.results.report.page import markdown_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]


def cost(median: float, minimum: float, busy: bool, **more: Any) -> dict[str, Any]:
    latency = {"minimum_ms": minimum, "busy": busy, "input": [3, 64, 64]}
    return {"params": 5000, "flops": 600_000, "latency_ms": median, "latency": latency} | more


def report(folder: Path) -> tuple[pd.DataFrame, str]:
    table = write_report([folder], folder, "Busy").table.set_index("method")
    return table, (folder / "report.md").read_text()


def test_the_same_network_has_one_latency(make_run: MakeRun, tmp_path: Path) -> None:
    """As it stood in a table: 60.9, 64.5 and 41.6 ms for a student that takes 11.2."""
    for method, measured in (("a", (60.9, 11.5, True)), ("b", (64.5, 11.3, True)), ("c", (41.6, 11.4, True))):
        make_run(method, 0, 0.9, cost=cost(*measured))
    table, text = report(tmp_path)
    assert table.loc[["a", "b", "c"], "latency_ms"].tolist() == [11.3] * 3
    assert table["latency_busy"].to_dict() == {"teacher": False, "a": True, "b": True, "c": True}
    assert "| 11.3 (busy) |" in text
    assert "| 3 |" in text, "the teacher's, which was measured by an earlier version"
    assert "**(busy)**: whenever the network was measured, something else took the machine's time" in text
    assert "on one thread, input 3×64×64; of" in text
    again = pd.read_csv(tmp_path / "report.csv")
    assert "| 11.3 (busy) |" in markdown_table(again)

    make_run("c", 1, 0.9, cost=cost(11.9, 11.2, False))  # one on an idle machine is enough
    table, text = report(tmp_path)
    assert table.loc[["a", "b", "c"], "latency_ms"].tolist() == [11.9] * 3
    assert "latency_busy" not in table
    assert "busy" not in text


@pytest.mark.parametrize(
    "other", [{"params": 5001}, {"latency": {"minimum_ms": 1.0, "busy": False, "input": [3, 32, 32]}}]
)
def test_other_networks_and_other_inputs_are_measured_apart(
    other: dict[str, Any], make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("a", 0, 0.9, cost=cost(5.0, 4.0, False))
    make_run("b", 0, 0.9, cost=cost(1.0, 1.0, False, **other))
    found, _ = report(tmp_path)
    assert found.loc[["a", "b"], "latency_ms"].tolist() == [5.0, 1.0]


def test_machines_are_not_mixed(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (cpu, median) in enumerate([("slow", 8.0), ("fast", 2.0)]):
        make_run("a", seed, 0.9, cost=cost(median, median, False), environment={"cpu": cpu})
    assert report(tmp_path)[0].loc["a", "latency_ms"] == pytest.approx(5.0)  # the median over seeds
