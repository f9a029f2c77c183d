"""A teacher's signals for augmented images on disk: training from them is training with the teacher, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weights import read_weights, save_weights
from distillery.runs.job import resumed
from distillery.runs.run import Result, train
from distillery.runs.write_signals import Settings, write_signals
from distillery.teachers.disk_cache import DiskCache
from fixtures.building import build
from fixtures.runs import Died, Dies, config

VIEWS, IMAGES, BATCH, EPOCHS = 2, 60, 20, 5
LAYERS = (  # features, spatial attention, relations of the embeddings; `auto` finds layers in the teacher's network
    "loss/response=[kd]",
    "loss/feature=[hint]",
    "loss/attention=[attention_transfer]",
    "loss/relation=[rkd]",
)
SETTINGS = (
    "experiment=digits_demo",
    "model/teacher=cnn",
    "teachers.main.net.widths=[6,8]",
    "min_teacher_score=0",
    f"data.train_size={IMAGES}",
    "data.subset_seed=0",
    f"data.batch_size={BATCH}",
    "data/augment=crop1",
    "data.augment.flip=true",
    "+data.augment.mixup=0.4",
    f"data.views={VIEWS}",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.log_every_n_steps=1",
    "callbacks.scale_report=null",
    "callbacks.checkpoint_last.every_n_epochs=1",
    "logger=none",
)


class Losses(L.Callback):
    """The total of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.found.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, seed in (("teacher", 0), ("another", 1)):
        torch.manual_seed(seed)
        save_weights(SmallCNN(10, 1, (6, 8)), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Callable[..., Any]:
    weights = f"teachers.main.weights='{folder / 'teacher.safetensors'}'"
    return lambda *overrides, run="run": config(folder / run, *SETTINGS, weights, *overrides)


@pytest.fixture(scope="module")
def whole(folder: Path, made: Callable[..., Any]) -> Path:
    """A cache of all logits and of the layers that `LAYERS` read."""
    write_signals(made(*LAYERS), Settings(str(folder / "whole"), "full"))
    return folder / "whole"


@pytest.fixture(scope="module")
def online(made: Callable[..., Any]) -> tuple[Result, list[float]]:
    losses = Losses()
    return train(made(*LAYERS, run="online"), callbacks=[losses]), losses.found


def weights_of(result: Result) -> dict[str, Tensor]:
    return dict(result.parts.distiller.state_dict())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_training_from_the_cache_is_training_with_the_teacher(
    made: Callable[..., Any], whole: Path, online: tuple[Result, list[float]]
) -> None:
    """Five epochs from two views, with crops, flips, mixup and losses on layers: the losses of all steps, the student
    and the projectors bit for bit. The teacher's network does not run in training."""
    losses, runs = Losses(), []
    cfg = made(*LAYERS, f"teachers.main.cache='{whole}'", run="cached")

    class Watched(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            self.hook = module.teachers["main"].net.register_forward_pre_hook(lambda *_: runs.append(1))

        def on_train_end(self, *_: Any) -> None:
            self.hook.remove()

    cached = train(cfg, callbacks=[losses, Watched()])
    assert len(losses.found) == EPOCHS * IMAGES // BATCH
    assert losses.found == online[1]
    assert len(set(losses.found)) == len(losses.found)
    assert_same(weights_of(cached), weights_of(online[0]))
    assert runs == []
    for name in ("score", "sha256"):
        assert cached.record.teachers["main"][name] == online[0].record.teachers["main"][name]
    (remark,) = (each for each in cached.parts.distiller.remarks if "were computed again" in each)
    assert "log-probabilities differ by at most 0, layers.stages.0 differ by at most 0" in remark


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_a_run_from_the_cache_is_resumed_in_mid_epoch(
    made: Callable[..., Any], whole: Path, folder: Path, online: tuple[Result, list[float]]
) -> None:
    """In the third epoch, which serves the first view again."""
    with pytest.raises(Died):
        train(made(*LAYERS, f"teachers.main.cache='{whole}'", run="died"), callbacks=[Dies(2 * IMAGES // BATCH + 1)])
    assert_same(weights_of(train(resumed(folder / "died", []))), weights_of(online[0]))


def test_another_cache_is_refused(made: Callable[..., Any], whole: Path, folder: Path) -> None:
    """By name, and what of it is another there and here."""
    for setting, message in {
        "data.augment.flip=false": r"another augmentation \(crop=1 flip=True mixup=0.4 there, crop=1 mixup.* here\)",
        "data.augment=null": r"another augmentation.*there, none here",
        "data.views=3": r"another number of views \(data.views\) \(2 there, 3 here\)\. Set data.views=2 as there",
        "data.views=null": r"data.augment makes another version of it in each epoch. Set data.views=2,",
        "data.seed=1": r"another seed of the views \(0 there, 1 here\)\. Set data.views_seed=0 as there",
        "data.train_size=50": "another set of samples to mix with",
        f"teachers.main.weights='{folder / 'another.safetensors'}'": r"another teacher \(.* there, .*another.* here\)",
        "teachers.main.precision=bf16": r"another teacher \(.* with other weights or another teachers.main.precision\)",
        "teachers.main.bn_mode=train": "with bn_mode=train the signals of an image depend on its batch",
        "loss.hint.layers={stages.1: 'stages.1:input'}": "has no layers.stages.1:input of .* it has layers.stages.0, l",
    }.items():
        with pytest.raises(UserError, match=message):
            build(made(*LAYERS, f"teachers.main.cache='{whole}'", setting))
    with pytest.raises(UserError, match=rf"teachers\.main\.cache: .*no cache\.json\. Did you mean '{whole.name}'\?"):
        build(made(*LAYERS, f"teachers.main.cache='{whole}e'"))
    with pytest.raises(UserError, match=r"only the logits are known.*teachers.main.cache=false\. A cache of images"):
        build(made(*LAYERS, f"teachers.main.cache='{whole}'", "teachers.main.weights=null"))


def test_a_cache_serves_other_seeds_networks_batches_and_losses(made: Callable[..., Any], folder: Path) -> None:
    """With a seed of the views: each image has the signals that the teacher gives of it, to rounding."""
    fixed = "data.views_seed=3"
    write_signals(made(*LAYERS, fixed), Settings(str(folder / "fixed"), "full"))
    other = ["seed=7", "student.net.widths=[4,4]", "data.batch_size=12", "loss/feature=[hint]", fixed]
    cached, online = (build(made(*other, *more)) for more in ([f"teachers.main.cache='{folder / 'fixed'}'"], []))
    loaders: list[Any] = [parts.data.train_dataloader() for parts in (cached, online)]
    for epoch in range(VIEWS + 1):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for batch, same in zip(*loaders, strict=True):
            assert torch.equal(batch["image"], same["image"])
            found, expected = (parts.distiller.teachers["main"](batch, training=True) for parts in (cached, online))
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
            for tap, layer in expected.layers.items():
                torch.testing.assert_close(found.layers[tap], layer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [("full", "int8", 1 / 127), ("full", "float16", 2**-10), ("topk", "auto", 2**-10)]
)
def test_smaller_types(kind: Any, dtype: Any, tolerance: float, made: Callable[..., Any], folder: Path) -> None:
    """What is read differs from what the teacher gives by no more than the type rounds, of its largest value."""
    out = folder / f"{kind}_{dtype}"
    write_signals(made("loss/feature=[hint]"), Settings(str(out), kind, k=3, dtype=dtype))
    loss = ["loss/response=[topk_kd]", "loss.topk_kd.k=3"] if kind == "topk" else []
    cached, online = (
        build(made("loss/feature=[hint]", *more)) for more in ([*loss, f"teachers.main.cache='{out}'"], [])
    )
    loader: Any = cached.data.train_dataloader()
    loader.sampler.set_epoch(1)
    for batch in loader:
        found, expected = (parts.distiller.teachers["main"](batch, training=True) for parts in (cached, online))
        values = found.logits, expected.logits
        if found.sparse is not None:
            log_p = expected.logits.log_softmax(-1)
            assert torch.equal(found.sparse.classes, log_p.topk(3).indices)
            values = found.sparse.log_p, log_p.topk(3).values
        assert ((values[0] - values[1]).abs() <= tolerance * values[1].abs().amax(1, keepdim=True)).all()
        (tap,) = expected.layers
        layer, exact = found.layers[tap], expected.layers[tap]
        assert layer.dtype == exact.dtype
        assert ((layer - exact).abs() <= tolerance * exact.abs().max()).all()
        assert torch.equal(layer, exact) is (dtype == "auto")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_attention_and_tokens_of_a_vision_transformer(folder: Path) -> None:
    net = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    save_weights(
        timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1, **net), folder / "vit.safetensors"
    )
    own = [each for each in SETTINGS if "teacher" not in each or "score" in each]
    for group, role in (("student", "student"), ("teacher", "teachers.main")):
        own += [f"model/{group}=timm", f"{role}.net.model_name=vit_tiny_patch16_224"]
        own += [f"+{role}.net.{key}={value}" for key, value in net.items()]
    own += ["loss/response=[kd]", "loss/attention=[minilmv2,vit_attention]", "loss/feature=[hint]"]
    own += [f"teachers.main.weights='{folder / 'vit.safetensors'}'", "trainer.max_epochs=3"]

    def made(*overrides: str, run: str) -> Any:
        return config(folder / run, *own, *overrides)

    write_signals(made(run="vit_run"), Settings(str(folder / "vit"), "full"))
    assert "attention.blocks.1.attn.query" in DiskCache(folder / "vit").contents.layers
    cache = f"teachers.main.cache='{folder / 'vit'}'"
    cached, online = train(made(cache, run="vit_cached")), train(made(run="vit_online"))
    assert_same(weights_of(cached), weights_of(online))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_two_ranks_read_one_cache(folder: Path, made: Callable[..., Any]) -> None:
    """Written in the batches of two processes, which have half of each."""
    two = ["hardware=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", *LAYERS]
    write_signals(made(*two), Settings(str(folder / "two"), "full"))
    for name, more in (("two_cached", [f"teachers.main.cache='{folder / 'two'}'"]), ("two_online", [])):
        train(made(*two, *more, run=name))
    found, expected = (read_weights(folder / name / "student.safetensors") for name in ("two_cached", "two_online"))
    assert_same(dict(found), dict(expected))
