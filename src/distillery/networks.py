"""cfg → networks: the student and the teachers, their weights, their input adapters."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from distillery.data.vision import VisionData
from distillery.errors import UserError
from distillery.models.weights import load_weights
from distillery.names import EMA, FROZEN, PEER, SETTINGS, role_of
from distillery.roles import EMATeacher, Peer
from distillery.tapped import Network
from distillery.teacher import Teacher

CONFIG = "config.yaml"  # in a run folder: the resolved config
EXPORT = "student.safetensors"  # in a run folder: the trained student's parameters and buffers


def complete(cfg: DictConfig, data: VisionData, name: str) -> DictConfig:
    """The network's config with every open place filled, so that it rebuilds the network without the data.

    Statistics and channels come from the data set; where `net` is null and `weights` is a run folder, network and
    statistics come from that run's own student.

    Raises:
        UserError: a network that is neither configured nor to be found in a run folder.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.net is None and cfg.weights is None:
            raise UserError(f"The {name} network is taken from a run folder, and {name}.weights names none.")
        if cfg.net is None:
            own = run_config(cfg.weights, name).student
            cfg.net = own.net
            cfg.input = OmegaConf.merge(own.input, {k: v for k, v in cfg.input.items() if v is not None})
        cfg.input.mean = cfg.input.mean or list(data.mean)
        cfg.input.std = cfg.input.std or list(data.std)
        # a pretrained teacher keeps its head: a new one would know nothing
        if name == "student" or cfg.weights != "pretrained":
            cfg.net.setdefault("num_classes", data.num_classes)
        cfg.net.setdefault("in_chans", len(cfg.input.mean))
    return cfg


def build_student(cfg: DictConfig) -> Network:
    """A completed config → the student, from scratch unless `weights` says otherwise."""
    return Network(_net(cfg, "student"), **adapter(cfg), name="student")


def complete_teacher(cfg: DictConfig, data: VisionData, name: str, student: DictConfig) -> DictConfig:
    """`complete` for a teacher: only what its role reads. `student` is the completed config of the student."""
    role = role_of(cfg)
    if role == FROZEN:
        return complete(cfg, data, name)
    own = OmegaConf.create({"role": role} | {key: cfg[key] for key in SETTINGS[role] if key in cfg})
    if role != PEER:
        return own
    own.weights = None
    if "_target_" not in (own.net or {}):  # it may say something of the network that an experiment had there
        own.net, own.input = student.net, student.input
        return own
    return complete(own, data, name)


def build_moving(cfg: DictConfig, name: str, student: Network) -> Network:
    """A completed config → a teacher that is not frozen: of role `ema` or `peer`, or the student itself."""
    if role_of(cfg) == EMA:
        return EMATeacher(student, name, cfg.decay)
    if role_of(cfg) == PEER:
        return Peer(_net(cfg, name), **adapter(cfg), name=name)
    return student


def build_teacher(cfg: DictConfig, name: str) -> Teacher:
    """A completed config → a frozen teacher.

    Raises:
        UserError: no weights are named: a teacher with newly initialised weights has nothing to teach.
    """
    if cfg.weights is None:
        raise UserError(
            f"Teacher {name!r} would be newly initialised: teachers.{name}.weights is null. Give it weights: "
            "'pretrained' (timm's), a .safetensors or .pth file, or the folder of a run that trained it; "
            "or take model/teacher=none for the baseline."
        )
    return Teacher(_net(cfg, name), **adapter(cfg), name=name, source=str(cfg.weights), bn_mode=cfg.bn_mode)


def run_config(folder: str, name: str) -> DictConfig:
    """The resolved config of the run in `folder`."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(
            f"The {name} network is to be taken from the run folder {str(folder)!r}, and there is no {CONFIG} in "
            f"it. Train it first (`distill-study study=digits_demo` does so for the demo's), or name another folder."
        )
    return OmegaConf.load(path)  # type: ignore[return-value]


def adapter(cfg: DictConfig) -> dict[str, Any]:
    """How images are brought to what the network of a completed config wants."""
    return {"mean": list(cfg.input.mean), "std": list(cfg.input.std), "size": cfg.input.size}


def _net(cfg: DictConfig, name: str) -> Any:
    if cfg.weights == "pretrained":
        try:
            return instantiate(cfg.net, pretrained=True)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The pretrained weights of the {name} network could not be fetched: {error}\n"
                f"Offline? Give a file instead: weights=path/to/model.safetensors"
            ) from error
    net = instantiate(cfg.net)
    if cfg.weights is not None:
        source = Path(cfg.weights)
        load_weights(net, source / EXPORT if source.is_dir() else source)
    return net
