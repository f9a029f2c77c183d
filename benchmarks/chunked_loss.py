"""What a loss through a large head costs in chunks of rows, beside the same loss from all logits at once.

    python benchmarks/chunked_loss.py [--rows 2048] [--classes 49152] [--repeats 3]

kd and cross-entropy of a student with 256 hidden units and a teacher with 576, forward and backward by hidden rows and
head, in float32 on one thread. Each form runs in a process of its own, the two in turn. Memory is the largest resident
set above that before the first run, when a run on a few rows and classes has loaded the libraries. Time is that of the
processor, in the fastest run, since other load on the machine only adds time. Exits with 1 if the chunks take more than
0.25 × the memory or more than 1.1 × the time.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

MEMORY, TIME = 0.25, 1.1  # limits, as parts of the naive form's
STUDENT, TEACHER = 256, 576  # hidden units


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

    from distillery.losses.chunked import Batch, sum_over_rows
    from distillery.losses.functional import kd
    from distillery.losses.levels import Headed

    def loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        assert teacher_logits is not None
        of_labels = F.cross_entropy(student_logits, batch["target"], reduction="none")
        return of_labels + kd(student_logits, teacher_logits, 2.0, reduction="none")

    def value(student: Headed, teacher: Headed, batch: Batch) -> torch.Tensor:
        if form == "chunked":
            return sum_over_rows(loss, student, teacher, batch, chunk)
        with torch.no_grad():
            teacher_logits = teacher.logits()
        return loss(student.logits(), teacher_logits, batch).sum()

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
    before, times = resident(), []
    for _ in range(repeats):
        student.hidden.grad = student.weight.grad = None
        start = time.process_time()
        value(student, *others).div(rows).backward()
        times.append(time.process_time() - start)
    return {"MiB": resident() - before, "seconds": min(times)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=2048)
    arguments.add_argument("--classes", type=int, default=49_152)
    arguments.add_argument("--repeats", type=int, default=2, help="in each process, of which each form has two")
    arguments.add_argument("--chunk", type=int, default=64, help="rows of a chunk")
    arguments.add_argument("--form", choices=["naive", "chunked"], help="measure this form here, and print JSON")
    given = arguments.parse_args()
    if given.form:
        print(json.dumps(measure(given.form, given.rows, given.classes, given.repeats, given.chunk)))
        return
    found: dict[str, dict[str, float]] = {}
    for form in ("naive", "chunked") * 2:
        command = [sys.executable, __file__, *sys.argv[1:], f"--form={form}"]
        ran = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found[form] = {key: min(value, found.get(form, ran)[key]) for key, value in ran.items()}
    naive = found["naive"]
    print(f"{given.rows} rows, {given.classes} classes, {given.chunk} rows a chunk")
    for form, one in found.items():
        ratios = " ".join(f"{one[key] / naive[key]:9.2f} ×" for key in naive)
        print(f"{form:8} {one['MiB']:8.0f} MiB {one['seconds']:7.2f} s {ratios}")
    over = found["chunked"]["MiB"] > MEMORY * naive["MiB"], found["chunked"]["seconds"] > TIME * naive["seconds"]
    if any(over):
        sys.exit(f"More than {MEMORY:g} × the memory, or more than {TIME:g} × the time, of the naive form.")


if __name__ == "__main__":
    main()
