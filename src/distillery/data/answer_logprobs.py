"""The log-probabilities that came with a teacher's answers, token by token of the student's tokenizer."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean_beside
from distillery.core.files import sha256_of
from distillery.data.blocks import PackedTokens
from distillery.data.sources.messages import conversation
from distillery.data.sources.text_files import json_rows
from distillery.data.text import TextData
from distillery.data.tokenizers import token_texts
from distillery.data.tokens import IGNORED, Tokens

NUMBER = "token_number"  # the column of batches that says which token of the documents each one is
ROUNDING = 1e-3  # by which the probabilities of a token's candidates may add up to more than 1

# A token: its bytes (None: unknown), its log-probability, and those of the likeliest tokens in its place.
Logged = tuple[bytes | None, float, Sequence[tuple[bytes | None, float]]]


@dataclass(frozen=True)
class AnswerLogprobs:
    """What is known of the teacher's distribution of each token: log-probabilities at T = 1, in nats.

    Attributes:
        known: whether anything is [T]; T counts the tokens of the documents, as `token_number` does in batches.
        classes: k tokens of the student's tokenizer, [T, k] int32.
        log_p: theirs, float32 [T, k].
        log_p_target: that of the token itself, float32 [T].
        sha256: of the file.
        remarks: for the user.
    """

    known: Tensor
    classes: Tensor
    log_p: Tensor
    log_p_target: Tensor
    sha256: str
    remarks: tuple[str, ...]


def read_answer_logprobs(data: TextData, path: Path, k: int, setting: str) -> AnswerLogprobs:
    """Find the log-probabilities in the file for the tokens of the training texts.

    A token of the teacher corresponds to one of the student's if both stand for the same bytes of the answer; so do
    their candidates. The mass of candidates that correspond to none goes to the tail. Of a token with fewer than k
    candidates nothing is known.

    Args:
        path: a `logprobs.jsonl` that `distill-generate top_logprobs=…` has written.
        k: how many candidates, the likeliest ones.
        setting: that names the teacher, for messages.

    Raises:
        UserError: there is no such file, it is none of these, or no training text is among its answers.
    """
    if not path.is_file():
        hint = did_you_mean_beside(path, lambda each: each.suffix == ".jsonl")
        raise UserError(f"{setting}.path={path}: there is no such file.{hint}")
    blocks = data.splits["train"].inputs
    assert isinstance(blocks, PackedTokens)
    logged = dict(_logged(path))
    count = len(blocks.tokens.columns["input_ids"])
    known = np.zeros(count, dtype=bool)
    classes, log_p = np.zeros((count, k), dtype=np.int32), np.full((count, k), -math.log(k + 1), dtype=np.float32)
    target = np.full(count, -math.log(k + 1), dtype=np.float32)
    texts, ids_of = token_texts(data.loaded_tokenizer), _ids(data.loaded_tokenizer)
    answered, bearing = 0, 0
    for position, first, ids, bears in _documents(data, blocks.tokens):
        bearing += int(bears.sum())
        found = logged.get(data.raw.train.inputs.first[position])
        if found is None:
            continue
        answered += 1
        for place, (_, own, candidates) in _same_bytes([texts[id_] for id_ in ids], bears, *found):
            mass = _by_id(candidates, ids_of)
            mass.setdefault(int(ids[place]), own)
            if len(mass) >= k:
                likeliest = sorted(mass, key=lambda id_: (-mass[id_], id_))[:k]
                known[first + place], target[first + place] = True, own
                classes[first + place], log_p[first + place] = likeliest, [mass[id_] for id_ in likeliest]
    if not known.any():
        raise UserError(
            f"{setting}.path={path}: it has no log-probabilities for the tokens of the training texts "
            f"({answered:,} of which are among its answers). Train on the answers.jsonl beside it, and set {setting}.k "
            f"to {k - 1 or 1} or less."
        )
    kept = np.exp(log_p[known].astype(np.float64)).sum(1).mean()
    remarks = (
        f"its log-probabilities were stored with its answers ({path}): of {answered:,} training texts, for "
        f"{known.sum() / bearing:.1%} of the tokens that bear loss",
        f"{k} classes of each token have {kept:.1%} of the probability on average; the tail has the rest",
    )
    return AnswerLogprobs(
        known=torch.from_numpy(known),
        classes=torch.from_numpy(classes),
        log_p=torch.from_numpy(log_p),
        log_p_target=torch.from_numpy(target),
        sha256=sha256_of(path),
        remarks=remarks,
    )


def number_tokens(data: TextData) -> None:
    """Add the column `token_number` to the documents' tokens; -1 for those that are not in the training file."""
    train = data.splits["train"].inputs
    for split in data.splits.values():
        if isinstance(split.inputs, PackedTokens):
            tokens = split.inputs.tokens
            count = len(tokens.columns["input_ids"])
            tokens.columns[NUMBER] = torch.arange(count) if tokens is train.tokens else torch.full((count,), -1)
            tokens.padding[NUMBER] = -1


def _logged(path: Path) -> Iterator[tuple[str, tuple[bytes, list[Logged]]]]:
    """Of each row its document, as the data have it, the answer, and what was logged of the answer's tokens."""
    for line, row in json_rows(path, "utf-8", []):
        where = f"'{path}', line {line}"
        try:
            tokens = [_token(each) for each in row["logprobs"]]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{where}: it has no log-probabilities as distill-generate writes them into logprobs.jsonl."
            ) from None
        document = conversation({key: value for key, value in row.items() if key != "logprobs"}, where).text
        said = json.loads(document)
        answer = said["completion"] if "completion" in said else said["messages"][-1]["content"]
        yield document, (answer.encode("utf-8", "surrogatepass"), tokens)


def _token(given: Sequence[Any]) -> Logged:
    own, log_p, candidates = given
    found = [(None if text is None else bytes.fromhex(text), float(value)) for text, value in candidates]
    if sum(math.exp(value) for _, value in found) > 1 + ROUNDING:
        raise ValueError
    return None if own is None else bytes.fromhex(own), float(log_p), found


def _documents(data: TextData, tokens: Tokens) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
    """Of each training text that has tokens its position, where its first document begins, its ids and what bears loss.

    The first document of a conversation ends with its last turn.
    """
    every, column = tokens.columns["input_ids"].numpy(), tokens.columns.get("target")
    ends = None if tokens.documents is None else np.append(tokens.documents.numpy(), len(every))
    for position in data.training_split().indices.tolist():
        first, length = int(tokens.starts[position]), int(tokens.lengths[position])
        if not length:
            continue
        last = first + length if ends is None else int(ends[np.searchsorted(ends, first, side="right")])
        bears = np.ones(last - first, dtype=bool) if column is None else column[first:last].numpy() != IGNORED
        bears[0] = False  # nothing precedes it
        yield position, first, every[first:last], bears


def _same_bytes(
    texts: Sequence[bytes | str], bears: NDArray[Any], answer: bytes, logged: Sequence[Logged]
) -> Iterator[tuple[int, Logged]]:
    """The places of the tokens of the answer that are tokens of the teacher, too, each with what was logged of it.

    Args:
        texts: what the tokens of the document stand for.
        bears: which of them bear loss. Those of the answer are at the end.
    """
    places = np.flatnonzero(bears).tolist()
    ours = [text if isinstance(text, bytes) else b"" for text in (texts[place] for place in places)]
    theirs = [own or b"" for own, _, _ in logged]
    starts = [_starts(each, answer) for each in (ours, theirs)]
    if starts[0] is None or starts[1] is None:
        return
    spans = {
        (start, start + len(text)): number
        for number, (start, text) in enumerate(zip(starts[1], theirs, strict=True))
        if text
    }
    for place, start, text in zip(places, starts[0], ours, strict=True):
        number = spans.get((start, start + len(text)))
        if text and number is not None:
            yield place, logged[number]


def _starts(tokens: Sequence[bytes], answer: bytes) -> list[int] | None:
    """Where each token begins in the answer, which is the last part of their text; None: it is not."""
    text = b"".join(tokens)
    begin = text.rfind(answer)
    if begin < 0:
        return None
    sizes = np.array([len(token) for token in tokens], dtype=np.int64)
    return (sizes.cumsum() - sizes - begin).tolist()


def _ids(tokenizer: Any) -> Mapping[bytes, int]:
    """The first id that stands for each text."""
    found: dict[bytes, int] = {}
    for id_, text in enumerate(token_texts(tokenizer)):
        if isinstance(text, bytes):
            found.setdefault(text, id_)
    return found


def _by_id(candidates: Sequence[tuple[bytes | None, float]], ids: Mapping[bytes, int]) -> dict[int, float]:
    """The log-probability of each candidate that is a token of the student's tokenizer."""
    found: dict[int, float] = {}
    for text, log_p in candidates:
        if text and text in ids:
            id_ = ids[text]
            found[id_] = float(np.logaddexp(found[id_], log_p)) if id_ in found else log_p
    return found
