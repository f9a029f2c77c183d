import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.mgd import MGD
from distillery.losses.functional import mgd
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import mgd as reference


def generation(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
    return block.double()


@each_case("mask", [(4, 1, 4, 5), (4, 3, 1, 1), (4, 3, 4, 5)])
def test_rows(mask: tuple[int, ...]) -> None:
    student, teacher, block = draw(4, 3, 4, 5), draw(4, 3, 4, 5, seed=1), generation(3)
    keep = (draw(*mask, seed=2) > 0).double()
    weights = [parameter.detach().numpy() for parameter in block.parameters()]
    expected = reference.mgd(student.numpy(), teacher.numpy(), keep.numpy(), weights)
    np.testing.assert_allclose(mgd(student, teacher, keep, block, "none").detach().numpy(), expected, rtol=1e-10)
    assert mgd(student, teacher, keep, block).item() == pytest.approx(np.mean(expected), rel=1e-10)


def built(student: Tensor, teacher: Tensor, **settings: object) -> MGD:
    torch.manual_seed(0)
    term = MGD(layers={"block": "stage"}, **settings)  # type: ignore[arg-type]
    term.build({"block": student.shape}, {"stage": teacher.shape})
    return term.to(student.dtype)


def value(term: MGD, student: Tensor, teacher: Tensor, index: Tensor | None = None) -> Tensor:
    index = torch.arange(len(student)) if index is None else index
    logits = torch.zeros(len(student), 2)
    return term(Signals(logits, {"block": student}), Signals(logits, {"stage": teacher}), {"index": index})


def masks(term: MGD, shape: tuple[int, ...], index: Tensor | None = None) -> Tensor:
    """What the term hides, seen by giving it ones and a generation that gives back what it gets."""
    seen: list[Tensor] = []

    class Sees(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            return features

    term.generations = nn.ModuleList([Sees()])
    value(term, torch.ones(shape), torch.ones(shape), index)
    return seen[0]


def test_term_projects_masks_and_generates() -> None:
    student, teacher = draw(4, 3, 4, 4), draw(4, 5, 4, 4, seed=1)
    term = built(student, teacher, masked_ratio=0.0)
    (project,), (block,) = term.projectors, term.generations
    expected = mgd(project(student), teacher, torch.ones(1), block, "none")
    torch.testing.assert_close(value(term, student, teacher), expected)


@each_case("ratio", [0.65, 0.15])
@each_case(("variant", "shared"), [("spatial", 1), ("channel", (2, 3))])
def test_masks_hide_their_share(ratio: float, variant: str, shared: int | tuple[int, int]) -> None:
    shape = 64, 40, 8, 8
    kept = masks(
        built(torch.ones(shape), torch.ones(shape), projector=None, variant=variant, masked_ratio=ratio), shape
    )
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert (kept == kept.amax(shared, keepdim=True)).all()  # whole positions, or whole channels
    assert kept.mean().item() == pytest.approx(1 - ratio, abs=0.03)
    assert len(kept.flatten(1).unique(dim=0)) == 64


def test_masks_follow_seed_step_and_sample_alone() -> None:
    shape = 8, 5, 6, 6
    ones = torch.ones(shape)

    def term(seed: int = 0) -> MGD:
        return built(ones, ones, projector=None, seed=seed)

    first = masks(term(), shape)
    torch.randn(3)
    assert torch.equal(masks(term(), shape), first)
    assert not torch.equal(masks(term(seed=1), shape), first)
    order = torch.tensor([3, 0, 7])  # on another process, say
    assert torch.equal(masks(term(), (3, 5, 6, 6), order), first[order])
    trained = term()
    steps = [masks(trained, shape) for _ in range(3)]
    assert torch.equal(steps[0], first)
    assert not torch.equal(steps[1], first)
    assert not torch.equal(steps[2], steps[1])


def test_layers_have_masks_of_their_own() -> None:
    features = {"a": torch.ones(4, 3, 8, 8), "b": torch.ones(4, 3, 8, 8)}
    term = MGD(layers={"a": "a", "b": "b"}, projector=None)
    term.build({k: v.shape for k, v in features.items()}, {k: v.shape for k, v in features.items()})
    term.generations = nn.ModuleList([nn.Identity(), nn.Identity()])
    one_layer = built(features["a"], features["a"], projector=None)
    one_layer.generations = nn.ModuleList([nn.Identity()])
    signals = Signals(torch.zeros(4, 2), features)
    both = term(signals, signals, {"index": torch.arange(4)})
    assert not torch.equal(both, 2 * value(one_layer, features["a"], features["a"]))


def test_evaluation_does_not_count_as_training() -> None:
    student, teacher = draw(4, 3, 4, 4), draw(4, 5, 4, 4, seed=1)
    term, other = built(student, teacher), built(student, teacher)
    first = value(term, student, teacher)
    other.eval()
    assert torch.equal(value(other, student, teacher), first)
    assert torch.equal(value(other, student, teacher), first)
    other.train()
    assert torch.equal(value(other, student, teacher), first)
    assert not torch.equal(value(other, student, teacher), first)


def train(term: MGD, student: Tensor, teacher: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(term.parameters(), lr=2e-4)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = value(term, student, teacher).mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_training_goes_on_where_it_was_saved() -> None:
    """Bit for bit, masks included."""
    student, teacher = draw(4, 3, 6, 6), draw(4, 5, 6, 6, seed=1)
    straight = train(built(student, teacher), student, teacher, 8)
    saved = built(student, teacher)
    train(saved, student, teacher, 5)
    resumed = built(student, teacher)
    resumed.load_state_dict(saved.state_dict())
    assert train(resumed, student, teacher, 3) == straight[5:]


def test_term_overfits_a_batch() -> None:
    """Without a mask it can copy; with the authors' it is left with what the mask hides."""
    student, teacher = draw(4, 6, 4, 4).float(), draw(4, 5, 4, 4, seed=1).float()
    ends = {}
    for ratio in (0.0, 0.65):
        term = built(student, teacher, masked_ratio=ratio)
        optimizer = torch.optim.Adam(term.parameters(), lr=0.03)
        for _ in range(120):
            optimizer.zero_grad()
            loss = value(term, student, teacher).mean()
            loss.backward()
            optimizer.step()
        ends[ratio] = loss.item() / teacher.square().flatten(1).sum(1).mean().item()
    assert ends[0.0] < 0.3
    assert ends[0.0] < ends[0.65] < 1.1


@each_case(("student", "teacher"), [((4, 10, 3), (4, 5, 3, 3)), ((4, 3, 6, 6), (4, 17, 5)), ((4, 9, 3), (4, 9, 3))])
def test_tokens_of_a_grid_are_maps(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    student_features = draw(*student).requires_grad_()
    rows = value(built(student_features, draw(*teacher)), student_features, draw(*teacher, seed=1))
    assert rows.shape == (4,)
    rows.sum().backward()
    assert student_features.grad is not None
    assert student_features.grad.any()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"layer 'stage' \[4, 8\]"):
        built(draw(4, 8, 4, 4), draw(4, 8))
    with pytest.raises(ValueError, match="differ in shape"):
        mgd(draw(2, 1, 4, 4), draw(2, 3, 4, 4), torch.ones(1), nn.Identity())


@terms.example_of(MGD)
def example_mgd(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """In evaluation, where two forwards have the same masks."""
    given = terms.default(term, batch, draw)
    given.term.eval()
    return given
