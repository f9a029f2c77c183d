"""What no CPU can show. Skipped where there is no GPU; `scripts/gpu_check.sh` runs it where there is one."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import timm
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from omegaconf import OmegaConf
from torch.nn import functional as F

from distillery.data.sampler import BatchKey
from distillery.losses.chunked import sum_over_rows
from distillery.losses.levels import Headed
from distillery.losses.signals import Signals
from distillery.models.weights import read_weights, save_weights
from distillery.results.record import RunRecord
from distillery.runs.run import Result, arithmetic, train
from fixtures.runs import STUDENT, Died, Dies, config

DEVICE = "gpu"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ON_GPU = (f"trainer.accelerator={DEVICE}", "trainer.deterministic=true")
RICH = ("loss/response=[kd,dkd]", "loss/feature=[hint]", "loss/relation=[rkd]")
VIT = "{model_name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, depth: 2, embed_dim: 48, num_heads: 3}"


@pytest.fixture(autouse=True)
def reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or its matrix products differ from run to run


def test_it_learns_what_the_cpu_learns(run: Callable[..., Result]) -> None:
    """In float64 the weights of both are equal: data, order and losses are the same."""
    own = (*RICH, "trainer.precision=64-true", "trainer.max_epochs=1")
    here, there = run(*own), run(*own, *ON_GPU)
    assert there.record.environment["gpu"]
    assert there.record.environment["scored_on"] == {"gpu": "cuda"}.get(DEVICE, DEVICE)
    expected = read_weights(here.folder / "student.safetensors")
    for name, found in read_weights(there.folder / "student.safetensors").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-8)


def test_float32_is_rounded_to_tf32_on_demand_alone() -> None:
    """The product of ones with 1 + 2^-12, which TF32 rounds to 1."""
    ones = torch.ones(512, 512, device="cuda")
    for tf32 in (False, True):
        with arithmetic(OmegaConf.create({"threads": 1, "tf32": tf32, "trainer": {"devices": 1}})):
            product = ones @ (ones * (1 + 2**-12))
        assert product.eq(512).all() == tf32


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_precisions_with_and_without_a_scaler(precision: str, run: Callable[..., Result]) -> None:
    own = (*RICH, "optim.optimizer.lr=0.01", *ON_GPU)
    full, fewer = (run(*own, f"trainer.precision={each}").record for each in ("32-true", precision))
    assert fewer.metrics["last"]["test_score"] == pytest.approx(full.metrics["last"]["test_score"], abs=0.1)
    assert fewer.teachers["main"]["score"] == pytest.approx(full.teachers["main"]["score"], abs=0.02)


def test_a_resumed_run_ends_bit_equal(run: Callable[..., Result], teacher: Path, tmp_path: Path) -> None:
    own = (*STUDENT, *RICH, *ON_GPU, f"teachers.main.weights='{teacher}'")
    with pytest.raises(Died):
        train(config(tmp_path / "run", *own), own, [Dies(after=23)])
    resumed = train(config(tmp_path / "run", *own), own)
    assert resumed.record.student_sha256 == run(*RICH, *ON_GPU).record.student_sha256


def test_a_teacher_beside_the_student_changes_nothing(run: Callable[..., Result]) -> None:
    beside, before = (run(*RICH, *ON_GPU, f"teacher_stream={each}").record for each in ("true", "false"))
    assert beside.student_sha256 == before.student_sha256


def test_a_teacher_on_the_cpu_teaches_a_student_on_the_gpu(run: Callable[..., Result]) -> None:
    own = (*RICH, "trainer.precision=64-true", "trainer.max_epochs=1", *ON_GPU)
    beside, apart = run(*own), run(*own, "teachers.main.placement=cpu")
    assert apart.parts.distiller.frozen["main"].device.type == "cpu"
    assert apart.parts.distiller.student.device == beside.parts.distiller.frozen["main"].device
    assert apart.record.teachers["main"]["score"] == beside.record.teachers["main"]["score"]
    expected = read_weights(beside.folder / "student.safetensors")
    for name, found in read_weights(apart.folder / "student.safetensors").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-8)


class Made(L.Callback):
    """A training batch as its loader makes it."""

    key = BatchKey(0, [*range(40)])

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.batch = trainer.train_dataloader.dataset[self.key]  # type: ignore[union-attr]


def test_batches_of_images_in_memory_are_made_there(run: Callable[..., Result]) -> None:
    """Bit-equal to those that are made on the CPU."""
    augment = ("data/augment=crop1", "data.augment.flip=true", "+data.augment.random_erasing={value: random}")
    mixed = ("+data.augment.mixup=0.5", "+data.augment.cutmix=1")
    made = Made()
    result = run(*augment, *mixed, "trainer.max_epochs=1", *ON_GPU, callbacks=[made])
    assert made.batch["image"].device.type == {"gpu": "cuda"}.get(DEVICE, DEVICE)
    for name, expected in result.parts.data.dataset("train")[made.key].items():  # type: ignore[union-attr]
        assert torch.equal(made.batch[name].cpu(), expected)


class Graphs(L.Callback):
    """How many CUDA graphs have been recorded: the forwards, which are roots, and the backwards after them."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        from torch._inductor.cudagraph_trees import get_manager  # takes seconds

        manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        assert manager is not None, "torch has left out CUDA graphs: TORCH_LOGS=cudagraphs says why"
        roots = [*manager.get_roots()]
        self.forwards, self.backwards = len(roots), sum(len(root.children) for root in roots)


def test_networks_that_are_cuda_graphs_learn_the_same(run: Callable[..., Result]) -> None:
    """With a tap, a memory bank, a validation after each epoch, and a smaller last batch."""
    own = ("loss/feature=[hint,crd]", "data.batch_size=15", "trainer.max_epochs=2", f"trainer.accelerator={DEVICE}")
    graphs = Graphs()
    plain = run(*own).record.metrics["last"]
    fast = run(*own, "compile=reduce-overhead", callbacks=[graphs]).record.metrics["last"]
    assert fast["test_loss"] == pytest.approx(plain["test_loss"], rel=0.02)
    assert graphs.forwards >= 2, "of the student and of the teacher"
    assert graphs.backwards >= 1


class Counted:
    """How many CUDA graphs have been replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replays, replay = 0, torch.cuda.CUDAGraph.replay

        def counted(graph: torch.cuda.CUDAGraph) -> None:
            self.replays += 1
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("teacher_stream=true",),
        ("student.net._target_=fixtures.dropout.DroppingCNN",),
        (
            "loss.kd.weight={schedule: step, values: [1, 2], steps: [15]}",
            "optim.ema=0.9",
            "trainer.gradient_clip_val=1",
        ),
        ("teachers.main.cache=true", "data.augment=null", "trainer.precision=bf16-mixed"),
        ("trainer.precision=16-mixed", "optim.optimizer.lr=0.01"),
    ],
)
def test_a_step_that_is_a_graph_changes_nothing(
    settings: tuple[str, ...], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal, with a smaller last batch and a validation after each epoch."""
    own = (*RICH, *settings, "data.batch_size=15", *ON_GPU)
    plain, counted = run(*own).record, Counted(monkeypatch)
    replayed = run(*own, "step_graph=true").record
    assert counted.replays > 0
    assert replayed.student_sha256 == plain.student_sha256


def test_a_step_of_compiled_networks_is_a_graph(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("loss/feature=[hint]", "trainer.max_epochs=2", f"trainer.accelerator={DEVICE}")
    plain, counted = run(*own).record.metrics["last"], Counted(monkeypatch)
    fast = run(*own, "compile=true", "step_graph=true").record.metrics["last"]
    assert counted.replays > 0
    assert fast["test_loss"] == pytest.approx(plain["test_loss"], rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [["compile=true"], ["compile=true", "teacher_stream=true"], ["hardware=tuned", "trainer.precision=32-true"]],
)
def test_compiled_networks_learn_the_same(settings: list[str], run: Callable[..., Result]) -> None:
    own = ("loss/feature=[hint]", "trainer.max_epochs=1", f"trainer.accelerator={DEVICE}")
    plain, fast = run(*own).record.metrics["last"], run(*own, *settings).record.metrics["last"]
    assert fast["test_loss"] == pytest.approx(plain["test_loss"], rel=0.02)


def test_attention_is_captured_of_a_compiled_network(tmp_path: Path, run: Callable[..., Result]) -> None:
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, depth=2, embed_dim=48, num_heads=3, num_classes=10, in_chans=1
    )
    save_weights(net, tmp_path / "vit.safetensors")
    own = (
        *("model/student=timm", f"++student.net={VIT}"),
        *("model/teacher=timm", f"++teachers.main.net={VIT}"),
        *(f"teachers.main.weights='{tmp_path}/vit.safetensors'", "loss/attention=[vit_attention]"),
        *("trainer.max_epochs=1", f"trainer.accelerator={DEVICE}"),
    )
    plain = run(*own).record.metrics["last"]
    for mode in ("true", "reduce-overhead"):
        fast = run(*own, f"compile={mode}").record.metrics["last"]
        assert fast["test_loss"] == pytest.approx(plain["test_loss"], rel=0.02), mode


@pytest.mark.parametrize(
    "hardware",
    [
        ["hardware=ddp", "trainer.sync_batchnorm=true"],
        ["hardware=fsdp2"],
        pytest.param(
            ["hardware=deepspeed"],
            marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install -e '.[deepspeed]'"),
        ),
    ],
)
def test_one_rank_of_a_process_group(
    hardware: list[str], run: Callable[..., Result], teacher: Path, tmp_path: Path
) -> None:
    """As torchrun starts it: NCCL, synchronised BatchNorm, sharded parameters."""
    own = ("trainer.max_epochs=1", "trainer.precision=32-true")
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    job = [*STUDENT, *own, *hardware, "trainer.devices=1", f"teachers.main.weights='{teacher}'"]
    command = [sys.executable, "-m", "distillery.commands.train", *job, f"hydra.run.dir={tmp_path / 'run'}"]
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    alone = run(*own, *ON_GPU).record.metrics["last"]
    assert RunRecord.read(tmp_path / "run").metrics["last"]["test_loss"] == pytest.approx(alone["test_loss"], rel=0.01)


def test_losses_in_chunks_take_a_quarter_of_the_memory() -> None:
    """At 8,192 tokens and 49,152 classes, with the gradients of the rows and of the head."""
    generator = torch.Generator("cuda").manual_seed(0)
    rows, width, classes = 8192, 576, 49152
    hidden = torch.randn(rows, width, device="cuda", generator=generator, requires_grad=True)
    weight = (torch.randn(classes, width, device="cuda", generator=generator) / width**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda", generator=generator)

    def losses(student: Signals, _: Mapping[str, Signals], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(student.logits, batch["target"], reduction="sum")

    def naive() -> torch.Tensor:
        return F.cross_entropy(hidden @ weight.T, target, reduction="sum")

    def chunked() -> torch.Tensor:
        return sum_over_rows(losses, Headed(hidden, weight), {}, {"target": target})[0]

    values, gradients, peaks = [], [], []
    for form in (naive, chunked):
        hidden.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = form()
        loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        values.append(loss.item())
        assert hidden.grad is not None
        gradients.append(hidden.grad.cpu().numpy())
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    assert peaks[1] <= 0.25 * peaks[0]
