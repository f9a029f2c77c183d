"""`head` and `embedding` in networks of several linear layers, and layers that run more than once."""

import timm
import torch
from torch import Tensor, nn

from distillery.models.adapters import ImageAdapter
from distillery.models.taps.network import Network


class Perceptron(nn.Module):
    """Its classifier is defined before the layer that runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 10)
        self.hidden = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x.flatten(1)).relu())


def test_the_head_is_the_last_linear_layer_that_runs_not_that_is_defined() -> None:
    batch = {"image": torch.rand(4, 1, 8, 8)}
    student = Network(Perceptron(), ImageAdapter([0.5], [0.25]), name="student")
    assert student.head(batch) == "classifier"
    assert student.tap(["head", "embedding"], batch) == {"head": (4, 10), "embedding": (4, 32)}
    signals = student(batch)
    torch.testing.assert_close(signals.layers["head"], signals.logits, rtol=0, atol=0)
    hidden = student.net.hidden(student.adapter(batch)[0][0].flatten(1)).relu()
    torch.testing.assert_close(signals.layers["embedding"], hidden)


def test_the_head_of_a_vision_transformer_is_none_of_its_blocks_linear_layers() -> None:
    batch = {"image": torch.rand(2, 3, 32, 32)}
    student = Network(timm.create_model("test_vit", img_size=32, num_classes=10), ImageAdapter([0.5] * 3, [0.25] * 3))
    assert student.head(batch) == "head"
    assert student.tap(["embedding"], batch) == {"embedding": (2, student.net.num_features)}


class Twice(nn.Module):
    """One ReLU for two layers, as many networks share it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.one, self.two = nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(x.flatten(1)))))


def test_of_a_layer_that_runs_twice_the_last_time_counts() -> None:
    batch = {"image": torch.rand(4, 1, 8, 8)}
    student = Network(Twice(), ImageAdapter([0.5], [0.25]))
    assert list(student.layers(batch).items()) == [("one", (4, 32)), ("two", (4, 10)), ("relu", (4, 10))]
    student.tap(["relu"], batch)
    signals = student(batch)
    assert signals.layers["relu"] is signals.logits
