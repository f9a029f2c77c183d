"""What every loss must keep to; found by walking package and configs: a new loss is held to it too."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distillery.losses
import fixtures.terms
from distillery.losses import functional
from distillery.losses.signals import Signals
from distillery.losses.term import Property, Term
from distillery.training.schedules import numbers_of
from fixtures.terms import Example, cast, example, mapped, tensors

CONFIGS = Path(__file__).parents[2] / "configs" / "loss"
FAMILIES = ("response", "feature", "attention", "relation")
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(distillery.losses.__path__, "distillery.losses.")
    if found.name.split(".")[2] in FAMILIES and not found.ispkg
]
YAMLS = sorted(CONFIGS.glob("*/*.yaml"))


def terms_of(module: ModuleType) -> list[type[Term]]:
    return [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Term) and member.__module__ == module.__name__
    ]


TERMS = [term for module in MODULES for term in terms_of(module)]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
each_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
each_term = pytest.mark.parametrize("term", TERMS, ids=lambda term: term.contract.short_name)


class TestHouse:
    """The three touches that adding a loss takes are all there."""

    def test_all_families_are_found(self) -> None:
        assert {module.__name__.split(".")[2] for module in MODULES} == set(FAMILIES)

    @each_module
    def test_file_holds_one_term_of_its_family(self, module: ModuleType) -> None:
        (term,) = terms_of(module)
        assert term.contract.family == module.__name__.split(".")[2]

    @each_module
    def test_file_has_its_config(self, module: ModuleType) -> None:
        family, name = module.__name__.split(".")[2:]
        assert CONFIGS / family / f"{name}.yaml" in YAMLS

    def test_functional_exports_every_function_and_nothing_else(self) -> None:
        public = {
            name: member
            for module in MODULES
            for name, member in vars(module).items()
            if inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_")
        }
        assert set(functional.__all__) == set(public)
        assert all(getattr(functional, name) is member for name, member in public.items())

    def test_short_names_are_unique(self) -> None:
        names = [term.contract.short_name for term in TERMS]
        assert sorted(names) == sorted(set(names))

    @each_yaml
    def test_config_names_its_own_term_under_its_own_key(self, path: Path) -> None:
        assert path.read_text().splitlines()[0] == f"# @package loss.{path.stem}"
        target = yaml.safe_load(path.read_text())["_target_"]
        module, _, name = target.rpartition(".")
        assert module == f"distillery.losses.{path.parent.name}.{path.stem}"
        assert getattr(importlib.import_module(module), name) in TERMS

    @each_yaml
    def test_config_holds_every_setting_and_no_other(self, path: Path) -> None:
        config = yaml.safe_load(path.read_text())
        module, _, name = config.pop("_target_").rpartition(".")
        term = getattr(importlib.import_module(module), name)
        assert set(config) == set(inspect.signature(term).parameters)
        assert term(**config).weight == config["weight"]


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
    """The student gives just what the teacher gives."""
    return cast(Example(case.term, case.teacher, case.teacher, case.batch), case.teacher.logits.dtype)


@each_term
class TestPrecision:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_divergence_vanishes_at_agreement(
        self, term: type[Term], dtype: torch.dtype, tolerance: float, scale: float
    ) -> None:
        if term.contract.form != "divergence":
            pytest.skip("promises nothing at agreement")
        case = agreeing(example(term, 4, draw(), dtype, scale))
        assert (case.value().abs() <= tolerance).all()
        slope = max(10 * tolerance, SLOPE.get(term.contract.short_name, 0.0))
        assert all(gradient.abs().max() <= slope for gradient in gradients(case))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_scale_of_ten_thousand_stays_finite(self, term: type[Term], dtype: torch.dtype) -> None:
        case = example(term, 4, draw(), dtype, 1e4)
        value = case.value()
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert value.sum() != 0
        assert all(gradient.isfinite().all() for gradient in gradients(case))

    def test_autocast_does_not_lower_the_precision(self, term: type[Term]) -> None:
        expected = example(term, 4, draw()).value()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = example(term, 4, draw()).value()
        modules = any(True for _ in example(term, 4, draw()).term.parameters())  # their products are bfloat16's
        rtol, atol = (0.1, 1e-3) if modules else (1e-6, 1e-7)
        torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)

    def test_one_value_a_row_as_promised(self, term: type[Term]) -> None:
        case = example(term, 4, draw(), torch.float64)
        value = case.value()
        assert value.shape == ((4,) if term.contract.per_sample else ())
        if term.contract.per_sample:
            alone = [Example(case.term, *part(case, [i])).value() for i in range(4)]
            torch.testing.assert_close(value, torch.cat(alone))

    def test_no_value_is_read_back_from_the_device(self, term: type[Term]) -> None:
        """Tensors without data: an `.item()`, a boolean index or a branch on a value raises."""
        case = example(term, 4, draw())
        case.term.to("meta")
        assert gradients(cast(case, torch.float32, "meta"))

    def test_teacher_without_gradient_gets_none(self, term: type[Term]) -> None:
        case = example(term, 4, draw())
        case.value().sum().backward()
        assert all(tensor.grad is None for tensor in tensors(case.teacher))


def part(case: Example, rows: list[int] | Tensor) -> tuple[Signals, Signals, dict[str, Tensor]]:
    """Some of the samples, or all in another order."""
    student, teacher = (mapped(signals, lambda t: t[rows]) for signals in (case.student, case.teacher))
    return student, teacher, {key: value[rows] for key, value in case.batch.items()}


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


@pytest.mark.parametrize(
    ("term", "name"), [(term, name) for term in TERMS for name in sorted(term.contract.properties)]
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 7), scale=st.sampled_from([1e-2, 1.0, 30.0]))
def test_promised_property(term: type[Term], name: str, seed: int, batch: int, scale: float) -> None:
    generator = draw(seed)
    CHECKS[name](example(term, batch, generator, torch.float64, scale), generator)


@each_term
def test_properties_not_promised_do_not_hold(term: type[Term]) -> None:
    """A contract leaves nothing out that it could promise; this also shows that each check can fail."""
    on_logits = {"shift_invariant", "class_permutation"}
    applicable = set(CHECKS) - (set() if term.contract.needs == "logits" else on_logits)
    for name in applicable - term.contract.properties:
        with pytest.raises((AssertionError, RuntimeError)):  # not symmetric: shapes may not even fit
            CHECKS[name](example(term, 6, draw(), torch.float64), draw())


@each_term
def test_a_number_is_read_anew_in_each_step(term: type[Term], monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules set it as an attribute; one that is read in `build` only must say so in `at_build`."""
    as_it_is = fixtures.terms.plain

    def made(**numbers: float) -> Example:
        monkeypatch.setattr(fixtures.terms, "plain", lambda term, **own: as_it_is(term, **{**own, **numbers}))
        return example(term, 6, draw(), torch.float64)

    for name in set(numbers_of(term)) - {"weight"} - term.at_build:
        case = made()
        changed = 0.8 * (getattr(case.term, name) or 1.0)
        setattr(case.term, name, changed)
        torch.testing.assert_close(case.value(), made(**{name: changed}).value(), rtol=1e-12, atol=0, msg=name)
