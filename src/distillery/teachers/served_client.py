"""Requests to an OpenAI-compatible server: what may pass is tried again, and anything else is told at once."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, SSLError

from distillery.core.errors import UserError
from distillery.core.terminal import plain_console, say

T = TypeVar("T")
PASSING = frozenset({408, 425, 429})  # and every status from 500 on
FIRST, LONGEST = 1.0, 60.0  # seconds until the second try, doubled up to the longest
GARBLED = 3  # tries of a request whose answers are wrong: more would not make them right
_JITTER = random.SystemRandom()  # leaves the random numbers of the run alone
SAID = 300  # characters of a server's message that are shown


class ServerError(UserError):
    """A server that does not answer, or answers wrongly."""


class Wrong(Exception):
    """The server answered, but not what it was asked."""


class _Passing(Exception):
    """The server did not answer this time."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Client:
    """Sends requests, several at a time.

    Timeouts, broken connections and the statuses 408, 425, 429 and 5xx may pass. Such a request is sent again after 1,
    2, 4, … up to 60 seconds, lengthened at random by up to a half, and never before the server's `Retry-After`. While
    the server fails, one request at a time tries it, and the others wait until it is well again (a circuit breaker).

    Args:
        url: of the server, with or without its `/v1`.
        key: the API key; empty: none.
        concurrent: how many requests are under way at once.
        timeout: seconds until a silent server counts as failing.
        patience: seconds for which a request is tried again.
        sleep, clock: those of the time that passes.

    Raises:
        UserError: the URL is none, or holds a password.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        concurrent: int = 8,
        timeout: float = 120.0,
        patience: float = 600.0,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = _base(url)
        self.concurrent, self.patience = concurrent, patience
        self._given_up = threading.Event()
        self._sleep, self._clock = sleep or self._given_up.wait, clock
        self._probing = threading.Lock()
        self._backoff = 0.0  # seconds until the next try; 0: the server is well
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limit = urllib3.Timeout(connect=min(10.0, timeout), read=timeout)
        self._pool = urllib3.PoolManager(maxsize=concurrent, headers=headers, timeout=limit, retries=False)

    def models(self) -> list[dict[str, Any]]:
        """What `/v1/models` says of each model. It is asked once: a server that is not there is told at once."""
        try:
            answer = self._once("GET", "/v1/models", None)
            models = answer["data"]
            return [dict(model, id=str(model["id"])) for model in models]
        except _Passing as error:
            raise ServerError(f"{self.url}/v1/models: {error}. Is the server running, and is this its URL?") from None
        except (Wrong, LookupError, TypeError, ValueError) as error:
            raise ServerError(
                f"{self.url}/v1/models does not return a list of models ({error}). Is this the URL of an "
                "OpenAI-compatible server?"
            ) from None

    def post_all(self, path: str, bodies: Iterable[Any], read: Callable[[Any, Any], T]) -> list[T]:
        """What `read(body, answer)` makes of the answer to each body. It raises `Wrong` if that is not what was asked.

        Raises:
            ServerError: the server refuses a request, or has neither answered one in `patience` seconds, or three times
                wrongly. Requests that wait are not sent any more.
        """
        waiting = list(enumerate(bodies))
        with ThreadPool(max(1, min(self.concurrent, len(waiting)))) as pool:  # its threads do not hold up the exit
            try:
                found = dict(pool.imap_unordered(lambda each: (each[0], self._post(path, each[1], read)), waiting))
            except BaseException:  # Ctrl-C, too
                self._given_up.set()
                raise
        return [found[place] for place, _ in waiting]

    def _post(self, path: str, body: Any, read: Callable[[Any, Any], T]) -> T:
        since: float | None = None
        wrong = 0
        while True:
            try:
                return read(body, self._when_well("POST", path, body))
            except Wrong as error:
                wrong += 1
                if wrong == GARBLED:
                    raise ServerError(f"{self.url}{path} gave {GARBLED} invalid answers: {error}") from None
            except _Passing as error:
                since = self._clock() if since is None else since
                if self._clock() - since + error.retry_after >= self.patience:
                    asked = f" The server asks to wait {error.retry_after:.0f} s." if error.retry_after else ""
                    raise ServerError(
                        f"{self.url}{path} has not answered for {self._clock() - since:.0f} s: {error}.{asked} When it "
                        "works again, resume the run. To wait longer, raise the teacher's client.patience."
                    ) from None

    def _when_well(self, method: str, path: str, body: Any) -> Any:
        """Send it; if the server failed the last time, alone and after a while."""
        with self._probing:
            if seconds := self._backoff:
                seconds *= 1 + _JITTER.random() / 2
                if seconds >= LONGEST / 10:
                    say(f"{self.url}: next try in {seconds:.0f} s", plain_console(stderr=True))
                self._sleep(seconds)
                return self._once(method, path, body)
        return self._once(method, path, body)

    def _once(self, method: str, path: str, body: Any) -> Any:
        if self._given_up.is_set():
            raise ServerError(f"{self.url}{path}: request not sent, because another request has failed.")
        before = self._backoff
        try:
            answer = self._answer(method, path, body)
        except _Passing as error:
            # Requests that were under way together fail together: that is one failure.
            longer = max(error.retry_after, min(LONGEST, 2 * before or FIRST))
            self._backoff = max(self._backoff, longer)
            raise
        self._backoff = 0.0
        try:
            return json.loads(answer)
        except ValueError:
            raise Wrong(f"{len(answer):,} bytes that are not complete JSON") from None

    def _answer(self, method: str, path: str, body: Any) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        try:
            response = self._pool.request(method, self.url + path, body=data)
        except SSLError as error:
            raise ServerError(f"{self.url}: {error}") from None
        except HTTPError as error:
            raise _Passing(str(error).rpartition("): ")[2] or type(error).__name__) from None
        if response.status in PASSING or response.status >= 500:
            raise _Passing(f"HTTP {response.status}{_message(response.data)}", _retry_after(response))
        if response.status != 200:
            raise ServerError(f"{self.url}{path} refused the request: HTTP {response.status}{_message(response.data)}")
        return response.data


def _base(url: str) -> str:
    """Without a trailing `/v1`. Raises UserError if it is no URL, or holds a password, which would be recorded."""
    try:
        parsed = urllib3.util.parse_url(url)
    except LocationValueError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"url={url}: it must be the URL of a server, such as http://localhost:8000.")
    if parsed.auth:
        raise UserError(
            "url: it contains a password, which would be recorded with the config. Put the key into an environment "
            "variable, and set client.api_key_env to its name."
        )
    return url.rstrip("/").removesuffix("/v1")


def _message(data: bytes) -> str:
    """What the server says of its error."""
    text = data.decode(errors="replace")
    try:
        content = json.loads(text)
        error = content.get("error", content) if isinstance(content, dict) else content
        text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except ValueError:
        pass
    text = " ".join(text.split())
    return f": {text[:SAID]}" if text else ""


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds, from a number or a date; 0: the server does not say."""
    try:
        return urllib3.Retry().get_retry_after(response) or 0.0
    except InvalidHeader:
        return 0.0
