import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.ofd import OFD
from distillery.losses.functional import ofd, ofd_batch_margin, ofd_bn_margin
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import ofd as reference


@each_case("margin", [-0.5, 0.0, [-2.0, -0.1, 0.0]])
def test_rows(margin: float | list[float]) -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1)
    each = margin if isinstance(margin, list) else [margin] * 3
    given = torch.tensor(margin, dtype=torch.float64) if isinstance(margin, list) else margin
    values = ofd(student, teacher, given, reduction="none")
    np.testing.assert_allclose(values.numpy(), reference.ofd(student.numpy(), teacher.numpy(), each), rtol=1e-12)


PARAMETERS = [(1.0, 0.0), (0.5, 1.2), (-0.5, -1.2), (2.0, 6.2), (1.0, 3.05), (1.0, 3.1), (-1.0, 9.0), (0.1, -3.0)]


def test_margin_of_a_batchnorm() -> None:
    weight, bias = torch.tensor(PARAMETERS, dtype=torch.float64).T
    expected = [reference.bn_margin(*parameters) for parameters in PARAMETERS]
    np.testing.assert_allclose(ofd_bn_margin(weight, bias).numpy(), expected, rtol=1e-9)


def test_margin_of_a_dead_channel_is_finite() -> None:
    weight, bias = torch.tensor([0.0, 0.0, 0.0, 1e-30]), torch.tensor([0.0, 2.0, -2.0, -100.0])
    torch.testing.assert_close(ofd_bn_margin(weight, bias), torch.tensor([0.0, 0.0, -2.0, -100.0]))


def test_margin_of_a_batch() -> None:
    teacher = draw(4, 3, 2, 5)
    teacher[:, 1] = teacher[:, 1].abs()
    np.testing.assert_allclose(
        ofd_batch_margin(teacher).numpy(), reference.batch_margin(teacher.numpy()), rtol=1e-12, atol=0
    )


def test_batchnorm_says_what_a_large_batch_shows() -> None:
    """The two definitions of the margin agree on what a BatchNorm gives."""
    norm = torch.nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.4, -2.0]))
        norm.bias.copy_(torch.tensor([0.0, 0.3, -1.0]))
        features = norm(draw(64, 3, 32, 32))
        torch.testing.assert_close(
            ofd_bn_margin(norm.weight, norm.bias), ofd_batch_margin(features), rtol=0.02, atol=0.0
        )


def built(margin: float | str, student: dict[str, Tensor], teacher: dict[str, Tensor], **taps: str) -> OFD:
    term = OFD(layers=taps, projector=None, margin=margin)  # type: ignore[arg-type]
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    return term


@each_case("margin", [-0.7, "batch", "bn"])
def test_term_takes_the_margin_of_each_layer(margin: float | str) -> None:
    student = {"a": draw(4, 3, 4, 4), "b": draw(4, 5, 2, 2)}
    teacher = {"x": draw(4, 3, 4, 4, seed=1), "y": draw(4, 5, 2, 2, seed=1)}
    for seed, tap in enumerate(("x", "y")):
        width = teacher[tap].shape[1]
        teacher |= {f"{tap}:weight": draw(width, seed=seed), f"{tap}:bias": draw(width, seed=seed + 5)}
    term = built(margin, student, teacher, a="x", b="y")
    assert set(term.teacher_taps) == ({"x", "y"} if margin != "bn" else set(teacher))
    assert term.student_taps == ["a", "b"]

    def expected(ours: str, theirs: str) -> Tensor:
        if margin == "bn":
            parameters = zip(teacher[f"{theirs}:weight"].tolist(), teacher[f"{theirs}:bias"].tolist(), strict=True)
            margins = [reference.bn_margin(*pair) for pair in parameters]
        elif margin == "batch":
            margins = reference.batch_margin(teacher[theirs].numpy())
        else:
            margins = [float(margin)] * teacher[theirs].shape[1]
        return torch.tensor(reference.ofd(student[ours].numpy(), teacher[theirs].numpy(), margins))

    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    torch.testing.assert_close(value, expected("a", "x") / 2 + expected("b", "y"), rtol=1e-9, atol=0)


def test_connector_learns() -> None:
    student, teacher = draw(4, 3, 4, 4).float(), draw(4, 5, 2, 2, seed=1).float()
    term = OFD(layers={"a": "x"})
    term.build({"a": student.shape}, {"x": teacher.shape})
    value = term(Signals(draw(4, 2), {"a": student}), Signals(draw(4, 2), {"x": teacher}), {})
    value.sum().backward()
    gradients = {name: parameter.grad for name, parameter in term.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert gradients["connectors.projectors.0.weight"].any()  # type: ignore[union-attr]
    assert gradients["connectors.norms.0.weight"].any()  # type: ignore[union-attr]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"margin=0.5: it must be a finite number not above 0"):
        OFD(margin=0.5)
    with pytest.raises(UserError, match=r"margin=bm: it must be a finite number not above 0, batch or bn"):
        OFD(margin="bm")  # type: ignore[arg-type]
    convolution = {"x": draw(4, 3, 4, 4), "x:weight": draw(3, 2, 3, 3), "x:bias": draw(3)}
    with pytest.raises(UserError, match=r"margin=bn: the teacher's layer 'x' is not a BatchNorm. .*margin=batch"):
        built("bn", {"a": draw(4, 3, 4, 4)}, convolution, a="x")
    with pytest.raises(ValueError, match="differ in shape"):
        ofd(draw(2, 1, 4, 4), draw(2, 3, 4, 4), -0.5)


@formulas.plain("ofd", "s_map", "t_map", margin=-0.5)
def plain_ofd(x: formulas.Inputs) -> Tensor:
    t = x["t_map"].clamp_min(-0.5)
    counts = ((x["s_map"] > t) | (t > 0)).float()
    return ((x["s_map"] - t).pow(2) * counts).sum() / len(t)


@terms.example_of(OFD)
def example_ofd(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """With the parameters of BatchNorms. At 1e4 the gradient, twice the gap, would be out of float16's range."""
    made = terms.plain(term, margin="bn")
    shapes_by_tap = {"x": (batch, 5, 4, 4), "x:weight": (5,), "x:bias": (5,)}
    student, teacher = (
        Signals(draw(batch, terms.CLASSES), {tap: 0.25 * draw(*shape) for tap, shape in shapes_by_tap.items()})
        for _ in range(2)
    )
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
