"""distill-evaluate on other data: the score is that of a hand-written loop, and the record of the run stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from distillery.commands import evaluate
from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.runs.score_other_data import score_other_data
from fixtures.command_line import Command
from fixtures.datasets import write_image_folder
from fixtures.runs import contents

CLASSES = ("ant", "bee", "cat")


def score_by_hand(run: Path, files: dict[Path, str]) -> float:
    """The share of the files whose likeliest class is theirs, by the weights alone."""
    net = SmallCNN(num_classes=3, in_chans=3, widths=OmegaConf.load(run / "config.yaml").student.net.widths).eval()
    net.load_state_dict(load_file(run / "student.safetensors"))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    right = 0
    for file, label in files.items():
        image = Image.open(file)
        image = image.resize((9, 9), Image.Resampling.BILINEAR).crop((0, 0, 8, 8))  # 8 · 256/224, and the centre
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        with torch.no_grad():
            right += CLASSES[int(net((values[None] - mean) / std).argmax())] == label
    return right / len(files)


def files_in(*folders: Path) -> dict[Path, str]:
    return {file: file.parent.name for folder in folders for file in sorted(folder.rglob("*.png"))}


def test_another_folder_is_scored_and_the_record_stays(pictures: Path, command: Command, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "other", {"train": 2, "test": 5, "val": 3}, shape=(8, 8))
    for file in (tmp_path / "other" / "test" / "bee").iterdir():  # noise that no network classifies well
        noise = np.random.default_rng(int(file.stem)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    before = contents(pictures)
    answer = command(evaluate, f"run='{pictures}'", f"data.root='{tmp_path / 'other'}'")
    assert (answer.code, answer.err) == (0, "")
    by_hand = score_by_hand(pictures, files_in(tmp_path / "other" / "test"))
    assert f"accuracy {by_hand:.4f} on 15 of 30 samples of other (test); split=all scores them all" in answer.out
    (file,) = (pictures / "evaluations").iterdir()
    found = json.loads(file.read_text())
    assert found["score"] == pytest.approx(by_hand)
    assert found["settings"] == {"root": str(tmp_path / "other")}
    shutil.rmtree(file.parent)
    assert contents(pictures) == before, "the record and all other files of the run are as they were"


def test_all_samples_of_a_folder_without_splits_and_classes_in_another_order(pictures: Path, tmp_path: Path) -> None:
    """Two of the run's classes: `cat` is the second of the folder, and the third of the run."""
    write_image_folder(tmp_path / "some", {"": 5}, classes=("bee", "cat"), shape=(8, 8))
    found = score_other_data(pictures, {"root": str(tmp_path / "some")}, "all")
    files = files_in(tmp_path / "some")
    assert len(found.target) == len(files) == 10
    assert set(found.target.tolist()) == {1, 2}
    assert found.score == pytest.approx(score_by_hand(pictures, files))


@pytest.mark.parametrize(
    ("classes", "given", "message"),
    [
        (("ant", "bee", "cow", "dog"), {}, r"'other' has classes that the run lacks: cow, dog\. The run's: ant, bee, "
         r"cat; of these the data lack cat\."),
        (CLASSES, {"rot": "x"}, r"Unknown setting 'data\.rot'\. Did you mean 'root'"),
        (CLASSES, {"root": "nowhere"}, r"The image folder 'nowhere' does not exist"),
        (CLASSES, {"mean": [0.5], "std": [0.5]}, r"data\.mean has 1 value\(s\), but the images of 'other' have 3"),
    ],
)  # fmt: skip
def test_what_the_student_was_not_made_for_is_refused(
    classes: tuple[str, ...], given: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    write_image_folder(tmp_path / "other", {"": 5}, classes=classes, shape=(8, 8))
    with pytest.raises(UserError, match=message):
        score_other_data(pictures, {"root": str(tmp_path / "other")} | given)
    assert not (pictures / "evaluations").exists()
