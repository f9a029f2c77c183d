"""What every loss must keep to. The losses are found by discovery, so that these tests hold a new one too."""

import ast
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.losses import FAMILIES, functional
from distillery.losses.discovery import loss_modules, term_of
from distillery.losses.settings import Fraction, Positive, PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.term import Property, Term
from distillery.training.schedules import numbers_of
from fixtures import losses, terms
from fixtures.cases import each_case
from fixtures.replayed_steps import Graph, record
from fixtures.terms import Example, cast, example, mapped, tensors

losses.load()
MODULES = list(loss_modules())
TERMS = [term_of(module) for module in MODULES]
each_term = pytest.mark.parametrize("term", TERMS, ids=lambda term: term.contract.short_name)


class TestFiles:
    """A loss is one source file, one config and one test."""

    def test_every_family_has_losses(self) -> None:
        assert [family for family in FAMILIES if not list(loss_modules([family]))] == []

    def test_every_loss_is_of_its_family_and_has_its_config(self) -> None:
        names = {tuple(module.__name__.split(".")[2:]) for module in MODULES}
        assert names == {(path.parent.name, path.stem) for path in CONFIGS.glob("loss/*/*.yaml")}
        assert all(term.__doc__ for term in TERMS)

    def test_a_config_has_every_setting_of_its_term_and_no_other(self) -> None:
        for module, term in zip(MODULES, TERMS, strict=True):
            name = module.__name__.rpartition(".")[2]
            text = (CONFIGS / "loss" / module.__name__.split(".")[-2] / f"{name}.yaml").read_text(encoding="utf-8")
            config = yaml.safe_load(text.replace("${seed}", "0"))
            assert text.splitlines()[0] == f"# @package loss.{name}"
            assert config.pop("_target_") == f"{module.__name__}.{term.__name__}"
            assert set(config) == set(inspect.signature(term).parameters)
            made = term(**config)
            assert (made.family, made.name, made.weight) == (module.__name__.split(".")[-2], name, config["weight"])

    def test_functional_has_every_public_function_of_the_modules_and_nothing_else(self) -> None:
        written = {
            node.name: module
            for module in MODULES
            for node in ast.parse(inspect.getsource(module)).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }
        assert sorted(functional.__all__) == sorted(written)
        assert all(getattr(functional, name) is vars(module)[name] for name, module in written.items())
        with pytest.raises(AttributeError, match="dkdd"):
            functional.dkdd  # noqa: B018

    def test_short_names_are_unique(self) -> None:
        names = [term.contract.short_name for term in TERMS]
        assert sorted(names) == sorted(set(names))


# The gradient that a term keeps at agreement, where the reference implementation has one.
SLOPE = {"pkt": 1e-7}  # its authors add 1e-7 to the probabilities


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(case: Example) -> list[Tensor]:
    """Of the student's tensors; those that the term does not read have none."""
    case.value().sum().backward()
    found = [tensor.grad for tensor in case.tensors() if tensor.grad is not None]
    assert found
    return found


def agreeing(case: Example) -> Example:
    """The same case with the teacher's tensors as the student's."""
    return cast(Example(case.term, case.teacher, case.teacher, case.batch), case.teacher.logits.dtype)


def part(case: Example, rows: list[int] | Tensor) -> tuple[Signals, Signals, dict[str, Tensor]]:
    """Some of the samples, or all in another order."""
    student, teacher = (mapped(signals, lambda t: t[rows]) for signals in (case.student, case.teacher))
    return student, teacher, {key: value[rows] for key, value in case.batch.items()}


@each_term
def test_precision(term: type[Term]) -> None:
    divergence_vanishes_at_agreement(term)
    scale_of_ten_thousand_stays_finite(term)
    autocast_does_not_lower_the_precision(term)
    one_value_per_row_as_promised(term)
    no_value_is_read_back_from_the_device(term)
    only_the_student_gets_gradients(term)
    a_replay_gives_what_a_step_gives(term)


def divergence_vanishes_at_agreement(term: type[Term]) -> None:
    if term.contract.form != "divergence":
        return
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        for scale in (1.0, 1e4):
            case = agreeing(example(term, 4, draw(), dtype, scale))
            assert (case.value().abs() <= tolerance).all(), (dtype, scale)
            slope = max(10 * tolerance, SLOPE.get(term.contract.short_name, 0.0))
            assert all(gradient.abs().max() <= slope for gradient in gradients(case)), (dtype, scale)


def scale_of_ten_thousand_stays_finite(term: type[Term]) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        case = example(term, 4, draw(), dtype, 1e4)
        value = case.value()
        assert value.dtype == torch.float32, dtype
        assert value.isfinite().all(), dtype
        assert value.sum() != 0, dtype
        assert all(gradient.isfinite().all() for gradient in gradients(case)), dtype


def autocast_does_not_lower_the_precision(term: type[Term]) -> None:
    expected = example(term, 4, draw()).value()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = example(term, 4, draw()).value()
    modules = any(True for _ in example(term, 4, draw()).term.parameters())  # their products are bfloat16's
    rtol, atol = (0.1, 1e-3) if modules else (1e-6, 1e-7)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def one_value_per_row_as_promised(term: type[Term]) -> None:
    case = example(term, 4, draw(), torch.float64)
    value = case.value()
    assert value.shape == ((4,) if term.contract.per_sample else ())
    if term.contract.per_sample:
        alone = [Example(case.term, *part(case, [i])).value() for i in range(4)]
        torch.testing.assert_close(value, torch.cat(alone))


def a_replay_gives_what_a_step_gives(term: type[Term]) -> None:
    """Recorded once, value and gradients are those of every batch, unless the term says that it counts them."""
    recorded, eager, graph = example(term, 4, draw(1)), example(term, 4, draw(1)).term, Graph()
    if recorded.term.counts_batches:
        return
    with record(graph):
        value = stepped(recorded)
    for seed in (2, 3):
        case = example(term, 4, draw(seed))
        for own, other in zip(read(recorded), read(case), strict=True):
            own.data.copy_(other)
        graph.replay()
        case.term = eager
        assert torch.equal(value, stepped(case))
        for own, other in zip(learning(recorded), learning(case), strict=True):
            assert own.grad is other.grad or torch.equal(own.grad, other.grad)


def stepped(case: Example) -> Tensor:
    for tensor in learning(case):
        tensor.grad = None
    value = case.value()
    value.sum().backward()
    return value.detach()


def learning(case: Example) -> list[Tensor]:
    return [*case.tensors(), *case.term.parameters()]


def read(case: Example) -> list[Tensor]:
    return [*tensors(case.student), *tensors(case.teacher), *case.batch.values()]


def no_value_is_read_back_from_the_device(term: type[Term]) -> None:
    """Tensors without data: an `.item()`, a boolean index or a branch on a value raises."""
    case = example(term, 4, draw())
    case.term.to("meta")
    assert gradients(cast(case, torch.float32, "meta"))


def only_the_student_gets_gradients(term: type[Term]) -> None:
    case = example(term, 4, draw())
    case.value().sum().backward()
    assert all(tensor.grad is None for tensor in tensors(case.teacher))


def same_total(case: Example, *other: Any) -> None:
    torch.testing.assert_close(case.value().sum(), Example(case.term, *other).value().sum(), rtol=1e-7, atol=1e-9)


def non_negative(case: Example, generator: torch.Generator) -> None:
    assert (case.value() >= -1e-9).all()


def shift_invariant(case: Example, generator: torch.Generator) -> None:
    def shifted(signals: Signals) -> Signals:
        return Signals(signals.logits + 10 * torch.randn(len(signals.logits), 1, generator=generator))

    same_total(case, shifted(case.student), shifted(case.teacher), case.batch)


def class_permutation(case: Example, generator: torch.Generator) -> None:
    order = torch.randperm(case.student.logits.shape[1], generator=generator)
    student, teacher = (Signals(signals.logits[:, order]) for signals in (case.student, case.teacher))
    same_total(case, student, teacher, {**case.batch, "target": order.argsort()[case.batch["target"]]})


def batch_permutation(case: Example, generator: torch.Generator) -> None:
    same_total(case, *part(case, torch.randperm(len(case.student.logits), generator=generator)))


def symmetric(case: Example, generator: torch.Generator) -> None:
    same_total(case, case.teacher, case.student, case.batch)


CHECKS: dict[str, Callable[[Example, torch.Generator], None]] = {
    check.__name__: check for check in (non_negative, shift_invariant, class_permutation, batch_permutation, symmetric)
}


def test_every_property_has_its_check() -> None:
    assert set(CHECKS) == set(get_args(Property))


@each_term
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 7), scale=st.sampled_from([1e-2, 1.0, 30.0]))
def test_promised_properties(term: type[Term], seed: int, batch: int, scale: float) -> None:
    generator = draw(seed)
    case = example(term, batch, generator, torch.float64, scale)
    for name in sorted(term.contract.properties):
        CHECKS[name](case, generator)


@each_case("term", TERMS)
def test_properties_not_promised_do_not_hold(term: type[Term]) -> None:
    """A contract leaves nothing out that it could promise; this also shows that each check can fail."""
    on_logits = {"shift_invariant", "class_permutation"}
    applicable = set(CHECKS) - (set() if term.contract.needs == "logits" else on_logits)
    for name in applicable - term.contract.properties:
        with pytest.raises((AssertionError, RuntimeError)):  # not symmetric: shapes may not even fit
            CHECKS[name](example(term, 6, draw(), torch.float64), draw())


@pytest.fixture
def made_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Example]:
    """An example whose term has these settings in place of those that its example gives."""
    as_it_is = terms.plain

    def make(term: type[Term], dtype: torch.dtype, **arguments: Any) -> Example:
        monkeypatch.setattr(terms, "plain", lambda term, **own: as_it_is(term, **{**own, **arguments}))
        return example(term, 6, draw(), dtype)

    return make


@each_case("term", TERMS)
def test_a_number_is_read_anew_in_each_step(term: type[Term], made_with: Callable[..., Example]) -> None:
    """Schedules set it as an attribute; one that is read in `build` only must say so in `at_build`."""
    for name in set(numbers_of(term)) - {"weight"} - term.at_build:
        case = made_with(term, torch.float64)
        changed = 0.8 * (getattr(case.term, name) or 1.0)
        setattr(case.term, name, changed)
        expected = made_with(term, torch.float64, **{name: changed}).value()
        torch.testing.assert_close(case.value(), expected, rtol=1e-12, atol=0, msg=name)


HELD = {"akl", "crd", "sampled", "wsld"}  # parts of these are constants by definition, and have tests of their own


@each_case("term", TERMS)
def test_gradients_are_those_of_finite_differences(term: type[Term], made_with: Callable[..., Example]) -> None:
    if term.contract.short_name in HELD:
        return
    for arguments in settings_with_modules(term):
        case = made_with(term, torch.float64, **arguments)
        case.term.eval()  # masks and counters stay as they are
        assert torch.autograd.gradcheck(lambda *_, case=case: case.value(), case.tensors(), fast_mode=True), arguments


OF_LOGITS = [term for term in TERMS if term.contract.needs == "logits"]


def inputs(term: type[Term], case: Example) -> dict[str, Tensor]:
    """The tensors of the case that the term's function takes, by name."""
    given = {"student_logits": case.student.logits, "teacher_logits": case.teacher.logits}
    given["target"] = case.batch["target"]
    return {name: tensor for name, tensor in given.items() if name in inspect.signature(term.function).parameters}


def another(kind: Any, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next(option for option in get_args(kind) if option != value)
    return type(value)(0.8 * value)


@each_case("term", OF_LOGITS)
def test_a_loss_on_logits_is_its_function_with_its_settings(
    term: type[Term], made_with: Callable[..., Example]
) -> None:
    """With the settings' defaults, and with another value of each."""
    taken = inspect.signature(term.function).parameters
    defaults = {name: each.default for name, each in inspect.signature(term).parameters.items() if name in taken}
    kinds = get_type_hints(term.__init__)
    others = {name: another(kinds[name], default) for name, default in defaults.items()}
    for settings_ in (defaults, others):
        case = made_with(term, torch.float64, **settings_)
        rows = {"reduction": "none"} if term.contract.per_sample else {}
        expected = term.function(**inputs(term, case), **settings_, **rows)
        torch.testing.assert_close(case.value(), expected, rtol=0, atol=0)


@each_case("term", OF_LOGITS)
def test_logits_that_would_be_broadcast_are_refused(term: type[Term]) -> None:
    given = inputs(term, example(term, 3, draw()))
    if "teacher_logits" in given and term.contract.aligned_classes:
        with pytest.raises(ValueError, match=r"student \[3, 1\] and teacher \[3, 5\] differ in shape"):
            term.function(**{**given, "student_logits": given["student_logits"][:, :1]})


@each_case("term", TERMS)
def test_hard_labels_are_asked_for(term: type[Term]) -> None:
    if hasattr(term, "function") and "target" in inspect.signature(term.function).parameters:
        case = example(term, 6, draw())
        for target, words in ((None, "has no labels"), (torch.full((6, 5), 0.2), "has soft labels")):
            case.batch = {"target": target}  # type: ignore[dict-item]
            with pytest.raises(UserError, match=f"needs class indices as labels, and this batch {words}. Use kd"):
                case.value()


WRONG = {Positive: (0, -1.0), PositiveInt: (0, 2.5), Fraction: (-0.1, 1)}


@each_case("term", TERMS)
def test_settings_that_a_term_does_not_admit_are_refused(term: type[Term]) -> None:
    def refused(name: str, value: Any, words: str) -> None:
        with pytest.raises(UserError, match=f"{name}={value}{words}"):
            terms.plain(term, **{name: value})

    for name, kind in get_type_hints(term.__init__, include_extras=True).items():
        assert name != "temperature" or kind == Positive
        for value in WRONG.get(kind, ()) if get_origin(kind) is Annotated else ():
            refused(name, value, ": it must be ")
        if get_origin(kind) is Literal:
            refused(name, get_args(kind)[0][:-1], rf"\. (Did you mean|Choose from).*{get_args(kind)[0]}")
        if name == "projector":
            refused(name, "lineal", ": unknown kind.*linear")


def settings_with_modules(term: type[Term]) -> Iterator[dict[str, Any]]:
    """The projector that the term has by default, with each value of every setting that has a list of values."""
    parameters = inspect.signature(term).parameters
    own = {"projector": parameters["projector"].default} if "projector" in parameters else {}
    yield own
    for name, kind in get_type_hints(term.__init__).items():
        if get_origin(kind) is not None and name != "layers":
            yield from (own | {name: value} for value in get_args(kind) if isinstance(value, str))


@each_case("term", TERMS)
def test_modules_in_bfloat16(term: type[Term], made_with: Callable[..., Example]) -> None:
    """trainer.precision=bf16-true: the term's modules and all signals are in bfloat16.

    The value is that of the same numbers in float32, up to what the modules themselves round.
    """
    for arguments in settings_with_modules(term):
        case = made_with(term, torch.bfloat16, **arguments)
        case.term.to(torch.bfloat16)
        exact = cast(Example(copy.deepcopy(case.term).float(), case.student, case.teacher, case.batch), torch.float32)
        value, expected = case.value(), exact.value()
        assert value.dtype == torch.float32, arguments
        modules = any(True for _ in case.term.buffers()) or any(True for _ in case.term.parameters())
        rtol = 0.1 if modules else 1e-5
        torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol * 0.1, msg=lambda m, a=arguments: f"{a}: {m}")
        value.sum().backward()
        found = [t.grad for t in (*case.tensors(), *case.term.parameters()) if t.grad is not None]
        assert found, arguments
        assert all(gradient.isfinite().all() for gradient in found), arguments
