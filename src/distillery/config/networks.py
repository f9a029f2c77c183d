"""Config → networks: the student and the teachers, with their weights and input adapters."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from distillery.core.errors import UserError, named
from distillery.core.offline import read_cache_if_offline, why_offline
from distillery.core.paths import CONFIGS
from distillery.core.roles import EMA, FROZEN, PEER, SERVED, role_of
from distillery.data.module import Data
from distillery.models.adapters import Adapter, ImageAdapter, TextAdapter
from distillery.models.qat import Scheme, simulate
from distillery.models.taps.network import Network
from distillery.models.weight_files import is_weights_file
from distillery.models.weights import Loaded, OtherHead, load_weights
from distillery.results.layout import CONFIG, RECORD, STUDENT
from distillery.results.record import RunRecord
from distillery.tasks.task import Task
from distillery.teachers.ema import EMATeacher
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer

OF_TRANSFORMERS = tuple(  # networks for images
    f"distillery.models.{module}." for module in ("hf_vision", "hf_segmentation", "clip_zero_shot")
)
MEASURED = 64  # samples on which the effect of a lower precision is measured
TOKENIZER = "tokenizer"  # a setting of `input` that only networks for texts have


def complete(cfg: DictConfig, data: Data, task: Task, name: str) -> DictConfig:
    """The network's config with every open setting filled in, so that it rebuilds the network without the data.

    Statistics, channels, tokenizer and vocabulary come from the data set, the number of outputs from the task. If
    `net` is null and `weights` is a run folder or a checkpoint of a run, network and input are those of that run's
    student.

    Raises:
        UserError: the network is neither configured nor found in a run folder, or is for images where the data are
            texts.
    """
    cfg = cfg.copy()
    OmegaConf.resolve(cfg)  # now, as a baseline leaves out the teachers that settings may refer to
    with open_dict(cfg):
        if cfg.net is None and cfg.weights is None:
            raise UserError(f"The {name} network is taken from a run folder: set {setting_of(name)}.weights to one.")
        if cfg.net is None:
            folder = run_folder_of(cfg.weights)
            # the run of a checkpoint need not be finished
            read = trained_config if folder == cfg.weights else run_config
            own = read(folder, f"{setting_of(name)}.weights").student
            cfg.net = own.net
            cfg.input = OmegaConf.merge(own.input, {k: v for k, v in cfg.input.items() if v is not None})
        if (Path(str(cfg.net.get("model", ""))) / CONFIG).is_file():
            _take_network(cfg, name)
        _complete_input(cfg, data, name)
        if "classes" in cfg.net:  # they are the teacher's texts
            cfg.net.classes = cfg.net.classes or list(data.classes)
            return cfg
        # a pretrained teacher keeps its head, since a new one would be untrained, and any network its padded vocabulary
        keeps = task.padded_outputs or (name != "student" and task.is_of_classes())
        if (cfg.weights != "pretrained" or not keeps) and "num_classes" not in cfg.net:
            cfg.net.num_classes = _outputs(cfg, data, task, name)
        if cfg.net.get("head", task.head) is None:
            cfg.net.head = task.head
        if cfg.net.get("head") == "sequence_classification" and "model" in cfg.net:
            _complete_padding(cfg, name)
        if cfg.net.get("head") == "causal_lm" and cfg.weights is None:
            _complete_special_tokens(cfg)
    return cfg


def _outputs(cfg: DictConfig, data: Data, task: Task, name: str) -> int | None:
    """The number of outputs that a task asks for; of networks for images without classes 0, their features."""
    number = task.outputs(data)
    if number is not None or data.kind == "texts":
        return number
    if not {"model", "model_name"} & cfg.net.keys():  # not of timm or transformers, which give features for 0
        raise UserError(
            f"{setting_of(name)}.net: this task leaves the width of the vectors open. Say how many dimensions they "
            f"have: +{setting_of(name)}.net.num_classes=64"
        )
    return 0


def _take_network(cfg: DictConfig, name: str) -> None:
    """In place of a run folder as `net.model`: the model and the settings of its student, but for those given here."""
    own = run_config(cfg.net.model, f"{setting_of(name)}.net.model").student
    if "model" not in own.net:
        raise UserError(f"{setting_of(name)}.net.model: the student of {cfg.net.model} is no transformer.")
    given = {key: value for key, value in cfg.net.items() if key != "model" and value is not None}
    cfg.net = OmegaConf.merge(own.net, given)


def _complete_padding(cfg: DictConfig, name: str) -> None:
    """Name the padding token to a causal model that has none: it classifies by the last token before the padding."""
    # transformers takes seconds: only for texts
    from distillery.data.tokenizers import load_tokenizer, padding_token
    from distillery.models.text.transformer import transformer_config

    settings = {key: cfg.net.get(key) for key in ("model", "head", "num_classes", "config")}
    try:
        made = transformer_config(**OmegaConf.to_container(OmegaConf.create(settings)))  # type: ignore[arg-type]
    except UserError as error:
        raise named(f"{setting_of(name)}.net", error) from None
    if made.pad_token_id is None:
        token = padding_token(load_tokenizer(cfg.input.tokenizer, "input.tokenizer"))
        cfg.net.config = {**(cfg.net.get("config") or {}), "pad_token_id": token}


def _complete_special_tokens(cfg: DictConfig) -> None:
    """Name the tokenizer's special tokens to a new causal model, whose defaults are those of another vocabulary.

    A padding token is none to it: the row of that token in its table of embeddings would never be trained, and the
    token may be the end of text, too.
    """
    # transformers takes seconds: only for texts
    from distillery.core.hub import is_type
    from distillery.data.tokenizers import load_tokenizer

    if not is_type(cfg.net.get("model", "")):
        return
    tokenizer = load_tokenizer(cfg.input.tokenizer, "input.tokenizer")
    own = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    cfg.net.config = {**own, **(cfg.net.get("config") or {})}


def _complete_input(cfg: DictConfig, data: Data, name: str) -> None:
    wanted = "texts" if TOKENIZER in cfg.input else "images"
    if wanted != data.kind:
        raise UserError(
            f"The {name} network reads {wanted}, but the data set '{data.name}' has {data.kind}. Choose another "
            f"{'model/student' if name == 'student' else 'model/teacher'} or another data set."
        )
    if wanted == "texts" and cfg.weights == "pretrained":
        cfg.input.tokenizer = cfg.input.tokenizer or cfg.net.model  # its own, which is compared with the data's
    if str(cfg.net._target_).startswith(OF_TRANSFORMERS):
        from distillery.models.hf_vision import image_input  # transformers takes seconds: only where it is asked for

        try:
            settings: Any = OmegaConf.to_container(OmegaConf.create(cfg.net.get("config") or {}))  # of plain lists
            own = image_input(cfg.net.model, settings, trained=cfg.weights is not None)
        except UserError as error:
            raise named(f"{setting_of(name)}.net", error) from None
        for key, value in own.items():
            cfg.input[key] = cfg.input[key] or value
    for key, value in data.input.items():
        cfg.input[key] = cfg.input[key] or value
    if wanted == "images":
        cfg.net.setdefault("in_chans", len(cfg.input.mean))
        return
    if cfg.net.get("vocab_size", 0) is None:
        cfg.net.vocab_size = data.vocab_size
    if "config" in cfg.net and cfg.net.config.get("vocab_size", 0) is None:
        cfg.net.config.vocab_size = data.vocab_size


def is_cached(cfg: DictConfig) -> bool:
    """Whether the signals of the teacher of this config are read from disk."""
    return role_of(cfg) in (FROZEN, SERVED) and isinstance(cfg.get("cache"), str)


def is_absent(cfg: DictConfig) -> bool:
    """Whether the signals of a teacher are read from disk, and its network is not there, or not asked."""
    return is_cached(cfg) and cfg.get("weights") is None


def complete_teacher(cfg: DictConfig, data: Data, task: Task, name: str, student: DictConfig) -> DictConfig:
    """`complete` for a teacher of any role.

    Args:
        student: the completed config of the student.
    """
    role = role_of(cfg)
    if is_absent(cfg):
        return cfg
    if role == FROZEN:
        return complete(cfg, data, task, name)
    if role != PEER:
        return cfg
    own = cfg.copy()
    own.weights = None
    if "_target_" not in (own.net or {}):  # what is left of an experiment's teacher describes no network
        own.net, own.input = student.net, student.input
        return own
    return complete(own, data, task, name)


def build_moving(cfg: DictConfig, name: str, student: Network) -> Network:
    """The teacher of a completed config whose role is `ema`, `peer` or `self`; the last one is the student itself."""
    if role_of(cfg) == EMA:
        return EMATeacher(student, name, cfg.decay)
    if role_of(cfg) == PEER:
        net = built(cfg, name)
        return Peer(net, adapter(cfg, net), name=name)
    return student


def build_teacher(cfg: DictConfig, name: str, data: Data | None = None) -> Teacher:
    """The frozen teacher of a completed config. A run calls it through `LoadedTeachers`.

    Args:
        data: of the run; the effect of its `precision` is measured on a few samples.

    Raises:
        UserError: there are no weights, or some are newly initialised: such a teacher has nothing to teach.
    """
    if cfg.weights is None:
        raise UserError(
            f"Teacher {name!r} would be newly initialised: teachers.{name}.weights is null. Set it to 'pretrained' "
            "(weights of timm or transformers), a .safetensors or .pth file, or the folder of a run that trained the "
            "teacher. For the baseline, choose model/teacher=none."
        )
    net = initialised(cfg, name)
    stored, remarks = fill(net, cfg, name)
    if scheme := _trained_as(str(cfg.weights)):
        remarks = [*remarks, simulate(net, scheme)]
    trained, made = ((getattr(net, "pretrained_cfg", None) or {}).get("num_classes"), getattr(net, "num_classes", 0))
    if cfg.weights == "pretrained" and trained is not None and made and made != trained:
        raise UserError(
            f"Teacher {name!r}: teachers.{name}.net.num_classes={made} would give it a new, random classifier, as "
            f"{cfg.net.model_name} has {trained} classes. Leave num_classes out; 0 gives its features."
        )
    if cfg.weights == "pretrained" and (new := getattr(net, "new_weights", None)):
        raise UserError(
            f"Teacher {name!r}: {cfg.net.model} has no weights for {new[0]!r}, which would be newly initialised. Train "
            f"it on the task first, as a student with weights=pretrained, and name its run: model/teacher=run "
            f"teachers.{name}.weights=<run folder>"
        )
    teacher = Teacher(net, adapter(cfg, net), name, source=str(cfg.weights), bn_mode=cfg.bn_mode, stored=stored or None)
    teacher.remarks += [*remarks, *other_statistics(cfg, net)]
    if cfg.get("precision"):
        try:
            teacher.lower(cfg.precision, None if data is None else data.example(MEASURED))
        except UserError as error:
            raise named(f"teachers.{name}", error) from None
    teacher.placement = cfg.get("placement")
    return teacher


def _trained_as(weights: str) -> Scheme | None:
    """`student.qat` of the run that weights are of, without which they are those of another network."""
    config = Path(run_folder_of(weights)) / CONFIG
    return OmegaConf.load(config).student.get("qat") if config.is_file() else None


def other_statistics(cfg: DictConfig, net: nn.Module) -> list[str]:
    """A remark where timm's pretrained weights are given images of other statistics than they were trained on."""
    own = getattr(net, "pretrained_cfg", None) or {}
    differ = [key for key in ("mean", "std") if key in own and [*map(float, own[key])] != [*map(float, cfg.input[key])]]
    if cfg.weights != "pretrained" or not differ:
        return []
    given, theirs = (
        {key: [round(float(each), 4) for each in source[key]] for key in differ} for source in (cfg.input, own)
    )
    return [f"its images are normalised by {given}, and its weights were trained with {theirs}: see its `input`"]


def setting_of(name: str) -> str:
    """The path of a network's settings in the config."""
    return name if name.startswith("student") else f"teachers.{name}"  # student.initialise.source has one, too


def run_folder_of(weights: str) -> str:
    """The run folder of weights that are one, or a checkpoint in one, `<run>/checkpoints/<file>`."""
    path = Path(weights)
    return str(path.parents[1]) if path.is_file() and len(path.parents) > 1 else weights


def run_config(folder: str, setting: str) -> DictConfig:
    """The resolved config of the run in `folder`.

    Args:
        setting: the path of the setting that names the folder, for errors.

    Raises:
        UserError: there is no run.
    """
    path = Path(folder)
    if is_weights_file(path):
        raise UserError(
            f"{setting}: there is no file {folder}."
            + (" With callbacks=route a run keeps intermediate checkpoints." if path.suffix == ".ckpt" else "")
        )
    if not (path / CONFIG).is_file():
        files = sorted((CONFIGS / "study").glob("*.yaml"))
        names = {OmegaConf.select(OmegaConf.load(file), "name"): file.stem for file in files}
        study = next((names[part] for part in path.parts if part in names), None)
        raise UserError(
            f"{setting}: {folder!r} is not a run folder: there is no {CONFIG} in it. Name another folder, or train the "
            "network first" + (f": distill-study study={study}." if study else ".")
        )
    return OmegaConf.load(path / CONFIG)  # type: ignore[return-value]


def trained_config(folder: str, setting: str) -> DictConfig:
    """`run_config` of a run whose student will be used.

    Raises:
        UserError: the run is not finished, so its student is not trained yet.
    """
    cfg = run_config(folder, setting)
    if (Path(folder) / RECORD).is_file() and (status := RunRecord.read(Path(folder)).status) != "finished":
        raise UserError(
            f"{setting}: the run in {folder!r} is {status}, not finished. Resume it with "
            f"distill-train resume={folder}, or name another run."
        )
    return cfg


def adapter(cfg: DictConfig, net: nn.Module) -> Adapter:
    """The adapter that makes the inputs of `net`, the network of a completed config, from a batch."""
    if TOKENIZER in cfg.input:
        return TextAdapter(net, cfg.input.tokenizer)
    return ImageAdapter(list(cfg.input.mean), list(cfg.input.std), cfg.input.size)


def built(cfg: DictConfig, name: str, **parts: Any) -> Any:
    """The network with its weights; `parts` are parts of it that exist already, by the names of their settings."""
    net = initialised(cfg, name, **parts)
    fill(net, cfg, name)
    return net


def fill(net: nn.Module, cfg: DictConfig, name: str) -> Loaded:
    """Load the weights of a run folder or a file; nothing where `weights` names neither."""
    if cfg.weights in (None, "pretrained"):
        return Loaded({}, [])
    source = Path(cfg.weights)
    try:
        return load_weights(net, source / STUDENT if source.is_dir() else source, bool(cfg.get("new_head")))
    except OtherHead as error:
        mend = (
            "To fine-tune it: student.new_head=true."
            if name == "student"
            else f"Fine-tune it on your classes first, as a student (student.weights={source} student.new_head=true), "
            f"or set teachers.{name}.net.num_classes to the file's (0: none), and use losses on layers."
        )
        raise UserError(f"{setting_of(name)}.weights: {error} {mend}") from error
    except UserError as error:
        raise UserError(f"{setting_of(name)}.weights: {error}") from error


def initialised(cfg: DictConfig, name: str, **parts: Any) -> Any:
    """The network with new or pretrained weights, see `built`."""
    pretrained = {"pretrained": True} if cfg.weights == "pretrained" else {}
    if pretrained and TOKENIZER not in cfg.input:  # a transformer asks by itself, and only for a name on the hub
        read_cache_if_offline()
    try:
        return instantiate(cfg.net, **pretrained, **parts)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise named(f"{setting_of(name)}.net", cause) from None
        if pretrained and "'pretrained'" in str(cause):
            raise UserError(
                f"{setting_of(name)}.weights=pretrained: {cfg.net._target_} has no pretrained weights. Give a file or "
                "a run folder, or null for a student from scratch."
            ) from error
        if pretrained:
            raise UserError(
                f"The pretrained weights of the {name} network could not be fetched: {cause}\n"
                f"If they are not in the cache: {why_offline()}, or give a file: weights=path/to/model.safetensors"
            ) from error
        raise UserError(
            f"{setting_of(name)}.net: {cfg.net._target_} cannot be made with these settings: {cause}"
        ) from error
