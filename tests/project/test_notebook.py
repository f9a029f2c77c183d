"""The notebook is its script: the same cells, and they run."""

import os
import sys
from pathlib import Path

import jupytext
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/quickstart.py"
NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"


def test_the_notebook_has_the_cells_of_its_script() -> None:
    script, notebook = jupytext.read(SCRIPT), jupytext.read(NOTEBOOK)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ], "make notebook"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # as in the Makefile
    notebook = jupytext.read(NOTEBOOK)
    ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("score_mean" in str(each.get("data", {}).get("text/html")) for each in outputs)
    assert not [each for each in outputs if each.get("name") == "stderr"]
