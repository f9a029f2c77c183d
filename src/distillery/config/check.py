"""Refuses a config before anything is built: unknown settings, values of another type, contradictions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import lightning as L
from annotated_types import Ge, Gt, Lt
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import NonNegativeInt, PositiveInt

from distillery.config.candidates import PRECISION, candidates, first_values, with_values
from distillery.config.check_cuda import refuse_graphs, refuse_stream
from distillery.config.check_networks import check_student, check_teachers, refuse_sixteen
from distillery.config.check_placement import refuse_placements
from distillery.config.check_strategy import refuse_strategy
from distillery.config.command_line import expand_home
from distillery.config.names import losses_of, teachers_of
from distillery.config.optim import LENGTHS, SHARES, not_taken, remove_leftovers
from distillery.config.precision import native_precision
from distillery.config.several_teachers import COMBINE, per_teacher
from distillery.config.spec import (
    LrScale,
    ObjectiveSettings,
    OptimSettings,
    Paths,
    Run,
    Target,
    TrainerSettings,
    check_section,
    has_budget,
    kinds,
)
from distillery.config.stages import RunSpec, Schedules, Stage, merged, stages_of
from distillery.config.targets import Kinds, check_settings, check_target, imported, parameters, refuse_unknown
from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import Says, conform, shown
from distillery.core.paths import CONFIGS
from distillery.results.record import leaves
from distillery.training.logged_metrics import CHECKPOINTS
from distillery.training.schedules import schedules_in

SECTIONS = (
    "data task student teachers loss objective rollouts optim trainer callbacks logger paths stages target".split()
)
OPTIONAL = ("stages", "rollouts", "logger", "target")  # `logger=[]` leaves none
FROM_RUN = frozenset(
    "logger callbacks default_root_dir use_distributed_sampler enable_model_summary enable_checkpointing".split()
)  # arguments of the Trainer that run.py gives
LEARNING_RATE = Annotated[float, Ge(0), Lt(float("inf")), Says("a finite number of at least 0")]
SHARE = Annotated[
    NonNegativeInt | Annotated[float, Gt(0), Lt(1)],
    Says("a whole number of steps, or a share of the run greater than 0 and less than 1"),
]
SCHEDULER = {**dict.fromkeys(LENGTHS, PositiveInt | None), **dict.fromkeys(SHARES, SHARE)}
CHECKPOINT = {
    "mode": Literal["min", "max"],
    "every_n_epochs": NonNegativeInt | None,
    "every_n_train_steps": NonNegativeInt | None,
    "save_top_k": Annotated[int, Ge(-1)],
}  # arguments of a ModelCheckpoint
TEACHER = Annotated[str | list[str], Says("the name of a teacher, or a list of names")]


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> RunSpec:
    """Refuse unknown settings (Hydra lets any through behind a `+`), values of another type, and contradictions.

    Args:
        cfg: the composed config; it is not changed.
        overrides: the command line; a loss named twice there would silently count once.

    Returns:
        The config and its stages. A value that can mean one thing only is replaced by it: 25.0 by 25 where a whole
        number is wanted. The config of a stage holds only what the stage uses: the chosen teachers with the settings
        that their roles read, and the chosen losses.

    Raises:
        UserError: with the setting's full path, the nearest right name, and how to fix it.
    """
    composed = expand_home(cfg)
    remove_leftovers(composed, overrides)
    open_settings = candidates(composed)
    cfg = with_values(composed, first_values(open_settings))
    checked, parsed = _checked(cfg, overrides)
    for precision in open_settings.get(PRECISION, ()):
        _trainer({**checked["trainer"], "precision": precision})
    if not checked.get("stages"):
        own = OmegaConf.create(checked)
        return RunSpec(own, [Stage("", own, seed=own.seed, **parsed)], open_settings, composed)
    _refuse_stopping(checked)
    whole = merged(OmegaConf.to_container(cfg, resolve=True), checked)  # stages may use more of it than the run itself
    stages = [check_stage(stage) for stage in stages_of(cfg)]
    return RunSpec(OmegaConf.create(whole), stages, open_settings, composed)


def decided(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """The same run with these values of settings, by their paths; those that are still open have their first.

    Raises:
        UserError: see `check`.
    """
    assert spec.composed is not None
    return check(with_values(spec.composed, {**first_values(spec.open), **values}))


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse settings whose value is `???`.

    Raises:
        UserError: names all of them.
    """
    given = leaves(OmegaConf.to_container(cfg, resolve=False))  # what refers to them would fail
    if missing := sorted(key for key, value in given if value == MISSING):
        raise UserError("These settings have no value yet: " + ", ".join(f"{key}=…" for key in missing))


def check_stage(stage: Stage) -> Stage:
    """The stage with its config checked."""
    with stage.named_in_errors():
        checked, parsed = _checked(stage.cfg)
    return replace(stage, cfg=OmegaConf.create(checked), **parsed)


def _checked(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved config, and what was parsed of the task and the losses: `schedules`, `per_teacher` of a `Stage`."""
    refuse_missing(cfg)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    refuse_unknown("", plain, [*kinds(Run), *SECTIONS])
    _refuse_no_mapping(plain)
    for override in overrides:
        _refuse_duplicates(override)
        _refuse_unchosen(override, cfg.loss)
        if re.match(r"\+*rollouts\.", override) and "_target_" not in (plain.get("rollouts") or {}):
            raise UserError(f"{override}: there are no rollouts, so this would change nothing. Set rollouts=on_policy.")
        if override.startswith("target.format=") and not has_budget(plain.get("target")):
            raise UserError(
                f"{override}: without a budget this changes nothing. Set target.size_mb or target.latency_ms."
            )
    words = {key: value for key, value in plain.items() if key not in SECTIONS}
    checked = plain | check_settings("", words, kinds(Run))
    checked["trainer"] = _trainer(plain["trainer"])
    checked["student"] = check_student(plain["student"])
    chosen = bool(teachers_of(cfg))
    checked["teachers"] = check_teachers(plain["teachers"], checked["trainer"].get("precision"), overrides, chosen)
    checked["optim"] = _optim(plain["optim"])
    checked["objective"] = check_section("objective", plain["objective"], ObjectiveSettings)
    checked["target"] = check_section("target", plain.get("target") or {}, Target)
    checked["paths"] = check_section("paths", plain["paths"], Paths)
    losses = {name: _loss(name, node) for name, node in plain["loss"].items()}
    checked["loss"] = {name: losses[name][0] for name in losses_of(cfg)}
    schedules = {f"loss.{name}": losses[name][1] for name in checked["loss"]}
    taught = {name: losses[name][2] for name in checked["loss"]}
    checked["task"], schedules["task"] = _scheduled("task", plain["task"])
    best = imported("task._target_", plain["task"]["_target_"]).score_range[1]  # type: ignore[attr-defined]
    if checked["min_teacher_score"] > best:
        given = shown(checked["min_teacher_score"])
        raise UserError(f"min_teacher_score={given}: it must be a score between 0 and {best:g}; 0 accepts any teacher.")
    checked["rollouts"], schedules["rollouts"] = _rollouts(plain.get("rollouts"))
    checked["data"] = check_target("data", plain["data"])
    _refuse_averaging(plain["callbacks"])
    for section in ("callbacks", "logger"):
        nodes = plain.get(section) or {}
        checked[section] = {name: _optional(f"{section}.{name}", node) for name, node in nodes.items()}
    if checked["optim"].get("ema") is not None:
        refuse_sixteen("optim.ema", checked["trainer"].get("precision"))
    _refuse_balanced(checked)
    _refuse_clipped(checked)
    refuse_strategy(checked)
    refuse_placements(checked)
    refuse_graphs(checked)
    refuse_stream(checked)
    _refuse_ensemble(checked)
    return checked, {"schedules": schedules, "per_teacher": taught}


def _refuse_no_mapping(plain: Mapping[str, Any]) -> None:
    """Refuse a section that is no mapping: an option's name without its group, or null."""
    for section in SECTIONS:
        if section in OPTIONAL and plain.get(section) is None:
            continue
        if not isinstance(value := plain.get(section), Mapping):
            group = {"student": "model/student", "teachers": "model/teacher"}.get(section, section)
            raise UserError(f"{section}={shown(value)}: it must be a mapping. Choose an option with {group}=…")
    for section in ("data", "task"):
        if "_target_" not in plain[section]:
            raise UserError(f"{section} has no _target_. Choose an option with {section}=…")


def _trainer(node: Mapping[str, Any]) -> dict[str, Any]:
    if own := sorted(FROM_RUN & node.keys()):
        raise UserError(f"trainer.{own[0]} is set by the run: see `callbacks`, `logger` and `paths.run` instead.")
    arguments, _ = parameters(L.Trainer)
    known = {**arguments, **kinds(TrainerSettings), "precision": Literal["auto"] | arguments["precision"]}
    refuse_unknown("trainer", node, known)
    if node.get("precision") == "auto":
        node = {**node, "precision": native_precision(str(node.get("accelerator", "auto")))}
    checked = check_settings("trainer", node, known)
    devices = checked.get("devices", "auto")
    if checked.get("accelerator") == "cpu" and not (devices == "auto" or str(devices).isdigit()):
        raise UserError(f"trainer.devices={shown(devices)}: on CPUs it must be a number of processes of at least 1.")
    return checked


def _optim(node: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in node.items() if key not in ("optimizer", "scheduler")}
    checked = {**node, **check_section("optim", rest, OptimSettings)}
    if "lr_scale" in checked:
        checked["lr_scale"] = check_section("optim.lr_scale", checked["lr_scale"], LrScale)
    optimizer, scheduler = node.get("optimizer"), node.get("scheduler")
    if not isinstance(optimizer, Mapping) or "_target_" not in optimizer:
        given = shown(optimizer)
        raise UserError(f"optim.optimizer={given}: training needs one. Choose it with optim=sgd or optim=adamw.")
    checked["optimizer"] = _exchangeable("optim.optimizer", optimizer, {"lr": LEARNING_RATE})
    if scheduler is not None:
        checked["scheduler"] = _exchangeable("optim.scheduler", _with_target("optim.scheduler", scheduler), SCHEDULER)
    return checked


def _exchangeable(path: str, node: Mapping[str, Any], kinds: Kinds | None = None) -> dict[str, Any]:
    """A node whose target may have been exchanged in a file, where Hydra keeps the settings of the former one."""
    try:
        return check_target(path, node, kinds)
    except UserError as error:
        if remove := " ".join(f"~{path}.{key}" for key in not_taken(path, node)):
            raise UserError(f"{error} To remove what was set for another target: {remove}") from None
        raise


def _loss(name: str, node: Any) -> tuple[Any, Schedules, list[dict[str, Any]]]:
    path = f"loss.{name}"
    if not isinstance(node, Mapping):
        raise UserError(
            f"{path}={shown(node)}: it must be a mapping. To leave a loss out, do not choose it: loss/response=[]"
        )
    if "_target_" not in node:  # an experiment's settings for a loss that is not chosen
        refuse_unknown("loss", [name], [file.stem for file in CONFIGS.glob("loss/*/*.yaml")])
        return node, {}, []
    teacher = conform(f"{path}.teacher", node.get("teacher", "main"), TEACHER)
    each = per_teacher(path, {**node, "teacher": teacher})
    shared = {key: value for key, value in node.items() if key != COMBINE}
    (own, schedules), *_ = [_scheduled(path, {**shared, **choice}) for choice in each]
    given = {"teacher": teacher, **{key: node[key] for key in ("layers", COMBINE) if key in node}}
    return {key: given.get(key, own.get(key)) for key in node}, schedules, each


def _scheduled(path: str, node: Mapping[str, Any]) -> tuple[dict[str, Any], Schedules]:
    """A node whose numbers may have schedules, checked, and these schedules."""
    schedules = schedules_in(path, node, imported(f"{path}._target_", node["_target_"]))
    fixed = {key: value for key, value in node.items() if key not in schedules}
    return {**node, **check_target(path, fixed)}, schedules


def _rollouts(node: Any) -> tuple[dict[str, Any] | None, Schedules]:
    """None, also for an experiment's settings of rollouts that are not chosen."""
    if node is None or (isinstance(node, Mapping) and "_target_" not in node):
        return None, {}
    return _scheduled("rollouts", _with_target("rollouts", node))


def _optional(path: str, node: Any) -> Any:
    if node is None:
        return None
    node = _with_target(path, node)
    return check_target(path, node, CHECKPOINT if node["_target_"].endswith(CHECKPOINTS) else {})


def _with_target(path: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{path}={shown(node)}: it must be a mapping with a _target_, or null to leave it out.")
    return node


def _refuse_averaging(callbacks: Mapping[str, Any]) -> None:
    """Refuse Lightning's averages: they take in teachers, projectors and memory banks, and end with a stage."""
    for name, node in callbacks.items():
        if isinstance(node, Mapping) and str(node.get("_target_")).endswith(
            (".WeightAveraging", ".EMAWeightAveraging")
        ):
            raise UserError(
                f"callbacks.{name} averages teachers and losses with the student, and its checkpoints hold two "
                "students. Use optim.ema=0.999."
            )


def _refuse_balanced(plain: Mapping[str, Any]) -> None:
    """Refuse what objective.balance=auto, which searches for the weights, cannot work with."""
    if not plain["objective"].get("balance"):
        return
    if plain["compile"]:
        raise UserError(
            "objective.balance=auto goes backward several times a step, and compiled networks cannot. Find the weights "
            "in a short run with compile=false, and give them by hand."
        )
    if plain.get("stages"):
        raise UserError(
            "objective.balance=auto finds one weight for each loss, and stages have their own. Find them in runs of "
            "one stage (stages=none), and give them by hand: stages.<name>.loss.<loss>.weight"
        )


def _refuse_clipped(plain: Mapping[str, Any]) -> None:
    """Refuse clipped gradients of a fused optimizer in mixed precision: Lightning fails there in the first step."""
    trainer, optimizer = plain["trainer"], plain["optim"]["optimizer"]
    precision, clipped = str(trainer.get("precision")), trainer.get("gradient_clip_val")
    if clipped and optimizer.get("fused") and precision.endswith("-mixed"):
        raise UserError(
            f"trainer.gradient_clip_val={clipped}: with trainer.precision={precision} Lightning clips no gradients of "
            "a fused optimizer. Set optim.optimizer.fused=false."
        )


def _refuse_ensemble(plain: Mapping[str, Any]) -> None:
    earlier = [*(plain.get("stages") or {})][:-1]
    for name in plain.get("ensemble") or ():
        if name not in earlier:
            raise UserError(f"ensemble: there is no stage {name!r} before the last." + did_you_mean(name, earlier))


def _refuse_stopping(plain: Mapping[str, Any]) -> None:
    """Refuse settings that would end a run with stages in the middle of a stage."""
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
    """Refuse a setting of a loss that only an experiment mentions and nobody has chosen: it would change nothing."""
    setting = re.match(r"\+*loss\.([^.=@]+)\.", override)
    loss = losses.get(setting[1]) if setting else None
    if setting and isinstance(loss, Mapping) and "_target_" not in loss:
        file = next(iter(CONFIGS.glob(f"loss/*/{setting[1]}.yaml")), None)
        fix = f" Choose it first: {file.parent.relative_to(CONFIGS)}=[{setting[1]}]" if file else ""
        raise UserError(f"{override}: the loss {setting[1]!r} is not chosen, so this would change nothing.{fix}")
