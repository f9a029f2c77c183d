"""Every loss with its contract and its config: what `distill-losses` and the pages of the site show."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import distillery.losses
from distillery.core.paths import CONFIGS
from distillery.losses import FAMILIES
from distillery.losses.term import Contract, Term

SETTING = re.compile(r"(?P<name>\w+):\s+(?P<default>.*?)(\s+#\s*(?P<comment>.*))?", re.DOTALL)
ARGUMENTS = re.compile(r"\n\n(?:Args|Returns|Raises|Papers?):")
FORMS = {"divergence": "divergence", "cross_entropy": "cross-entropy", "learned": "learned"}


@dataclass(frozen=True)
class Setting:
    """A line of a loss's config; `comment` says whose default it is, and what else there is."""

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Loss:
    """A loss as it is found in the package."""

    name: str  # of its module, its config and its key in `loss`
    module: ModuleType
    term: type[Term]

    @property
    def contract(self) -> Contract:
        return self.term.contract

    @property
    def title(self) -> str:
        """The first line of the module: what it is, and whose."""
        return inspect.cleandoc(self.module.__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def t_squared(self) -> str:
        return {True: "yes", False: "no", None: "–"}[self.contract.t_squared]

    @property
    def explanation(self) -> str:
        """What the function computes, what its variants are and what the term makes of it: both docstrings' words."""
        documented = [getattr(self.module, self.name, None), self.term]
        texts = (inspect.cleandoc(member.__doc__) for member in documented if member and member.__doc__)
        return "\n\n".join(ARGUMENTS.split(text)[0] for text in texts)

    @property
    def settings(self) -> list[Setting]:
        """The lines of its config, but for `_target_`."""
        path = CONFIGS / "loss" / self.contract.family / f"{self.name}.yaml"
        found = (SETTING.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines())
        settings = [Setting(m["name"], m["default"], m["comment"] or "") for m in found if m]
        return [setting for setting in settings if setting.name != "_target_"]


def losses(families: Sequence[str] = FAMILIES) -> list[Loss]:
    """The losses of these families, in the families' order and by name."""
    return [loss for family in families for loss in _family(family)]


def _family(family: str) -> Iterator[Loss]:
    prefix = f"{distillery.losses.__name__}.{family}"
    for found in pkgutil.iter_modules(importlib.import_module(prefix).__path__):
        module = importlib.import_module(f"{prefix}.{found.name}")
        for member in vars(module).values():
            if inspect.isclass(member) and issubclass(member, Term) and member.__module__ == module.__name__:
                yield Loss(found.name, module, member)


def markdown_table(shown: Sequence[Loss]) -> str:
    """A row for each loss, with a link to its paper."""
    rows = ["| config | loss | form | T² | values of |\n", "| --- | --- | --- | :---: | --- |\n"]
    for loss in shown:
        config, title = f"`loss/{loss.contract.family}=[{loss.name}]`", f"[{loss.title}]({loss.contract.paper})"
        rows.append(markdown_row(config, title, FORMS[loss.contract.form], loss.t_squared, loss.contract.values_of))
    return "".join(rows)


def markdown_row(*cells: str) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"
