"""Lists every loss with its contract and config, for `distill-losses` and the documentation."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from distillery.core.errors import UserError, did_you_mean
from distillery.core.paths import CONFIGS
from distillery.losses import FAMILIES
from distillery.losses.discovery import loss_modules, term_of
from distillery.losses.term import Contract, Term

SETTING = re.compile(r"(?P<name>\w+):\s+(?P<default>.*?)(\s+#\s*(?P<comment>.*))?", re.DOTALL)
ARGUMENTS = re.compile(r"\n\n(?:Args|Returns|Raises|Papers?):")
FORMS = {"divergence": "divergence", "cross_entropy": "cross-entropy", "learned": "learned"}


@dataclass(frozen=True)
class Setting:
    """A line of a loss's config; `comment` says where the default comes from, and which other values there are."""

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Loss:
    """A loss of the package."""

    name: str  # of its module and its config, and its key in `loss`
    module: ModuleType
    term: type[Term]

    @property
    def family(self) -> str:
        return self.module.__name__.split(".")[-2]

    @property
    def contract(self) -> Contract:
        return self.term.contract

    @property
    def title(self) -> str:
        """The first line of the module's docstring: the method and its source."""
        return inspect.cleandoc(self.module.__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def t_squared(self) -> str:
        """Whether T² multiplies the loss by default; a dash without such a setting."""
        return {True: "yes", False: "no", None: "–"}[getattr(self.term, "t_squared", None)]

    @property
    def explanation(self) -> str:
        """The docstrings of the function and of the term, without their sections of arguments and sources."""
        documented = [getattr(self.module, self.name, None), self.term]
        texts = (inspect.cleandoc(member.__doc__) for member in documented if member and member.__doc__)
        return "\n\n".join(ARGUMENTS.split(text)[0] for text in texts)

    @property
    def settings(self) -> list[Setting]:
        """The settings in its config, without `_target_`."""
        path = CONFIGS / "loss" / self.family / f"{self.name}.yaml"
        found = (SETTING.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines())
        settings = [Setting(m["name"], m["default"], m["comment"] or "") for m in found if m]
        return [setting for setting in settings if setting.name != "_target_"]


def losses(families: Sequence[str] = FAMILIES) -> list[Loss]:
    """The losses of these families, in the order of the families and by name."""
    modules = loss_modules(families)
    return [Loss(module.__name__.rpartition(".")[2], module, term_of(module)) for module in modules]


def loss_choices(method: str) -> list[str]:
    """The overrides that choose the losses of a method: `kd+at`, by the names of losses or their short names.

    Raises:
        UserError: there is no such loss.
    """
    known = {name: loss for loss in losses() for name in (loss.contract.short_name, loss.name)}
    chosen: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name in method.split("+"):
        if name not in known:
            raise UserError(f"methods: there is no loss {name!r}.{did_you_mean(name, known)}")
        chosen[known[name].family].append(known[name].name)
    return [f"loss/{family}=[{','.join(names)}]" for family, names in chosen.items()]


def markdown_table(shown: Sequence[Loss]) -> str:
    """A Markdown table with one row per loss, linked to its paper."""
    rows = ["| config | loss | form | T² | values of |\n", "| --- | --- | --- | :---: | --- |\n"]
    for loss in shown:
        config, title = f"`loss/{loss.family}=[{loss.name}]`", f"[{loss.title}]({loss.contract.paper})"
        rows.append(markdown_row(config, title, FORMS[loss.contract.form], loss.t_squared, loss.contract.values_of))
    return "".join(rows)


def markdown_row(*cells: str) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"
