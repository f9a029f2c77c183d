"""Pictures and texts that are in no data set, served as a run's data are in evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from distillery.config.other_data import OF_TRAINING
from distillery.data.images import EncodedImages
from distillery.data.module import Data
from distillery.data.raw_data import Texts
from distillery.data.unseen import Unseen, unseen_pictures, unseen_texts
from distillery.tasks.task import Task


def build_unseen(cfg: DictConfig, task: Task, classes: Sequence[str], given: Sequence[str]) -> tuple[Data, Unseen]:
    """The samples in these files, as the data of a run whose test split they are.

    The data set of the run is read only where its images are held in memory: their size is not in the config.

    Args:
        cfg: the resolved config of the run.
        classes: of the run.
        given: files, folders and patterns.
    """
    source = cfg.data.source
    if get_class(cfg.data._target_).kind == "texts":  # type: ignore[attr-defined]
        if task.rows_are == "spans":
            found = _questions(unseen_texts(given, {"text": "question", "second": "context"}, words=False))
        else:
            own: dict[str, Any] = OmegaConf.to_container(source)  # type: ignore[assignment]
            found = unseen_texts(given, own, task.rows_are == "tokens")
    else:
        shape = None if "size" in source else instantiate(cfg.data).raw.train.inputs.shape
        found = unseen_pictures(given, shape, source.get("size", 0), source.get("background", "white"))
        if task.rows_are == "pixels" and shape is None:  # no pixel is cut off
            assert isinstance(found.inputs, EncodedImages)
            found.inputs = EncodedImages(found.inputs.pictures, source.size, found.inputs.background, squeeze=True)
    number = len(found.inputs)
    targets = torch.zeros(number) if task.prediction == "number" else torch.zeros(number, dtype=torch.int64)
    raw = found.raw(() if task.prediction == "number" else classes, targets)
    settings = {key: value for key, value in cfg.data.items() if key not in ("source", "root")}
    settings |= {key: value for key, value in OF_TRAINING.items() if key in settings} | {"val_size": 0}
    return instantiate(settings, source=lambda: raw), found


def _questions(pairs: Unseen) -> Unseen:
    """Questions and their contexts, whose answers are not known."""
    assert isinstance(pairs.inputs, Texts)
    asked = [str(question).lstrip() for question in pairs.inputs.first]  # as in SQuAD's files
    texts = replace(pairs.inputs, first=asked, answers=[()] * len(asked))
    places = {name: pairs.columns[name] for name in ("path", "line")}
    return Unseen(texts, places | {"question": asked}, pairs.problems)
