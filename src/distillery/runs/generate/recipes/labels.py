"""Labels of texts: a model classifies what a small classifier is trained on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from distillery.core.errors import UserError, did_you_mean
from distillery.data.module import Data
from distillery.data.raw_data import UNLABELLED, Texts
from distillery.data.text import TextData
from distillery.runs.generate.recipes.recipe import Answered, Row, unfinished
from distillery.runs.generate.request import LENGTH, Answer, Request

ASK = "Which of these labels fits the text: {labels}? Answer with the label alone."
AGREE = "have the label that the data have"


@dataclass
class Labels:
    """The label of each text: an answer that is exactly one of the labels, but for case, quotes and a full stop.

    Rows have the `text`, its `label`, and the data's own label where there is one (`own_label`). Texts whose answer is
    something else are left out.

    Args:
        data: whose texts they are.
        labels: the labels, or for each what the model is to call it. None: the data's classes.
        split: which of the data's texts.
        instruction: what stands before a text, perhaps with examples; `{labels}` in it is replaced by their list.
        chat: False: the teacher continues the text of the prompt, as a base model does, up to the end of the line.
    """

    data: Data
    labels: Annotated[list[str], MinLen(2)] | dict[str, str] | None = None
    split: Literal["train", "test", "all"] = "train"
    instruction: str = ASK
    chat: bool = True

    reader = "jsonl"

    def __post_init__(self) -> None:
        if not isinstance(self.data, TextData):
            raise UserError("generate=labels: choose texts, such as data=text_csv or data=jsonl.")

    @property
    def template(self) -> str:
        return json.dumps({"instruction": self.instruction, "labels": self._names(), "chat": self.chat})

    def rounds(self, answered: Answered) -> Iterator[Sequence[Request]]:
        """See `Recipe`."""
        yield self._requests()

    def rows(self, answered: Answered) -> Iterator[Row]:
        """See `Recipe`."""
        names = self._names()
        for request in self._requests():
            if (answer := answered(request)) is None:
                continue
            label, own = read_label(answer, names), request.known.get("own_label")
            if label is None:
                reason = unfinished(answer) if answer.finish_reason != LENGTH else ""
                yield Row(request, answer, {**request.known, "answer": answer.text}, reason or "not a label")
                continue
            yield Row(request, answer, {**request.known, "label": label}, remark=AGREE if label == own else "")

    def _names(self) -> dict[str, str]:
        """What the model calls each label."""
        classes = self.data.classes
        given = self.labels if self.labels is not None else list(classes)
        names = dict(given) if isinstance(given, Mapping) else {label: label for label in given}
        if len(names) < 2:
            raise UserError("labels: these data have none. List them, as labels=[negative,positive].")
        if strange := [label for label in names if classes and label not in classes]:
            raise UserError(f"labels: the data have no class {strange[0]!r}." + did_you_mean(strange[0], classes))
        if len(set(map(_plain, names.values()))) < len(names):
            raise UserError("labels: the model is to call two of them the same.")
        return names

    def _requests(self) -> list[Request]:
        named = ", ".join(self._names().values())
        found = list[Request]()
        for text, own, place in self._texts():
            asked = f"{self.instruction.replace('{labels}', named)}\n\nText: {text.strip()}\nLabel:"
            known = {"text": text} | ({"own_label": own} if own else {})
            if self.chat:
                found.append(Request(place, 0, messages=[{"role": "user", "content": asked}], known=known))
            else:
                found.append(Request(place, 0, text=asked, known=known))
        return found

    def _texts(self) -> Iterator[tuple[str, str | None, int]]:
        """The texts, their own labels if they have them, and their positions."""
        assert isinstance(self.data, TextData)
        raw, classes = self.data.raw, self.data.classes
        train = self.data.training_split() if self.split == "train" else raw.train
        chosen = {"train": [train], "test": [raw.test], "all": [raw.train, *([raw.val] if raw.val else []), raw.test]}
        for split in chosen[self.split]:
            texts: Texts = split.inputs
            if texts.second is not None or texts.labels is not None or texts.conversations:
                raise UserError("generate=labels: it labels single texts, and no pairs, words or conversations.")
            single = bool(classes) and split.targets.dim() == 1
            for place in split.indices.tolist():
                target = int(split.targets[place]) if single else UNLABELLED
                yield str(texts.first[place]), None if target == UNLABELLED else classes[target], place


def read_label(answer: Answer, names: Mapping[str, str]) -> str | None:
    """The label that an answer is; None: it is something else.

    An answer that was cut off is a label if no other label begins with it.
    """
    said = _plain(answer.text.lstrip().split("\n")[0])
    found = [label for label, name in names.items() if _plain(name) == said]
    if answer.finish_reason == LENGTH and sum(_plain(name).startswith(said) for name in names.values()) > 1:
        return None
    return found[0] if found else None


def _plain(text: str) -> str:
    return text.strip(" \t\"'`*.").casefold()
