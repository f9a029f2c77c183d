"""One latency for each network of a report, whatever the machine did while it was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from distillery.data.raw_data import Texts
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.results.report.page import markdown_table
from distillery.results.report.write import write_report
from distillery.runs.score_run import cost_of
from fixtures.texts import raw_texts, sentences, text_data, tiny_bert, write_tokenizer

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
    assert "| 11.3 (busy) | 3×64×64 |" in text
    assert "| 3 | – |" in text, "the teacher's, which was measured by an earlier version"
    assert "**(busy)**: whenever the network was measured, something else took the machine's time" in text
    assert "**input**: what FLOPs and latency were measured on" in text
    again = pd.read_csv(tmp_path / "report.csv")
    assert "| 11.3 (busy) | 3×64×64 |" in markdown_table(again)
    before = markdown_table(again.drop(columns="input"))
    assert "| 11.3 (busy) |\n" in before, "a report of an earlier version, which has no inputs"
    assert " input " not in before

    make_run("c", 1, 0.9, cost=cost(11.9, 11.2, False))  # one on an idle machine is enough
    table, text = report(tmp_path)
    assert table.loc[["a", "b", "c"], "latency_ms"].tolist() == [11.9] * 3
    assert "latency_busy" not in table
    assert "busy" not in text


def test_the_same_network_has_one_latency_on_texts(tmp_path: Path, make_run: MakeRun) -> None:
    """Whatever its training subset: as it stood in a table, 9.39 ms of 28 tokens and 8.89 ms of 26."""
    folder = write_tokenizer(tmp_path / "tokenizer")
    texts, others = ([text for text, _ in sentences(60, seed)] for seed in range(2))
    net = tiny_bert()
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)(others)["input_ids"]]
    for size, median in ((8, 9.0), (16, 7.0), (60, 8.0)):
        data = text_data(folder, raw_texts(Texts(texts), test=Texts(others)), train_size=size, val_size=0)
        found = cost_of(Network(net, TextAdapter(net)), data)
        idle = found["latency"] | {"busy": False}
        make_run(f"of_{size}", 0, 0.9, cost=found | {"latency_ms": median, "latency": idle})
    table, text = report(tmp_path)
    students = table.drop("teacher")
    assert students["latency_ms"].tolist() == [7.0] * 3
    assert students["input"].tolist() == [f"{sorted(lengths)[30]} tokens"] * 3
    assert text.count(f"| 7 | {sorted(lengths)[30]} tokens |") == 2, "the third is in bold"


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
