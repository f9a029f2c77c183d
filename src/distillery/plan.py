"""`plan=true`: the wiring of a run, before a single step of it."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from torch import Tensor

from distillery.build import Parts
from distillery.losses.term import Term
from distillery.results.cost import count_flops, count_parameters
from distillery.results.formats import si
from distillery.signals import Network, probe


def show_plan(parts: Parts, console: Console | None = None) -> None:
    """Print data, networks, loss terms with layers, shapes and projectors, weights, and what a run costs."""
    console = console or Console()
    for table in (data_table(parts), network_table(parts), term_table(parts)):
        console.print(table)


def data_table(parts: Parts) -> Table:
    """Split sizes, and how many steps and epochs are made of them."""
    data, trainer = parts.data, parts.cfg.trainer
    steps = math.ceil(len(data.train_dataloader()) / trainer.accumulate_grad_batches)
    total = steps * trainer.max_epochs if trainer.max_steps < 0 else min(trainer.max_steps, steps * trainer.max_epochs)
    table = Table(title=f"{data.name}: {data.num_classes} classes", title_justify="left")
    for heading in ("train", "val", "test", "global batch", "steps an epoch", "epochs", "steps"):
        table.add_column(heading, justify="right")
    table.add_row(
        *(f"{data.sizes[split]:,}" for split in ("train", "val", "test")),
        str(parts.cfg.data.batch_size),
        f"{steps:,}",
        str(trainer.max_epochs),
        f"{total:,}",
    )
    return table


def network_table(parts: Parts) -> Table:
    """Each network's size, and FLOPs of one image: 2 × MACs."""
    table = Table(title="Networks", title_justify="left")
    for heading, justify in (("role", "left"), ("network", "left"), ("weights", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for heading in ("parameters", "trained", "FLOPs an image"):
        table.add_column(heading, justify="right")
    image = parts.example["image"]
    rows: list[tuple[str, Network, str]] = [("student", parts.distiller.student, parts.cfg.student.weights or "new")]
    rows += [(f"teacher {name}", teacher, teacher.source) for name, teacher in parts.distiller.teachers.items()]
    for role, network, weights in rows:
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        flops = count_flops(network.net, network.adapt(image))
        name = type(network.net).__name__
        table.add_row(role, name, str(weights), f"{count_parameters(network.net):,}", f"{trained:,}", si(flops))
    return table


def term_table(parts: Parts) -> Table:
    """Each loss: its weight, and which layers it compares, through which projector."""
    shapes = {"student": _shapes(parts.distiller.student, parts.example)}
    shapes |= {name: _shapes(teacher, parts.example) for name, teacher in parts.distiller.teachers.items()}
    table = Table(title="Objective", title_justify="left")
    for heading in ("loss", "weight", "student", "teacher", "projector"):
        table.add_column(heading, overflow="fold")
    task = parts.distiller.task
    table.add_row("task", f"{task.weight:g}", "logits", "labels", "")
    for name, term in parts.distiller.objective.terms.items():
        assert isinstance(term, Term)
        label = name if name == term.contract.short_name else f"{name} ({term.contract.short_name})"
        once = label, f"{term.weight:g}", _projectors(term)
        for tap, other in term.taps.items() or [("logits", "logits")]:
            sizes = shapes["student"].get(tap, ""), shapes[term.teacher].get(other, "")
            table.add_row(*once[:2], f"{tap} {sizes[0]}", f"{term.teacher}: {other} {sizes[1]}", once[2])
            once = "", "", ""
    return table


def _shapes(network: Network, batch: Mapping[str, Tensor]) -> dict[str, str]:
    return {tap: "×".join(map(str, tensor.shape[1:])) for tap, tensor in probe(network, batch).layers.items()}


def _projectors(term: Term) -> str:
    size = sum(parameter.numel() for parameter in term.parameters())
    return f"{size:,} parameters" if size else ""
