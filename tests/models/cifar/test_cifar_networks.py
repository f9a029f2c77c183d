"""The CIFAR networks against the published parameter counts and the outputs of the benchmark behind them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.cifar import NAMES, create
from fixtures.published import PARAMETERS

RESNET = [("stages.0", 16, 32), ("stages.1", 32, 16), ("stages.2", 64, 8)]
WIDE = [("stages.0", 32, 32), ("stages.1", 64, 16), ("stages.2", 128, 8)]
WIDER = [("stages.0", 64, 32), ("stages.1", 128, 16), ("stages.2", 256, 8)]
VGG = [*WIDER, ("stages.3", 512, 4), ("stages.4", 512, 4)]
STAGES = {
    **dict.fromkeys(["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "wrn_40_1"], RESNET),
    **dict.fromkeys(["wrn_16_2", "wrn_40_2"], WIDE),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], WIDER),
    **dict.fromkeys(["vgg8", "vgg13"], VGG),
    "shufflenet_v1": [("stages.0", 240, 16), ("stages.1", 480, 8), ("stages.2", 960, 4)],
    "shufflenet_v2": [("stages.0", 116, 16), ("stages.1", 232, 8), ("stages.2", 464, 4)],
    "mobilenet_v2": [("stages.0", 12, 16), ("stages.1", 16, 8), ("stages.2", 48, 4), ("stages.3", 160, 2)],
}
# Of the benchmark's own networks (float64, train mode), with the weights and images of `fill` and `waves`:
# the first three logits of the second image; then the mean magnitude of each stage's output.
OUTPUTS = {
    "resnet20": (
        [-2.15402777971024, 1.4558259566382326, 4.159769635511701],
        [1.0705870841260212, 0.9000748732475132, 1.1629078506638177],
    ),
    "resnet8x4": (
        [-0.8556369800303082, 0.022350811692086553, 0.4933099194617934],
        [0.5318100447456127, 0.49051444157837676, 0.5310009459304375],
    ),
    "wrn_16_2": (
        [0.14392084342451053, 2.3195187651331617, -0.3022113218913375],
        [2.3349554226831843, 3.325451296051456, 5.82164378367197],
    ),
    "vgg8": (
        [0.3278683017810323, 1.6480538858947031, 2.8927446747154275],
        [
            0.43467719057801096,
            0.38508726562411466,
            0.3581562279830186,
            0.43618040592424256,
            0.4186903614419957,
        ],
    ),
    "shufflenet_v1": (
        [-13.088626006403295, -13.572025961264327, -12.850903874283858],
        [1.163704125260074, 1.8445263713123485, 1.5155047413410878],
    ),
    "shufflenet_v2": (
        [0.5315152712581872, 3.7431366056332904, 5.9977092471029065],
        [0.354866755808458, 0.394987164786336, 0.4092062199677303],
    ),
    "mobilenet_v2": (
        [1.3680676141970982, -7.463918772717707, 10.339555117922155],
        [0.8540372229889696, 1.4397461116997157, 1.4942224927193457, 0.8252464663429366],
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On two small images a pool of threads costs far more than it gives where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def waves(shape: torch.Size, step: float, phase: float = 0.0) -> Tensor:
    return torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * step + phase).reshape(shape)


def fill(net: nn.Module) -> None:
    """Weights that need no random numbers: a sine per tensor, in the order of the state dict."""
    for index, (name, tensor) in enumerate(net.state_dict().items()):
        wave = waves(tensor.shape, 0.7, index)
        if tensor.dim() > 1:
            tensor.copy_(wave * (2 / tensor[0].numel()) ** 0.5 * 1.4)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.5 * wave)
        elif name.endswith("bias"):
            tensor.copy_(0.1 * wave)


def stage_outputs(net: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    found: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if name.startswith("stages.") and name.count(".") == 1:
            module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.clone()))
    return found, net(images)


def test_every_network_is_checked() -> None:
    assert list(NAMES) == list(PARAMETERS)
    assert NAMES.keys() == STAGES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_stages(name: str) -> None:
    with torch.device("meta"):
        net = create(name, num_classes=100)
        found, logits = stage_outputs(net, torch.empty(2, 3, 32, 32))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    assert logits.shape == (2, 100)
    assert {tap: tuple(output.shape) for tap, output in found.items()} == {
        tap: (2, width, side, side) for tap, width, side in STAGES[name]
    }
    info = net.feature_info
    assert [(stage["module"], stage["num_chs"], 32 // stage["reduction"]) for stage in info] == STAGES[name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_of_the_benchmark(name: str) -> None:
    net = create(name, num_classes=100)
    fill(net)
    with torch.no_grad():
        found, logits = stage_outputs(net, waves(torch.Size([2, 3, 32, 32]), 0.3).float())
    golden, magnitudes = OUTPUTS[name]
    assert logits[1, :3].tolist() == pytest.approx(golden, rel=1e-3, abs=1e-3)
    assert [output.abs().mean().item() for output in found.values()] == pytest.approx(magnitudes, rel=1e-3)


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    net = create(name, num_classes=5, in_chans=1)
    logits = net(torch.rand(2, 1, 32, 32))
    assert logits.shape == (2, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_last_linear_layer(name: str) -> None:
    with torch.device("meta"):
        net = create(name, num_classes=7)
    assert [path for path, module in net.named_modules() if isinstance(module, nn.Linear)] == ["head"]


def test_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    conv = create("resnet8x4", num_classes=10).get_submodule("stages.2.0.conv1")
    assert conv.weight.shape == (256, 128, 3, 3)  # fan-out 256 * 9, fan-in 128 * 9
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


def test_the_sum_of_a_residual_block_can_be_tapped_before_its_relu() -> None:
    net = create("resnet20", num_classes=10)
    seen: list[Tensor] = []
    net.get_submodule("stages.1.2.act2").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    found, _ = stage_outputs(net, torch.rand(2, 3, 32, 32))
    assert (seen[0] < 0).any()
    torch.testing.assert_close(seen[0].relu(), found["stages.1"], rtol=0, atol=0)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"^name=resnet_20: .*CIFAR network. Did you mean .*'resnet20'"):
        create("resnet_20", num_classes=10)
