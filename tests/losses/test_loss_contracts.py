"""What every loss must keep to; found by walking package and configs: a new loss is held to it too."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distillery.losses
from distillery.losses import functional
from distillery.losses.term import Property, Term
from distillery.signals import Signals

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


def plain(term: type[Term]) -> Term:
    """The term without projector, on the layer 'x' of both networks."""
    accepted = inspect.signature(term).parameters
    wanted = {"layers": {"x": "x"}, "projector": None}
    return term(**{name: value for name, value in wanted.items() if name in accepted})


def shape_for(term: type[Term], batch: int) -> tuple[int, ...]:
    """Of what the term compares: logits of 5 classes, maps, or vectors."""
    return {
        "logits": (batch, 5),
        "maps": (batch, 5, 3, 3),
        "features": (batch, 5, 3, 3),
        "vectors": (batch, 5),
    }[term.contract.needs]


def evaluate(term: Term, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    if term.contract.needs == "logits":
        return term(Signals(student), Signals(teacher), target)
    term.build({"x": student.shape}, {"x": teacher.shape})
    logits = torch.zeros(len(student), 5)
    return term(Signals(logits, {"x": student}), Signals(logits, {"x": teacher}), target)


class TestHouse:
    """The three touches that adding a loss takes are all there."""

    def test_all_families_are_found(self) -> None:
        assert {module.__name__.split(".")[2] for module in MODULES} == set(FAMILIES)

    @each_module
    def test_file_holds_one_function_and_its_term(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        assert name in functional.__all__
        assert getattr(functional, name) is getattr(module, name)
        (term,) = terms_of(module)
        assert term.contract.family == module.__name__.split(".")[2]

    @each_module
    def test_file_has_its_config(self, module: ModuleType) -> None:
        family, name = module.__name__.split(".")[2:]
        assert CONFIGS / family / f"{name}.yaml" in YAMLS

    def test_functional_exports_nothing_else(self) -> None:
        assert set(functional.__all__) == {module.__name__.rpartition(".")[2] for module in MODULES}

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


@each_term
class TestPrecision:
    def test_agreement_gives_zero_in_float32(self, term: type[Term]) -> None:
        draw = torch.Generator().manual_seed(0)
        target = torch.tensor([0, 1, 2, 3])
        for scale in (1.0, 1e4):
            same = scale * torch.randn(shape_for(term, 4), generator=draw)
            student = same.clone().requires_grad_()
            value = evaluate(plain(term), student, same, target).sum()
            value.backward()
            assert term.contract.form == "divergence"
            assert abs(value.item()) <= 1e-6
            assert student.grad is not None
            assert student.grad.abs().max() <= 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_scale_of_ten_thousand_stays_finite(self, term: type[Term], dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(0)
        student, teacher = (1e4 * torch.randn(2, *shape_for(term, 4), generator=draw)).to(dtype)
        student.requires_grad_()
        value = evaluate(plain(term), student, teacher, torch.tensor([0, 1, 2, 3]))
        value.sum().backward()
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert value.sum() > 0
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_autocast_does_not_lower_the_precision(self, term: type[Term]) -> None:
        draw = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, *shape_for(term, 4), generator=draw)
        target = torch.tensor([0, 1, 2, 3])
        expected = evaluate(plain(term), student, teacher, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = evaluate(plain(term), student, teacher, target)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)

    def test_one_value_a_row_as_promised(self, term: type[Term]) -> None:
        draw = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, *shape_for(term, 4), generator=draw)
        target = torch.tensor([0, 1, 2, 3])
        value = evaluate(plain(term), student, teacher, target)
        assert value.shape == ((4,) if term.contract.per_sample else ())
        if term.contract.per_sample:
            alone = [evaluate(plain(term), student[i : i + 1], teacher[i : i + 1], target[i : i + 1]) for i in range(4)]
            torch.testing.assert_close(value, torch.cat(alone))

    def test_no_value_is_read_back_from_the_device(self, term: type[Term]) -> None:
        """Tensors without data: an `.item()`, a boolean index or a branch on a value raises."""
        student = torch.randn(shape_for(term, 4), device="meta", requires_grad=True)
        teacher = torch.randn(shape_for(term, 4), device="meta")
        value = evaluate(plain(term), student, teacher, torch.zeros(4, dtype=torch.long, device="meta"))
        value.sum().backward()
        assert student.grad is not None

    def test_teacher_without_gradient_gets_none(self, term: type[Term]) -> None:
        student, teacher = torch.randn(shape_for(term, 4)).requires_grad_(), torch.randn(shape_for(term, 4))
        evaluate(plain(term), student, teacher, torch.tensor([0, 1, 2, 3])).sum().backward()
        assert teacher.grad is None


Case = tuple[Term, Tensor, Tensor, Tensor]


def same_total(term: Term, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(evaluate(term, *first).sum(), evaluate(term, *second).sum(), rtol=1e-7, atol=1e-9)


def non_negative(case: Case, draw: torch.Generator) -> None:
    assert (evaluate(*case) >= -1e-9).all()


def shift_invariant(case: Case, draw: torch.Generator) -> None:
    term, student, teacher, target = case
    shifts = 10 * torch.randn(2, len(student), 1, generator=draw)
    same_total(term, (student, teacher, target), (student + shifts[0], teacher + shifts[1], target))


def class_permutation(case: Case, draw: torch.Generator) -> None:
    term, student, teacher, target = case
    order = torch.randperm(student.shape[1], generator=draw)
    moved = (student[:, order], teacher[:, order], order.argsort()[target])
    same_total(term, (student, teacher, target), moved)


def batch_permutation(case: Case, draw: torch.Generator) -> None:
    term, student, teacher, target = case
    order = torch.randperm(len(student), generator=draw)
    same_total(term, (student, teacher, target), (student[order], teacher[order], target[order]))


def symmetric(case: Case, draw: torch.Generator) -> None:
    term, student, teacher, target = case
    same_total(term, (student, teacher, target), (teacher, student, target))


CHECKS: dict[str, Callable[[Case, torch.Generator], None]] = {
    check.__name__: check for check in (non_negative, shift_invariant, class_permutation, batch_permutation, symmetric)
}


def a_case(term: type[Term], batch: int, scale: float, draw: torch.Generator) -> Case:
    student, teacher = scale * torch.randn(2, *shape_for(term, batch), dtype=torch.float64, generator=draw)
    return plain(term), student, teacher, torch.randint(5, (batch,), generator=draw)


def test_every_property_has_its_check() -> None:
    assert set(CHECKS) == set(get_args(Property))


@pytest.mark.parametrize(
    ("term", "name"), [(term, name) for term in TERMS for name in sorted(term.contract.properties)]
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 7), scale=st.sampled_from([1e-2, 1.0, 30.0]))
def test_promised_property(term: type[Term], name: str, seed: int, batch: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    CHECKS[name](a_case(term, batch, scale, draw), draw)


@each_term
def test_properties_not_promised_do_not_hold(term: type[Term]) -> None:
    """A contract leaves nothing out that it could promise; this also shows that each check can fail."""
    on_logits = {"shift_invariant", "class_permutation"}
    applicable = set(CHECKS) - (set() if term.contract.needs == "logits" else on_logits)
    for name in applicable - term.contract.properties:
        draw = torch.Generator().manual_seed(0)
        with pytest.raises(AssertionError):
            CHECKS[name](a_case(term, 6, 1.0, draw), draw)
