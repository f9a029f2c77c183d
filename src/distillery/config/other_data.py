"""Other data for the student of a run: the run's own config of the data, with some settings changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distillery.config.build import logits_shape
from distillery.config.instantiate import make
from distillery.config.targets import check_target
from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.models.taps.network import Network
from distillery.results.record import leaves
from distillery.tasks.task import Task

# What the run was trained on is not chosen again from other data: all samples of a split are scored.
OF_TRAINING: dict[str, Any] = {
    **dict.fromkeys(("train_size", "train_fraction", "train_index", "labelled_size", "labelled_share", "val_size")),
    "balanced": False,
}
FILES = ("test", "val")  # of a source: a run's own are not those of another `path`


def build_other_data(
    cfg: DictConfig, changed: Mapping[str, Any], classes: Sequence[str], student: Network, task: Task, held_out: bool
) -> Data:
    """The data, read and split, with the numbers that their classes have in the run.

    Args:
        cfg: the resolved config of the run.
        changed: the settings of `data` that are changed.
        classes: of the run.
        held_out: whether validation samples are cut from train, if the data have none of their own.

    Raises:
        UserError: an unknown setting, data that cannot be read, or that the student was not made for: other classes,
            another tokenizer, images or texts that it cannot read.
    """
    own: dict[str, Any] = OmegaConf.to_container(cfg.data)  # type: ignore[assignment]
    own |= {key: value for key, value in OF_TRAINING.items() if key in own}
    source = own["source"]
    if "soft_label" in source:
        source["soft_label"] = None
    given = dict(leaves(changed))
    for name in FILES:
        kept = source.get(name)
        if "source.path" in given and f"source.{name}" not in given and kept and Path(str(kept)).is_file():
            raise UserError(
                f"data.source.path={given['source.path']}: data.source.{name} would still be the run's {kept}. Set it, "
                "too, or set it to null; split=all then scores all rows of data.source.path."
            )
    node = OmegaConf.to_container(OmegaConf.merge(own, changed))
    data: Data = make("data", OmegaConf.create(check_target("data", node)))  # type: ignore[arg-type]
    data.prepare_data()
    if task.is_of_classes():
        data.raw = data.raw.with_classes(classes)
    if data.raw.val is None and data.val_size is None and not held_out:
        data.val_size = 0
    data.setup("fit")
    task.outputs(data)
    if task.needs_references:
        raise UserError(
            f"'{data.name}' has no classes, so the score would compare the student with its teacher, but other data "
            "are scored without the teacher. Give data with classes."
        )
    if data.kind == "texts":
        # transformers takes seconds: only for texts
        from distillery.config.check_texts import check_lengths, check_tokenizer

        check_tokenizer("student", cfg.student.input.tokenizer, data, task)
        check_lengths(student, data)
    batch = data.dataset("test")[next(iter(data.sampler("test")))]
    logits_shape(student, {key: value[:1].to(student.device) for key, value in batch.items()}, data.kind)
    return data
