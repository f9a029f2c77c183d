"""export.json: what is written is read back, per format, and only for the weights it was measured on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distillery.core.errors import UserError
from distillery.results.exports import Export, read_exports, write_exports
from distillery.results.record import RunRecord

ONNX = Export(
    format="onnx",
    path="onnx/model.onnx",
    bytes=20_123,
    max_difference=1.5e-6,
    agreement=1.0,
    score=0.91,
    samples=360,
    latency_ms_min=0.01,
    latency_ms_median=0.02,
    batch_size=32,
    batch_latency_ms_min=0.2,
    batch_latency_ms_median=0.25,
    busy=False,
    peak_memory_bytes=60_000_000,
    verified_in_fresh_process=True,
    needs=["onnxruntime"],
    runtime="onnxruntime 1.23.2",
    cpu="A processor",
)


def run(folder: Path, sha256: str) -> Path:
    RunRecord("kd_seed3", "kd", 3, "abc", status="finished", student_sha256=sha256).write(folder)
    return folder


def test_formats_are_added_and_replaced(tmp_path: Path) -> None:
    assert read_exports(run(tmp_path, "a")) == []
    write_exports(tmp_path, [ONNX])
    other = replace(ONNX, format="gguf", path="gguf/model.gguf", agreement=None, remarks=["as float16"])
    write_exports(tmp_path, [other])
    assert read_exports(tmp_path) == [other, ONNX]
    write_exports(tmp_path, [replace(ONNX, score=0.5)])
    assert read_exports(tmp_path) == [other, replace(ONNX, score=0.5)]
    content = json.loads((tmp_path / "export" / "export.json").read_text())
    assert content["version"] == 1
    assert content["exports"][0]["verified_in_fresh_process"] is True


def test_those_of_other_weights_are_not_the_students(tmp_path: Path) -> None:
    write_exports(run(tmp_path, "a"), [ONNX])
    assert read_exports(run(tmp_path, "b")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is torn"), ('{"version": 9}', "has version 9"), ('{"version": 1}', "is torn")],
)
def test_an_unreadable_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = run(tmp_path, "a") / "export" / "export.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_exports(tmp_path)
