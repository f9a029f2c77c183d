"""Numbers that change during training, as pure functions of its progress.

In a config it takes the place of a number: `loss.dkd.weight: {schedule: linear, start: 0, end: 1, epochs: 20}`.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from distillery.core.errors import UserError, did_you_mean

Unit = Literal["epochs", "steps"]


@dataclass(frozen=True)
class Progress:
    """How far training is, before an update.

    Attributes:
        step: updates done.
        steps_per_epoch: updates in an epoch.
        met: whether the condition of a schedule that waits for a metric has ever been met.
    """

    step: int
    steps_per_epoch: int
    met: bool = False

    def done(self, unit: Unit) -> float:
        """Steps, or epochs and the part of one."""
        return self.step if unit == "steps" else self.step / self.steps_per_epoch


class Schedule(ABC):
    """A number as a function of the progress."""

    @property
    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """Its extremes, between which all others lie."""

    @abstractmethod
    def value(self, at: Progress) -> float:
        """The number before the update that comes next."""


@dataclass(frozen=True)
class Ramp(Schedule):
    """`start` until `begin`, then to `end` within `length`; along a straight line or half a cosine wave."""

    start: float
    end: float
    length: float
    unit: Unit
    begin: float = 0.0
    shape: Literal["linear", "cosine"] = "linear"

    @property
    def values(self) -> tuple[float, ...]:
        return self.start, self.end

    def value(self, at: Progress) -> float:
        part = (at.done(self.unit) - self.begin) / self.length
        if not 0 < part < 1:
            return self.end if part >= 1 else self.start
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part

    def __str__(self) -> str:
        begin = f"from {self.begin:g} on, " if self.begin else ""
        return f"{self.shape} {self.start:g} → {self.end:g}, {begin}{self.length:g} {self.unit}"


@dataclass(frozen=True)
class Stairs(Schedule):
    """`levels[i]` from `places[i - 1]` on, `levels[0]` before all of them. One level and no place: a constant."""

    levels: tuple[float, ...]
    places: tuple[float, ...] = ()
    unit: Unit = "epochs"

    @property
    def values(self) -> tuple[float, ...]:
        return self.levels

    def value(self, at: Progress) -> float:
        return self.levels[sum(at.done(self.unit) >= place for place in self.places)]

    def __str__(self) -> str:
        later = zip(self.levels[1:], self.places, strict=True)
        return f"{self.levels[0]:g}" + "".join(f", {v:g} from {p:g} {self.unit} on" for v, p in later)


@dataclass(frozen=True)
class Window(Schedule):
    """`inside` from `begin` up to, and without, `end`; `outside` before and after."""

    inside: float
    outside: float
    begin: float
    end: float
    unit: Unit

    @property
    def values(self) -> tuple[float, ...]:
        return self.inside, self.outside

    def value(self, at: Progress) -> float:
        return self.inside if self.begin <= at.done(self.unit) < self.end else self.outside

    def __str__(self) -> str:
        end = f" until {self.end:g}" if self.end < math.inf else " on"
        return f"{self.inside:g} from {self.begin:g}{end} ({self.unit}), otherwise {self.outside:g}"


@dataclass(frozen=True)
class Latch(Schedule):
    """`before` until a metric has once passed `bound`, then `after`, for good."""

    before: float
    after: float
    metric: str
    side: Literal["above", "below"]
    bound: float

    @property
    def values(self) -> tuple[float, ...]:
        return self.before, self.after

    def value(self, at: Progress) -> float:
        return self.after if at.met else self.before

    def passed(self, metric: float) -> bool:
        """Whether this value of the metric meets the condition."""
        return metric > self.bound if self.side == "above" else metric < self.bound

    def __str__(self) -> str:
        return f"{self.before:g}, {self.after:g} once {self.metric} is {self.side} {self.bound:g}"


def parse(path: str, given: Mapping[Any, Any]) -> Schedule:
    """The schedule that a config's `{schedule: <name>, …}` at `path` describes; null takes an argument away again.

    Raises:
        UserError: an unknown or missing name or argument, or an invalid value.
    """
    name = given.get("schedule")
    name = {True: "on", False: "off"}.get(name, name) if isinstance(name, bool) else name  # so YAML reads on and off
    if name not in SCHEDULES:
        asked = "" if name is None else str(name)
        said = f"unknown schedule {asked!r}." if asked else f"{dict(given)} is not a number and has no `schedule`."
        raise UserError(f"{path}: {said}" + did_you_mean(asked, SCHEDULES))
    arguments, make = SCHEDULES[name]
    values = {str(key): value for key, value in given.items() if key != "schedule" and value is not None}
    if unknown := [key for key in values if key not in arguments]:
        raise UserError(f"{path}: schedule {name} has no {unknown[0]!r}." + did_you_mean(unknown[0], arguments))
    return make(_Given(f"{path}: schedule {name}", values))


def schedules_in(path: str, node: Mapping[Any, Any], target: Callable[..., Any]) -> dict[str, Schedule]:
    """The schedules among the arguments that the config `node` has for `target`, by argument.

    Raises:
        UserError: one of them is wrong, or stands where `target` does not take a number.
    """
    found = {str(key): value for key, value in node.items() if isinstance(value, Mapping)}
    numbers = numbers_of(target)
    schedules = {}
    for name, given in found.items():
        if name in numbers:
            schedules[name] = parse(f"{path}.{name}", given)
        elif "schedule" in given:
            raise UserError(f"{path}.{name} cannot have a schedule: it is not a number." + did_you_mean(name, numbers))
    return schedules


def numbers_of(target: Callable[..., Any]) -> list[str]:
    """The arguments that take a float."""
    function = target.__init__ if inspect.isclass(target) else target
    return [name for name, kind in get_type_hints(function).items() if kind in (float, float | None)]


@dataclass(frozen=True)
class _Given:
    """The arguments of a schedule, as the config has them; `where` begins each error."""

    where: str
    values: Mapping[str, Any]

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self.where} lacks {key!r}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.where}: {key}={value} must be a finite number.")
        return value

    def place(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value < 0:
            raise UserError(f"{self.where}: {key}={value} lies before the start of training.")
        return value

    def unit(self) -> Unit:
        """Whichever of `epochs` and `steps` is given."""
        units: list[Unit] = [unit for unit in ("epochs", "steps") if unit in self.values]
        if len(units) != 1:
            raise UserError(f"{self.where}: give either epochs or steps.")
        return units[0]

    def ramp(self, start: float, end: float, shape: Literal["linear", "cosine"] = "linear") -> Ramp:
        unit = self.unit()
        if (length := self.number(unit)) <= 0:
            raise UserError(f"{self.where}: {unit}={length} must be greater than 0.")
        return Ramp(start, end, length, unit, self.place("from", 0.0), shape)

    def stairs(self) -> Stairs:
        unit = self.unit()
        levels, places = (self.numbers(key) for key in ("values", unit))
        if len(levels) != len(places) + 1:
            raise UserError(f"{self.where}: {len(levels)} values need {len(levels) - 1} {unit} at which to change.")
        if list(places) != sorted(set(places)) or any(place <= 0 for place in places):
            raise UserError(f"{self.where}: {unit}={list(places)} must increase, starting after 0.")
        return Stairs(levels, places, unit)

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self.values.get(key)
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f"{self.where}: {key}={values} must be a list of numbers.")
        return tuple(_Given(self.where, {key: value}).number(key) for value in values)

    def switch(self, on: bool) -> Schedule:
        """`value` where it is on, `otherwise` where it is off."""
        value, otherwise = self.number("value"), self.number("otherwise", 0.0)
        inside, outside = (value, otherwise) if on else (otherwise, value)
        sides: list[Literal["above", "below"]] = [key for key in ("above", "below") if key in self.values]
        by_place = sorted({"from", "until", "unit"} & self.values.keys())
        if "when" in self.values or sides:
            if by_place or len(sides) != 1 or "when" not in self.values:
                raise UserError(
                    f"{self.where}: give either `when: <metric>` with `above` or `below`, or `from` and `until`."
                )
            return Latch(outside, inside, str(self.values["when"]), sides[0], self.number(sides[0]))
        if not {"from", "until"} & self.values.keys():
            raise UserError(f"{self.where} lacks 'from', 'until' or 'when': it does not say when to change.")
        unit = self.values.get("unit", "epochs")
        if unit not in ("epochs", "steps"):
            raise UserError(f"{self.where}: unit={unit}." + did_you_mean(str(unit), ("epochs", "steps")))
        begin = self.place("from", 0.0)
        end = self.place("until") if "until" in self.values else math.inf
        if end <= begin:
            raise UserError(f"{self.where}: until={end} must come after from={begin}.")
        return Window(inside, outside, begin, end, unit)


_RAMP = ("epochs", "steps", "from")
_SWITCH = ("value", "otherwise", "from", "until", "unit", "when", "above", "below")
SCHEDULES: dict[str, tuple[tuple[str, ...], Callable[[_Given], Schedule]]] = {
    "constant": (("value",), lambda given: Stairs((given.number("value"),))),
    "linear": (("start", "end", *_RAMP), lambda given: given.ramp(given.number("start"), given.number("end"))),
    "cosine": (
        ("start", "end", *_RAMP),
        lambda given: given.ramp(given.number("start"), given.number("end"), "cosine"),
    ),
    "warmup": (("to", *_RAMP), lambda given: given.ramp(0.0, given.number("to"))),
    "step": (("values", "epochs", "steps"), _Given.stairs),
    "on": (_SWITCH, lambda given: given.switch(on=True)),
    "off": (_SWITCH, lambda given: given.switch(on=False)),
}
