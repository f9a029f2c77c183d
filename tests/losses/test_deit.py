import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import deit_hard, deit_soft
from distillery.losses.response.deit_hard import DeiTHard
from distillery.losses.response.deit_soft import DeiTSoft
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas
from fixtures.cases import each_case
from reference import deit as reference


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return tuple(3 * torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def test_hard(logits: tuple[Tensor, Tensor]) -> None:
    expected = reference.hard(*(x.tolist() for x in logits))
    assert deit_hard(*logits, reduction="none").tolist() == pytest.approx(expected, rel=1e-9)
    assert deit_hard(*logits).item() == pytest.approx(sum(expected) / 5, rel=1e-9)


@each_case("temperature", [1.0, 3.0])
@each_case("t_squared", [True, False])
def test_soft(logits: tuple[Tensor, Tensor], temperature: float, t_squared: bool) -> None:
    factor = temperature**2 if t_squared else 1.0
    rows = [factor * row for row in reference.soft(*(x.tolist() for x in logits), temperature)]
    found = deit_soft(*logits, temperature, t_squared, reduction="none")
    assert found.tolist() == pytest.approx(rows, rel=1e-9)
    assert deit_soft(*logits, temperature, t_squared).item() == pytest.approx(sum(rows) / 5, rel=1e-9)
    source = deit_soft(*logits, temperature, t_squared, variant="source")
    assert source.item() == pytest.approx(sum(rows) / logits[0].numel(), rel=1e-9)


@each_case("term", [DeiTHard(), DeiTSoft(temperature=2.0, t_squared=False, variant="source")])
def test_terms_compare_the_distillation_head_with_the_teachers(logits: tuple[Tensor, Tensor], term: Term) -> None:
    assert term.layers == {"distillation_logits": "head"}
    unread = torch.full((5, 7), torch.nan)
    student = Signals(unread, {"distillation_logits": logits[0]})
    teacher = Signals(unread, {"head": logits[1]})
    term.build({"distillation_logits": logits[0].shape}, {"head": logits[1].shape})
    if isinstance(term, DeiTHard):
        expected = deit_hard(*logits, reduction="none")
    else:
        expected = deit_soft(*logits, 2.0, t_squared=False, variant="source", reduction="none")
    torch.testing.assert_close(term(student, teacher, {}), expected, rtol=0, atol=0)


def test_several_heads_are_summed(logits: tuple[Tensor, Tensor]) -> None:
    one, other = logits
    term = DeiTHard(layers={"head": "head", "distillation_logits": "fc"})
    student = Signals(one, {"head": one, "distillation_logits": other})
    value = term(student, Signals(one, {"head": other, "fc": one}), {})
    expected = deit_hard(one, other, reduction="none") + deit_hard(other, one, reduction="none")
    torch.testing.assert_close(value, expected)


@each_case("term", [DeiTHard(), DeiTSoft()])
@each_case("teacher", [(8, 100), (8, 10, 4, 4)])
def test_other_shapes_are_refused(term: Term, teacher: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"'distillation_logits' \[8, 10\] with teacher layer 'head'.*same classes"):
        term.build({"distillation_logits": torch.Size([8, 10])}, {"head": torch.Size(teacher)})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        deit_hard(torch.zeros(2, 3), torch.zeros(2, 4))


@formulas.plain("deit_soft", "s_logits", "t_logits")
def plain_deit_soft(x: formulas.Inputs) -> Tensor:
    return 9 * formulas.divergence(formulas.p(x["t_logits"], 3), formulas.p(x["s_logits"], 3)).mean()


@formulas.plain("deit_hard", "s_logits", "t_logits")
def plain_deit_hard(x: formulas.Inputs) -> Tensor:
    return F.cross_entropy(x["s_logits"], x["t_logits"].argmax(1))
