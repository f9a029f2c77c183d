"""Experiment loggers: opened with the config of the run, closed with its result."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from distillery.core.errors import UserError
from distillery.core.process import is_main
from distillery.results.layout import (
    CLASSES,
    CONFIG,
    PREDICTIONS,
    PROBABILITIES,
    RECORD,
    REPORT,
    STUDENT,
    TRIALS_TABLE,
    WANDB_ID,
    report_files,
)
from distillery.results.record import RunRecord
from distillery.results.report.table import CALIBRATION
from distillery.runs.job import plain

WANDB = "wandb"  # its key under `logger`
TABLE_ROWS = 200  # of a table of predictions
TENSORBOARD = "tensorboard"  # likewise
FIDELITY = ("agreement", "kl", "cka")  # what is logged of `RunRecord.fidelity` for each teacher
COSTS = ("params", "flops", "latency_ms")
SUMMARY = (
    "status",
    "error",
    "seconds",
    "metrics",
    "fidelity",
    "teachers",
    "cost",
    "git",
)  # what W&B is sent of the record


@contextmanager
def tracked(cfg: DictConfig, record: RunRecord, folder: Path) -> Iterator[list[Logger]]:
    """Within: the loggers of the config. Afterwards no W&B run is open.

    Args:
        cfg: the config of the run; with `resume` the W&B run of `folder` is resumed.
        record: sent to W&B at the end, where any status but `finished` marks the run as failed.

    Raises:
        UserError: the package of a logger is missing, or W&B cannot be reached or does not know the user.
    """
    loggers: list[Logger] = []
    configs = _configs(cfg)
    if cfg.resume and WANDB in configs and (folder / WANDB_ID).is_file():
        configs[WANDB] = configs[WANDB].copy()
        with open_dict(configs[WANDB]):
            configs[WANDB].id = (folder / WANDB_ID).read_text(encoding="utf-8").strip()
    try:
        for key, config in configs.items():
            loggers.append(_opened(f"logger.{key}", config))
        yield loggers or [DummyLogger()]  # LearningRateMonitor insists on one
    finally:
        if is_main() and any(isinstance(logger, WandbLogger) for logger in loggers):
            _finish(record, folder)


def log_config(loggers: Sequence[Logger], cfg: DictConfig, record: RunRecord, folder: Path) -> None:
    """Log the resolved config; tell W&B which score is the best, and note in the run folder which run of its it is."""
    settings = plain(cfg) | {"config_hash": record.config_hash, "data_fingerprint": record.data.get("fingerprint")}
    for logger in loggers:
        logger.log_hyperparams(settings)
        if isinstance(logger, WandbLogger) and is_main():
            (folder / WANDB_ID).write_text(f"{logger.version}\n", encoding="utf-8")
            for name in ("score", *record.data["metrics"]):
                better = "max" if record.is_better_higher(name) else "min"
                logger.experiment.define_metric(f"val/{name}", summary=f"{better},last")


def log_scores(loggers: Sequence[Logger], cfg: DictConfig, record: RunRecord, step: int) -> None:
    """Log the figures on the test split, which exist only after the fit.

    TensorBoard is given them beside the settings and with the costs, for its HParams.
    """
    last, figures = record.metrics["last"], ("score", "loss", *record.data["metrics"])
    found = {f"test/{name}": last[f"test_{name}"] for name in figures}
    found |= {f"test/{name}": last[name] for name in CALIBRATION if name in last}
    for teacher, entry in record.fidelity.items():
        found |= {f"fidelity/{teacher}/{name}": entry[name] for name in FIDELITY if entry.get(name) is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            costs = {f"cost/{name}": record.cost[name] for name in COSTS if record.cost.get(name) is not None}
            logger.log_hyperparams(plain(cfg), {**found, **costs}, step)
        else:
            logger.log_metrics(found, step)
        logger.save()


def wandb_logger(
    project: str,
    name: str,
    save_dir: str,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    offline: bool = False,
    quiet: bool = False,
    id: str | None = None,
) -> WandbLogger:
    """Lightning's W&B logger. If `offline` is false, `WANDB_MODE` decides.

    Lightning's own `offline` is not used, because it sets `WANDB_MODE` for all later runs of the process.
    """
    Path(save_dir).mkdir(parents=True, exist_ok=True)  # or W&B warns that it is missing
    return WandbLogger(
        name=name,
        project=project,
        save_dir=save_dir,
        id=id,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=list(tags),
        notes=notes,
        mode="offline" if offline else None,
        settings={"silent": True, "console": "off"} if quiet else None,
    )


def hush(cfg: DictConfig) -> None:
    """Make the run's W&B logger, if it has one, print nothing: a study or sweep says itself how far it is."""
    config = _configs(cfg).get(WANDB)
    if config is not None and "quiet" in config:
        config.quiet = True


def join_study(cfg: DictConfig, study: str, label: str, role: str | None = None) -> None:
    """Make the run's W&B logger, if it has one, group the run under the study; one with a role bears its label."""
    if (config := _configs(cfg).get(WANDB)) is None:
        return
    hush(cfg)
    if OmegaConf.is_interpolation(config, "group"):  # keep a group that the user named
        config.group = study
    if role is not None:
        config.name, config.job_type = label, role
        config.tags = [role]


def log_report(cfg: DictConfig, table: pd.DataFrame, out: Path) -> None:
    """Send the report in `out` to the loggers of `cfg`, a run's: tables, pictures and, to W&B, its files.

    W&B shows it as a run `report`; TensorBoard finds it in `out/tensorboard/report`.
    """
    configs = _configs(cfg)
    pictures = {Path(name).stem: out / name for name in report_files(out) if name.endswith(".png")}
    if (config := configs.get(WANDB)) is not None:
        import wandb

        config = config.copy()
        config.update(name="report", job_type="report", tags=["report"], save_dir=str(out.resolve()))
        run = _opened("logger.wandb", config).experiment
        try:
            files = {"classes": out / CLASSES, "trials": out / TRIALS_TABLE}
            tables = {"report": table} | {name: pd.read_csv(path) for name, path in files.items() if path.exists()}
            run.log({name: wandb.Table(dataframe=each) for name, each in tables.items()})
            run.log({f"{name}_plot": wandb.Image(str(path)) for name, path in pictures.items()})
            run.log_artifact(_artifact(f"{config.group}-report", "report", out, report_files(out)))
        finally:
            run.finish()
    if (config := configs.get(TENSORBOARD)) is not None:
        config = config.copy()
        with open_dict(config):
            config.update(save_dir=str(out), version="report")
        writer = _opened("logger.tensorboard", config).experiment
        writer.add_text("report", (out / REPORT[0]).read_text(encoding="utf-8"))
        for name, path in pictures.items():
            with Image.open(path) as picture:
                writer.add_image(name, np.asarray(picture.convert("RGB")), dataformats="HWC")
        writer.close()


def _configs(cfg: DictConfig) -> dict[str, DictConfig]:
    """The loggers that are not null. `logger=[]` leaves no key at all.

    Lightning keeps its loggers out of a fast_dev_run: an empty run would be all that W&B got.
    """
    if OmegaConf.select(cfg, "trainer.fast_dev_run"):
        return {}
    return {str(key): config for key, config in (cfg.get("logger") or {}).items() if config is not None}


def _opened(key: str, config: DictConfig) -> Any:
    """The logger of `config`; opens its W&B run."""
    try:
        logger = instantiate(config)
    except InstantiationException as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise UserError(
                f"{key} needs a package that is not installed; for TensorBoard: pip install -e '.[tensorboard]'\n"
                f"{error.__cause__}"
            ) from None
        raise
    if isinstance(logger, WandbLogger):
        import wandb  # half a second, which the other loggers do not need

        try:
            _ = logger.experiment
        except wandb.errors.Error as error:
            raise UserError(
                f"{key}: W&B could not start a run: {error}\nlogger.wandb.offline=true keeps the run on this machine "
                "(`wandb sync` sends it later); `wandb login` logs you in; logger=csv does not use W&B."
            ) from None
    return logger


def _finish(record: RunRecord, folder: Path) -> None:
    """Send the result to W&B and end its run."""
    import wandb

    run = wandb.run
    if run is None:  # it was never opened
        return
    finished = record.status == "finished"
    try:
        run.summary.update({name: getattr(record, name) for name in SUMMARY} | _best(record))
        if finished:
            run.log({"predictions": wandb.Table(dataframe=_predictions(folder))})
            files = (STUDENT, CONFIG, RECORD, PREDICTIONS)
            run.log_artifact(_artifact(f"{run.group}-{run.name}", "model", folder, files, record.config_hash[:8]))
    finally:
        run.finish(exit_code=0 if finished else 1)


def _best(record: RunRecord) -> dict[str, Any]:
    """Epoch and validation figures of the best checkpoint; of the last epoch where none was kept."""
    found = record.metrics.get("best") or record.metrics.get("last", {})
    return {f"best/{name}": value for name, value in found.items() if name == "epoch" or name.startswith("val_")}


def _predictions(folder: Path) -> pd.DataFrame:
    """What student and teachers predict of at most `TABLE_ROWS` rows, evenly spaced in the test split."""
    with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
        rows = len(arrays["index"])
        some = np.linspace(0, rows - 1, min(rows, TABLE_ROWS)).round().astype(int)
        shown = [name for name in arrays if not name.endswith(PROBABILITIES)]
        return pd.DataFrame({name: arrays[name][some].tolist() for name in shown})


def _artifact(name: str, kind: str, folder: Path, files: Sequence[str], identity: str = "") -> Any:
    """An artifact of these files. `identity` keeps those apart that have the same name; W&B takes 128 characters."""
    import wandb

    name = "-".join([name[:100], *([identity] if identity else [])])
    artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII), kind)
    for file in files:
        artifact.add_file(str(folder / file))
    return artifact
