"""What a loss through a large head costs in chunks of rows, beside the same loss from all logits at once.

    python benchmarks/chunked_loss.py [--rows 2048] [--classes 49152] [--repeats 3] [--step]

kd and cross-entropy of a student with 256 hidden units and a teacher with 576, forward and backward by hidden rows and
head, in float32 on one thread. Each form runs in a process of its own, in turn: `chunked`, that of this project, forms
the gradients of a chunk of rows with its loss; `recomputed` computes each chunk again in backward. Memory is the
largest resident set above that before the first run, when a run on a few rows and classes has loaded the libraries.
Time is that of the processor, in the fastest run, since other load on the machine only adds time. Exits with 1 if
`chunked` takes more than 0.25 × the memory or more than 1.1 × the time of `naive`, or if a form gives another loss.

Where Liger Kernel is installed (pip install --no-deps liger-kernel), its fused linear JSD loss is measured as well,
with the same chunks and settings under which it is the same loss.

With --step it is a training step of two causal language models of 4 layers on texts of 256 tokens: forwards of both,
task loss, kd and backward.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from parts.options import positive
from parts.table import show

MEMORY, TIME = 0.25, 1.1  # limits, as parts of the naive form's
TOLERANCE = 1e-4  # of the loss, relative
STUDENT, TEACHER = 256, 576  # hidden units
LENGTH = 256  # tokens of a text


def resident() -> float:
    """The largest resident set so far, MiB. That of Linux's status, since `ru_maxrss` outlives the parent's exec."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(form: str, rows: int, classes: int, repeats: int, chunk: int) -> dict[str, float]:
    """MiB and seconds of one form, in this process."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    from distillery.losses.chunked import Batch, sum_over_rows
    from distillery.losses.functional import kd
    from distillery.losses.levels import Headed
    from distillery.losses.signals import Signals

    def loss(student: Signals, teachers: Mapping[str, Signals], batch: Batch) -> torch.Tensor:
        of_labels = F.cross_entropy(student.logits, batch["target"], reduction="none")
        return (of_labels + kd(student.logits, teachers["main"].logits, 2.0, reduction="none")).sum()

    def whole(student: Headed, teacher: Headed, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher.logits()
        return loss(Signals(student.logits()), {"main": Signals(teacher_logits)}, batch)

    def value(student: Headed, teacher: Headed, batch: Batch) -> torch.Tensor:
        if form == "liger":
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

            fused = LigerFusedLinearJSDLoss(1.0, 4.0, beta=0.0, temperature=2.0, compiled=False, chunk_size=chunk)
            mean = fused(student.hidden, student.weight, teacher.hidden, teacher.weight, batch["target"])
            return mean * len(batch["target"])
        if form == "chunked":
            rows_of = Signals(torch.empty(0, 0), headed=teacher)
            return sum_over_rows(loss, student, {"main": rows_of}, batch, rows=chunk)[0]
        if form == "recomputed":
            each = torch.arange(len(batch["target"])).split(chunk)
            parts = ((student.rows(rows), teacher.rows(rows), {"target": batch["target"][rows]}) for rows in each)
            return torch.stack([checkpoint(whole, *part, use_reentrant=False) for part in parts]).sum()
        return whole(student, teacher, batch)

    def inputs(rows: int, classes: int) -> tuple[Headed, Headed, Batch]:
        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape).div_(shape[-1] ** 0.5)

        student = Headed(drawn(rows, STUDENT).requires_grad_(), drawn(classes, STUDENT).requires_grad_())
        teacher = Headed(drawn(rows, TEACHER), drawn(classes, TEACHER))
        return student, teacher, {"target": torch.randint(classes, (rows,))}

    torch.set_num_threads(1)
    torch.manual_seed(0)
    value(*inputs(3, 5)).backward()
    student, *others = inputs(rows, classes)

    def once() -> float:
        student.hidden.grad = student.weight.grad = None
        loss = value(student, *others).div(rows)
        loss.backward()
        return loss.item()

    return timed(once, repeats)


def timed(once: Callable[[], float], repeats: int) -> dict[str, float]:
    """MiB above what is resident now, the seconds of the fastest run, and the loss."""
    before, times = resident(), []
    for _ in range(repeats):
        start = time.process_time()
        loss = once()
        times.append(time.process_time() - start)
    return {"MiB": resident() - before, "seconds": min(times), "loss": loss}


def measure_step(form: str, rows: int, classes: int, repeats: int, chunk: int) -> dict[str, float]:
    """MiB and seconds of a training step, in this process."""
    import torch

    from distillery.losses.response.kd import KD
    from distillery.models.adapters import TextAdapter
    from distillery.models.taps.end_before_head import before_heads
    from distillery.models.taps.network import Network
    from distillery.models.text.transformer import transformer
    from distillery.tasks.causal_lm import CausalLM
    from distillery.teachers.frozen import Teacher
    from distillery.training.head_chunks import end_before_heads
    from distillery.training.objective import Objective

    def network(role: type[Network], width: int, classes: int) -> Network:
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
        net = transformer(
            "llama", "causal_lm", classes, sizes | {"num_key_value_heads": 4, "tie_word_embeddings": True}
        )
        return role(net, TextAdapter(net))

    def step(texts: int, classes: int) -> Callable[[], None]:
        task = CausalLM(rows_per_chunk=chunk if form == "chunked" else None)
        student, teacher = network(Network, STUDENT, classes), network(Teacher, TEACHER, classes)
        ids = torch.randint(classes, (texts, LENGTH))
        ones, index = torch.ones_like(ids), torch.arange(texts)
        batch = {"input_ids": ids, "attention_mask": ones, "target": ids, "bytes": ones, "index": index}
        end_before_heads(task, {}, student, {"main": teacher}, batch)
        objective = Objective(task, {"kd": KD(temperature=2.0)})

        def once() -> float:
            student.zero_grad()
            with before_heads([student, teacher]):
                signals = teacher(batch, training=True), student(batch)
            loss = objective(signals[1], {"main": signals[0]}, batch).total
            loss.backward()
            return loss.item()

        return once

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step(1, 5)()
    return timed(step(max(1, rows // LENGTH), classes), repeats)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=positive, default=2048)
    arguments.add_argument("--classes", type=positive, default=49_152)
    arguments.add_argument("--repeats", type=positive, default=2, help="in each process, of which each form has two")
    arguments.add_argument("--chunk", type=positive, default=128, help="rows of a chunk")
    arguments.add_argument("--step", action="store_true", help="a training step instead of the loss alone")
    arguments.add_argument(
        "--form", choices=["naive", "chunked", "recomputed", "liger"], help="measure it here, and print JSON"
    )
    given = arguments.parse_args()
    if given.form:
        measured = measure_step if given.step else measure
        print(json.dumps(measured(given.form, given.rows, given.classes, given.repeats, given.chunk)))
        return
    forms = ["naive", "chunked"]
    if not given.step:
        forms += ["recomputed", *(["liger"] if find_spec("liger_kernel") else [])]
    found: dict[str, dict[str, float]] = {}
    for form in forms * 2:
        command = [sys.executable, __file__, *sys.argv[1:], f"--form={form}"]
        ran = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found[form] = {key: min(value, found.get(form, ran)[key]) for key, value in ran.items()}
    naive, chunked = found["naive"], found["chunked"]
    rows = []
    for form, one in found.items():
        memory, time_ = (f"{one[key] / naive[key]:.2f}" for key in ("MiB", "seconds"))
        rows.append([form, f"{one['MiB']:.0f}", memory, f"{one['seconds']:.2f}", time_, f"{one['loss']:.5f}"])
    title = f"{given.rows} rows, {given.classes} classes, {given.chunk} rows a chunk"
    show(title, ["", "MiB", "ratio", "s", "ratio", "loss"], rows)
    if any(abs(one["loss"] / naive["loss"] - 1) > TOLERANCE for one in found.values()):
        sys.exit("The forms give different losses.")
    if chunked["MiB"] > MEMORY * naive["MiB"] or chunked["seconds"] > TIME * naive["seconds"]:
        sys.exit(f"More than {MEMORY:g} × the memory, or more than {TIME:g} × the time, of the naive form.")


if __name__ == "__main__":
    main()
