"""Score the exported student of a run folder again, and compare with what the run recorded."""

from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from distillery.config.check_placement import devices
from distillery.config.networks import build_teacher, run_config
from distillery.config.students import blank_student
from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import FROZEN, role_of
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.models.taps.network import Network
from distillery.models.weight_files import read_weights
from distillery.models.weights import load_weights, weights_hash
from distillery.results.environment import environment
from distillery.results.layout import PREDICTIONS, STUDENT
from distillery.results.record import RunRecord
from distillery.tasks.evaluate import Evaluation, evaluate
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher

SPLITS = ("test", "val")
# The share of samples by which the score may differ where another kind of hardware computes it. Sums are rounded
# otherwise there, and a sample whose two best classes are almost equal may change its class: float32 (on GPUs often
# TF32, of 10 bits) and 16-bit floats (of 7 or 10 bits).
FULL_PRECISION, HALF_PRECISION = 0.002, 0.01


def verify_run(folder: Path, split: str = "test") -> Evaluation:
    """Rebuild the student from `config.yaml` and `student.safetensors` and score it on a split of the run's data.

    Raises:
        UserError: not a finished run, no such split, data or weights other than the run's, or a score that differs
            from the recorded one by more than `tolerance`.
    """
    record, student, data, task = rebuilt(folder, split)
    recorded = record.metrics["last"][f"{split}_score"]
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    found = evaluate(student, loader, task, task.outputs(data))
    samples, reason = tolerance(record, student, len(found.target))
    say(f"{record.method} seed {record.seed}: {split} score {found.score:.4f}, recorded {recorded:.4f}")
    say(f"tolerance: {samples} of {len(found.target)} samples ({reason})")
    if abs(found.score - recorded) > (samples + 0.5) / len(found.target):
        raise UserError(f"The exported student of {folder} does not give the recorded score.")
    return found


def rebuilt(folder: Path, split: str) -> tuple[RunRecord, Network, Data, Task]:
    """The record of a finished run, and its student, its data and its task, made anew from the folder.

    Raises:
        UserError: see `verify_run`.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}." + did_you_mean(split, SPLITS))
    record = finished(folder)
    if record.metrics["last"][f"{split}_score"] is None:
        raise UserError(f"The run in {folder} has no score on {split}: its data have no such split.")
    cfg = run_config(str(folder), "run")
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    if data.fingerprint != record.data["fingerprint"]:
        raise UserError(
            f"The data of {record.data['name']} are not those of the run in {folder}: their hashes differ. "
            "Point data.root to the data set that the run used."
        )
    task = instantiate(cfg.task)
    task.outputs(data)
    if task.needs_references:
        data = data.with_references({split: _references(folder, data, split)})
    return record, student_of(folder, cfg, record), data, task


def _references(folder: Path, data: Data, split: str) -> Tensor:
    """What the teacher predicted of each test sample, by position."""
    if split != "test":
        raise UserError(
            "The score compares with the teacher's predictions, which are kept for the test split only: split=test"
        )
    with np.load(folder / PREDICTIONS, allow_pickle=False) as saved:
        index, target = (torch.from_numpy(saved[name]) for name in ("index", "target"))
    found = target.new_full((len(data.splits["test"].targets), *target.shape[1:]), torch.nan)
    found[index] = target
    return found


def tolerance(record: RunRecord, student: Network, samples: int) -> tuple[int, str]:
    """By how many of `samples` the score may differ from the recorded one, and why.

    By none on the kind of device that the run was scored on; with 16-bit weights and on GPUs it must be the same model
    of it. Otherwise by `FULL_PRECISION` or `HALF_PRECISION` of the samples, and at least by one.

    Args:
        student: where it was scored now.
    """
    then, now = record.environment, environment()
    device = student.device.type
    half = next(student.net.parameters()).dtype in (torch.float16, torch.bfloat16)
    model = "gpu" if device == "cuda" else "cpu"
    if device != then.get("scored_on"):
        reason = f"scored on {then.get('scored_on', 'an unknown device')} then and on {device} now"
    elif (half or device == "cuda") and then.get(model) != now[model]:
        reason = f"scored on {then.get(model)} then and on {now[model]} now"
    else:
        return 0, f"scored on {device} then and now"
    share = HALF_PRECISION if half else FULL_PRECISION
    return max(1, round(share * samples)), f"{reason}: rounding differs"


def finished(folder: Path) -> RunRecord:
    """The record of the finished run in a folder.

    Raises:
        UserError: there is no run, it is still running, or it has failed.
    """
    record = RunRecord.read(folder)
    if record.status != "finished":
        raise UserError(
            f"The run in {folder} is {record.status}, not finished: {record.error or 'it has no score yet.'}"
        )
    return record


def student_of(folder: Path, cfg: DictConfig, record: RunRecord) -> Network:
    """The trained student of a run folder, in the precision that it was exported in.

    It is on the kind of device that the run was scored on, if this machine has one, and else on the CPU.

    Raises:
        UserError: the file does not hold the weights that the run exported.
    """
    exported = read_weights(folder / STUDENT).values()
    student = blank_student(cfg.student, next(tensor.dtype for tensor in exported if tensor.is_floating_point()))
    load_weights(student.net, folder / STUDENT)
    if weights_hash(student.net) != record.student_sha256:
        raise UserError(f"{folder / STUDENT} does not hold the weights that the run exported: their hashes differ.")
    on_gpu = record.environment.get("scored_on") == "cuda" and torch.cuda.is_available()
    return student.to("cuda" if on_gpu else "cpu")


def teacher_of(folder: Path, record: RunRecord, name: str) -> Teacher | None:
    """A frozen teacher of the run in a folder; None: it is nowhere a network, or that of an earlier stage.

    Raises:
        UserError: its weights are not those that it had in the run.
    """
    cfg = run_config(str(folder), "run").teachers.get(name)
    if cfg is None or role_of(cfg) != FROZEN or not cfg.get("weights"):
        return None
    teacher = build_teacher(cfg, name)
    if teacher.placement not in devices():
        teacher.placement = None  # the run was on another machine, or on several processes
    if teacher.sha256 != record.teachers[name]["sha256"]:
        raise UserError(f"teachers.{name}.weights are others now.")
    return teacher
