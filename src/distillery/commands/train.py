"""`distill-train`: compose a config, train a student."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.runs.run_dir import remove_new_folders


@hydra_main("train")
def main(cfg: DictConfig) -> float | None:
    """Show the plan, resume a run, or start one, alone or as a job of a sweep.

    Returns:
        The score that a sweeper maximises: on the validation split, in the last epoch.
    """
    # Heavy imports wait until Hydra has the config: --help, --cfg and TAB answer at once.
    with heavy_imports():
        from distillery.config.candidates import untimed
        from distillery.config.check import check
        from distillery.core.terminal import say
        from distillery.runs.job import resumed
        from distillery.runs.run import train
        from distillery.runs.show_result import show_result
        from distillery.runs.stages.sequence import StageSequence
        from distillery.runs.sweep import sweep_job

    overrides = list(HydraConfig.get().overrides.task)
    resumes = any(override.startswith("resume=") for override in overrides)  # else another process has decided it
    try:
        if resumes and cfg.resume:
            cfg = resumed(Path(cfg.resume), overrides)
        if cfg.plan:
            spec = check(cfg, overrides)
            if spec.open:
                say(untimed(spec.open))
            StageSequence(spec).rehearse(show=True)
            return None
        if HydraConfig.get().mode == RunMode.MULTIRUN and not cfg.resume:
            return sweep_job(cfg, overrides)
        result = train(cfg, overrides)
        if result.kept:
            say(f"{result.folder} holds this very run, finished: kept. Remove the folder to run it again.")
        show_result(result.record, result.folder)
        return result.record.val_monitored
    finally:
        remove_new_folders()


if __name__ == "__main__":
    main()
