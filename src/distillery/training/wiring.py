"""Connects losses to networks: finds the layers that each loss compares, taps them, and builds the projectors."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.losses.term import Term
from distillery.models.taps.activations import before_activation
from distillery.models.taps.layer_pairs import all_stages, attention_layers, auto_layers, named_layers, own_layers
from distillery.models.taps.network import Network
from distillery.models.taps.pooled_map import pooled_map
from distillery.teachers.cached_teacher import CachedTeacher
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer

Stages = Callable[[Network], Mapping[str, torch.Size]]


def wire(
    terms: Mapping[str, Term],
    student: Network,
    teachers: Mapping[str, Network],
    batch: Mapping[str, Tensor],
    stop: bool = True,
) -> None:
    """Find each term's layers, tap them in both networks, and build the term's projectors.

    `layers: auto` becomes the pairs that `auto_layers` finds, and wildcards become the pairs that match; `term.layers`
    then holds them.

    Args:
        terms: the losses by name.
        teachers: the networks by the names that the losses call them.
        batch: a few samples, on which the shapes of the layers are found out.
        stop: whether a teacher whose logits no term reads ends its forward in training at the last layer that is read.

    Raises:
        UserError: a teacher or a layer that is not there, or that the loss cannot compare; names the loss.
    """
    stages = cache(lambda network: network.stages(batch))
    single = [(name, one) for name, term in terms.items() for one in term.by_teacher.values()]
    for name, term in single:
        if term.teacher not in teachers:
            raise UserError(f"loss.{name}.teacher: no teacher {term.teacher!r}." + did_you_mean(term.teacher, teachers))
        teacher = teachers[term.teacher]
        if isinstance(teacher, Teacher) and not teacher.has_network:
            _refuse_layers(name, term, teacher)
        try:
            if isinstance(term.layers, Mapping):
                networks = student.net, teachers[term.teacher].net
                paths = ([path for path, _ in net.named_modules() if path] for net in networks)
                term.layers = named_layers(term.layers, *paths)
            elif term.layers == "auto":
                term.layers = _found_layers(term, student, teachers[term.teacher], batch, stages)
        except UserError as error:
            raise UserError(f"loss.{name}: {error}") from None
        if term.teacher_layers == "auto":
            term.teacher_layers = all_stages(stages(teachers[term.teacher]))
        if term.contract.needs != "logits" and not isinstance(term.layers, Mapping):
            raise UserError(
                f"loss.{name}.layers={term.layers}: this loss compares layers; give {{student layer: teacher layer}}, "
                "or auto."
            )
        refuse_role(name, term, teachers[term.teacher], student)
    own_teacher = [(term, term.teacher_taps) for _, term in single if teachers[term.teacher] is student]
    of_student = _tap(student, [(term, term.student_taps) for _, term in single] + own_teacher, batch)
    for teacher_name, teacher in teachers.items():
        own = [(name, term) for name, term in single if term.teacher == teacher_name]
        taps = [(term, term.teacher_taps) for _, term in own]
        of_teacher = of_student if teacher is student else _tap(teacher, taps, batch)
        if teacher.adapter.mask(batch) is not student.adapter.mask(batch):
            _refuse_tokens(own, of_student, of_teacher)
        read = any(term.needs_logits for term in terms.values() if teacher_name in term.by_teacher)
        if stop and isinstance(teacher, Teacher) and not read:
            teacher.stop_early(batch)
        for name, term in own:
            on_attention = term.contract.needs == "attention"
            try:
                term.build(of_student[on_attention], of_teacher[on_attention])
            except UserError as error:
                raise UserError(f"loss.{name}: {error}") from None


def _refuse_layers(name: str, term: Term, teacher: Teacher) -> None:
    """Refuse a loss on other layers than the `head` of a teacher that has no others."""
    layers = term.layers.values() if isinstance(term.layers, Mapping) else [term.teacher_tap] if term.layers else []
    if term.contract.needs != "logits" and not layers:
        layers = [None]
    if {*layers, *term.teacher_layers, *term.own_teacher_taps} - {"head"}:
        network = "run the teacher's network here (model/teacher=timm, hf_vision, …)"
        if isinstance(teacher, CachedTeacher):
            network = (
                f"set teachers.{term.teacher}.cache=false. A cache of images also has the layers that losses read: "
                "write one by distill-cache with the settings of this run, and another out=<folder>"
            )
        raise UserError(
            f"loss.{name} compares layers, and of teacher {term.teacher!r} only the logits are known. Use losses on "
            f"logits, as loss/response=[kd], or {network}."
        )


def _tap(
    network: Network, wanted: Sequence[tuple[Term, list[str]]], batch: Mapping[str, Tensor]
) -> dict[bool, dict[str, torch.Size]]:
    """Tap what each term reads. Returns the shapes of the taps on attention (True) and of the others (False)."""
    taps: dict[bool, list[str]] = {True: [], False: []}
    for term, own in wanted:
        taps[term.contract.needs == "attention"] += own
    return {True: network.tap_attention(taps[True], batch), False: network.tap(taps[False], batch)}


def _refuse_tokens(
    terms: Sequence[tuple[str, Term]],
    of_student: Mapping[bool, Mapping[str, torch.Size]],
    of_teacher: Mapping[bool, Mapping[str, torch.Size]],
) -> None:
    """Refuse losses on the tokens of a teacher that has another tokenizer than the student."""
    for name, term in terms:
        on_attention = term.contract.needs == "attention"
        sides = ((term.student_taps, of_student[on_attention]), (term.teacher_taps, of_teacher[on_attention]))
        read = [(tap, shapes[tap]) for taps, shapes in sides for tap in taps]
        if tokens := [(tap, shape) for tap, shape in read if len(shape) > 2]:
            tap, shape = tokens[0]
            raise UserError(
                f"loss.{name} compares tokens (layer {tap!r} gives {tuple(shape)}), and teacher {term.teacher!r} has "
                "another tokenizer than the data: their tokens do not correspond. Use losses on logits "
                "(loss/response=[kd]) or on one vector for each text (layers: {embedding: embedding}, as in "
                "loss/relation=[rkd]); or set data.tokenizer to the teacher's, and train the student with it."
            )


def _found_layers(
    term: Term, student: Network, teacher: Network, batch: Mapping[str, Tensor], stages: Stages
) -> dict[str, str]:
    on_attention = term.contract.needs == "attention"
    if term.auto == "pooled":
        return {pooled_map(student, batch): pooled_map(teacher, batch)}
    if term.teacher_tap:
        return dict.fromkeys(all_stages(stages(student)), term.teacher_tap)
    if teacher is student:
        return own_layers(student.attention_modules(batch) if on_attention else all_stages(stages(student)), term.auto)
    if on_attention:
        return attention_layers(student.attention_modules(batch), teacher.attention_modules(batch), term.auto)
    found = auto_layers(stages(student), stages(teacher), term.auto)
    if term.before_activation:
        return {
            before_activation(student, ours, batch): before_activation(teacher, theirs, batch)
            for ours, theirs in found.items()
        }
    return found


def refuse_role(name: str, term: Term, teacher: nn.Module, student: Network) -> None:
    """Refuse losses that a teacher of this role cannot have.

    Raises:
        UserError: the student would be compared with itself, or the layers of a peer with the student's.
    """
    on_logits = term.contract.needs == "logits" and not term.student_taps
    if teacher is student and on_logits and term.needs_logits:
        raise UserError(
            f"loss.{name}: its teacher {term.teacher!r} is the student itself, and this loss compares their logits, "
            "which are the same: it is constant. Use a loss on layers, as loss/response=[deep_supervision], or "
            "another teacher, as model/teacher=ema."
        )
    same = [tap for tap, other in term.taps.items() if tap == other]
    if teacher is student and same and term.teacher_taps:
        raise UserError(
            f"loss.{name}.layers: its teacher {term.teacher!r} is the student itself, and {same[0]!r} would be "
            "compared with itself. Pair an earlier layer with a later one: {earlier: later}, or auto."
        )
    if isinstance(teacher, Peer) and not on_logits:
        raise UserError(
            f"loss.{name} compares layers, and its teacher {term.teacher!r} is a peer: the two learn from each "
            "other's logits only. Use a loss on logits, or a frozen teacher (model/teacher=run)."
        )
