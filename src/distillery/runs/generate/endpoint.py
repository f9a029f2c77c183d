"""Texts that a model behind an OpenAI-compatible server writes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distillery.core.errors import UserError, did_you_mean
from distillery.runs.generate.request import EMPTY, REFUSED, STOP, Answer, Request
from distillery.runs.generate.writer import Failure
from distillery.teachers.served_client import Client, Refused, ServerError, Wrong

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UNLISTED = (403, 404, 405, 501)  # how servers answer that do not list their models
SHOWN = 200  # characters of an answer in a message
LIMITS = ("max_tokens", "max_completion_tokens")  # of these parameters one bounds the tokens of an answer


class Endpoint:
    """Writes texts by asking a server for each.

    Args:
        client: asks it.
        model: its name there.
        parameters: of the requests, as `temperature` and `max_tokens`, sent as they are.
        top_logprobs: how many of the likeliest tokens are returned with each token that is written; 0: none.

    Raises:
        UserError: there is no such server, or it does not serve the model.
    """

    def __init__(self, client: Client, model: str, parameters: Mapping[str, Any], top_logprobs: int = 0) -> None:
        self.client, self.name, self.top_logprobs = client, model, top_logprobs
        self.parameters = dict(parameters)
        try:
            served = [card["id"] for card in client.models()]
        except Refused as error:
            if error.status not in UNLISTED:
                raise
            served = [model]
        if model not in served:
            raise UserError(
                f"model={model}: {client.url} does not serve this model.{did_you_mean(model, served)}"
                f" It serves {', '.join(served[:8]) or 'none'}."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the request."""
        logprobs = {"top_logprobs": self.top_logprobs} if self.top_logprobs else {}
        return {"model": self.name, **self.parameters, **logprobs}

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an answer; None: no parameter says it."""
        given = [self.parameters[name] for name in LIMITS if self.parameters.get(name)]
        return max(given) if given else None

    def check(self, requests: Sequence[Request]) -> None:
        """See `Writer`."""
        if self.top_logprobs and not all(request.messages for request in requests):
            raise UserError(
                f"top_logprobs={self.top_logprobs}: servers return log-probabilities with the bytes of their tokens "
                "only in conversations, and these texts are continued (as with chat=false). Set top_logprobs=0, or ask "
                "in conversations."
            )

    def write(
        self, requests: Iterable[Request], keep: Callable[[Request, Answer], None]
    ) -> Iterator[tuple[Request, Answer | Failure]]:
        """The answers as they come, each of which was handed to `keep` by the thread that has read it.

        Raises:
            ServerError: see `Client.post_each`.
        """
        asked = ((request, CHAT if request.messages else TEXT, self._body(request)) for request in requests)

        def read(request: Request, answer: Any) -> Answer:
            found = read_answer(answer)
            keep(request, found)
            return found

        for request, found in self.client.post_each(asked, read):
            yield request, Failure(str(found)) if isinstance(found, ServerError) else found

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.name, **self.parameters}
        if not request.messages:
            return body | {"prompt": request.text}
        body["messages"] = list(request.messages)
        if "tools" in request.known:
            body["tools"] = request.known["tools"]
        return body | ({"logprobs": True, "top_logprobs": self.top_logprobs} if self.top_logprobs else {})


def read_answer(answer: Any) -> Answer:
    """The answer in what a server has returned for one request.

    Raises:
        Wrong: it has no text, or not one alone.
    """
    try:
        (choice,) = answer["choices"]
        message = choice.get("message") or {"content": choice.get("text")}
        usage, refusal = answer.get("usage") or {}, message.get("refusal")
        text, reason = message["content"] or "", choice.get("finish_reason")
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError
    except (TypeError, ValueError, LookupError, AttributeError):
        raise Wrong(f"the answer has no text with a finish reason: {str(answer)[:SHOWN]}") from None
    if reason == STOP and not text.strip():
        reason = REFUSED if refusal else EMPTY
    return Answer(
        text=text or refusal or "",
        finish_reason=reason,
        model=str(answer.get("model")),
        created=time.time(),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        fingerprint=answer.get("system_fingerprint"),
        reasoning=message.get("reasoning_content") or message.get("reasoning"),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(given: Any) -> list[Any] | None:
    """Of each token that was written: its bytes in hexadecimal, its log-probability, and those of the likeliest ones.

    Raises:
        Wrong: they are something else.
    """
    if not given or not isinstance(given, Mapping) or not given.get("content"):
        return None
    try:
        return [[*_token(each), [_token(other) for other in each["top_logprobs"]]] for each in given["content"]]
    except (TypeError, ValueError, LookupError, AttributeError):
        raise Wrong("the log-probabilities are malformed") from None


def _token(given: Mapping[str, Any]) -> list[Any]:
    """Its bytes in hexadecimal, or null where they are unknown, and its log-probability."""
    own = given.get("bytes")
    if own is None and "\ufffd" not in given["token"]:
        own = given["token"].encode()
    return [None if own is None else bytes(own).hex(), float(given["logprob"])]
