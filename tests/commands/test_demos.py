"""The two demos in full, as `make demo` and `make demo-text` run them. By hand: they take minutes."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from distillery.core.paths import CONFIGS
from fixtures.command_line import Cli


@pytest.mark.long
@pytest.mark.parametrize("study", ["digits_demo", "demo_text"])
def test_every_method_of_a_demo_beats_the_baseline(study: str, cli: Cli, tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / f"study/{study}.yaml").read_text())
    code, output = cli("study", f"study={study}", f"out='{tmp_path / 'out'}'")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "out/report.csv").set_index("method")
    assert list(table.index) == ["teacher", *config["methods"]]
    assert set(table["n_seeds"][1:]) == {len(config["seeds"])}
    assert (table["diff_mean"].drop("baseline") > 0).all()
