"""Questions with contexts in which their answers stand: files in SQuAD's format, and data sets of the hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distillery.core.errors import UserError, did_you_mean, did_you_mean_beside
from distillery.data.raw_data import RawData, Split, Texts

FORMAT = '{"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": [{"text", "answer_start"}]}]}]}]}'
COLUMNS = ("question", "context", "answers")
Asked = tuple[str, str, tuple[tuple[str, int], ...]]  # question, context, answers and where they begin


def squad(path: str | Path, test: str | Path, val: str | Path | None = None) -> RawData:
    """Questions in files of the format of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018), in their order.

    A question without answers, or with `is_impossible`, has none. Blanks before a question are removed.

    Args:
        path, test, val: the files of the splits; val None: the validation questions are cut from train.

    Raises:
        UserError: a file is missing or of another format, or an answer does not stand where it is said to.
    """
    files = {"path": path, "test": test} | ({} if val is None else {"val": val})
    splits = {name: _of_file(f"data.source.{name}={file}", Path(file)) for name, file in files.items()}
    return RawData(Path(path).stem, (), splits["path"], splits["test"], splits.get("val"))


def hf_squad(
    path: str,
    name: str | None = None,
    train: str = "train",
    val: str | None = "validation",
    test: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, Any] | None = None,
) -> RawData:
    """Questions loaded by `datasets.load_dataset`, with the columns `question`, `context` and `answers` of SQuAD's.

    Without a test split, the validation split becomes the test split; the remarks say so.

    Args:
        path, name, revision, data_files: arguments of `load_dataset`: a data set of the hub or a folder, its
            configuration, its commit; or "json" or "parquet", and the files of each split.
        train, val, test: the names of the splits; part of a split is written as "train[:90%]".

    Raises:
        UserError: the data set is unavailable or has no such configuration, split or column; or an answer does not
            stand where it is said to.
    """
    from distillery.data.sources.hub import load_splits  # datasets takes seconds: only for the hub

    called, notes = path if name is None else f"{path}/{name}", list[str]()
    names = {"train": train, "val": val, "test": test}
    sets = load_splits(called, path, names, None, notes, data_files=data_files, name=name, revision=revision)
    splits = {}
    for part, (data, where) in sets.items():
        if missing := [column for column in COLUMNS if column not in data.column_names]:
            raise UserError(f"{where} has no column '{missing[0]}'.{did_you_mean(missing[0], data.column_names)}")
        rows = ((row["question"], row["context"], row["answers"]) for row in data)
        splits[part] = _split(
            where,
            [
                (question.lstrip(), context, tuple(zip(of["text"], of["answer_start"], strict=True)))
                for question, context, of in rows
            ],
        )
    return RawData(called, (), splits["train"], splits["test"], splits.get("val"), tuple(notes))


def _of_file(setting: str, file: Path) -> Split:
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        asked = [
            (str(each["question"]).lstrip(), str(paragraph["context"]), _answers(each))
            for article in articles
            for paragraph in article["paragraphs"]
            for each in paragraph["qas"]
        ]
    except FileNotFoundError:
        near = did_you_mean_beside(file, Path.is_file)
        raise UserError(f"{setting}: there is no such file.{near}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{setting}: it is not in SQuAD's format, {FORMAT} ({error!r}).") from error
    return _split(setting, asked)


def _answers(question: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    if question.get("is_impossible"):
        return ()
    return tuple((str(each["text"]), int(each["answer_start"])) for each in question["answers"])


def _split(where: str, asked: Sequence[Asked]) -> Split:
    """The split, once its answers have been found to stand in the contexts."""
    for question, context, answers in asked:
        for text, begin in answers:
            if not text or context[begin : begin + len(text)] != text:
                raise UserError(
                    f"{where}: the answer {text!r} to {question!r} is not at character {begin} of its context; there "
                    f"is {context[begin : begin + len(text)]!r}."
                )
    if not asked:
        raise UserError(f"{where}: it has no questions.")
    questions, contexts, answers_of = zip(*asked, strict=True)
    return Split.whole(Texts(questions, contexts, answers=answers_of), torch.zeros(len(asked), dtype=torch.int64))
