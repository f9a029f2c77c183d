"""Requests to an OpenAI-compatible server: what may pass is tried again, and anything else is told at once."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from typing import Any, TypeVar

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, SSLError

from distillery.core.errors import UserError
from distillery.core.terminal import plain_console, say

K = TypeVar("K")
T = TypeVar("T")
PASSING = frozenset({408, 425, 429})  # and every status from 500 on
CROWDED = frozenset({429, 503, 529})
NO_MONEY = b"insufficient_quota"  # what OpenAI calls a 429 that does not pass
FIRST, LONGEST = 1.0, 60.0  # seconds until the second try, doubled up to the longest
GARBLED = 3  # tries of a request whose answers are wrong: more would not make them right
_JITTER = random.SystemRandom()  # leaves the random numbers of the run alone
SAID = 300  # characters of a server's message that are shown


class ServerError(UserError):
    """A server that does not answer, or answers wrongly.

    `of_this_request`: the reason is in the content of one request, and others may be answered.
    """

    of_this_request = False


class Refused(ServerError):
    """The server refuses a request, with this HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status, self.of_this_request = status, status in (400, 413, 422)


class Garbled(ServerError):
    """The answers to a request are wrong, however often it is sent."""

    of_this_request = True


class Wrong(Exception):
    """The server answered, but not what it was asked."""


class _Passing(Exception):
    """The server did not answer this time. `crowded`: since too many requests were under way."""

    def __init__(self, reason: str, retry_after: float = 0.0, crowded: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.crowded = retry_after, crowded


class _Slots:
    """Limits how many requests are under way: halved when the server is crowded, and raised again by answers.

    Additive increase, multiplicative decrease, as TCP controls congestion (Chiu and Jain 1989): each answer adds
    1 ÷ limit, so that a round of answers adds one.
    """

    def __init__(self, most: int) -> None:
        self._most, self.limit = most, float(most)
        self._taken = self._halvings = 0
        self._free = threading.Condition()

    def take(self) -> int:
        """Wait for a slot. Returns what `give` is to be told."""
        with self._free:
            self._free.wait_for(lambda: self._taken < int(self.limit))
            self._taken += 1
            return self._halvings

    def give(self, taken_at: int, crowded: bool = False, answered: bool = False) -> None:
        """Free a slot. Requests that were under way together and fail together halve the limit once."""
        with self._free:
            self._taken -= 1
            if crowded and taken_at == self._halvings:
                self.limit, self._halvings = max(1.0, self.limit / 2), self._halvings + 1
            elif answered:
                self.limit = min(float(self._most), self.limit + 1 / self.limit)
            self._free.notify_all()


class Client:
    """Sends requests, several at a time.

    Timeouts, broken connections and the statuses 408, 425, 429 and 5xx may pass. Such a request is sent again after 1,
    2, 4, … up to 60 seconds, lengthened at random by up to a half, and never before the server's `Retry-After`. While
    the server fails, one request at a time tries it, and the others wait until it is well again (a circuit breaker).
    After 429, 503 and 529, half as many requests are under way at once, and more again as they are answered.

    Args:
        url: of the server, with or without its `/v1`.
        key: the API key; empty: none.
        concurrent: how many requests are under way at once, at most.
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
        self._key, self._slots = key, _Slots(concurrent)
        self._given_up = threading.Event()
        self._sleep, self._clock = sleep or self._given_up.wait, clock
        self._probing = threading.Lock()
        self._backoff = 0.0  # seconds until the next try; 0: the server is well
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limit = urllib3.Timeout(connect=min(10.0, timeout), read=timeout)
        self._pool = urllib3.PoolManager(maxsize=concurrent, headers=headers, timeout=limit, retries=False)

    def models(self) -> list[dict[str, Any]]:
        """What `/v1/models` says of each model. It is asked once: a server that is not there is told at once.

        Raises:
            ServerError: it is not there, or gives no list; `Refused`: it refuses to say.
        """
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
        found: dict[int, T] = {}
        asked = (((place, body), path, body) for place, body in enumerate(bodies))
        for (place, _), answer in self.post_each(asked, lambda key, given: read(key[1], given)):
            if isinstance(answer, ServerError):
                self._given_up.set()
                raise answer
            found[place] = answer
        return [found[place] for place in range(len(found))]

    def post_each(
        self, asked: Iterable[tuple[K, str, Any]], read: Callable[[K, Any], T]
    ) -> Iterator[tuple[K, T | ServerError]]:
        """What `read(key, answer)` makes of each answer, as they come. Requests are taken one by one, and sent at once.

        A request that fails for its content alone has the error in place of an answer. `read` is called in the thread
        that has the answer, and raises `Wrong` if that is not what was asked.

        Args:
            asked: of each request a key, the path and the body.

        Raises:
            ServerError: the server has not answered in `patience` seconds, or refuses whatever is sent. Requests that
                wait are not sent any more.
        """
        source, pulling = iter(asked), threading.Lock()
        results: Queue[tuple[K, T | ServerError] | BaseException | None] = Queue()

        def work() -> None:
            try:
                while True:
                    with pulling:
                        each = next(source, None)
                    if each is None:
                        return
                    try:
                        results.put((each[0], self._post(*each, read)))
                    except ServerError as error:
                        if not error.of_this_request:
                            raise
                        results.put((each[0], error))
            except BaseException as error:
                self._given_up.set()
                results.put(error)
            finally:
                results.put(None)

        for _ in range(self.concurrent):
            threading.Thread(target=work, daemon=True).start()  # does not hold up the exit
        working = self.concurrent
        try:
            while working:
                result = results.get()
                if result is None:
                    working -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield result
        except BaseException:  # Ctrl-C, too
            self._given_up.set()
            raise

    def _post(self, key: K, path: str, body: Any, read: Callable[[K, Any], T]) -> T:
        since: float | None = None
        wrong = 0
        while True:
            try:
                return read(key, self._when_well("POST", path, body))
            except Wrong as error:
                wrong += 1
                if wrong == GARBLED:
                    raise Garbled(f"{self.url}{path} gave {GARBLED} invalid answers: {error}") from None
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
        taken = self._slots.take()
        crowded = answered = False
        try:
            answer = self._once(method, path, body)
            answered = True
            return answer
        except _Passing as error:
            crowded = error.crowded
            raise
        finally:
            self._slots.give(taken, crowded, answered)

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
        status = response.status
        if status == 200:
            return response.data
        said = f"HTTP {status}{_message(response.data)}"
        said = said.replace(self._key, "***") if self._key else said
        if (status in PASSING or status >= 500) and NO_MONEY not in response.data:
            raise _Passing(said, _retry_after(response), status in CROWDED)
        raise Refused(f"{self.url}{path} refused the request: {said}", status)


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
