"""`teachers.<name>.cache=<folder>`: teachers whose signals `distill-cache` has written."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import is_absent, is_cached
from distillery.config.teacher_classes import fit_classes
from distillery.core.errors import UserError, named
from distillery.data.module import Data
from distillery.tasks.task import Task
from distillery.teachers.cache import refuse_varying
from distillery.teachers.cache_format import differences
from distillery.teachers.cached_teacher import CachedTeacher
from distillery.teachers.check_disk_cache import rescored
from distillery.teachers.disk_cache import DiskCache
from distillery.teachers.frozen import Teacher

OF_TEACHER = ("teacher", "classes", "input")  # what its network is needed for
SETTINGS = {  # that can be as they were for the cache, by the names of what they change in its key
    "number of views (data.views)": "data.views",
    "seed of the views": "data.views_seed",
    "precision": "trainer.precision",
}


def signals_key(teacher: Teacher | None, cfg: DictConfig, data: Data, precision: str) -> dict[str, str]:
    """What the signals of a teacher for the training samples depend on, by what it is called in messages.

    Args:
        teacher: None: it is not there, and what depends on it is left out.
        cfg: its completed config.
        precision: `trainer.precision`.
    """
    own = cfg.get("input") or {}  # a server reads the data's tokens
    found = data.seen_by_teacher(own.get("tokenizer")) | {"precision": precision}
    if teacher is None:
        return found
    pictures = {"input": str(own)} if own and "tokenizer" not in own else {}
    return {"teacher": teacher.sha256, "classes": teacher.about_classes, **pictures, **found}


def refuse_several(name: str, cfg: DictConfig, data: Data, views: int | None = None) -> None:
    """Refuse to keep one set of signals for each sample where a sample has several.

    Args:
        views: see `refuse_varying`.
    """
    if cfg.get("bn_mode") == "train":
        raise UserError(
            f"teachers.{name}: with bn_mode=train the signals of an image depend on its batch, but a cache keeps one "
            "set of signals per image. Set bn_mode=eval or cache=false."
        )
    refuse_varying(data, f"teachers.{name}", views)


def cached_teachers(
    cfg: DictConfig, data: Data, task: Task, outputs: int | None, batch: Mapping[str, Tensor], loaded: LoadedTeachers
) -> dict[str, CachedTeacher]:
    """The teachers of a completed config that are read from disk, by name.

    Where `teachers.<name>.weights` is not null, the teacher itself is loaded once, to compute a random part again; it
    stays as `CachedTeacher.network` where layers are stored.

    Raises:
        UserError: a cache is torn, of another teacher or of other data, or does not agree with its teacher.
    """
    return {
        str(name): _cached(str(name), teacher, cfg, data, task, outputs, batch, loaded)
        for name, teacher in cfg.teachers.items()
        if is_cached(teacher)
    }


def _cached(
    name: str,
    own: DictConfig,
    cfg: DictConfig,
    data: Data,
    task: Task,
    outputs: int | None,
    batch: Mapping[str, Tensor],
    loaded: LoadedTeachers,
) -> CachedTeacher:
    setting = f"teachers.{name}.cache"
    try:
        cache = DiskCache(Path(own.cache))
    except UserError as error:
        raise named(setting, error) from None
    refuse_several(name, own, data, cache.contents.views)
    teacher = None
    if not is_absent(own):
        teacher = loaded.load(own, name, data=data)
        fit_classes(teacher, own, data, task, outputs, teacher.shapes(batch).logits, batch)
    here, there = signals_key(teacher, own, data, str(cfg.trainer.precision)), cache.contents.key
    unknown = {} if teacher is not None else {what: there[what] for what in OF_TEACHER if what in there}
    if differ := differences(there, here | unknown):
        if teacher is not None and "teacher" in differ:  # hashes tell nothing
            sources = cache.contents.teacher["source"], teacher.source
            differ["teacher"] = (
                f"{teacher.source} with other weights or another teachers.{name}.precision"
                if len({*sources}) == 1
                else f"{sources[0]} there, {sources[1]} here"
            )
        told = " and another ".join(f"{what}{value and f' ({value})'}" for what, value in differ.items())
        as_there = [f"{SETTINGS[what]}={there[what]}" for what in differ if what in SETTINGS and what in there]
        alike = f"Set {' '.join(as_there)} as there, or write" if len(as_there) == len(differ) else "Write"
        raise UserError(
            f"{setting}={own.cache} was written for another {told}. {alike} a cache for this run: distill-cache with "
            "its settings and another out=<folder>."
        )
    index = data.splits["train"].indices
    absent = int((cache.layout.numbers(index.numpy()) < 0).sum())
    if absent:
        raise UserError(
            f"{setting}={own.cache} has no signals of {absent:,} of the {len(index):,} training samples. Write a cache "
            "of all samples: distill-cache without data.train_size and similar settings; or set data.subset_seed=0 in "
            "both, which draws the same samples whatever the seed."
        )
    cached = CachedTeacher(cache, name)
    try:
        cached.remarks.append(rescored(cache, data, task, teacher, cfg.seed))
    except UserError as error:
        raise named(f"{setting}={own.cache}", error) from None
    if teacher is not None and cache.contents.layers:
        cached.network = teacher
        teacher.remarks += cached.remarks
    elif teacher is not None:
        loaded.forget(teacher)
    return cached
