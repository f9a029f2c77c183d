"""`plan=true`: prints the wiring of a run before its first step."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from distillery.config.build import Parts
from distillery.config.optim import updates
from distillery.config.stages import Stage
from distillery.core.roles import FROZEN, PEER
from distillery.core.terminal import plain_console
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.models.cost import count_flops, count_parameters
from distillery.models.taps.network import Network, probe
from distillery.results.report.formats import si
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer
from distillery.training.schedules import Latch, Progress


def show_plan(parts: Parts, heading: str = "", console: Console | None = None) -> None:
    """Print data, networks, loss terms with layers, shapes and projectors, weights, and what a run costs."""
    console = console or plain_console()
    if heading:
        console.rule(heading, align="left", style="dim")
    for table in (data_table(parts), network_table(parts), term_table(parts), schedule_table(parts)):
        if table.row_count:
            console.print(table)


def data_table(parts: Parts) -> Table:
    """Split sizes, and how many steps and epochs are made of them."""
    data, trainer, task = parts.data, parts.cfg.trainer, parts.distiller.task
    steps, total = updates(parts.data, parts.cfg.trainer)
    title = f"{data.name}: {len(data.classes)} classes" if data.classes else data.name
    table = _table(title, *_numbers("train", "val", "test", "global batch", "steps an epoch", "epochs", "steps"))
    table.add_column("precision")
    measured = [f"{task.score}: {how}"] if (how := task.measured(data)) else []
    table.caption, table.caption_justify = "\n".join([*data.remarks, *measured]) or None, "left"
    table.add_row(
        *(f"{data.sizes[split]:,}" for split in ("train", "val", "test")),
        str(parts.cfg.data.batch_size),
        f"{steps:,}",
        str(trainer.max_epochs),
        f"{total:,}",
        str(trainer.get("precision", "32-true")),
    )
    return table


def stage_row(stage: Stage, parts: Parts) -> list[str]:
    """A stage in a line: its length, what teaches what by which losses, and the forward and backward FLOPs in all."""
    student, teachers = parts.distiller.student, parts.distiller.teachers
    _, total = updates(parts.data, parts.cfg.trainer)
    sample = parts.data.example(1, "test")
    networks = dict.fromkeys((student, *teachers.values()))
    once = sum(  # a backward is two forwards
        (3 if each.role in (student.role, PEER) else 1) * _flops(each, sample) for each in networks
    )
    samples = parts.data.sizes["train"] * parts.cfg.trainer.max_epochs
    return [
        stage.name,
        f"{'≤ ' if stage.until else ''}{parts.cfg.trainer.max_epochs}",
        f"{total:,}",
        ", ".join(f"{count_parameters(each.net):,}" for each in teachers.values() if each is not student) or "none",
        f"{count_parameters(student.net):,}",
        f"{_trained(student):,}",
        "+".join(["task"] * (parts.distiller.task.weight != 0) + list(parts.distiller.objective.terms)),
        si(once * samples),
    ]


def stage_table(rows: Sequence[Sequence[str]]) -> Table:
    """All stages, see `stage_row`."""
    numbers = _numbers("epochs", "steps", "teacher", "student", "trained")
    table = _table("Stages", *_texts("stage"), *numbers, *_texts("losses"), *_numbers("FLOPs in all"))
    for row in rows:
        table.add_row(*row)
    return table


def network_table(parts: Parts) -> Table:
    """Each network's size, and FLOPs of one sample: 2 × MACs."""
    numbers = _numbers("parameters", "trained", "FLOPs a sample")
    table = _table("Networks", *_texts("role", "network", "weights"), *numbers)
    sample = parts.data.example(1, "test")
    rows: list[tuple[str, Network, str]] = [("student", parts.distiller.student, _origin(parts.cfg.student))]
    for name, teacher in parts.distiller.teachers.items():
        if teacher is not parts.distiller.student:
            role = "" if teacher.role == FROZEN else f" ({teacher.role})"
            rows.append((f"teacher {name}{role}", teacher, _source(teacher)))
    for role, network, weights in rows:
        sizes = f"{count_parameters(network.net):,}", f"{_trained(network):,}", si(_flops(network, sample))
        table.add_row(role, type(network.net).__name__, weights, *sizes)
    table.caption, table.caption_justify = "\n".join(parts.distiller.remarks) or None, "left"
    return table


def _flops(network: Network, sample: Mapping[str, Tensor]) -> int:
    """Of a forward; none where something else computes the logits."""
    return count_flops(network.net, network.bound(sample)) if network.has_network else 0


def term_table(parts: Parts) -> Table:
    """Each loss: its weight, and which layers it compares, through which projector."""
    shapes = {"student": _shapes(parts.distiller.student, parts.example)}
    shapes |= {name: _shapes(teacher, parts.example) for name, teacher in parts.distiller.teachers.items()}
    table = _table("Objective", *_texts("loss", "weight", "student", "teacher", "projector"))
    task = parts.distiller.task
    table.add_row("task", _weight(parts, "task", task.weight), "logits", "labels", "")
    for name, term in parts.distiller.objective.terms.items():
        assert isinstance(term, Term)
        label = name if name == term.contract.short_name else f"{name} ({term.contract.short_name})"
        label += f", {term.combine} of the teachers" if isinstance(term, Several) else ""
        once = label, _weight(parts, name, term.weight), _projectors(term)
        for teacher, one in term.by_teacher.items():
            for tap, other in one.taps.items() or [("logits", "logits")]:
                sizes = shapes["student"].get(tap, ""), shapes[teacher].get(other, "")
                table.add_row(*once[:2], f"{tap} {sizes[0]}", f"{teacher}: {other} {sizes[1]}", once[2])
                once = "", "", ""
    return table


def schedule_table(parts: Parts) -> Table:
    """Each number that changes, by what schedule, and its value in the first and in the last update."""
    table = _table("Schedules", *_texts("number", "schedule", "first", "last"))
    steps, total = updates(parts.data, parts.cfg.trainer)
    for path, schedule in parts.distiller.objective.schedules.items():
        first, last = (f"{schedule.value(Progress(step, steps)):.4g}" for step in (0, total - 1))
        table.add_row(path, str(schedule), first, "?" if isinstance(schedule, Latch) else last)
    return table


def _table(title: str, *columns: Column) -> Table:
    return Table(*columns, title=title, title_justify="left")


def _texts(*headings: str) -> list[Column]:
    return [Column(heading, overflow="fold") for heading in headings]


def _numbers(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _weight(parts: Parts, name: str, weight: float) -> str:
    objective = parts.distiller.objective
    if f"{name}.weight" in objective.schedules:
        return "see schedules"
    return "auto" if objective.balance and name != "task" else f"{weight:g}"


def _trained(network: Network) -> int:
    """The number of parameters that are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _shapes(network: Network, batch: Mapping[str, Tensor]) -> dict[str, str]:
    signals = probe(network, batch)
    shapes = {tap: tensor.shape for tap, tensor in signals.layers.items()}
    shapes |= {tap: attention.query.shape for tap, attention in signals.attention.items()}
    return {tap: "×".join(map(str, shape[1:])) for tap, shape in shapes.items()}


def _origin(student: DictConfig) -> str:
    """Where its weights come from."""
    if settings := student.get("initialise"):
        return f"layers of {settings.source} ({settings.get('layers', 'even')})"
    return str(student.weights or "new")


def _source(teacher: Network) -> str:
    """Where its weights come from, and how much of it runs in training."""
    assert isinstance(teacher, Teacher | Peer)
    if not isinstance(teacher, Teacher) or not teacher.stops or teacher.training_signals is not None:
        return teacher.source
    return f"{teacher.source}; in training " + (f"up to {teacher.stops_at}" if teacher.stops_at else "not run")


def _projectors(term: Term) -> str:
    size = sum(parameter.numel() for parameter in term.parameters())
    return f"{size:,} parameters" if size else ""
