import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.vid import VID
from distillery.losses.functional import vid
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw


def by_hand(student: Tensor, teacher: Tensor, log_scale: list[float], eps: float) -> list[float]:
    """Of maps: the mean over elements of each sample."""
    values = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        of_channels = []
        for ours, theirs, alpha in zip(s, t, log_scale, strict=True):
            variance = np.log(1 + np.exp(alpha)) + eps
            of_channels.append(np.mean((ours - theirs) ** 2) / (2 * variance) + np.log(variance) / 2)
        values.append(np.mean(of_channels))
    return values


@each_case("eps", [1e-5, 0.3])
def test_rows(eps: float) -> None:
    student, teacher, log_scale = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1), [-2.0, 0.5, 3.0]
    expected = by_hand(student, teacher, log_scale, eps)
    values = vid(student, teacher, torch.tensor(log_scale).double(), eps=eps, reduction="none")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


@each_case("init_pred_var", [5.0, 0.2])
@each_case("shape", [(4, 3, 2, 5), (4, 6, 3), (4, 3)])
def test_without_scales_every_variance_is_the_initial_one(shape: tuple[int, ...], init_pred_var: float) -> None:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    expected = ((student - teacher) ** 2).mean() / (2 * init_pred_var) + np.log(init_pred_var) / 2
    assert vid(student, teacher, init_pred_var=init_pred_var).item() == pytest.approx(expected.item(), rel=1e-9)


def test_channels_of_tokens_are_the_last_dimension() -> None:
    student, teacher, log_scale = draw(4, 6, 3), draw(4, 6, 3, seed=1), draw(3, seed=2)
    as_maps = [features.mT.unflatten(2, (2, 3)) for features in (student, teacher)]
    torch.testing.assert_close(vid(student, teacher, log_scale), vid(*as_maps, log_scale))


def test_extreme_scales_stay_finite() -> None:
    log_scale = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = vid(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), log_scale)
    value.backward()
    assert value.isfinite()
    assert log_scale.grad is not None
    assert log_scale.grad.isfinite().all()


def built(student: Tensor, teacher: Tensor, projector: str | None = "regressor") -> VID:
    term = VID(layers={"block": "stage"}, projector=projector)
    term.build({"block": student.shape}, {"stage": teacher.shape})
    return term.double()


def value(term: VID, student: Tensor, teacher: Tensor) -> Tensor:
    return term(Signals(draw(4, 2), {"block": student}), Signals(draw(4, 2), {"stage": teacher}), {})


def test_term_pools_before_its_regressor() -> None:
    """As RepDistiller; behind the ReLUs it would be another value."""
    student, teacher = draw(4, 3, 6, 6), draw(4, 5, 3, 3, seed=1)
    term = built(student, teacher)
    (regressor,), (log_scale,) = term.projectors, term.log_scales
    pooled = torch.tensor(student.numpy().reshape(4, 3, 3, 2, 3, 2).mean((3, 5)))
    expected = vid(regressor(pooled), teacher, log_scale, reduction="none")
    torch.testing.assert_close(value(term, student, teacher), expected)


def test_term_starts_at_the_initial_variance() -> None:
    student, teacher = draw(4, 5, 3, 3), draw(4, 5, 3, 3, seed=1)
    term = VID(layers={"block": "stage"}, projector=None, init_pred_var=2.0, eps=0.5)
    term.build({"block": student.shape}, {"stage": teacher.shape})
    expected = vid(student, teacher, init_pred_var=2.0, eps=0.5, reduction="none")
    torch.testing.assert_close(value(term.double(), student, teacher), expected)


def test_regressor_is_repdistillers() -> None:
    term = built(draw(4, 3, 6, 6), draw(4, 5, 3, 3))
    assert [list(parameter.shape) for parameter in term.projectors.parameters()] == [
        [5, 3, 1, 1],
        [5, 5, 1, 1],
        [5, 5, 1, 1],
    ]
    kinds = [type(layer) for layer in term.projectors[0]]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]


@each_case("projector", ["regressor", "auto", "mlp", "none"])
@each_case(
    ("student", "teacher"),
    [
        ((4, 3, 6, 6), (4, 5, 3, 3)),
        ((4, 9, 3), (4, 9, 5)),
        ((4, 3), (4, 5)),
        ((4, 3, 6, 6), (4, 17, 5)),
        ((4, 10, 3), (4, 5, 3, 3)),
    ],
)
def test_every_layer_and_projector_learns(projector: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    student_features, teacher_features = draw(*student).requires_grad_(), draw(*teacher, seed=1)
    term = built(student_features, teacher_features, projector)
    rows = value(term, student_features, teacher_features)
    assert rows.shape == (4,)
    rows.sum().backward()
    for tensor in (student_features, *term.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_overfits_a_batch_and_returns() -> None:
    """The loss falls below what the initial variance allows; a copy by state_dict goes on with the same value."""
    student, teacher = draw(4, 24, 2, 2), draw(4, 16, 2, 2, seed=1)
    term = built(student, teacher)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        value(term, student, teacher).mean().backward()
        optimizer.step()
    assert value(term, student, teacher).mean() < 0.0
    copy = built(student, teacher)
    assert not torch.equal(value(copy, student, teacher), value(term, student, teacher))
    copy.load_state_dict(term.state_dict())
    assert torch.equal(value(copy, student, teacher), value(term, student, teacher))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"init_pred_var=1e-06: it must be greater than eps=1e-05"):
        VID(init_pred_var=1e-6)
    with pytest.raises(ValueError, match="differ in shape"):
        vid(draw(2, 1, 4, 4), draw(2, 3, 4, 4))


@formulas.plain("vid", "s_map", "t_map")
def plain_vid(x: formulas.Inputs) -> Tensor:
    raw = torch.full((64,), 5.0 - 1e-5).expm1().log()
    variance = (1 + raw.exp()).log().view(-1, 1, 1) + 1e-5
    return (0.5 * ((x["s_map"] - x["t_map"]).pow(2) / variance + variance.log())).mean()


@terms.example_of(VID)
def example_vid(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Networks so near each other, and so little variance, that the log-likelihood is positive."""
    made = terms.plain(term, init_pred_var=0.1)
    student = Signals(draw(batch, terms.CLASSES), {"x": draw(batch, 5, 4, 4)})
    teacher = Signals(draw(batch, terms.CLASSES), {"x": student.layers["x"] + 0.1 * draw(batch, 5, 4, 4)})
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
