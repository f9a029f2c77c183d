"""One of the jobs of a study or of a sweep: what its folder already holds, and what is still to be done for it."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from distillery.core.errors import UserError
from distillery.core.process import is_main
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord, config_hash
from distillery.runs.run import plain, train


@dataclass
class Job:
    """One run: what to call it, where it goes, and what it is composed of."""

    label: str
    folder: Path
    overrides: list[str]
    cfg: DictConfig

    def identity(self) -> str:
        return config_hash(plain(self.cfg))

    def record(self) -> RunRecord | None:
        """What an earlier call left in the folder."""
        return RunRecord.read(self.folder) if (self.folder / RECORD).is_file() else None

    def finished(self) -> RunRecord | None:
        """The record of this very job, where it has been run to its end."""
        record = self.record()
        return record if record and record.status == "finished" and record.config_hash == self.identity() else None

    def go_on(self) -> RunRecord:
        """Train it: from the last checkpoint that a run of it has left in the folder, or from the beginning.

        Raises:
            UserError: the folder holds the run of another job, which stays as it is.
            Exception: what `train` raises. It is recorded, also where it came before training.
        """
        record = self.record()
        if record and record.config_hash != self.identity():
            raise UserError(
                f"{self.folder} holds a run of another config. Remove that folder, "
                "or give this sweep one of its own, hydra.sweep.dir=…"
            )
        try:
            if record and record.data:  # it was not refused before training
                self.cfg.resume = str(self.folder)
            return train(self.cfg, self.overrides).record
        except Exception as error:
            if is_main():
                self.failed(error)
            raise

    def failed(self, error: Exception) -> None:
        """Leave a record of the failure also where it came before training, for which `train` has none."""
        cfg = self.cfg
        record = self.record() or RunRecord(cfg.name, cfg.method, cfg.seed, self.identity(), self.overrides)
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        record.write(self.folder)
