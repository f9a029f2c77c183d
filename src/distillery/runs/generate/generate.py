"""`distill-generate`: a teacher's texts as data for a student. Each text is asked for once."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distillery.core.errors import UserError
from distillery.core.terminal import plain_console, say
from distillery.runs.folder_lock import FolderLock
from distillery.runs.generate.output import ANSWERS, FAILED, LEFT_OUT, LOGPROBS, Outcome, write_files
from distillery.runs.generate.pace import Pace
from distillery.runs.generate.price import Budget, Price, expected_sum
from distillery.runs.generate.recipes.recipe import Recipe
from distillery.runs.generate.request import STOP, Answer, Request, planned
from distillery.runs.generate.store import STORE, Store
from distillery.runs.generate.writer import Failure, Writer

IN_A_ROW = 20  # failures after which the next requests are taken to fail, too


@dataclass(frozen=True)
class Settings:
    """What is asked for, see `configs/generate.yaml`."""

    out: Path
    budget: float | None = None
    pilot: int = 20
    seed: int = 0
    licence: str | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


def generate(writer: Writer, recipe: Recipe, price: Price, settings: Settings) -> Outcome:
    """Have the teacher write what the recipe asks for and the folder does not hold.

    Some of the first requests, drawn at random, are sent before all others. What they have cost tells what the rest of
    the round will cost. A later round depends on the answers of those before it.

    Raises:
        UserError: the prompts cannot be read, the folder has answers of another recipe or model, the model has a price
            and there is no budget, or the server fails. What has been answered is kept.
    """
    writer.check(next(recipe.rounds(lambda _: None)))
    identity = writer.identity
    common = {"recipe": type(recipe).__name__.lower(), "model": str(identity["model"])}
    about = {
        "parameters": {name: value for name, value in identity.items() if name != "model"},
        "template_sha256": hashlib.sha256(recipe.template.encode()).hexdigest(),
        "licence": settings.licence,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(settings.out), Store(settings.out / STORE, common) as store:
        store.recover()
        job = _Job(writer, store, price, settings)
        try:
            job.ask(recipe)
        finally:
            try:
                outcome = write_files(settings.out, recipe.rows(job.answered), job.failed, about)
            except OSError as error:
                raise UserError(
                    f"'{settings.out}' cannot be written: {error.strerror or error}. The answers are kept in {STORE}. "
                    "Make room on the disk, then repeat the command: nothing is asked for again."
                ) from error
            outcome.failed = len(job.failed)
            outcome.left = sum(len(job.missing(each)) for each in recipe.rounds(job.answered)) - outcome.failed
            say(_summary(settings.out, outcome, store, price, recipe.reader))
    return outcome


def plan(writer: Writer, recipe: Recipe, price: Price, out: Path) -> str:
    """What would be asked for, without asking: requests, tokens and money of all rounds, from above."""
    writer.check(next(recipe.rounds(lambda _: None)))
    if (out / STORE).is_file():
        with Store(out / STORE, {}) as store:
            rounds = list(_ahead(writer, recipe, store.get))
    else:
        rounds = list(_ahead(writer, recipe, lambda _: None))
    missing = [request for _, requests in rounds for request in requests]
    asked = sum(number for number, _ in rounds)
    prompts = sum(request.most_prompt_tokens for request in missing)
    known, later = f"{asked - len(missing):,} answered before.", ""
    lines = [f"{asked:,} requests, {known}"]
    if len(rounds) > 1:
        lines[0] = f"{rounds[0][0]:,} requests, and at most {asked - rounds[0][0]:,} in later rounds; {known}"
        later = " (a part of them are earlier answers, which count as long as they may be)"
    lines.append(f"Prompts: at most {prompts:,} tokens{later}.")
    if writer.most_tokens is None:
        return "\n".join([*lines, "Answers: of any length. Set max_tokens for a bound.", _priced(writer, price)])
    answers = len(missing) * writer.most_tokens
    cost = "" if price.free else f" At most ${price.of(prompts, answers):,.2f}."
    return "\n".join([*lines, f"Answers: at most {answers:,} tokens.", _priced(writer, price) + cost])


class _Job:
    """Sends requests and keeps the answers."""

    def __init__(self, writer: Writer, store: Store, price: Price, settings: Settings) -> None:
        self.writer, self.store, self.price, self.settings = writer, store, price, settings
        self.identity = writer.identity
        self.budget = Budget(settings.budget, sum(store.spent))
        if settings.budget is not None and not price.free and writer.most_tokens is None:
            raise UserError("budget: it needs a bound of each answer's length. Set max_tokens.")
        self.pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self.failed: dict[str, str] = {}
        self.answers: list[Answer] = []  # to what was sent last
        self.seconds = 0.0  # until the last of them
        self.stopped = False

    def answered(self, request: Request) -> Answer | None:
        """The answer that the folder holds."""
        return self.store.get(request.key(self.identity))

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Those without an answer; of several that are the same the first."""
        return _missing(requests, self.identity, self.store)

    def ask(self, recipe: Recipe) -> None:
        """Ask for all rounds, until the budget is spent."""
        asked = 0
        for number, requests in enumerate(recipe.rounds(self.answered)):
            missing = self.missing(requests)
            what = f"Round {number + 1}: " if number else ""
            priced = "" if number else f" {_priced(self.writer, self.price)}"
            say(f"{what}{len(requests):,} requests, {len(requests) - len(missing):,} answered before.{priced}")
            if asked and missing:
                self._need_budget()
            pilot, rest = _pilot(missing, self.settings.pilot, self.settings.seed)
            self.send(pilot, "pilot")
            if rest and not self.stopped:
                if pilot:
                    say(self.forecast(len(rest), list(_ahead(self.writer, recipe, self.store.get))[number + 1 :]))
                self._need_budget()
                self.send(rest, "writing")
            if self.stopped:
                return
            asked += len(missing)

    def send(self, requests: Sequence[Request], what: str) -> None:
        """Ask for these texts; those for which the budget does not suffice are left, and `stopped` is set."""
        in_a_row = 0
        began = time.monotonic()
        self.answers = []
        with _bar(what, len(requests)) as shown:
            for request, found in self.writer.write(self._admitted(requests), self._keep):
                if isinstance(found, Failure):
                    in_a_row += 1
                    self._drop(request, found)
                    if in_a_row == IN_A_ROW:
                        raise UserError(
                            f"{IN_A_ROW} requests in a row have failed; the last one: {found.reason} Nothing is lost: "
                            "repeat the command when the reason is removed."
                        )
                else:
                    in_a_row = 0
                    self.answers.append(found)
                    self.seconds = time.monotonic() - began
                shown(self.budget.spent if not self.price.free else None)

    def forecast(self, more: int, later: Sequence[tuple[int, Sequence[Request]]] = ()) -> str:
        """What `more` further requests will cost, by those that were answered just now; and `later` rounds at most."""
        if not self.answers:
            return "The pilot has no answers."
        tokens = expected_sum([each.prompt_tokens + each.completion_tokens for each in self.answers], more)
        minutes = self.seconds / len(self.answers) * more / 60
        said = f"The other {more:,}: {tokens.expected:,.0f} tokens [{tokens.low:,.0f}, {tokens.high:,.0f}]"
        if not self.price.free:
            dollars = expected_sum(list(map(self._cost, self.answers)), more)
            said += f", ${dollars.expected:,.2f} [${dollars.low:,.2f}, ${dollars.high:,.2f}]"
        said += f", {minutes:,.0f} minutes (mean and 95 % prediction interval, from {len(self.answers)} answers)."
        if ahead := [request for _, requests in later for request in requests]:
            most = "" if self.price.free else f", ${sum(map(self._bound, ahead)):,.2f}"
            said += f" Later rounds: at most {len(ahead):,} requests{most}."
        return said

    def _admitted(self, requests: Sequence[Request]) -> Iterator[Request]:
        """The requests one by one, each when the budget and the server's limits let it be sent."""
        for request in requests:
            bound = self._bound(request)
            if not self.budget.reserve(bound):
                self.stopped = True
                return
            self.pace.wait(self._tokens(request))
            self.store.send(self._key(request), bound)
            yield request

    def _keep(self, request: Request, answer: Answer) -> None:
        cost = self._cost(answer)
        self.store.put(self._key(request), answer, cost)
        self.budget.settle(self._bound(request), cost)
        self.pace.correct(self._tokens(request), answer.prompt_tokens + answer.completion_tokens)

    def _drop(self, request: Request, failure: Failure) -> None:
        self.store.fail(self._key(request))
        self.budget.settle(self._bound(request), 0.0)
        self.failed[json.dumps(request.row(""), ensure_ascii=False)] = failure.reason

    def _need_budget(self) -> None:
        if self.settings.budget is None and not self.price.free:
            raise UserError("No budget is set. To go on, repeat the command with budget=<US dollars>.")

    def _key(self, request: Request) -> str:
        return request.key(self.identity)

    def _cost(self, answer: Answer) -> float:
        return self.price.of(answer.prompt_tokens, answer.completion_tokens)

    def _bound(self, request: Request) -> float:
        """The most that it can cost."""
        return self.price.of(request.most_prompt_tokens, self.writer.most_tokens or 0)

    def _tokens(self, request: Request) -> float:
        """About how many tokens it will have: four bytes each, and as long an answer as may be."""
        return request.most_prompt_tokens / 4 + (self.writer.most_tokens or 0)


def _missing(requests: Sequence[Request], identity: Mapping[str, Any], known: Container[str]) -> list[Request]:
    """Those without an answer; of several that are the same the first."""
    found: dict[str, Request] = {}
    for request in requests:
        if (key := request.key(identity)) not in found and key not in known:
            found[key] = request
    return list(found.values())


def _ahead(
    writer: Writer, recipe: Recipe, known: Callable[[str], Answer | None]
) -> Iterator[tuple[int, Sequence[Request]]]:
    """Of each round, the number of requests and those without an answer; from above.

    In place of an answer that is not known stands one that is as long as may be, and leads to the most requests.
    """
    identity = writer.identity

    def answered(request: Request) -> Answer:
        key = request.key(identity)
        return known(key) or planned(key, writer.most_tokens)

    for requests in recipe.rounds(answered):
        missing = _missing(requests, identity, ())
        yield len(requests), [request for request in missing if known(request.key(identity)) is None]


def _pilot(missing: Sequence[Request], number: int, seed: int) -> tuple[list[Request], list[Request]]:
    """Some requests that stand for all, and the others."""
    chosen = set(random.Random(seed).sample(range(len(missing)), min(number, len(missing))))
    return [missing[at] for at in sorted(chosen)], [each for at, each in enumerate(missing) if at not in chosen]


def _priced(writer: Writer, price: Price) -> str:
    if price.free:
        return f"{writer.name}: {price.source}."
    return (
        f"{writer.name}: ${price.input:g} per million tokens of prompts, ${price.output:g} of answers ({price.source})."
    )


def _summary(out: Path, outcome: Outcome, store: Store, price: Price, reader: str) -> str:
    lines = [f"{out / ANSWERS}: {outcome[STOP]:,} texts"]
    lines += [f"{number:,} of them {remark}" for remark, number in outcome.remarks.items()]
    for reason, number in sorted(outcome.items(), key=lambda each: -each[1]):
        if reason != STOP:
            example = f", for example {outcome.examples[reason]}" if reason in outcome.examples else ""
            lines.append(f"{number:,} left out ({LEFT_OUT}): {reason}{example}")
    if (out / LOGPROBS).is_file():
        lines.append(f"Log-probabilities: {out / LOGPROBS}")
    if outcome.failed:
        lines.append(f"{outcome.failed:,} prompts failed: {out / FAILED} says why")
    if not price.free:
        paid, perhaps = store.spent
        unsure = f", and at most ${perhaps:,.4f} for requests whose answers were lost" if perhaps else ""
        lines.append(f"Spent: ${paid:,.4f}{unsure}")
    if outcome[STOP]:
        lines.append(f"Train on them: data={reader} data.source.path={out / ANSWERS}")
    if outcome.left:
        lines.append(
            f"{outcome.left:,} prompts are left: repeat the command to go on (with a larger budget, if it is spent)"
        )
    return "\n".join(lines)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    """Within: a progress bar; what it gives is called after each answer, with the dollars that are spent."""
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[money]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, money="")

        def shown(dollars: float | None) -> None:
            progress.update(task, advance=1, money="" if dollars is None else f"${dollars:,.4f}")

        yield shown
