"""Weights: what is written comes back, whatever wraps it, and nothing is loaded in part."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weights import load_in_order, load_weights, save_weights, weights_hash

State = dict[str, Tensor]


def network(seed: int = 0, **options: Any) -> SmallCNN:
    torch.manual_seed(seed)
    net = SmallCNN(**{"num_classes": 3, "in_chans": 1, "widths": (4, 6), **options})
    net(torch.rand(8, net.stages[0][0].in_channels, 8, 8))  # BatchNorm statistics that are not the initial ones
    return net


def test_round_trip(tmp_path: Path) -> None:
    saved, loaded = network(0), network(1)
    assert weights_hash(saved) != weights_hash(loaded)
    save_weights(saved, tmp_path / "runs" / "student.safetensors")
    load_weights(loaded, str(tmp_path / "runs" / "student.safetensors"))
    assert weights_hash(saved) == weights_hash(loaded)
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["student.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "best_acc": 0.7},
        lambda state: {"module." + name: value for name, value in state.items()},
        lambda state: {"_orig_mod." + name: value for name, value in state.items()},
        lambda state: {"model": {"module._orig_mod." + name: value for name, value in state.items()}},
        lambda state: {"state_dict": {"net." + name: value for name, value in state.items()}},
        lambda state: {
            "epoch": 1,
            "state_dict": {"objective.hint.projector.weight": torch.ones(2)}
            | {"student.net." + name: value for name, value in state.items()},
        },
        lambda state: (
            {"module.teacher." + name: torch.zeros_like(value) for name, value in state.items()}
            | {"module.student." + name: value for name, value in state.items()}
        ),
    ],
    ids="plain lightning model ddp compiled ddp+compiled net distillery both_networks".split(),
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_containers_and_prefixes(tmp_path: Path, wrap: Callable[[State], dict[str, Any]], suffix: str) -> None:
    saved, loaded = network(0), network(1)
    torch.save(wrap(saved.state_dict()), tmp_path / f"weights{suffix}")
    load_weights(loaded, tmp_path / f"weights{suffix}")
    assert weights_hash(saved) == weights_hash(loaded)


def test_a_prefix_that_is_the_networks_own_stays(tmp_path: Path) -> None:
    saved, loaded = (nn.ModuleDict({"net": network(seed)}) for seed in (0, 1))
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert weights_hash(saved) == weights_hash(loaded)


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    saved, loaded = Tied(), Tied()
    save_weights(saved, tmp_path / "tied.safetensors")
    assert load_file(tmp_path / "tied.safetensors").keys() == {"embedding.weight", "head.weight"}
    load_weights(loaded, tmp_path / "tied.safetensors")
    assert loaded.head.weight is loaded.embedding.weight
    torch.testing.assert_close(loaded.head.weight, saved.head.weight, rtol=0, atol=0)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(network(0), path)
    before = path.read_bytes()

    def break_off(state: State, file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("distillery.models.weights.save_file", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_weights(network(1), path)
    assert path.read_bytes() == before


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save_weights(network(), tmp_path / "resnet56.safetensors")
    with pytest.raises(UserError, match=r"no file .*resnet65\.safetensors\. Did you mean 'resnet56\.safetensors'"):
        load_weights(network(), tmp_path / "resnet65.safetensors")
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist"):
        load_weights(network(), tmp_path / "nowhere" / "resnet56.safetensors")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt is no weights file \(\.safetensors, \.pth"):
        load_weights(network(), tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no weights"):
        load_weights(network(), tmp_path / "empty" / "student.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_a_file_that_is_cut_off_is_called_corrupt(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_weights(network(), path)
    else:
        torch.save(network().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    net = network(1)
    before = weights_hash(net)
    with pytest.raises(UserError, match=rf"weights\{suffix} \(\d+ bytes\) cannot be read .*corrupt or cut off"):
        load_weights(net, path)
    assert weights_hash(net) == before


def test_pickled_objects_are_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (shutil.copy, (__file__, str(tmp_path / "was_run")))

    content = {"model": network().state_dict(), "args": Runs()}
    torch.save(content, tmp_path / "full.pth")
    load_weights(network(1), tmp_path / "full.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old\.pth holds pickled Python objects.*torch\.save\(net\.state_dict"):
        load_weights(network(), tmp_path / "old.pth")
    assert not (tmp_path / "was_run").exists()
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth holds a list, not a state dict"):
        load_weights(network(), tmp_path / "list.pth")


def refusal(net: nn.Module, path: Path) -> str:
    before = weights_hash(net)
    with pytest.raises(UserError) as caught:
        load_weights(net, path)
    assert weights_hash(net) == before, "loaded in part"
    return str(caught.value)


def test_foreign_weights(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), path)
    message = refusal(network(), path)
    assert "does not fit the SmallCNN (14 tensors)" in message
    assert "12 missing (stages.0.0.weight, stages.0.1.weight, stages.0.1.bias, …)" in message
    assert "4 unexpected (0.bias, 0.weight, 1.bias, …)" in message
    assert "Choose the network that the file was saved from" in message


def test_other_class_count(tmp_path: Path) -> None:
    path = tmp_path / "ten.safetensors"
    save_weights(network(num_classes=10), path)
    message = refusal(network(num_classes=3), path)
    assert "2 of another shape (head.weight [10, 6] in the file, [3, 6] in the network, head.bias [10]" in message
    assert "missing" not in message
    assert "unexpected" not in message


def test_a_missing_weight_is_never_newly_initialised(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["head.bias"]
    torch.save(state, tmp_path / "headless.pth")
    assert "1 missing (head.bias)." in refusal(network(1), tmp_path / "headless.pth")


def test_in_order() -> None:
    source, net = network(0), network(1)
    state = {f"_theirs.{i}": value for i, value in enumerate(source.state_dict().values())}
    load_in_order(net, state)
    assert weights_hash(net) == weights_hash(source)
    with pytest.raises(UserError, match=r"13 weights are of another network than the SmallCNN, which has 14"):
        load_in_order(net, dict(list(state.items())[1:]))
    with pytest.raises(UserError, match=r"(?s)stages\.0\.0\.weight.*\[4, 2, 3, 3\].*\[4, 1, 3, 3\]"):
        load_in_order(net, {**state, "_theirs.0": torch.zeros(4, 2, 3, 3)})
    assert weights_hash(net) == weights_hash(source)


@pytest.mark.parametrize("name", ["stages.0.0.weight", "stages.1.1.running_var", "stages.0.1.num_batches_tracked"])
def test_hash_sees_every_tensor(name: str) -> None:
    net = network()
    before = weights_hash(net)
    assert weights_hash(network()) == before
    tensor = net.state_dict()[name].view(-1)
    tensor[-1:] += 1
    assert weights_hash(net) != before
    tensor[-1:] -= 1
    assert weights_hash(net.half()) != before


def test_hash_sees_names_and_shapes() -> None:
    class Holder(nn.Module):
        def __init__(self, name: str, value: Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    hashes = {
        weights_hash(Holder("a", torch.zeros(2, 3))),
        weights_hash(Holder("b", torch.zeros(2, 3))),
        weights_hash(Holder("a", torch.zeros(3, 2))),
        weights_hash(Holder("a", torch.zeros(2, 3, dtype=torch.int32))),
        weights_hash(Holder("a", torch.zeros(0))),
    }
    assert len(hashes) == 5


def test_loads_without_lightning_and_hydra(tmp_path: Path) -> None:
    net = network()
    save_weights(net, tmp_path / "student.safetensors")
    torch.save(net.state_dict(), tmp_path / "student.pth")
    code = f"""
import sys
for name in ("lightning", "pytorch_lightning", "hydra", "omegaconf"):
    sys.modules[name] = None  # importing it fails
from distillery.models.cnn import SmallCNN
from distillery.models.weights import load_weights, weights_hash
import torch
for file in ("student.safetensors", "student.pth"):
    net = SmallCNN(num_classes=3, in_chans=1, widths=(4, 6))
    load_weights(net, {str(tmp_path)!r} + "/" + file)
    print(weights_hash(net))
"""
    source = str(Path(__file__).parents[2] / "src")
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == [weights_hash(net)] * 2, result.stderr
