"""The demos in full, as `make demo`, `make demo-text` and `make demo-lm` run them. By hand: they take minutes."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from distillery.core.paths import CONFIGS
from fixtures.command_line import Cli


@pytest.mark.long
@pytest.mark.parametrize("study", ["digits_demo", "demo_text", "demo_lm"])
def test_every_method_of_a_demo_beats_the_baseline(study: str, cli: Cli, tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / f"study/{study}.yaml").read_text())
    given = [f"study={study}", f"out='{tmp_path / 'out'}'"]
    column, better = "diff_mean", 1
    if study == "demo_lm":
        column, better = "bits_per_byte_diff_mean", -1
        tokenizer = tmp_path / "tokenizer"
        code, output = cli("tokenizer", "data=movie_reviews", "size=2048", f"out='{tokenizer}'")
        assert code == 0, output
        given.append(f"overrides=[\"data.tokenizer='{tokenizer}'\"]")
    code, output = cli("study", *given)
    assert code == 0, output
    table = pd.read_csv(tmp_path / "out/report.csv").set_index("method")
    assert list(table.index) == ["teacher", *config["methods"]]
    assert set(table["n_seeds"][1:]) == {len(config["seeds"])}
    assert (better * table[column].drop("baseline") > 0).all()
