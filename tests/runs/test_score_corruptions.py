"""distill-evaluate corruptions=…: scores by a hand-written loop, one file that grows, and the report on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.commands import evaluate, report
from distillery.data.corruptions import KINDS, corrupted
from distillery.runs.verify_run import rebuilt
from fixtures.command_line import Command
from fixtures.runs import contents


@pytest.fixture
def finished(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the run of the digits' teacher."""
    return Path(shutil.copytree(teacher, tmp_path / "run"))


def scores(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    content = json.loads((folder / "corruptions.json").read_text())
    return {(each["corruption"], each["severity"]): each for each in content["scores"]}


def test_scores_are_those_of_a_loop(finished: Path, command: Command, tmp_path: Path) -> None:
    before = contents(finished)
    answer = command(evaluate, f"run='{finished}'", "corruptions=[gaussian_noise,digital]", "severities=[1,5]")
    assert (answer.code, answer.err) == (0, "")
    found = scores(finished)
    assert set(found) == {(name, s) for name in ("gaussian_noise", "pixelate", "jpeg") for s in (1, 5)}
    record, student, data, _ = rebuilt(finished, "test")
    student.eval()
    with torch.no_grad():
        for (name, severity), figures in found.items():
            right = total = 0
            for batch in data.test_dataloader():
                images = corrupted(batch["image"], batch["index"], name, severity)
                right += int((student({"image": images}).logits.argmax(1) == batch["target"]).sum())
                total += len(images)
            assert figures["score"] == pytest.approx(right / total)
            assert figures["family"] == KINDS[name].family
            assert figures["nll"] == pytest.approx(figures["loss"], rel=1e-5)
    clean = json.loads((finished / "corruptions.json").read_text())["clean"]
    assert clean["score"] == record.metrics["last"]["test_score"]
    noisy = [f"{100 * found['gaussian_noise', severity]['score']:.1f}" for severity in (1, 5)]
    assert " ".join(["gaussian_noise", *noisy]) in " ".join(answer.out.split())

    (finished / "corruptions.png").unlink()
    assert command(evaluate, f"run='{finished}'", "corruptions=contrast", "severities=[2]").code == 0
    assert scores(finished) == {**found, ("contrast", 2): scores(finished)["contrast", 2]}, "it joins the others"
    assert (finished / "corruptions.png").read_bytes().startswith(b"\x89PNG")

    assert command(report, f"runs=['{finished}']", f"out='{tmp_path / 'report'}'").code == 0
    page = (tmp_path / "report" / "report.md").read_text()
    by_corruption = {
        name: [each["score"] for (own, _), each in scores(finished).items() if own == name]
        for name in ("gaussian_noise", "pixelate", "jpeg", "contrast")
    }
    means = {name: sum(values) / len(values) for name, values in by_corruption.items()}
    corrupted_mean = sum(means.values()) / 4
    families = [means["gaussian_noise"], (means["pixelate"] + means["jpeg"]) / 2, means["contrast"]]
    row = [clean["score"], corrupted_mean, corrupted_mean / clean["score"], *families]
    assert f"| baseline | 1 | {' | '.join(f'{100 * each:.1f}' for each in row)} |" in page
    assert (tmp_path / "report" / "robustness.png").is_file()

    content = json.loads((finished / "corruptions.json").read_text())
    (finished / "corruptions.json").write_text(json.dumps(content | {"student_sha256": "of another"}))
    assert command(report, f"runs=['{finished}']", f"out='{tmp_path / 'report'}'").code == 0
    assert "Robustness" not in (tmp_path / "report" / "report.md").read_text()
    for name in ("corruptions.json", "corruptions.png"):
        (finished / name).unlink()
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["corruptions=[gausian_noise]"], "no corruption 'gausian_noise'. Did you mean 'gaussian_noise'"),
        (["corruptions=all", "severities=[0,6]"], "severities=[0, 6]: name some of 1, 2"),
        (["corruptions=all", "severities=[]"], "severities=[]: name some of 1, 2"),
        (["corruptions=all", "data.root=x"], "data.* and corruptions exclude each other"),
    ],
)
def test_what_is_refused(teacher: Path, command: Command, given: list[str], said: str) -> None:
    answer = command(evaluate, f"run='{teacher}'", *given)
    assert answer.code == 2
    assert said in " ".join(answer.err.split())
