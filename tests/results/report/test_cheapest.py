"""Which student is the cheapest that keeps so much: by hand, over every cost."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.core.errors import UserError
from distillery.results.exports import Export, write_exports
from distillery.results.report.cheapest import Question, answer
from distillery.results.report.collect import Run, collect
from distillery.results.report.headline import headline
from distillery.results.report.pareto import frontier
from distillery.results.report.selection import select
from distillery.results.report.table import method_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
TEACHER = {"source": "t", "sha256": "t0", "score": 0.80, "params": 1_000_000, "flops": 4e6, "latency_ms": 10.0}
# name: scores, FLOPs, parameters, milliseconds; of 0.80 they keep 75, 92.5, 95 and 97.5 %
STUDENTS = {
    "tiny": ([0.59, 0.61], 1e5, 10_000, 1.0),
    "small": ([0.73, 0.75], 4e5, 200_000, 3.0),
    "thin": ([0.75, 0.77], 2e6, 100_000, 4.0),
    "large": ([0.77, 0.79], 3e6, 500_000, 2.0),
}


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    for name, (scores, flops, params, latency) in STUDENTS.items():
        for seed, score in enumerate(scores):
            cost = {"flops": flops, "params": params, "latency_ms": latency}
            folder = make_run(name, seed, score, teacher=TEACHER, cost=cost, environment={"cpu": "C"})
            (folder / "student.safetensors").write_bytes(bytes(2 * params))  # of 16-bit weights
    return tmp_path


def compared(study: Path) -> tuple[pd.DataFrame, list[Run]]:
    students = select(collect([study])).students
    return method_table(students), students


def asked(study: Path, **question: Any) -> str:
    return answer(Question(**question), *compared(study)).sentence


@pytest.mark.parametrize(
    ("cost", "price", "keep", "name", "shown"),
    [
        ("flops", None, 0.9, "small", "400k FLOPs, 10.0 % of the teacher's"),
        ("params", None, 0.9, "thin", "100k parameters, 10.0 %"),
        ("bytes", None, 0.9, "thin", "200k bytes, 5.0 %"),
        ("latency_ms", None, 0.9, "large", "2 ms, 20.0 %"),
        ("latency_ms", None, 0.7, "tiny", "1 ms, 10.0 %"),
        # 2 ms are 2000 s for a million, 0.5556 h
        ("money", 0.9, 0.9, "large", "0.5 for a million samples, 20.0 %"),
    ],
)
def test_the_cheapest_by_each_cost(
    study: Path, cost: str, price: float | None, keep: float, name: str, shown: str
) -> None:
    sentence = asked(study, keep=keep, cost=cost, price=price)
    assert sentence.startswith(f"The cheapest student that keeps {keep:.0%}".replace("%", " %"))
    assert f"is `{name}`:" in sentence
    assert f"costs {shown}" in sentence


def test_an_interval_below_the_share_is_said_and_what_nobody_keeps(study: Path) -> None:
    assert "keeps 92.5 % (± 15.9)" in asked(study, keep=0.9)
    assert asked(study, keep=0.9).endswith("Its interval reaches below that share.")
    assert asked(study, keep=0.99) == (
        "No student keeps 99 % of the teacher's accuracy; `large` keeps the most, 97.5 % (± 15.9)."
    )


def test_the_page_has_the_answer_and_the_frontier(study: Path) -> None:
    found = write_report([study], study, "Costs", Question(0.9, "params")).answer
    assert found is not None
    page = (study / "report.md").read_text()
    assert f"## Quality at a cost\n\n**{found.sentence}**\n" in page
    assert found.table in page
    assert "keep=0.9 cost=params`" in page
    names = [line.split(" | ")[0].removeprefix("| ") for line in found.table.splitlines()[2:]]
    assert names == ["tiny", "thin", "large"], "small has more parameters than thin and a lower score"
    assert frontier({"a": 1, "b": 1, "c": 2, "d": 3}, {"a": 0.1, "b": 0.2, "c": 0.2, "d": 0.3}) == ["b", "d"]


def export(run: Path, **changes: Any) -> None:
    own = Export(
        format="onnx_int8", path="student.onnx", bytes=50_000, max_difference=0.1, agreement=0.99, score=0.76,
        samples=4, latency_ms_min=0.4, latency_ms_median=0.5, batch_size=32, batch_latency_ms_min=8.0,
        batch_latency_ms_median=9.0, busy=False, peak_memory_bytes=1, verified_in_fresh_process=True, needs=[],
        runtime="onnxruntime 1.23.2", cpu="C",
    )  # fmt: skip
    write_exports(run, [dataclasses.replace(own, **changes)])


def test_exported_files_are_students_too(study: Path) -> None:
    for seed in (0, 1):
        export(study / f"large_seed{seed}", score=0.76 + 0.02 * seed)
    assert "is `large as onnx_int8`: it keeps 96.2 % (± 15.9) and costs 0.5 ms" in asked(
        study, keep=0.9, cost="latency_ms"
    )
    assert headline(*compared(study)) == (
        "The student (`large`, as onnx_int8) keeps 96.2 % (± 15.9) of the teacher's accuracy, runs 20× faster "
        "(onnxruntime 1.23.2, the teacher in PyTorch; batch 1, one thread) and is 80× smaller (50kB; the teacher in "
        "float32 4MB)."
    )


@pytest.mark.parametrize("changes", [{"busy": True}, {"cpu": "another"}, {"samples": 3}])
def test_a_speed_that_compares_to_nothing_is_not_claimed(study: Path, changes: dict[str, Any]) -> None:
    export(study / "large_seed0", **changes)
    sentence = headline(*compared(study))
    if "samples" in changes:
        assert "onnx" not in sentence, "it was scored on a part of the data"
    else:
        assert "keeps 95.0 % (one seed) of the teacher's accuracy and is 80× smaller" in sentence


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"keep": 90}, "keep=90 is no share"),
        ({"keep": 0.9, "cost": "latency"}, "Did you mean latency_ms?"),
        ({"keep": 0.9, "cost": "money"}, "price=0.40"),
        ({"keep": 0.9, "price": 1.0}, "no other cost does"),
    ],
)
def test_questions_that_make_no_sense(question: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        Question(**question)
