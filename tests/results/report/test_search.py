"""The trials of a search in a report, which is the same when it is made again from the sweep's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from distillery.results.report.search import Search
from distillery.results.report.write import title_of, write_report

MakeRun = Callable[..., Path]


@pytest.fixture
def search(make_run: MakeRun, tmp_path: Path) -> Path:
    """The folder of three trials of two seeds, of which one failed with one seed."""
    out = tmp_path / "sweep"
    rows = []
    for trial, (lr, scores) in enumerate(((0.0123456789, (0.5, 0.7)), (0.1, (0.8, 0.6)), (0.2, (0.9, None)))):
        for seed, score in enumerate(scores):
            folder = f"{trial}_kd/seed{seed}"
            if score is not None:
                last = {"epoch": 1, "val_score": score, "test_score": score}
                make_run("kd", seed, None, folder=f"sweep/{folder}", metrics={"last": last})
            settings = f"loss.kd.temperature={trial + 1} optim.optimizer.lr={lr} 'student.net.widths=[8, 16]'"
            outcome = "run" if score is not None else "failed"
            rows.append((trial, settings, seed, score, trial == 1, outcome, folder))
    columns = ("trial", "settings", "seed", "validation", "chosen", "outcome", "folder")
    importance = {"optim.optimizer.lr": 0.75, "loss.kd.temperature": 0.25}
    Search(pd.DataFrame(rows, columns=columns), importance).write(out)
    return out


def read(out: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names}


def test_the_page_has_the_trials_and_keeps_them(search: Path, tmp_path: Path) -> None:
    write_report([search], search, "Sweep of digits")
    page = (search / "report.md").read_text()
    section = page[page.index("## Trials") :]
    assert "| trial | temperature | lr | widths | seeds | validation % |" in section
    assert "| 0 | 1 | 0.0123457 | [8, 16] | 2 | 60.00 ± 14.14 |" in section
    assert "| **1** | **2** | **0.1** | **[8, 16]** | **2** | **70.00 ± 14.14** |" in section
    assert "| 2 | 3 | 0.2 | [8, 16] | 2 | failed |" in section
    assert "Best on the validation split: trial 1, temperature=2, lr=0.1, widths=[8, 16]." in section
    assert "Importance of the parameters: lr 0.75, temperature 0.25." in section

    files = ("report.md", "report.csv", "trials.csv", "importance.csv")
    before = read(search, files)
    write_report([search], search, title_of([search]))
    assert read(search, files) == before
    write_report([search], tmp_path / "elsewhere", "Sweep of digits")
    assert read(tmp_path / "elsewhere", files[2:]) == read(search, files[2:])
    assert section[: section.index("## Definitions")] in (tmp_path / "elsewhere" / "report.md").read_text()


def test_of_two_searches_neither_is_shown(search: Path, make_run: MakeRun, tmp_path: Path) -> None:
    """Their trials have the same numbers."""
    make_run("kd", 7, 0.9, folder="other/kd")
    (tmp_path / "other" / "trials.csv").write_bytes((search / "trials.csv").read_bytes())
    write_report([search, tmp_path / "other"], tmp_path / "both", "Two")
    assert "## Trials" not in (tmp_path / "both" / "report.md").read_text()
    assert not (tmp_path / "both" / "trials.csv").exists()
