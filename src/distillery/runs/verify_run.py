"""Score the exported student of a run folder again, and compare with what the run recorded."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import print

from distillery.config.networks import blank_student, run_config
from distillery.core.errors import UserError, did_you_mean
from distillery.models.taps.network import Network
from distillery.models.weights import load_weights, read_weights, weights_hash
from distillery.results.layout import STUDENT
from distillery.results.record import RunRecord
from distillery.tasks.evaluate import Evaluation, evaluate

SPLITS = ("test", "val")


def verify_run(folder: Path, split: str = "test") -> Evaluation:
    """Rebuild the student from `config.yaml` and `student.safetensors` and score it on a split of the run's data.

    Raises:
        UserError: not a finished run, no such split, data or weights other than the run's, or a score that differs
            from the recorded one.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}." + did_you_mean(split, SPLITS))
    record = finished(folder)
    recorded = record.metrics["last"][f"{split}_score"]
    if recorded is None:
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
    student = student_of(folder, cfg, record)
    task = instantiate(cfg.task)
    found = evaluate(
        student,
        data.test_dataloader() if split == "test" else data.val_dataloader(),
        task,
        task.outputs(data),
    )
    print(f"{record.method} seed {record.seed}: {split} score {found.score:.4f}, recorded {recorded:.4f}")
    if abs(found.score - recorded) > 0.5 / len(found.target):
        raise UserError(f"The exported student of {folder} does not give the recorded score.")
    return found


def finished(folder: Path) -> RunRecord:
    """The record of the finished run in a folder.

    Raises:
        UserError: no run, one that still goes on, or one that has failed.
    """
    record = RunRecord.read(folder)
    if record.status != "finished":
        raise UserError(
            f"The run in {folder} is {record.status}, not finished: {record.error or 'it has no score yet.'}"
        )
    return record


def student_of(folder: Path, cfg: DictConfig, record: RunRecord) -> Network:
    """The trained student of a run folder with that config and record, in the precision that it was exported in.

    Raises:
        UserError: weights other than the run's.
    """
    exported = read_weights(folder / STUDENT).values()
    student = blank_student(cfg.student, next(tensor.dtype for tensor in exported if tensor.is_floating_point()))
    load_weights(student.net, folder / STUDENT)
    if weights_hash(student.net) != record.student_sha256:
        raise UserError(f"{folder / STUDENT} does not hold the weights that the run exported: their hashes differ.")
    return student
