"""Weight files as they are found: each line of the table in docs/guides/teachers.md is loaded or refused."""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weights import load_weights, weights_hash
from fixtures.building import build
from fixtures.composing import Compose

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "teachers.md"
State = dict[str, Tensor]


def network(seed: int = 0, classes: int = 3, widths: tuple[int, ...] = (4, 6)) -> SmallCNN:
    torch.manual_seed(seed)
    net = SmallCNN(num_classes=classes, in_chans=1, widths=widths)
    net(torch.rand(8, 1, 8, 8))  # BatchNorm statistics that are not the initial ones
    return net


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def inserted(state: State) -> State:
    return {name.replace("stages.1.", "stages.1._checkpoint_wrapped_module."): value for name, value in state.items()}


MEAN = {name: torch.zeros_like(value) for name, value in network().state_dict().items()}  # of other weights
BESIDE = {"criterion.weight": torch.ones(3), "val_acc.correct": torch.tensor(3)}
# The table's first column → the content of the file, and a part of the remark or of the refusal.
LOADED: dict[str, list[tuple[str, Callable[[State], Any], str]]] = {
    "a state dict": [(suffix, lambda s: s, "") for suffix in ("pth", "pt", "bin", "pth.tar", "ckpt")],
    "a training script's checkpoint": [
        (
            "pth",
            lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {}},
            "weights of model_state_dict",
        ),
        ("pth", lambda s: {"net": s, "acc": np.float64(0.9)}, "weights of net; left out: acc"),
        ("pth.tar", lambda s: {"arch": "cnn", "state_dict": under("module.", s)}, "removed from names: module."),
        ("pt", lambda s: {"checkpoint": {"model": under("module._orig_mod.", s)}}, "weights of checkpoint.model"),
    ],
    "timm's `train.py`": [
        (
            "pth.tar",
            lambda s: {"args": Namespace(lr=0.1), "state_dict": MEAN, "state_dict_ema": s, "metric": 1.0},
            "weights of state_dict_ema, not of state_dict; left out: args, state_dict, metric",
        ),
    ],
    "DINO's and iBOT's": [
        (
            "pth",
            lambda s: {"student": under("module.backbone.", MEAN), "teacher": under("backbone.", s), "epoch": 1},
            "weights of teacher.backbone, not of student.backbone; removed from names: backbone.; "
            "left out: student, epoch",
        ),
    ],
    "Lightning": [
        ("ckpt", lambda s: {"state_dict": under("model.", s) | BESIDE}, "model.; left out: criterion.weight, val_acc."),
        (
            "ckpt",
            lambda s: {"hyper_parameters": {"net": network()}, "state_dict": under("net.", s)},
            "hyper_parameters",
        ),
    ],
    "a part of a larger network": [
        ("pth", lambda s: under("backbone.", s) | under("neck.", {"weight": torch.ones(2)}), "left out: neck.weight"),
        ("pth", lambda s: under("module.encoder.", s), "removed from names: encoder., module."),
        (
            "pth",
            lambda s: {"state_dict": under("student.", s) | under("teacher.", MEAN)},
            "weights of state_dict.student, not of state_dict.teacher",
        ),
    ],
    "names with a wrapper's parts": [("pth", inserted, "_checkpoint_wrapped_module.")],
    "counters of profilers": [
        (
            "pth",
            lambda s: s | {"total_ops": torch.ones(1), "stages.0.total_params": torch.ones(1)},
            "out: total_ops",
        ),
    ],
    "without `num_batches_tracked`": [
        (
            "pth",
            lambda s: {n: v for n, v in s.items() if "tracked" not in n},
            "is not in it (2 times)",
        ),
    ],
}
REFUSED: dict[str, list[tuple[str, Callable[[State], Any], str]]] = {
    "a pickled module": [
        (
            "pth",
            lambda _: network(),
            r"whole pickled module \(distillery\.models\.cnn\.SmallCNN\).*net\.state_dict",
        ),
    ],
    "no weights": [
        (
            "pth",
            lambda _: {"optimizer": {}, "epoch": 3},
            r"At its top the file has optimizer \(0 entries\), epoch;",
        ),
        ("pth", lambda _: {"model": network()}, r"At its top the file has model; none of them holds tensors"),
        ("pth", lambda _: {}, r"The file is empty\. It holds no weights"),
    ],
    "another architecture": [
        ("pth", lambda _: {"model": nn.Linear(2, 3).state_dict()}, r"(?s)taken for weights: model\. None of its names"),
        ("pth", lambda _: network(widths=(4, 8)).state_dict(), r"this one in other sizes"),
        ("pth", lambda s: s | {"stages.2.0.weight": torch.ones(2)}, r"1 unexpected .*has more layers than"),
        (
            "pth",
            lambda s: {**s, "stages.0.0.weight": torch.ones(4, 3, 3, 3)},
            r"input channels are others: 3 in ",
        ),
    ],
    "another head": [
        ("pth", lambda _: network(classes=10).state_dict(), r"Only the head differs \(10 classes in the file\)"),
        ("pth", lambda s: {n: v for n, v in s.items() if "head" not in n}, r"Only the head differs: "),
    ],
    "several networks": [
        ("pth", lambda s: under("encoder_q.", s) | under("encoder_k.", MEAN), r"several .*\(encoder_q, encoder_k\)"),
    ],
    "a name that says nothing": [("weights", lambda s: s, r"is no weights file .*rename it")],
}


def test_the_table_is_whole() -> None:
    lines = re.findall(r"^\| (.+?) \|.*\| (loaded|refused)", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [kind for kind, outcome in lines if outcome == "loaded"] == list(LOADED)
    assert [kind for kind, outcome in lines if outcome == "refused"] == list(REFUSED)


def test_loaded(tmp_path: Path) -> None:
    for kind, files in LOADED.items():
        for number, (suffix, content, said) in enumerate(files):
            saved, loaded = network(0), network(0)
            for value in loaded.parameters():
                value.data.zero_()
            torch.save(content(saved.state_dict()), tmp_path / f"{number}.{suffix}")
            remarks = load_weights(loaded, tmp_path / f"{number}.{suffix}").remarks
            assert weights_hash(loaded) == weights_hash(saved), kind
            assert bool(remarks) == bool(said), (kind, remarks)
            assert said in "".join(remarks), (kind, remarks)


def test_refused(tmp_path: Path) -> None:
    for files in REFUSED.values():
        for suffix, content, why in files:
            net = network(1)
            before = weights_hash(net)
            torch.save(content(network(0).state_dict()), tmp_path / f"file.{suffix}")
            with pytest.raises(UserError, match=why):
                load_weights(net, tmp_path / f"file.{suffix}")
            assert weights_hash(net) == before, "loaded in part"


def test_a_new_head(tmp_path: Path) -> None:
    saved, net = network(0, classes=10), network(1)
    own = net.head.weight.clone()
    for state in (saved.state_dict(), {n: v for n, v in saved.state_dict().items() if "head" not in n}):
        torch.save({"state_dict": state}, tmp_path / "big.pth.tar")
        remarks = load_weights(net, tmp_path / "big.pth.tar", new_head=True).remarks
        assert remarks[-1] == "big.pth.tar: new head (head.weight, head.bias), newly initialised"
        torch.testing.assert_close(net.stages[0][0].weight, saved.stages[0][0].weight, rtol=0, atol=0)
        torch.testing.assert_close(net.head.weight, own, rtol=0, atol=0)
    torch.save(network(0, widths=(4, 8)).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"other sizes"):
        load_weights(net, tmp_path / "wide.pth", new_head=True)


def test_a_file_of_other_classes_is_fine_tuned(compose_train: Compose, tmp_path: Path) -> None:
    torch.save({"state_dict": network(0, classes=1000).state_dict()}, tmp_path / "big.pth")
    given = ["model/teacher=none", "student.net.widths=[4,6]", f"student.weights={tmp_path / 'big.pth'}"]
    with pytest.raises(UserError, match=r"^student\.weights: .*1000 classes in the file.*student\.new_head=true"):
        build(compose_train(*given))
    parts = build(compose_train(*given, "student.new_head=true"))
    assert parts.distiller.remarks == [
        "student: big.pth: weights of state_dict",
        "student: big.pth: new head (head.weight, head.bias), newly initialised",
    ]
    given = ["model/teacher=cnn", "teachers.main.net.widths=[4,6]", f"teachers.main.weights={tmp_path / 'big.pth'}"]
    with pytest.raises(UserError, match=r"^teachers\.main\.weights: .*Fine-tune it .*teachers\.main\.net\.num_classes"):
        build(compose_train(*given))


def test_a_head_is_left_out_of_a_network_without_one(tmp_path: Path) -> None:
    saved, net = (timm.create_model("test_vit", num_classes=n) for n in (7, 0))
    torch.save(saved.state_dict(), tmp_path / "vit.pth")
    remarks = load_weights(net, tmp_path / "vit.pth").remarks
    assert remarks == ["vit.pth: left out: head.weight, head.bias"]
    torch.testing.assert_close(net.blocks[0].attn.qkv.weight, saved.blocks[0].attn.qkv.weight, rtol=0, atol=0)
