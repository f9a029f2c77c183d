"""GGUF for llama.cpp and its relatives, by their own converter."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from distillery.core.errors import UserError
from distillery.core.hub import quiet
from distillery.models.text.export import save_pretrained
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact

MODEL = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"


def write(model: Exportable, folder: Path) -> Artefact:
    """Convert the folder that transformers loads, in float16.

    Raises:
        UserError: the converter does not know this architecture or this tokenizer, in its own words.
    """
    net = pretrained_model(model.student.net)
    assert net is not None
    converter = shutil.which(CONVERTER)
    assert converter is not None
    with tempfile.TemporaryDirectory(dir=model.scratch) as source:
        save_pretrained(net, Path(source), model.tokenizer)
        with quiet():
            model.tokenizer.save_pretrained(source)
        ran = subprocess.run(
            [sys.executable, converter, source, "--outfile", str(folder / MODEL), "--outtype", "f16"],
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode or not (folder / MODEL).exists():
        said = ran.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"to=gguf: {CONVERTER} fails: {said[-1]}{_mend(said[-1])}")
    options = {"auto": "AutoModelForCausalLM", "load": {"gguf_file": MODEL}}
    return Artefact(
        folder / MODEL,
        "transformers_folder",
        "transformers",
        ("transformers", "gguf"),
        options,
        exact=False,
        remarks=("weights in float16; read back by transformers",),
    )


def _mend(said: str) -> str:
    """What to do about the converter's last words, where that is known."""
    if absent := re.search(r"No module named '(\w+)'", said):
        return f". It needs that package: pip install {absent[1]}"
    if "get_vocab_base_pre" in said:
        return (
            ". It knows tokenizers of published models alone, by the tokens of a test text, and none that was trained "
            "anew (distill-tokenizer). Train a student that reads a published one: data.tokenizer=<name or folder>"
        )
    return ""


def unfit(model: Exportable) -> str | None:
    """llama.cpp runs language models, and its converter must be there."""
    if not model.task.generates:
        return "llama.cpp runs language models (task=causal_lm) alone. Use to=[onnx]."
    if shutil.which(CONVERTER) is None:
        return (
            f"there is no {CONVERTER} on the PATH. It is part of llama.cpp (https://github.com/ggml-org/llama.cpp): "
            "make it executable, and add its folder to PATH."
        )
    return None
