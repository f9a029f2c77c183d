"""The exported student is of use to whoever has neither Lightning nor Hydra: it gives the recorded predictions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from distillery.runs.run import train
from fixtures.runs import STUDENT, Once, config

# argv: the run folder; stdin: `student` of its config.yaml. The images come from scikit-learn itself.
READER = """
import importlib, json, sys
for name in ("lightning", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb"):
    sys.modules[name] = None
import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from distillery.models.weights import load_weights

student = json.load(sys.stdin)
options = dict(student["net"])
module, _, name = options.pop("_target_").rpartition(".")
network = getattr(importlib.import_module(module), name)
recorded = np.load(sys.argv[1] + "/predictions.npz")
images = torch.tensor(load_digits().images[recorded["index"]] / 16, dtype=torch.float32)[:, None]
images = (images - student["input"]["mean"][0]) / student["input"]["std"][0]
given = {}
for file in ("student.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
    path = f"{sys.argv[1]}/{file}"
    if file.endswith(".ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert not [key for key in state if "teacher" in key]
        prefix = "student.net."
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    else:
        state = load_file(path)
    by_hand, loaded = network(**options).eval(), network(**options).eval()
    by_hand.load_state_dict(state)
    load_weights(loaded, path)
    with torch.no_grad():
        logits = by_hand(images)
        assert logits.equal(loaded(images))
    given[file] = logits.argmax(1).tolist()
assert sys.modules["hydra"] is None
print(json.dumps({"predicted": given, "target": load_digits().target[recorded["index"]].tolist()}))
"""


@pytest.fixture(scope="module")
def finished(teacher: Path, once: Once) -> Path:
    overrides = (*STUDENT, f"teachers.main.weights='{teacher}'", "loss/feature=[hint]")
    return once("with_hint", lambda folder: train(config(folder, *overrides)))


@pytest.mark.slow
def test_the_student_gives_the_recorded_predictions(finished: Path) -> None:
    student = yaml.safe_load((finished / "config.yaml").read_text())["student"]
    command = [sys.executable, "-c", READER, str(finished)]
    done = subprocess.run(command, input=json.dumps(student), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    recorded = np.load(finished / "predictions.npz")
    assert found["target"] == recorded["target"].tolist()
    assert found["predicted"]["student.safetensors"] == recorded["student"].tolist()
    assert found["predicted"]["checkpoints/last.ckpt"] == recorded["student"].tolist()

    metrics = json.loads((finished / "run.json").read_text())["metrics"]
    best = np.equal(found["predicted"]["checkpoints/best.ckpt"], found["target"]).mean()
    assert best == pytest.approx(metrics["best"]["test_score"])
