"""A teacher that a server runs: it scores the tokens of given texts (vLLM's `prompt_logprobs`)."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import SERVED
from distillery.losses.levels import Available, SparseLogits
from distillery.losses.signals import Signals
from distillery.losses.sparse import RESOLUTION, log_rest
from distillery.models.adapters import POSITIONS
from distillery.teachers.frozen import SignalSource
from distillery.teachers.served_answers import NO_SCORES, Scores, read_answer, token_texts
from distillery.teachers.served_client import Client
from distillery.teachers.without_network import TeacherWithoutNetwork

PATH = "/v1/completions"
PARTS = 8
DRIFT = 0.05  # nats per token, by which the answers of one server may differ: batches of other shapes round otherwise
OTHER = "the data's tokenizer"
SAME = 0.9  # the least share of tokens that are the same text here and there


class Piece(NamedTuple):
    """A document, or a part of one, in a batch: the row, and where it begins and ends."""

    row: int
    start: int
    end: int


def pieces(batch: Mapping[str, Tensor]) -> Iterator[Piece]:
    """The parts of a batch of texts that have no context of each other, each of at least two tokens.

    A part begins where `position_ids` is 0, or a row's first token is that counts. Padding is in none.
    """
    counts = batch["attention_mask"].bool().cpu()
    begins = torch.zeros_like(counts) if POSITIONS not in batch else (batch[POSITIONS] == 0).cpu()
    for row, (used, first) in enumerate(zip(counts.tolist(), begins.tolist(), strict=True)):
        start = 0
        for place in range(len(used) + 1):
            if place == len(used) or not used[place] or first[place] or (place and not used[place - 1]):
                if place - start > 1 and used[start]:
                    yield Piece(row, start, place)
                start = place


@dataclass
class Served(SignalSource):
    """The signals that a server gives: of each token the k likeliest classes, the others' mass, and the token's own.

    They are log-probabilities at temperature 1, whatever the server's sampling settings are.

    Attributes:
        client: asks it.
        model: its name there.
        k: how many classes.
        sequences: texts in a request.
        known: the scores of texts that were asked for when the server was tried.
    """

    client: Client
    model: str
    k: int
    sequences: int
    any_text: ClassVar[bool] = True
    known: dict[tuple[int, ...], Scores] = field(default_factory=dict)

    @property
    def available(self) -> Available:
        """See `SignalSource`."""
        return Available(frozenset({"topk", "token"}), self.k)

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`. Entry i is of token i + 1; where none follows in the same text it says nothing."""
        ids, device = batch["input_ids"], batch["input_ids"].device
        classes = np.zeros((*ids.shape, self.k), dtype=np.int64)
        log_p = np.full(classes.shape, -np.log(self.k + 1))
        target = np.full(ids.shape, -np.log(self.k + 1))
        for piece, scores in self.scored(batch):
            place = piece.row, slice(piece.start, piece.end - 1)
            classes[place], log_p[place], target[place] = scores
        kept = torch.from_numpy(log_p).to(device)
        sparse = SparseLogits(
            classes=torch.from_numpy(classes).to(device),
            log_p=kept.float(),
            log_tail=log_rest(kept).float(),
            log_p_target=torch.from_numpy(target).to(device, torch.float32),
        )
        none = torch.empty(len(ids), 0, device=device)
        return Signals(none, mask=batch["attention_mask"], sparse=sparse)

    def scored(self, batch: Mapping[str, Tensor]) -> list[tuple[Piece, Scores]]:
        """The scores of each piece of the batch."""
        rows = batch["input_ids"].tolist()
        found = list(pieces(batch))
        texts = [rows[row][start:end] for row, start, end in found]
        new = [text for text in texts if tuple(text) not in self.known]
        answers = self.client.post_all(PATH, self.bodies(new), read_answer)
        scores = self.known | dict(zip(map(tuple, new), chain.from_iterable(answers), strict=True))
        return [(piece, scores[tuple(text)]) for piece, text in zip(found, texts, strict=True)]

    def bodies(self, texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Requests to score these texts. The token that must be generated with each is not read."""
        fixed = {"model": self.model, "prompt_logprobs": self.k, "max_tokens": 1, "temperature": 1.0}
        parts = (texts[start : start + self.sequences] for start in range(0, len(texts), self.sequences))
        return [{**fixed, "prompt": list(part), "return_token_ids": True} for part in parts]


@dataclass
class Spread(SignalSource):
    """Logits for scores where only sparse ones are known: these, and the rest spread over all other classes.

    The loss on the token itself is exact, and so is the likeliest class. Nothing else is: no loss is trained on them.

    Attributes:
        source: gives sparse logits with those of the targets.
        outputs: the number of classes.
    """

    source: SignalSource
    outputs: int

    @property
    def available(self) -> Available:
        """See `SignalSource`."""
        return self.source.available

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """See `SignalSource`: logits [B, L, V]."""
        sparse = self.source.signals(batch).sparse
        assert sparse is not None
        assert sparse.log_p_target is not None
        if int(sparse.classes.max()) >= self.outputs:
            raise UserError(f"The server names token {int(sparse.classes.max())}, but {OTHER} has {self.outputs}.")
        ids = batch["input_ids"]
        target = torch.cat([ids[:, 1:], ids[:, :1]], 1).unsqueeze(-1)
        beyond = ~(sparse.classes == target).any(-1)
        rest = (1 - sparse.log_p.exp().sum(-1) - beyond * sparse.log_p_target.exp()).clamp_min(RESOLUTION)
        others = (self.outputs - sparse.classes.shape[-1] - beyond.long()).clamp_min(1)
        logits = (rest / others).log().unsqueeze(-1).repeat(1, 1, self.outputs)
        logits.scatter_(-1, sparse.classes, sparse.log_p).scatter_(-1, target, sparse.log_p_target.unsqueeze(-1))
        return Signals(logits, mask=batch["attention_mask"])


class ServedTeacher(TeacherWithoutNetwork):
    """A teacher that is asked over HTTP for the scores of each batch's tokens. It is tried on a few texts when made.

    Args:
        name: see `Network`.
        served: asks the server.
        tokenizer: that of the texts.
        example: a batch of the texts it will be asked for.
        longest: the most tokens of a text; None: unknown.
        tokens: how many it will be asked for in training.

    Attributes:
        longest: the most tokens of a text that the server accepts; None: unknown.

    Raises:
        UserError: no such server or model, or one that does not score these texts.
    """

    def __init__(
        self,
        name: str,
        served: Served,
        tokenizer: Any,
        example: Mapping[str, Tensor],
        longest: int | None,
        tokens: int,
    ) -> None:
        outputs = len(tokenizer)
        super().__init__(Spread(served, outputs), outputs, name, f"{served.model}, served by {served.client.url}")
        self.training_signals = served
        card = _card(served, longest)
        limit = card.get("max_model_len")
        self.longest = limit - 1 if isinstance(limit, int) else None  # one token of a request is generated
        start = time.monotonic()
        texts = [tuple(example["input_ids"][row, begin:end].tolist()) for row, begin, end in pieces(example)]
        answers = served.client.post_all(PATH, served.bodies(list(dict.fromkeys(texts))), _read_with_texts)
        seconds = time.monotonic() - start
        _refuse_other_tokenizer({token: text for _, said in answers for token, text in said.items()}, tokenizer)
        scores = [each for found, _ in answers for each in found]
        served.known |= zip(dict.fromkeys(texts), scores, strict=True)

        self.sha256 = hashlib.sha256(f"{served.model} {card.get('root')}".encode()).hexdigest()
        surprise = -np.concatenate([each.log_p_target for each in scores])
        parts = np.array_split(surprise, min(PARTS, len(surprise)))
        self._identity = " ".join([SERVED, self.sha256, *(f"{part.mean():.4f}" for part in parts)])
        asked = sum(len(each.log_p_target) + 1 for each in scores)
        minutes = tokens * seconds / asked / 60
        about = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.0f} minutes"
        self.remarks += [
            f"returns its {served.k} most likely tokens with log-probabilities at T = 1, before any sampling setting "
            "(vLLM's logprobs_mode=raw_logprobs)",
            f"{asked / seconds:,.0f} tokens/s when it was tried on {asked:,} tokens; expected time for the {tokens:,} "
            f"tokens of training: {about if minutes >= 1 else 'less than a minute'}",
        ]

    @property
    def identity(self) -> str:
        """See `Teacher`. Its model, and how much parts of what it was tried on surprised it, in nats per token."""
        return self._identity


def same_teacher(before: str, now: str) -> bool:
    """Whether two identities are those of one teacher. The answers of one server differ in their last digits."""
    if not (before.startswith(SERVED) and now.startswith(SERVED)):
        return before == now
    (_, model, *nats), (_, other, *others) = before.split(), now.split()
    return model == other and all(abs(float(a) - float(b)) <= DRIFT for a, b in zip(nats, others, strict=True))


def _card(served: Served, longest: int | None) -> dict[str, Any]:
    """What the server says of the model."""
    cards = {card["id"]: card for card in served.client.models()}
    if served.model not in cards:
        near = did_you_mean(served.model, cards)
        raise UserError(f"model={served.model}: {served.client.url} does not serve this model.{near}")
    card = cards[served.model]
    if card.get("owned_by") == "llamacpp":
        raise UserError(f"{served.client.url} is a llama.cpp server, which {NO_SCORES}")
    limit = card.get("max_model_len")
    if longest and isinstance(limit, int) and longest >= limit:
        raise UserError(
            f"data.max_length={longest}: {served.client.url} allows {limit} tokens per request, one of which it "
            f"generates. Set data.max_length={limit - 1}, or start the server with a larger --max-model-len."
        )
    return card


def _read_with_texts(body: Mapping[str, Any], answer: Any) -> tuple[list[Scores], dict[int, str]]:
    return read_answer(body, answer), token_texts(answer)


def _refuse_other_tokenizer(said: Mapping[int, str], tokenizer: Any) -> None:
    """Refuse a server whose ids stand for other texts than those of `tokenizer`.

    Args:
        said: texts by id, as the server gives them.
    """
    if beyond := [token for token in said if token >= len(tokenizer)]:
        raise UserError(
            f"The server names token {beyond[0]} ({said[beyond[0]]!r}), but {OTHER} has {len(tokenizer)} tokens. Its "
            "model has another tokenizer: set data.tokenizer to it."
        )
    # Bytes that are no whole character have no text of their own; vLLM may give that of the character.
    ours = {token: tokenizer.decode([token]) for token in said}
    whole = [token for token, text in said.items() if "\ufffd" not in text + ours[token]]
    differ = [token for token in whole if said[token].strip() != ours[token].strip()]
    if len(differ) > (1 - SAME) * len(whole):
        first = differ[0]
        raise UserError(
            f"{len(differ)} of {len(whole)} token ids stand for other texts on the server: {first} is {said[first]!r} "
            f"there and {ours[first]!r} here. Its model has another tokenizer: set data.tokenizer to it."
        )
