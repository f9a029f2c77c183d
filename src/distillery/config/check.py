"""What a config can be refused for before anything is built: unknown keys, unknown names."""

import inspect
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields
from typing import Any

import lightning as L
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distillery.config.check_roles import check_role
from distillery.config.names import NAME, teachers_of
from distillery.config.several_teachers import per_teacher
from distillery.config.stages import stages_of
from distillery.core.errors import UserError, did_you_mean
from distillery.core.paths import CONFIGS
from distillery.core.roles import EMA, FROZEN, SELF, SETTINGS, role_of
from distillery.models.timm_names import check_timm
from distillery.training.distiller import Optim
from distillery.training.schedules import schedules_in

SECTIONS = frozenset("data task teachers student loss objective optim trainer callbacks paths".split())
ROOT = SECTIONS | frozenset(
    "name method seed threads compile plan resume replace min_teacher_score logger stages ensemble".split()
)
NETWORK = SETTINGS[FROZEN]
INPUT = frozenset("mean std size".split())  # of a network of images
PREDICTIONS = frozenset("index target student".split())  # arrays of predictions.npz that are no teacher's
OPTIM = frozenset(field.name for field in fields(Optim))
INTERVALS = ("epoch", "step")
OBJECTIVE = frozenset("balance balance_steps".split())
TRAINER = frozenset(
    "logger callbacks default_root_dir use_distributed_sampler enable_model_summary enable_checkpointing".split()
)  # run.py's
MOST = 2**32 - 1  # NumPy takes no greater seed
HYDRA = frozenset("_target_ _partial_ _convert_ _recursive_ _args_".split())


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse keys that nothing reads (Hydra lets any through behind a `+`) and names that nothing answers to.

    Args:
        cfg: the composed config.
        overrides: the command line; a loss named twice there would silently count once.

    Raises:
        UserError: the key's full path and the nearest right name.
    """
    for override in overrides:
        _refuse_duplicates(override)
        _refuse_unchosen(override, cfg.loss)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError("These settings have no value yet: " + ", ".join(f"{key}=…" for key in missing))
    _refuse_unknown("", plain, ROOT)
    _refuse_no_settings(plain)
    _refuse_values(plain)
    if taken := sorted(PREDICTIONS & teachers_of(cfg).keys()):
        raise UserError(
            f"teachers.{taken[0]}: a teacher cannot be called so; predictions.npz has another {taken[0]!r}."
        )
    teachers = [f"teachers.{name}" for name in teachers_of(cfg)]
    for name in ("student", *teachers):
        network: Any = OmegaConf.to_container(OmegaConf.select(cfg, name), resolve=True)
        if name != "student":
            check_role(name.removeprefix("teachers."), network, plain["trainer"].get("precision"), overrides)
        if role_of(network) in (EMA, SELF):
            _refuse_unknown(name, network, NETWORK | SETTINGS[EMA] | {"role"})
            continue
        if "net" not in network:  # a misspelt name behind a `+`
            others = [other for other in teachers if "net" in OmegaConf.select(cfg, other)]
            raise UserError(
                f"{name} has no network.{did_you_mean(name, others)} One more teacher: +model/teacher@{name}=run"
            )
        _refuse_unknown(name, network, NETWORK | ({"role"} if name != "student" else {"initialise"}))
        _refuse_input(f"{name}.input", network["input"])
    _refuse_optim(plain["optim"])
    _refuse_objective(plain["objective"], plain["compile"])
    if plain["objective"].get("balance") and plain.get("stages"):
        raise UserError(
            "objective.balance=auto finds one weight for each loss, and stages have their own. Find them in runs of "
            "one stage (stages=none), and give them by hand: stages.<name>.loss.<loss>.weight"
        )
    _refuse_unknown("trainer", plain["trainer"], _parameters(L.Trainer))
    _refuse_sharded(plain)
    if own := sorted(TRAINER & plain["trainer"].keys()):
        raise UserError(f"trainer.{own[0]} is not yours to set: see `callbacks`, `logger` and `paths.run` instead.")
    losses = {path.stem for path in CONFIGS.glob("loss/*/*.yaml")}
    _refuse_unknown("loss", {name: loss for name, loss in plain["loss"].items() if "_target_" not in loss}, losses)
    plain["loss"] = {
        name: per_teacher(f"loss.{name}", loss)[0] if "_target_" in loss else loss
        for name, loss in plain["loss"].items()
    }
    for path, node in _targets(plain):
        _refuse_arguments(path, node)
    for path, node in [("task", plain["task"]), *((f"loss.{name}", loss) for name, loss in plain["loss"].items())]:
        if "_target_" in node:
            schedules_in(path, node, get_object(node["_target_"]))
    _refuse_ensemble(plain)
    if plain.get("stages"):
        _refuse_stopping(plain)
    for stage in stages_of(cfg) if plain.get("stages") else ():
        try:
            check(stage.cfg)
        except UserError as error:
            raise UserError(f"{stage.label}{error}") from None


def _refuse_values(plain: Mapping[str, Any]) -> None:
    for key in ("name", "method"):
        if not NAME.fullmatch(str(plain[key])):
            raise UserError(f"{key}={plain[key]}: folders are called by it; use letters, digits and . _ + - only.")
    for key, value, least in (
        ("seed", plain["seed"], 0),
        ("threads", 1 if plain["threads"] is None else plain["threads"], 1),
        ("trainer.max_epochs", plain["trainer"]["max_epochs"], -1),
    ):
        if type(value) is not int or not least <= value <= MOST:
            raise UserError(f"{key}={value}: it must be a whole number from {least} to {MOST}.")
    score = plain["min_teacher_score"]
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"min_teacher_score={score}: scores lie between 0 and 1; 0 asks for nothing.")


def _refuse_no_settings(plain: Mapping[str, Any]) -> None:
    """Something else where the config has settings: an option's name without its group, or null."""
    for section in sorted(SECTIONS):
        if not isinstance(value := plain.get(section), dict):
            group = {"student": "model/student", "teachers": "model/teacher"}.get(section, section)
            raise UserError(f"{section}={value}: here are settings, not a name. Choose an option with {group}=…")
    for name, loss in plain["loss"].items():
        if not isinstance(loss, dict):
            raise UserError(
                f"loss.{name}={loss}: here are settings. A loss is left out where it is chosen: loss/response=[]"
            )
    for name, teacher in plain["teachers"].items():
        if not isinstance(teacher, dict):
            raise UserError(
                f"teachers.{name}={teacher}: here are settings. model/teacher=none is the baseline without any teacher."
            )


def _refuse_optim(optim: Mapping[str, Any]) -> None:
    _refuse_unknown("optim", optim, OPTIM)
    if not isinstance(optimizer := optim.get("optimizer"), dict) or "_target_" not in optimizer:
        raise UserError(f"optim.optimizer={optimizer}: training wants one. Choose it with optim=sgd or optim=adamw.")
    rate = optimizer.get("lr", 0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
        raise UserError(f"optim.optimizer.lr={rate}: it must be a finite number, 0 or greater.")
    if not isinstance(decay := optim.get("decay_biases_and_norms", True), bool):
        raise UserError(f"optim.decay_biases_and_norms={decay}: it must be true or false.")
    if (interval := optim.get("interval", "epoch")) not in INTERVALS:
        raise UserError(f"optim.interval={interval}." + did_you_mean(str(interval), INTERVALS))


def _refuse_objective(objective: Mapping[str, Any], compiled: bool) -> None:
    _refuse_unknown("objective", objective, OBJECTIVE)
    if (balance := objective.get("balance")) not in (None, "auto"):
        raise UserError(f"objective.balance={balance}: choose auto, or null for the weights that are set.")
    if balance and compiled:
        raise UserError(
            "objective.balance=auto goes backward several times a step, and compiled networks cannot. Find the weights "
            "in a short run with compile=false, and give them by hand."
        )
    if type(steps := objective.get("balance_steps")) is not int or steps < 1:
        raise UserError(f"objective.balance_steps={steps}: it must be a whole number from 1 on.")


def _refuse_sharded(plain: Mapping[str, Any]) -> None:
    """What does not go with parameters that are shared out between the processes (hardware=fsdp2)."""
    strategy = plain["trainer"].get("strategy")
    if not isinstance(strategy, dict) or not str(strategy.get("_target_")).endswith(".FSDP2"):
        return
    moving = [name for name, teacher in plain["teachers"].items() if teacher and role_of(teacher) != FROZEN]
    if moving:
        raise UserError(f"hardware=fsdp2 takes frozen teachers only, and teachers.{moving[0]} moves. Use hardware=ddp.")
    if plain["objective"].get("balance"):
        raise UserError("objective.balance=auto goes backward several times a step, which hardware=fsdp2 cannot.")


def _refuse_ensemble(plain: Mapping[str, Any]) -> None:
    if (named := plain.get("ensemble")) is None:
        return
    earlier = [*plain.get("stages", {})][:-1]
    if not isinstance(named, list) or not named:
        raise UserError(f"ensemble={named}: give a list of stages whose students vote with the last one, as {earlier}.")
    for name in named:
        if name not in earlier:
            raise UserError(f"ensemble: there is no stage {name!r} before the last." + did_you_mean(str(name), earlier))


def _refuse_stopping(plain: Mapping[str, Any]) -> None:
    """What would end a run with stages in whichever stage it is."""
    if plain["trainer"].get("max_steps", -1) != -1:
        raise UserError("trainer.max_steps: stages have lengths of their own, stages.<name>.steps. Leave it at -1.")
    if plain["trainer"].get("fast_dev_run"):
        raise UserError(
            "trainer.fast_dev_run ends with the first batch, and so with the first stage. Use "
            "trainer.limit_train_batches=2, or debug=limit."
        )
    for name, callback in plain["callbacks"].items():
        if callback and str(callback.get("_target_")).endswith(".EarlyStopping"):
            raise UserError(
                f"callbacks.{name} would stop the run in whichever stage it is. A stage ends when a metric improves no "
                f"more with stages.<name>.until={{metric: val/score, patience: 3}}; set callbacks.{name}=null."
            )


def _refuse_input(path: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{path}={given}: give {{mean: null, std: null, size: null}} to take the data set's own.")
    if "tokenizer" in given:
        _refuse_unknown(path, given, {"tokenizer"})
        return
    _refuse_unknown(path, given, INPUT)
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        values = given.get(key)
        if not isinstance(values, list | None):
            raise UserError(f"{path}.{key}={values}: give a list with one number a channel, or null.")
        if not all(isinstance(value, int | float) and least < value < math.inf for value in values or ()):
            of = "numbers greater than 0: images are divided by it" if key == "std" else "finite numbers"
            raise UserError(f"{path}.{key}={values}: give {of}.")
    if not isinstance(given.get("size"), int | None):
        raise UserError(f"{path}.size={given['size']}: give a side length in whole pixels, or null.")


def _refuse_duplicates(override: str) -> None:
    group, _, options = override.partition("=")
    named = [option.strip() for option in options.strip("[]").split(",")]
    twice = [option for option in named if named.count(option) > 1]
    if group.startswith("loss/") and twice:
        name = twice[0]
        raise UserError(
            f"{override}: {name!r} is named twice. A second instance needs a name of its own: "
            f"+{group}@loss.{name}_b={name}"
        )


def _refuse_unchosen(override: str, losses: Mapping[str, Any]) -> None:
    """A setting of a loss that is not chosen, which an experiment has said something of: it would change nothing."""
    setting = re.match(r"\+*loss\.([^.=@]+)\.", override)
    loss = losses.get(setting[1]) if setting else None
    if setting and isinstance(loss, Mapping) and "_target_" not in loss:
        file = next(iter(CONFIGS.glob(f"loss/*/{setting[1]}.yaml")), None)
        mend = f" Choose it first: {file.parent.relative_to(CONFIGS)}=[{setting[1]}]" if file else ""
        raise UserError(f"{override}: the loss {setting[1]!r} is not chosen, so that this would change nothing.{mend}")


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that names a `_target_`, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _refuse_arguments(path: str, node: Mapping[str, Any]) -> None:
    try:
        target = get_object(node["_target_"])
        known = _parameters(target)
    except (HydraException, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"{path}._target_: cannot import {node['_target_']!r}: {error}") from error
    if node["_target_"] == "timm.create_model":
        check_timm(node.get("model_name", ""))
    if known is not None:
        _refuse_unknown(path, node, known | HYDRA)


def _parameters(target: Any) -> frozenset[str] | None:
    """The names of a callable's arguments; None if it takes any, or is a builtin that does not tell."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:
        return None
    names: set[str] = set()
    for parameter in parameters:
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.add(parameter.name)
        elif typing.get_origin(parameter.annotation) is typing.Unpack:  # of a TypedDict, which says the names
            names |= typing.get_args(parameter.annotation)[0].__annotations__.keys()
        else:
            return None
    return frozenset(names)


def _refuse_unknown(path: str, node: Mapping[str, Any], known: Set[str] | None) -> None:
    unknown = [str(key) for key in node if known is not None and key not in known]
    if unknown:
        key = unknown[0]
        full = f"{path}.{key}" if path else key
        raise UserError(f"Unknown setting {full!r}." + did_you_mean(key, (known or set()) - HYDRA))
