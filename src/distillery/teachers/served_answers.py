"""What a server's `prompt_logprobs` say of the tokens of a text, verified entry by entry."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from distillery.teachers.served_client import ServerError, Wrong

NO_SCORES = (
    "returns no log-probabilities for the tokens of given texts (prompt_logprobs), although it reports no error. "
    "llama.cpp and Ollama do not support them; serve the model with vLLM."
)
ROUNDING = 1e-3  # by which k probabilities may add up to more than 1


class Scores(NamedTuple):
    """Log-probabilities of the tokens of a text after its first, given those before: one row for each, [n - 1, ...].

    Attributes:
        classes: the k likeliest tokens, the likeliest first; [n - 1, 0] where none were asked for.
        log_p: theirs.
        log_p_target: of the token itself, whether or not it is among them.
    """

    classes: NDArray[np.int64]
    log_p: NDArray[np.float64]
    log_p_target: NDArray[np.float64]

    @classmethod
    def read(cls, given: Any, sent: Sequence[int], k: int) -> Self:
        """From the `prompt_logprobs` of one text: null, then for each token {id: {"logprob": …}} of k or k + 1 ids.

        The ids are the k likeliest and the token itself, which may be among them.

        Args:
            sent: the token ids, at least two.

        Raises:
            Wrong: it is not that.
        """
        if not isinstance(given, list) or len(given) != len(sent):
            count = len(given) if isinstance(given, list) else "no"
            raise Wrong(f"{count} log-probabilities for {len(sent)} tokens")
        if given[0]:
            raise Wrong("the first token has a log-probability, although nothing precedes it")
        classes = np.empty((len(sent) - 1, k), dtype=np.int64)
        log_p, target = np.empty((len(sent) - 1, k)), np.empty(len(sent) - 1)
        for place, (entry, token) in enumerate(zip(given[1:], sent[1:], strict=True)):
            found = _entry(entry, place + 1)
            if token not in found:
                raise Wrong(f"token {place + 1} was sent as id {token}, but its log-probabilities are for other ids")
            others = len(found) - (1 if k == 0 or len(found) == k + 1 else 0)
            if others != k:
                raise Wrong(f"{len(found)} log-probabilities for token {place + 1}, but {k} were requested")
            ranked = sorted(found, key=lambda each: (-found[each], each))
            if len(found) > k > 0 and found[ranked[k]] < found[token]:
                raise Wrong(
                    f"token {place + 1} is returned in addition to {k} others, but they are not all more likely"
                )
            likeliest = [each for each in ranked if len(found) == k or each != token]
            classes[place], log_p[place] = likeliest, [found[each] for each in likeliest]
            target[place] = found[token]
        among = (classes == np.array(sent)[1:, None]).any(1)
        if (most := (np.exp(log_p).sum(1) + np.where(among, 0, np.exp(target))).max()) > 1 + ROUNDING:
            raise Wrong(f"the probabilities at a token add up to {most:.4g}; serve with --logprobs-mode raw_logprobs")
        return cls(classes, log_p, target)


def _entry(entry: Any, place: int) -> dict[int, float]:
    """The log-probability of each id."""
    try:
        found = {int(token): float(each["logprob"]) for token, each in entry.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Wrong(f"the log-probabilities of token {place} are malformed") from None
    for token, value in found.items():
        if not (math.isfinite(value) and value <= ROUNDING):
            raise Wrong(f"token id {token} has the log-probability {value:g}; serve with --logprobs-mode raw_logprobs")
    return found


def read_answer(body: Mapping[str, Any], answer: Any) -> list[Scores]:
    """The scores of each text of a request, `body`, whose `prompt` is a list of lists of ids.

    Raises:
        Wrong: another model answers, there is not one answer for each text, or one is not what `Scores.read` expects.
        ServerError: a server that does not score given texts.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise Wrong("the answer has no list of choices")
    if answer.get("model") != body["model"]:
        raise Wrong(f"model {answer.get('model')!r} answered instead of {body['model']!r}")
    sent = body["prompt"]
    choices = {each.get("index"): each for each in answer["choices"] if isinstance(each, dict)}
    if choices.keys() != set(range(len(sent))) or len(answer["choices"]) != len(sent):
        raise Wrong(f"{len(answer['choices'])} answers for {len(sent)} texts")
    scores = []
    for place, ids in enumerate(sent):
        if choices[place].get("prompt_logprobs") is None:
            raise ServerError(f"The server that runs {body['model']!r} {NO_SCORES}")
        if choices[place].get("prompt_token_ids") not in (None, ids):
            raise Wrong("it read other token ids than those that were sent")
        scores.append(Scores.read(choices[place]["prompt_logprobs"], ids, body["prompt_logprobs"]))
    return scores


def token_texts(answer: Any) -> dict[int, str]:
    """What the server says that ids stand for, of all that an answer names."""
    entries = (entry for choice in answer["choices"] for entry in choice["prompt_logprobs"] if entry)
    texts = ((int(token), each.get("decoded_token")) for entry in entries for token, each in entry.items())
    return {token: text for token, text in texts if isinstance(text, str)}
