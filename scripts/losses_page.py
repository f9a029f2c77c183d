"""The site's pages of losses, made from contracts, docstrings and configs when the site is built (docs_site.py)."""

import re

from latex2mathml.converter import convert

from distillery.config.loss_catalogue import FORMS, Loss, losses, markdown_row
from distillery.losses import FAMILIES
from distillery.losses.levels import Level

INDEX = """\
# All losses

Choose losses by family and name: `distill-train loss/response=[kd] loss/feature=[hint]`. `distill-losses` prints
this overview in the terminal; how to combine and weight losses is explained in [the guide](../guides/losses.md).

- **form**: a *divergence* is 0 where student and teacher agree. A *cross-entropy* adds a constant (the teacher's
  entropy). A *learned* loss has trainable modules between student and teacher, so its value at agreement is not fixed.
- **T²**: whether the loss is multiplied by the squared temperature by default; – if it has none.
- **reference**: the code or paper whose values and gradients the implementation reproduces (`tests/losses/`).
"""
INTRODUCTIONS = {
    "response": "Losses on logits: the student learns the teacher's predictions.",
    "feature": "Losses on intermediate activations. Layers are paired automatically or by name; a projector adapts "
    "differing shapes.",
    "attention": "Losses on attention maps: where a CNN is active, or how a transformer's tokens attend to each other.",
    "relation": "Losses on the relations between the samples of a batch.",
}
NOTATION = """\
<p>$z_s$ and $z_t$ are the logits of student and teacher, $F_s$ and $F_t$ their features, $p$ probabilities, $y$ the
label, $T$ the temperature, $C$ the number of classes, and $r$ a projector.</p>

Each formula is the loss before its weight. The row *holds* lists properties that are tested on random inputs:
*shift-invariant* means that adding a constant to all logits of a row changes nothing, *symmetric* that student and
teacher can be exchanged.
"""
ENOUGH: dict[Level, str] = {
    "topk": "its likeliest classes and the mass of the others",
    "sampled": "classes drawn from it",
    "token": "its probability of each target",
}
HOLDS = {
    "non_negative": "non-negative",
    "shift_invariant": "shift-invariant",
    "class_permutation": "invariant to the order of classes",
    "batch_permutation": "invariant to the order of samples",
    "symmetric": "symmetric",
}
NEEDS = {
    "logits": "logits",
    "maps": "feature maps [B, C, H, W]",
    "features": "layers: maps, tokens or vectors",
    "vectors": "one vector per sample [B, D]",
    "tokens": "tokens [B, L, D]",
    "attention": "attention layers",
}


def index() -> str:
    """The overview: a row for each loss, by family."""
    parts = [INDEX]
    for family in FAMILIES:
        parts += [f"\n## {family.capitalize()}\n\n", "| loss | what | form | T² | reference |\n", "| --- " * 5 + "|\n"]
        for loss in losses([family]):
            name = f"[`{loss.name}`]({family}.md#{loss.name})"
            parts.append(
                markdown_row(name, loss.title, FORMS[loss.contract.form], loss.t_squared, loss.contract.values_of)
            )
    return "".join(parts)


def page(family: str) -> str:
    """The page of a family: formula, contract and settings of each of its losses."""
    notation = re.sub(r"\$(.*?)\$", lambda formula: convert(formula[1]), NOTATION)
    introduction = f"# {family.capitalize()} losses\n\n{INTRODUCTIONS[family]}\n\n{notation}"
    return introduction + "".join(_section(loss) for loss in losses([family]))


def _section(loss: Loss) -> str:
    contract = loss.contract
    rows = {
        "reads": NEEDS[contract.needs],
        "form": FORMS[contract.form],
        "T²": loss.t_squared,
        "reduction": contract.reduction,
        "expected size": contract.scale,
        "holds": ", ".join(HOLDS[name] for name in HOLDS if name in contract.properties) or "–",
        "reference": contract.values_of,
        "short name": f"`{contract.short_name}`",
    }
    if contract.bias:
        rows["bias"] = contract.bias
    if contract.below_logits:
        enough = (
            ENOUGH[level] + (f" (`{setting}`)" if setting else "") for level, setting in contract.below_logits.items()
        )
        rows["enough of the teacher"] = "; ".join(enough)
    facts = "".join(markdown_row(name, value) for name, value in rows.items())
    settings = "".join(markdown_row(f"`{s.name}`", f"`{s.default}`", s.comment) for s in loss.settings)
    return f"""
## {loss.name}

[{loss.title}]({contract.paper})

<div class="formula">{convert(contract.formula, display="block")}</div>

{loss.explanation}

```bash
distill-train loss/{loss.family}=[{loss.name}]
```

| contract | |
| --- | --- |
{facts}
| setting | default | |
| --- | --- | --- |
{settings}"""
