import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.factor_transfer import FactorTransfer
from distillery.losses.functional import factor_transfer
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw
from reference import factor_transfer as reference


@each_case(("p1", "p2"), [(2, 1), (2, 2), (1, 1), (3, 1)])
def test_simple_rows(p1: float, p2: float) -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 7, 2, 5, seed=1)

    def factor(features: np.ndarray) -> np.ndarray:
        energy = (np.abs(features) ** p1).mean(0).ravel()
        return energy / np.linalg.norm(energy)

    samples = zip(student.numpy(), teacher.numpy(), strict=True)
    expected = [np.mean(np.abs(factor(s) - factor(t)) ** p2) for s, t in samples]
    values = factor_transfer(student, teacher, p1=p1, p2=p2, reduction="none")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


@each_case("variant", ["simple", "paper"])
def test_larger_map_is_average_pooled(variant: str) -> None:
    student, teacher = draw(4, 3, 4, 6), draw(4, 3, 2, 3, seed=1)
    pooled = torch.tensor(student.numpy().reshape(4, 3, 2, 2, 3, 2).mean((3, 5)))
    values = [factor_transfer(s, teacher, variant) for s in (student, pooled)]  # type: ignore[arg-type]
    torch.testing.assert_close(*values)


@each_case("variant", ["simple", "paper"])
def test_dead_features_stay_finite(variant: str) -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    factor_transfer(student, draw(2, 3, 4, 4).float(), variant).backward()  # type: ignore[arg-type]
    assert student.grad is not None
    assert student.grad.isfinite().all()


def built(student: Tensor, teacher: Tensor, **settings: object) -> FactorTransfer:
    torch.manual_seed(0)
    term = FactorTransfer(layers={"block": "stage"}, **settings)  # type: ignore[arg-type]
    term.build({"block": student.shape}, {"stage": teacher.shape})
    return term.to(student.dtype)


def value(term: FactorTransfer, student: Tensor, teacher: Tensor) -> Tensor:
    logits = torch.zeros(len(student), 2)
    return term(Signals(logits, {"block": student}), Signals(logits, {"stage": teacher}), {})


def layers(modules: nn.ModuleList) -> list[reference.Layer]:
    found = [layer for layer in modules.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in found if layer.bias is not None]


@each_case("rate", [0.5, 0.75])
def test_paper_rows(rate: float) -> None:
    """First the paraphraser's reconstruction, then the distance of the factors."""
    student, teacher = draw(3, 5, 3, 4), draw(3, 4, 3, 4, seed=1)
    term = built(student, teacher, variant="paper", rate=rate, pretrain_steps=2, p2=2)
    encoder, decoder, translator = (layers(part) for part in (term.encoders, term.decoders, term.translators))
    assert [weight.shape[:2] for weight, _ in translator] == [(5, 5), (4 * rate, 5), (4 * rate, 4 * rate)]
    assert [weight.shape[:2] for weight, _ in encoder] == [(4, 4), (4 * rate, 4), (4 * rate, 4 * rate)]
    assert [weight.shape[:2] for weight, _ in decoder] == [(4 * rate, 4 * rate), (4 * rate, 4), (4, 4)]
    reconstructed = reference.reconstruction(teacher.numpy(), encoder, decoder)
    transferred = reference.transfer(student.numpy(), teacher.numpy(), translator, encoder, p=2)
    for expected in (reconstructed, reconstructed, transferred, transferred):
        np.testing.assert_allclose(value(term, student, teacher).detach().numpy(), expected, rtol=1e-9)


def test_evaluation_does_not_count_as_training() -> None:
    student, teacher = draw(3, 5, 3, 3), draw(3, 4, 3, 3, seed=1)
    term = built(student, teacher, variant="paper", pretrain_steps=1)
    pretrained = [value(term.eval(), student, teacher) for _ in range(3)] + [value(term.train(), student, teacher)]
    assert all(torch.equal(rows, pretrained[0]) for rows in pretrained)
    after = value(term.eval(), student, teacher)
    assert not torch.equal(after, pretrained[0])


def test_each_part_learns_in_its_time() -> None:
    student, teacher = draw(3, 5, 3, 3).requires_grad_(), draw(3, 4, 3, 3, seed=1)
    term = built(student, teacher, variant="paper", pretrain_steps=1)

    def moved() -> set[str]:
        term.zero_grad()
        student.grad = None
        value(term, student, teacher).sum().backward()
        parts = {name.partition(".")[0] for name, parameter in term.named_parameters() if parameter.grad is not None}
        return parts | ({"student"} if student.grad is not None else set())

    assert moved() == {"encoders", "decoders"}
    assert moved() == {"translators", "student"}


def test_weight_does_not_drive_the_paraphraser() -> None:
    """500 times the reconstruction would diverge at any usual learning rate."""
    student, teacher = draw(3, 5, 3, 3), draw(3, 4, 3, 3, seed=1)
    gradients = []
    for weight in (1.0, 500.0):
        term = built(student, teacher, variant="paper", weight=weight)
        (weight * value(term, student, teacher)).sum().backward()
        gradients.append([parameter.grad for parameter in term.encoders.parameters()])
    torch.testing.assert_close(*gradients)


def train(term: FactorTransfer, student: Tensor, teacher: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(term.parameters(), lr=0.1, weight_decay=0.01)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = value(term, student, teacher).mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@each_case("saved_after", [2, 6])
def test_training_goes_on_where_it_was_saved(saved_after: int) -> None:
    """Bit for bit, before and after the switch at step 4."""
    student, teacher = draw(3, 5, 3, 3), draw(3, 4, 3, 3, seed=1)
    settings = {"variant": "paper", "pretrain_steps": 4}
    straight = train(built(student, teacher, **settings), student, teacher, 8)
    saved = built(student, teacher, **settings)
    train(saved, student, teacher, saved_after)
    resumed = built(student, teacher, **settings)
    resumed.load_state_dict(saved.state_dict())
    assert train(resumed, student, teacher, 8 - saved_after) == straight[saved_after:]


def test_overfits_a_batch() -> None:
    """The reconstruction falls, then the factor loss; and the paraphraser stays as it was, under weight decay too."""
    student, teacher = draw(4, 12, 3, 3).float(), draw(4, 6, 3, 3, seed=1).relu().float()
    term = built(student, teacher, variant="paper", pretrain_steps=60, weight=500.0)
    optimizer = torch.optim.AdamW(term.parameters(), lr=0.01, weight_decay=0.1)
    values, frozen = [], {}
    for step in range(120):
        if step == 60:
            frozen = {key: tensor.clone() for key, tensor in term.encoders.state_dict().items()}
        optimizer.zero_grad()
        loss = value(term, student, teacher).mean()
        (500.0 * loss).backward()
        optimizer.step()
        values.append(loss.item())
    assert values[59] < 0.7 * values[0]
    assert values[119] < 0.5 * values[60]
    assert frozen
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in term.encoders.state_dict().items())


def test_simple_term_sums_its_pairs() -> None:
    student, teacher = {"a": draw(4, 3, 4, 4), "b": draw(4, 10, 5)}, {"x": draw(4, 6, 4, 4), "y": draw(4, 6, 3, 3)}
    term = FactorTransfer(layers={"a": "x", "b": "y"}, p1=3, p2=2)
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    term.double()
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    expected = factor_transfer(student["a"], teacher["x"], p1=3, p2=2, reduction="none")
    tokens = student["b"][:, 1:].mT.reshape(4, 5, 3, 3)  # without the class token
    expected = expected + factor_transfer(tokens, teacher["y"], p1=3, p2=2, reduction="none")
    torch.testing.assert_close(value, expected)
    assert not list(term.parameters())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"single position .*variant=paper"):
        built(draw(4, 3, 1, 1), draw(4, 3, 4, 4))
    built(draw(4, 3, 1, 1), draw(4, 3, 4, 4), variant="paper")
    with pytest.raises(UserError, match=r"layer 'stage' \[4, 3\]"):
        built(draw(4, 3, 4, 4), draw(4, 3), variant="paper")


@formulas.plain("factor_transfer", "s_map", "t_map")
def plain_factor_transfer(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(x[name].pow(2).mean(1).flatten(1)) for name in ("s_map", "t_map"))
    return (s - t).abs().mean()
