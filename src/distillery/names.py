"""What a run is called: by its losses."""

from hydra.utils import get_class
from omegaconf import DictConfig

BASELINE = "baseline"


def method_name(cfg: DictConfig) -> str:
    """The short names of the run's losses, `kd+at`; `baseline` without a teacher.

    A loss under a key of its own (`loss.kd_b`) is called by that key.
    """
    if not cfg.teachers or not cfg.loss:
        return BASELINE
    return "+".join(_short_name(key, term._target_) for key, term in cfg.loss.items())


def _short_name(key: str, target: str) -> str:
    default_key = target.split(".")[-2]  # distillery.losses.<family>.<name>.<Term>
    return get_class(target).contract.short_name if key == default_key else key
