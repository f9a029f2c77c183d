"""Taps: what is recorded of a network, that it is what the layer gave, and that looking leaves no trace."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.core.errors import UserError
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.network import Network, probe

BATCH = {"image": torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


class Residual(nn.Module):
    """A residual block and a head. In place, it overwrites bn1's and bn2's outputs and relu1's and relu2's inputs."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU(inplace=in_place)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu2 = nn.ReLU(inplace=in_place)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.fc(self.relu2(out).mean((2, 3)))


class Pair(nn.Module):
    """Gives a tuple of tensors, a dict and, at the end, logits; `unused` never runs."""

    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Sum(nn.Module):
        def forward(self, one: Tensor, two: Tensor) -> dict[str, Tensor]:
            return {"sum": one + two}

    def __init__(self) -> None:
        super().__init__()
        self.split, self.sum, self.unused, self.fc = Pair.Split(), Pair.Sum(), nn.Linear(2, 2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.sum(*self.split(x.flatten(1)))["sum"])


def network(net: nn.Module, name: str = "student") -> Network:
    return Network(net, ImageAdapter([0.3], [0.4]), name=name)


def residual(in_place: bool = True) -> Network:
    torch.manual_seed(0)
    return network(Residual(in_place))


def hooks_of(of: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in of.modules())


@pytest.fixture
def given() -> Iterator[dict[str, Tensor]]:
    """Filled by the hooks of `watch`, which a test registers on layers itself."""
    return {}


def watch(net: nn.Module, path: str, given: dict[str, Tensor]) -> None:
    """Note the very tensors that go into and come out of a module, beside Distillery's own hooks."""
    net.get_submodule(path).register_forward_hook(
        lambda _, inputs, output: given.update({f"{path}:input": inputs[0], path: output})
    )


def test_a_path_gives_the_output_and_path_input_the_first_input() -> None:
    student = residual(in_place=False)
    shapes = student.tap(["conv2", "conv2:input", "relu2"], BATCH)
    assert shapes == {"conv2": (6, 4, 8, 8), "conv2:input": (6, 4, 8, 8), "relu2": (6, 4, 8, 8)}
    net, layers = student.net, student(BATCH).layers
    torch.testing.assert_close(layers["conv2"], net.conv2(layers["conv2:input"]))
    # by hand; batch statistics, since the student trains
    x = net.conv1(net.stem((BATCH["image"] - 0.3) / 0.4))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layers["conv2:input"], x.clamp(min=0), rtol=1e-4, atol=1e-5)


def test_an_element_of_a_tuple_and_an_input_by_its_number() -> None:
    student = network(Pair())
    assert student.tap(["split[0]", "split[1]", "sum:input[1]"], BATCH) == dict.fromkeys(
        ["split[0]", "split[1]", "sum:input[1]"], (6, 64)
    )
    layers = student(BATCH).layers
    x = ((BATCH["image"] - 0.3) / 0.4).flatten(1)
    torch.testing.assert_close(layers["split[0]"], x)
    torch.testing.assert_close(layers["split[1]"], 2 * x)
    torch.testing.assert_close(layers["sum:input[1]"], 2 * x)


@pytest.mark.parametrize(("net", "head"), [(SmallCNN(10, 1), "head"), (Residual(), "fc"), (Pair(), "fc")])
def test_head_and_embedding_are_the_classifier_whatever_it_is_called(net: nn.Module, head: str) -> None:
    student = network(net)
    assert student.head(BATCH) == head
    student.tap(["head", "embedding"], BATCH)
    signals = student(BATCH)
    linear = net.get_submodule(head)
    torch.testing.assert_close(signals.layers["head"], signals.logits, rtol=0, atol=0)
    torch.testing.assert_close(linear(signals.layers["embedding"]), signals.logits)


def test_output_is_what_the_network_gives_unless_a_layer_is_called_so() -> None:
    network = Network(Residual().eval())
    assert network.tap(["output", "relu2"], BATCH)["output"] == (6, 10)
    signals = network(BATCH)
    assert torch.equal(signals.layers["output"], signals.logits)
    assert network.last_tap(BATCH) == "output"
    named = nn.Sequential()
    named.add_module("output", nn.Flatten())
    named.add_module("fc", nn.Linear(64, 3))
    assert Network(named).tap(["output"], BATCH)["output"] == (6, 64)


def test_a_parameter_is_recorded_itself_so_that_its_gradient_is_the_networks() -> None:
    network = residual()
    shapes = network.tap(["head:weight", "head:bias", "bn1:weight"], BATCH)
    assert shapes == {"head:weight": (10, 4), "head:bias": (10,), "bn1:weight": (4,)}
    layers = network(BATCH).layers
    assert layers["head:weight"] is network.net.fc.weight
    layers["bn1:weight"].square().sum().backward()
    torch.testing.assert_close(network.net.bn1.weight.grad, 2 * network.net.bn1.weight)


def test_an_unknown_layer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"student network has no layer 'bn3'.*Did you mean .*'bn2'"):
        residual().tap(["bn3"], BATCH)
    with pytest.raises(UserError, match=r"no layer 'embeding'.*Did you mean 'embedding'"):
        residual().tap(["embeding"], BATCH)
    with pytest.raises(UserError, match=r"Tap 'bn1:output'.*the layer 'bn1' has no 'output'. Did you mean 'input'"):
        residual().tap(["bn1:output"], BATCH)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("split", r"'split' of the teacher network gives a tuple.*'split\[0\]'"),
        ("sum", r"'sum' of the teacher network gives a dict"),
        ("split[2]", r"'split\[2\]' of the teacher network.*no element 2"),
        ("sum:input[2]", r"'sum:input\[2\]' of the teacher network.*no element 2"),
        ("fc[0]", r"'fc\[0\]' of the teacher network.*no element 0"),  # not: the first sample's logits
        ("unused", r"'unused' of the teacher network.*does not run"),
    ],
)
def test_what_gives_no_tensor_is_refused(tap: str, message: str) -> None:
    teacher = network(Pair(), name="teacher")
    with pytest.raises(UserError, match=message):
        teacher.tap([tap], BATCH)


def test_a_container_that_does_not_run_is_refused_with_the_layers_in_it() -> None:
    with pytest.raises(UserError, match=r"'stages' .*does not run.*'stages\.[01]'"):
        network(SmallCNN(10, 1)).tap(["stages"], BATCH)


OVERWRITTEN = ["bn1", "relu1:input", "bn2"]  # by relu1, relu1, and `out += x` (then relu2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tap", OVERWRITTEN)
def test_what_is_overwritten_in_place_is_recorded_as_it_was(tap: str, training: bool) -> None:
    student, reference = residual(), residual(in_place=False)
    reference.load_state_dict(student.state_dict())
    found, expected = [], []
    for net, signals in ((student, found), (reference, expected)):
        net.tap([tap], BATCH)
        net.train(training)
        signals.append(net(BATCH).layers[tap])
        signals[0].square().mean().backward()
    torch.testing.assert_close(found, expected)
    assert (found[0] < 0).any(), "a ReLU's output has no such values: the test would prove nothing"
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert student.net.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("tap", ["bn1.drop", "layer1.0.bn2", "layer1.0.bn1"])
def test_overwritten_layers_of_timm_networks(tap: str) -> None:
    name = "test_efficientnet" if tap == "bn1.drop" else "test_resnet"
    student = network(timm.create_model(name, num_classes=10, in_chans=1)).eval()
    images = {"image": torch.rand(2, 1, 32, 32)}
    seen: list[Tensor] = []
    student.net.get_submodule(tap).register_forward_hook(lambda *args: seen.append(args[2].clone()))
    student.tap([tap], images)
    torch.testing.assert_close(student(images).layers[tap], seen[-1], rtol=0, atol=0)


def test_a_dropout_that_overwrites_only_in_training() -> None:
    student = network(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5, inplace=True), nn.Linear(32, 10)))
    student.tap(["1"], BATCH)
    layers = student(BATCH).layers
    torch.testing.assert_close(layers["1"], student.net[:2](student.adapter(BATCH)[0][0]))


def test_what_is_not_overwritten_is_not_copied(given: dict[str, Tensor]) -> None:
    student = residual()
    watch(student.net, "relu1", given)
    watch(student.net, "conv2", given)
    watch(student.net, "bn1", given)
    student.tap(["relu1", "conv2:input", "conv2", "bn1"], BATCH)
    layers = student(BATCH).layers
    assert layers["relu1"] is given["relu1"]
    assert layers["conv2:input"] is given["conv2:input"]
    assert layers["conv2"] is given["conv2"]
    assert layers["bn1"].data_ptr() != given["bn1"].data_ptr(), "overwritten: has to be a copy"


def test_without_taps_no_hook_is_registered() -> None:
    student = residual()
    assert student.tap([], BATCH) == {}
    assert hooks_of(student) == 0
    assert student(BATCH).layers == {}


def test_tapping_again_replaces_the_hooks() -> None:
    student = residual()
    student.tap(["conv1", "conv2:input"], BATCH)
    assert hooks_of(student) == 2
    student.tap(["bn1"], BATCH)
    assert hooks_of(student) == 1
    assert list(student(BATCH).layers) == ["bn1"]
    student.tap([], BATCH)
    assert hooks_of(student) == 0
    assert student(BATCH).layers == {}


def test_looking_at_layers_leaves_no_hook() -> None:
    student = residual()
    student.layers(BATCH), student.stages(BATCH), student.head(BATCH)
    assert hooks_of(student) == 0


def test_a_refused_tap_leaves_the_network_usable() -> None:
    teacher = network(Pair())
    with pytest.raises(UserError):
        teacher.tap(["split"], BATCH)
    assert teacher(BATCH).layers == {}


def test_a_network_holds_no_activation_after_its_forward() -> None:
    """They would be kept in memory with their graph, and such a network cannot be deep-copied."""
    student = residual()
    student.tap(["conv1"], BATCH)
    student(BATCH)
    assert not student._recorded


@pytest.mark.parametrize("look", ["tap", "layers", "stages", "head", "probe"])
def test_probing_leaves_no_trace(look: str) -> None:
    """Neither BatchNorm's statistics, nor the modes, nor the random numbers that come after, nor gradients."""
    net = nn.Sequential(Residual(), nn.Dropout(0.5), nn.Linear(10, 10), nn.Dropout(0.5, inplace=True))
    student = network(net)
    net[0].bn1.eval()  # a layer in a mode of its own keeps it
    modes = [module.training for module in student.modules()]
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    {
        "tap": lambda: student.tap(["0.bn2", "1", "embedding"], BATCH),
        "layers": lambda: student.layers(BATCH),
        "stages": lambda: student.stages(BATCH),
        "head": lambda: student.head(BATCH),
        "probe": lambda: probe(student, BATCH),
    }[look]()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in student.modules()] == modes
    torch.testing.assert_close(dict(student.state_dict()), state, rtol=0, atol=0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in student.parameters())


def test_modes_come_back_after_an_error() -> None:
    student = residual()
    with pytest.raises(ValueError, match="training is False"), evaluating(student):
        raise ValueError(f"inside, training is {student.net.bn1.training}")
    assert all(module.training for module in student.modules())


def test_a_grey_image_fits_a_network_of_three_channels() -> None:
    student = Network(SmallCNN(10, 3), ImageAdapter([0.5, 0.4, 0.3], [0.1, 0.2, 0.4]))
    adapted = student.adapter({"image": torch.full((2, 1, 8, 8), 0.7)})[0][0]
    assert adapted.shape == (2, 3, 8, 8)
    torch.testing.assert_close(adapted[1, :, 3, 3], torch.tensor([2.0, 1.5, 1.0]))
    assert student(BATCH).logits.shape == (6, 10)


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (24, 16), (16, 16)])
def test_images_are_resized_to_what_the_network_was_trained_on(shape: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *shape)
    adapted = ImageAdapter([0.0] * 3, [1.0] * 3, size=16)({"image": image})[0][0]
    assert adapted.shape == (2, 3, 16, 16)
    expected = functional.interpolate(image, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(adapted.mean((2, 3)), image.mean((2, 3)), rtol=0, atol=0.05)


def test_resizing_comes_before_normalisation_and_only_where_asked() -> None:
    image = torch.full((1, 1, 8, 8), 0.5)
    small = ImageAdapter([0.1], [0.2], size=4)({"image": image})[0][0]
    torch.testing.assert_close(small, torch.full((1, 1, 4, 4), 2.0))
    whole = ImageAdapter([0], [2])({"image": image})[0][0]  # as YAML reads `mean: [0]`
    torch.testing.assert_close(whole, torch.full((1, 1, 8, 8), 0.25))
    assert ImageAdapter([0.1], [0.2])({"image": image})[0][0].shape == (1, 1, 8, 8)


def test_the_adapter_follows_the_networks_precision() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        assert residual().to(dtype)(BATCH).logits.dtype == dtype


def test_the_adapter_is_no_part_of_the_weights() -> None:
    student = residual()
    assert {name.removeprefix("net.") for name in student.state_dict()} == set(student.net.state_dict())


def test_a_network_without_a_linear_head_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = network(net, name="teacher")
    for tap in ("head", "embedding"):
        with pytest.raises(UserError, match=r"teacher network has no linear head.*by its path"):
            student.tap([tap], BATCH)
    assert student.tap(["1"], BATCH) == {"1": (6, 10, 1, 1)}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_stages_are_timms_own(name: str) -> None:
    side = 160 if name == "test_vit" else 32
    net = timm.create_model(name, num_classes=10, in_chans=1)
    stages = network(net).stages({"image": torch.rand(1, 1, side, side)})
    info = net.feature_info
    wanted = [stage["module"] for stage in info]
    assert list(stages) == wanted
    if name != "test_vit":
        assert [shape[1] for shape in stages.values()] == [stage["num_chs"] for stage in info]
        assert [shape[2] for shape in stages.values()] == [side // stage["reduction"] for stage in info]


def test_a_network_that_names_no_stages_offers_every_layer_in_order() -> None:
    student = residual()
    finished = ["stem", "conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "fc"]
    assert list(student.layers(BATCH)) == finished
    assert student.stages(BATCH) == student.layers(BATCH)
