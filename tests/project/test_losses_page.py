"""`distill-losses` and the site's pages show every loss, as code and config have it."""

import io
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from latex2mathml.converter import convert
from rich.console import Console

from distillery.commands import losses as losses_command
from distillery.config.loss_catalogue import losses, markdown_row, markdown_table
from distillery.losses import FAMILIES

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/losses_page.py"))
PAGES = {family: SCRIPT["page"](family) for family in FAMILIES}
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs/loss").glob("*/*.yaml"))}


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", "".join(PAGES.values()), re.MULTILINE | re.DOTALL)
    return found


def test_the_overview_leads_to_every_section() -> None:
    links = re.findall(r"\[`(\w+)`\]\((\w+)\.md#(\w+)\)", SCRIPT["index"]())
    assert {name: family for name, family, anchor in links if name == anchor} == {
        name: path.parent.name for name, path in CONFIGS.items()
    }


def test_every_loss_is_found_by_family() -> None:
    found = {loss.name: loss.family for loss in losses()}
    assert found == {name: path.parent.name for name, path in CONFIGS.items()}
    assert {loss.family for loss in losses(["relation"])} == {"relation"}


def test_a_section_says_what_the_config_and_the_contract_say() -> None:
    for loss in losses():
        shown = section(loss.name)
        settings = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", shown, re.MULTILINE))
        config = yaml.safe_load(CONFIGS[loss.name].read_text())
        del config["_target_"]
        assert {key: yaml.safe_load(value) for key, value in settings.items()} == config, loss.name
        assert convert(loss.contract.formula, display="block") in shown, loss.name
        assert f"]({loss.contract.paper})" in shown, loss.name
        for words in (loss.contract.reduction, loss.contract.scale, loss.contract.values_of):
            assert words.replace("|", r"\|") in shown, loss.name


def test_every_formula_becomes_mathml() -> None:
    for page in PAGES.values():
        formulas = re.findall(r"<math.*?</math>", page)
        assert len(formulas) > 5
        for formula in formulas:
            assert "\\" not in formula, formula  # a command that was not understood


def test_explanations_are_the_words_before_the_arguments() -> None:
    (loss,) = (loss for loss in losses() if loss.name == "teacher_free")
    assert loss.title == "Teacher-free distillation from a virtual teacher (Tf-KD_reg; Yuan et al., CVPR 2020)"
    assert loss.explanation.startswith("KL(virtual teacher ‖ student)")
    assert "- 'source' (the authors' code)" in loss.explanation
    assert loss.explanation.endswith("It reads labels, and nothing of the teacher.")
    assert not re.search(r"^\s*(Args|Returns|Raises|Paper):", "".join(PAGES.values()), re.MULTILINE)


def test_settings_keep_whose_default_it_is() -> None:
    (loss,) = (loss for loss in losses() if loss.name == "kd")
    (temperature,) = (setting for setting in loss.settings if setting.name == "temperature")
    assert (temperature.default, temperature.comment) == ("4.0", "RepDistiller: 4")


def test_a_bar_does_not_end_a_cell() -> None:
    assert markdown_row("paper | source", "2") == "| paper \\| source | 2 |\n"


@pytest.mark.parametrize("width", [100, 160])
def test_the_table_fits_and_loses_nothing(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(losses_command.terminal_table(losses()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for loss in losses():
        assert re.search(rf"^ {loss.name}( |$)", text, re.MULTILINE)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["distill-losses", *arguments])
        losses_command.main()
        return capsys.readouterr().out

    return run


def test_command_shows_the_families_asked_for(command: Callable[..., str]) -> None:
    shown = command("--family", "relation", "attention")
    assert re.findall(r"loss/(\w+)", shown) == ["relation", "attention"]
    assert " rkd " in shown
    assert re.findall(r"loss/(\w+)", command()) == list(FAMILIES)


def test_command_writes_markdown(command: Callable[..., str]) -> None:
    assert command("--markdown", "--family", "relation") == markdown_table(losses(["relation"]))


def test_command_refuses_what_is_no_family(command: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--family", "logits")
    assert ended.value.code == 2
    assert "invalid choice: 'logits'" in capsys.readouterr().err
