"""`distill-export to=[…]`: other libraries compute the student from the files, and export.json says how well."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from distillery.commands import export as export_command
from distillery.core.errors import UserError
from distillery.models.cost import count_parameters
from distillery.results.exports import read_exports
from distillery.results.layout import PREDICTIONS
from distillery.results.record import RunRecord
from distillery.runs.export.export import export
from distillery.runs.export.formats import registry
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.gguf import CONVERTER
from distillery.runs.export.formats.registry import FORMATS
from distillery.runs.export.transformers_folder import export_for_transformers
from distillery.runs.run import train
from distillery.runs.verify_run import rebuilt
from fixtures.command_line import Command
from fixtures.documents import documents, run_on_texts, write_bpe, write_texts
from fixtures.runs import STUDENT, Once, config
from fixtures.texts import sentences, write_csv, write_tokenizer

SHORT = ["trainer.max_epochs=3", "data.batch_size=8", "logger=none", "model/teacher=none", "optim.optimizer.lr=0.01"]
ENCODER = ["model/student=encoder", "student.net.config.max_position_embeddings=48"]
ENCODER += [f"student.net.config.{name}={size}" for name, size in {"hidden_size": 16, "embedding_size": 8}.items()]
ENCODER += ["student.net.config.num_attention_heads=2", "student.net.config.intermediate_size=24"]
BILSTM = ["model/student=bilstm", "student.net.embedding_width=12", "student.net.hidden=8"]


def digits(folder: Path) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """The test images of a run, and what its student predicts of them as the run recorded it."""
    data = rebuilt(folder, "test")[2]
    recorded = np.load(folder / PREDICTIONS)
    images = data.splits["test"].inputs.batch(torch.from_numpy(recorded["index"]), None, 0, 0)
    return images, recorded["student"]


def text_run(folder: Path, network: list[str]) -> Path:
    tokenizer = write_tokenizer(folder / "tok")
    write_csv(folder / "texts.csv", [(text, ("kind", "cruel")[label]) for text, label in sentences(160)])
    own = ["data=text_csv", f"data.source.path='{folder / 'texts.csv'}'", f"data.tokenizer='{tokenizer}'"]
    own += [*SHORT, *network, "optim=adamw_linear", "data.max_length=20"]
    return train(config(folder / "run", *own), own).folder


def onnx_logits(path: Path, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = onnxruntime.InferenceSession(str(path)).run(["logits"], inputs)[0]
    return found


@pytest.mark.slow
def test_images(teacher: Path, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(teacher), str(run)], check=True)
    answer = command(export_command, f"run={run}", "to=[safetensors,onnx,torch_export]", "batch_size=16")
    assert answer.code == 0, answer.err
    record, exports = RunRecord.read(run), {each.format: each for each in read_exports(run)}
    assert set(exports) == {"safetensors", "onnx", "torch_export"}
    images, predicted = digits(run)
    logits = onnx_logits(run / "export" / exports["onnx"].path, {"image": images.numpy()})
    assert logits.argmax(1).tolist() == predicted.tolist()
    graph = torch.export.load(run / "export" / exports["torch_export"].path).module()
    np.testing.assert_allclose(graph(image=images).detach().numpy(), logits, atol=1e-4)
    np.testing.assert_allclose(graph(image=images[:1]).detach().numpy(), logits[:1], atol=1e-4)
    for each in exports.values():
        assert each.score == record.metrics["last"]["test_score"]
        assert each.agreement == 1
        assert each.max_difference < 1e-4
        assert each.samples == len(images) == record.data["test"]
        assert each.verified_in_fresh_process
        assert 0 < each.latency_ms_min <= each.latency_ms_median
        assert each.bytes > 4 * count_parameters(rebuilt(run, "test")[1].net)
        assert "distillery" not in each.needs
    assert exports["onnx"].bytes == (run / "export" / "onnx" / "model.onnx").stat().st_size
    assert b".py" not in (run / "export" / "onnx" / "model.onnx").read_bytes(), "nothing of the code it comes from"
    assert exports["onnx"].peak_memory_bytes < exports["safetensors"].peak_memory_bytes, "onnxruntime alone, not torch"
    said = json.loads((run / "export" / "onnx" / "preprocessing.json").read_text())
    assert said["inputs"]["image"]["shape"] == ["batch", 1, 8, 8]
    assert said["classes"] == record.data["classes"]
    for name in exports:
        assert f"\n {name} " in answer.out
    card = (run / "export" / "README.md").read_text()
    assert "| onnx |" in card
    blocks = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    for block in blocks:  # as a user would run them, in the folder of the card
        blocked = "import sys; sys.modules['distillery'] = None\n" + block + "\nassert logits.shape == (1, 10)"
        subprocess.run([sys.executable, "-c", blocked], cwd=run / "export", check=True)
    assert len(blocks) == 3


@pytest.mark.slow
@pytest.mark.parametrize("network", [ENCODER, BILSTM], ids=["encoder", "bilstm"])
def test_texts(network: list[str], once: Once, tmp_path: Path) -> None:
    kind = network[0].partition("=")[2]
    base = once(f"exported_{kind}", lambda folder: text_run(folder, network))
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(base / "run"), str(run)], check=True)
    exports = {each.format: each for each in export(run, ["safetensors", "onnx"], repeats=3)}
    record, recorded = RunRecord.read(run), np.load(run / PREDICTIONS)
    lines = (base / "texts.csv").read_text().splitlines()[1:]
    texts = [lines[index].rpartition(",")[0].strip('"') for index in recorded["index"]]
    tokens = AutoTokenizer.from_pretrained(run / "export" / "onnx")(texts, return_tensors="np", padding=True)
    names = json.loads((run / "export" / "onnx" / "preprocessing.json").read_text())["inputs"]
    inputs = {name: tokens[name].astype("int64") for name in names}
    logits = onnx_logits(run / "export" / "onnx" / "model.onnx", inputs)
    assert logits.argmax(1).tolist() == recorded["student"].tolist()
    alone = {name: values[:1, : int(inputs["attention_mask"][0].sum())] for name, values in inputs.items()}
    np.testing.assert_allclose(onnx_logits(run / "export" / "onnx" / "model.onnx", alone), logits[:1], atol=1e-4)
    if kind == "encoder":
        net = AutoModelForSequenceClassification.from_pretrained(run / "export" / "safetensors").eval()
        assert list(net.config.label2id) == record.data["classes"]
        with torch.no_grad():
            given = {name: torch.from_numpy(values) for name, values in inputs.items()}
            np.testing.assert_allclose(net(**given).logits.numpy(), logits, atol=1e-4)
        with pytest.raises(UserError, match="which would be lost"):
            export_for_transformers(run, run / "export")
    for each in exports.values():
        assert (each.score, each.agreement) == (record.metrics["last"]["test_score"], 1)
    if kind == "bilstm":
        with pytest.raises(UserError, match="recurrent"):
            export(run, ["onnx", "torch_export"])


@pytest.mark.slow
def test_a_student_with_the_teachers_classifier_is_exported_whole(teacher: Path, tmp_path: Path) -> None:
    own = [*STUDENT, f"teachers.main.weights='{teacher}'", "model/student=simkd", "loss/response=[]"]
    own += ["loss/feature=[simkd]", "task.weight=0"]
    run = train(config(tmp_path / "run", *own), own).folder
    for each in export(run, ["safetensors", "onnx"], repeats=3):
        assert each.score == RunRecord.read(run).metrics["last"]["test_score"]
        assert "distillery" not in each.needs
    images, predicted = digits(run)
    logits = onnx_logits(run / "export" / "onnx" / "model.onnx", {"image": images.numpy()})
    assert logits.argmax(1).tolist() == predicted.tolist()


@pytest.mark.slow
def test_int8_is_smaller_and_says_what_it_loses(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = ["experiment=digits_teacher", "student.net.widths=[32,64]", "trainer.max_epochs=2", "logger=none"]
    train(config(run, *own), own)
    exports = {each.format: each for each in export(run, ["onnx", "onnx_int8", "onnx_int8_static"], repeats=3)}
    images, predicted = digits(run)
    for name in ("onnx_int8", "onnx_int8_static"):
        each = exports[name]
        assert each.bytes < 0.6 * exports["onnx"].bytes
        found = onnx_logits(run / "export" / each.path, {"image": images.numpy()})
        assert each.agreement == pytest.approx((found.argmax(1) == predicted).mean())
        assert each.agreement > 0.9
        assert each.max_difference > 10 * exports["onnx"].max_difference
        kept = onnx.load(run / "export" / each.path).graph.initializer
        assert any(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for tensor in kept)
        assert "int8" in each.remarks[0]
    assert exports["onnx_int8_static"].agreement > 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_language_models(tmp_path: Path) -> None:
    """Their test split is of packed documents, which the exported network reads one by one."""
    write_bpe(tmp_path / "bpe")
    write_texts(tmp_path / "texts", documents(30, longest=40))
    own = [
        *run_on_texts(tmp_path / "texts", tmp_path / "bpe"),
        "model/teacher=none",
        "student.net.config.hidden_size=32",
    ]
    run = train(config(tmp_path / "run", *own), own).folder
    exports = {each.format: each for each in export(run, ["safetensors", "onnx", "onnx_int8"], repeats=3)}
    score = RunRecord.read(run).metrics["last"]["test_score"]
    for name in ("safetensors", "onnx"):
        assert exports[name].score == pytest.approx(score, rel=1e-5)
        assert exports[name].agreement == 1
    assert exports["onnx_int8"].score == pytest.approx(score, rel=0.02)
    assert 0.9 < exports["onnx_int8"].agreement <= 1
    assert exports["onnx_int8"].bytes < exports["onnx"].bytes
    text = AutoTokenizer.from_pretrained(run / "export" / "onnx")("union of the people", return_tensors="np")
    inputs = {name: text[name].astype("int64") for name in ("input_ids", "attention_mask")}
    net = AutoModelForCausalLM.from_pretrained(run / "export" / "safetensors").eval()
    with torch.no_grad():
        logits = net(torch.from_numpy(inputs["input_ids"])).logits.numpy()
    np.testing.assert_allclose(onnx_logits(run / "export" / exports["onnx"].path, inputs), logits, atol=1e-4)
    with pytest.raises(UserError, match=r"to=onnx_int8_static: a language model is quantised by its weights alone"):
        export(run, ["onnx_int8_static"])
    if shutil.which(CONVERTER) is None:
        with pytest.raises(UserError, match=r"there is no convert_hf_to_gguf\.py on the PATH"):
            export(run, ["gguf"])


@pytest.mark.slow
def test_an_export_that_computes_something_else_is_refused(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(teacher), str(run)], check=True)
    export(run, ["safetensors"], samples=20, repeats=3)
    before = {path: path.read_bytes() for path in (run / "export").rglob("*") if path.is_file()}
    own = FORMATS["safetensors"]

    def wrong(model: Any, folder: Path) -> Artefact:
        with torch.no_grad():
            model.student.net.head.bias += 0.5
            written = own.write(model, folder)
            model.student.net.head.bias -= 0.5
        return written

    monkeypatch.setitem(FORMATS, "safetensors", replace(own, write=wrong))
    with pytest.raises(UserError, match=r"does not compute what the student does: a logit differs by 0\.5"):
        export(run, ["safetensors"], repeats=3)

    def broken(model: Any, folder: Path) -> Artefact:
        written = own.write(model, folder)
        (folder / "model.py").write_text("import distillery")
        return written

    monkeypatch.setitem(FORMATS, "safetensors", replace(own, write=broken))
    with pytest.raises(UserError, match=r"does not run in a process of its own: .*distillery"):
        export(run, ["safetensors"], repeats=3)
    assert {path: path.read_bytes() for path in (run / "export").rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_nothing(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(teacher), str(run)], check=True)

    def full(model: Any, folder: Path) -> Artefact:
        (folder / "half").write_text("a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=full))
    with pytest.raises(UserError, match="no space left on the disk"):
        export(run, ["onnx"])
    assert not list((run / "export").iterdir())


def test_what_cannot_be_is_refused_before_anything_is_written(
    teacher: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = command(export_command, f"run={teacher}", "to=[safetensors,onxx]")
    assert answer.code == 2
    assert "to=onxx: there is no such format. Did you mean 'onnx'" in answer.err
    assert "Leave out= out" in command(export_command, f"run={teacher}", "to=onnx", "out=elsewhere").err
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "onnxruntime" else object())
    answer = command(export_command, f"run={teacher}", "to=onnx")
    assert "to=onnx needs onnxruntime: pip install -e '.[export]'" in answer.err
    assert not (teacher / "export").exists()
