"""Score the exported student of a run folder again, and compare with what the run recorded."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import print

from distillery.errors import UserError
from distillery.evaluation import Evaluation, evaluate
from distillery.networks import build_student, run_config
from distillery.results.schema import RunRecord
from distillery.signals import Network


def prove(folder: Path, split: str = "test") -> Evaluation:
    """Rebuild the student from `config.yaml` and `student.safetensors` and score it on a split of the run's data.

    Raises:
        UserError: not a finished run, other data than the run's, or a score that differs from the recorded one.
    """
    record = RunRecord.read(folder)
    if record.status != "finished":
        raise UserError(
            f"The run in {folder} is {record.status}, not finished: {record.error or 'it has no score yet'}."
        )
    cfg = run_config(str(folder), "student")
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    if data.fingerprint != record.data["fingerprint"]:
        raise UserError(
            f"The data of {record.data['name']} are not those of the run in {folder}: their hashes differ. "
            "Point data.root to the data set that the run used."
        )
    found = evaluate(
        student_of(folder, cfg),
        data.test_dataloader() if split == "test" else data.val_dataloader(),
        instantiate(cfg.task),
        data.num_classes,
    )
    recorded = record.metrics["last"][f"{split}_score"]
    print(f"{record.method} seed {record.seed}: {split} score {found.score:.4f}, recorded {recorded:.4f}")
    if abs(found.score - recorded) > 0.5 / len(found.target):
        raise UserError(f"The exported student of {folder} does not give the recorded score.")
    return found


def student_of(folder: Path, cfg: DictConfig) -> Network:
    """The trained student of a run folder."""
    student = cfg.student.copy()
    student.weights = str(folder)
    return build_student(student)
