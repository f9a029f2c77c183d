"""What is refused of a task: other data's masks, losses that say nothing of numbers, tokens or vectors."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.crd import CRD
from distillery.losses.feature.hidden_mse import HiddenMSE
from distillery.losses.response.deep_supervision import DeepSupervision
from distillery.losses.response.dkd import DKD
from distillery.losses.response.kd import KD
from distillery.losses.response.logit_mse import LogitMSE
from distillery.losses.several import Several
from distillery.models.adapters import ImageAdapter
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.tasks.embedding import Embedding
from distillery.tasks.masked_lm import MaskedLM
from distillery.tasks.question_answering import QuestionAnswering
from distillery.tasks.regression import Regression
from distillery.tasks.segmentation import Segmentation
from distillery.tasks.token_classification import TokenClassification
from distillery.training.check_task import check_task

MIXED = {"varies": "augment", "mixes": True}
BATCH: Mapping[str, Tensor] = {"image": torch.rand(2, 1, 2, 2), "target": torch.tensor([0, 1])}


def network(width: int) -> Network:
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(4, width)), ImageAdapter([0.5], [0.5]))


def checked(
    task: Any, terms: Mapping[str, Any], varies: str | None = None, width: int = 3, mixes: bool = False
) -> None:
    data: Any = SimpleNamespace(varies=varies, labelled=2, mixes=mixes, multi_label=False)
    check_task(task, data, terms, (), network(3), {"main": network(width), "b": network(width)}, BATCH)


def test_labels_of_words_and_of_texts_are_not_confused() -> None:
    data: Any = SimpleNamespace(varies=None, name="own", multi_label=False)
    for task, target, fix in [
        (Classification(), torch.zeros(2, 5), "Set task=token_classification"),
        (TokenClassification(), torch.zeros(2), "Set task=classification, or data.source.words"),
    ]:
        with pytest.raises(UserError, match=fix):
            check_task(task, data, {}, (), network(3), {}, {"input_ids": torch.zeros(2, 5), "target": target})


def test_questions_and_texts_are_not_confused() -> None:
    data: Any = SimpleNamespace(varies=None, name="own", labelled=2, mixes=False, multi_label=False)
    texts = {"input_ids": torch.zeros(2, 5), "target": torch.zeros(2, dtype=torch.long)}
    questions = {**texts, "target": torch.zeros(2, 5, dtype=torch.long), "question": torch.arange(2)}
    for task, batch, fix in [
        (QuestionAnswering(), texts, r"'own' has none\. Choose data=squad"),
        (TokenClassification(), questions, "Set task=question_answering"),
        (Classification(), questions, "Set task=question_answering"),
    ]:
        with pytest.raises(UserError, match=fix):
            check_task(task, data, {}, (), network(3), {}, batch)
    check_task(QuestionAnswering(), data, {"kd": KD()}, (), network(3), {}, questions)


def test_labels_of_pixels_and_of_images_are_not_confused() -> None:
    data: Any = SimpleNamespace(varies=None, name="own", labelled=2, mixes=False, multi_label=False)
    masks = {**BATCH, "target": torch.zeros(2, 2, 2, dtype=torch.long)}
    with pytest.raises(UserError, match=r"'own' have a class for each pixel, .*Set task=segmentation"):
        check_task(Classification(), data, {}, (), network(3), {}, masks)
    with pytest.raises(UserError, match=r"'own' have one each\. Choose data with masks"):
        check_task(Segmentation(), data, {}, (), network(3), {}, BATCH)
    for loss in (DeepSupervision(), CRD()):
        with pytest.raises(UserError, match="one label for each sample, but this task has one for each pixel"):
            check_task(Segmentation(), data, {"x": loss}, (), network(3), {}, masks)
    check_task(
        Segmentation(), data, {"kd": KD(), "dkd": DKD(), "crd": CRD(variant="in_batch")}, (), network(3), {}, masks
    )


def two(combine: str) -> Several:
    return Several([HiddenMSE(teacher=name) for name in ("main", "b")], combine, seed=0)


@pytest.mark.parametrize(
    ("task", "terms", "given", "message"),
    [
        (Classification(), {}, {"varies": "mask"}, r"data\.mask=null"),
        (Classification(weight=0.0), {}, {}, "nothing to learn from: task.weight=0"),
        (Embedding(), {}, {}, "Choose a loss and a teacher"),
        (Regression(), {"kd": KD()}, {}, r"loss\.kd compares distributions over classes.*logit_mse"),
        (Embedding(), {"kd": KD()}, {}, r"loss\.kd compares distributions over classes"),
        (MaskedLM(), {"deep_supervision": DeepSupervision()}, {}, "one label for each sample"),
        (TokenClassification(), {"hidden_mse": two("confidence")}, {}, "combine=mean or combine=random"),
        (Classification(), {"kd": KD(), "dkd": DKD()}, MIXED, r"loss\.dkd needs one class .*data\.augment\.mixup=0"),
        (Classification(), {"x": Several([KD(), DKD(teacher="b")])}, MIXED, r"loss\.x needs one class"),
        (Embedding(), {"logit_mse": LogitMSE()}, MIXED, r"this task is about none\. Set data\.augment\.mixup=0"),
        (Embedding(), {"logit_mse": LogitMSE()}, {"width": 5}, "3 dimensions, those of teacher 'main' 5"),
    ],
)
def test_refused(task: Any, terms: Mapping[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(task, terms, **given)


@pytest.mark.parametrize(
    ("task", "terms", "given"),
    [
        (MaskedLM(), {"kd": KD(), "hidden_mse": two("mean")}, {"varies": "mask"}),
        (Classification(), {"deep_supervision": DeepSupervision(), "hidden_mse": two("confidence")}, {}),
        (Classification(weight=0.0), {"kd": KD()}, {"varies": "augment"}),
        (Classification(), {"crd": CRD(), "hidden_mse": two("confidence")}, MIXED),
        (Regression(), {"logit_mse": LogitMSE(), "hidden_mse": HiddenMSE()}, {}),
        (Embedding(), {"logit_mse": LogitMSE()}, {}),
    ],
)
def test_goes_together(task: Any, terms: Mapping[str, Any], given: dict[str, Any]) -> None:
    checked(task, terms, **given)
