"""Write docs/losses.md from the losses' contracts, docstrings and configs: `make docs`."""

from pathlib import Path

from distillery.config.loss_catalogue import FORMS, Loss, losses, markdown_row
from distillery.losses import FAMILIES

PAGE = Path(__file__).parents[1] / "docs/losses.md"
INTRODUCTION = """\
# Losses

Written by `make docs` from the code and the configs; `distill-losses` shows the same as a table.

$z_s$, $z_t$ are the logits of student and teacher, $F_s$, $F_t$ their features, $T$ the temperature and $C$ the number
of classes. A loss is chosen by its family and name, several as a list; `weight` multiplies it in the objective, beside
`task.weight` times the loss on the labels.

- **form**: a *divergence* is 0 where student and teacher agree; a *cross-entropy* has a constant added to that; between
  *learned* ones there are trainable modules, and nothing is promised at agreement.
- **T²**: whether the loss is multiplied by the square of the temperature, by default.
- **expected size**: before the weight.
- **holds**: tested on random inputs; what a loss does not list, it does not have. *Shift-invariant*: a number added to
  all logits of a row changes nothing. *Symmetric*: student and teacher may be exchanged.
"""
HOLDS = {
    "non_negative": "non-negative",
    "shift_invariant": "shift-invariant",
    "class_permutation": "any order of classes",
    "batch_permutation": "any order of samples",
    "symmetric": "symmetric",
}
NEEDS = {
    "logits": "logits",
    "maps": "feature maps [B, C, H, W]",
    "features": "layers: maps, tokens or vectors",
    "vectors": "one vector a sample [B, D]",
    "tokens": "tokens [B, L, D]",
    "attention": "attention layers",
}


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _contents()]
    for family in FAMILIES:
        parts += [f"\n## {family.capitalize()}\n", *(_section(loss) for loss in losses([family]))]
    return "".join(parts)


def _contents() -> str:
    found = {family: losses([family]) for family in FAMILIES}
    lines = [
        f"**[{family.capitalize()}](#{family})**: {', '.join(f'[{loss.name}](#{loss.name})' for loss in own)}.\n"
        for family, own in found.items()
    ]
    return "\n" + "\n".join(lines)


def _section(loss: Loss) -> str:
    contract = loss.contract
    rows = {
        "needs": NEEDS[contract.needs],
        "form": FORMS[contract.form],
        "T²": loss.t_squared,
        "reduction": contract.reduction,
        "expected size": contract.scale,
        "holds": ", ".join(HOLDS[name] for name in HOLDS if name in contract.properties) or "–",
        "values of": contract.values_of,
        "in tables": f"`{contract.short_name}`",
    }
    facts = "".join(markdown_row(f"**{name}**", value) for name, value in rows.items())
    settings = "".join(markdown_row(f"`{s.name}`", f"`{s.default}`", s.comment) for s in loss.settings)
    return f"""
### {loss.name}

[{loss.title}]({contract.paper}). `distill-train loss/{contract.family}=[{loss.name}]`

$$
{contract.formula}
$$

{loss.explanation}

| | |
| --- | --- |
{facts}
| setting | default | |
| --- | --- | --- |
{settings}"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
