"""Numbers that change during training, as pure functions of its progress.

In a config it takes the place of a number: `loss.dkd.weight: {schedule: linear, start: 0, end: 1, epochs: 20}`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge, Gt
from pydantic import FiniteFloat

from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import conform

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


@dataclass(frozen=True)
class Ramp:
    """`start` until `begin`, then to `end` within `length`; along a straight line or half a cosine wave."""

    start: float
    end: float
    length: float
    unit: Unit
    begin: float
    shape: Literal["linear", "cosine"]

    @property
    def values(self) -> tuple[float, ...]:
        """The extremes, between which all others lie."""
        return self.start, self.end

    def value(self, at: Progress) -> float:
        """The number before the update that comes next."""
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
class Stairs:
    """`values[i]` from `places[i - 1]` on, `values[0]` before all of them. One value and no place: a constant."""

    values: tuple[float, ...]
    places: tuple[float, ...] = ()
    unit: Unit = "epochs"

    def value(self, at: Progress) -> float:
        """The number before the update that comes next."""
        return self.values[sum(at.done(self.unit) >= place for place in self.places)]

    def __str__(self) -> str:
        later = zip(self.values[1:], self.places, strict=True)
        return f"{self.values[0]:g}" + "".join(f", {v:g} from {p:g} {self.unit} on" for v, p in later)


@dataclass(frozen=True)
class Latch:
    """`before` until a metric has once passed `bound`, then `after`, for good."""

    before: float
    after: float
    metric: str
    side: Literal["above", "below"]
    bound: float

    @property
    def values(self) -> tuple[float, ...]:
        """All values."""
        return self.before, self.after

    def value(self, at: Progress) -> float:
        """The number before the update that comes next."""
        return self.after if at.met else self.before

    def passed(self, metric: float) -> bool:
        """Whether this value of the metric meets the condition."""
        return metric > self.bound if self.side == "above" else metric < self.bound

    def __str__(self) -> str:
        return f"{self.before:g}, {self.after:g} once {self.metric} is {self.side} {self.bound:g}"


Schedule = Ramp | Stairs | Latch


def schedules_in(path: str, node: Mapping[Any, Any], target: Callable[..., Any]) -> dict[str, Schedule]:
    """The schedules among the arguments that the config `node` has for `target`, by argument.

    Raises:
        UserError: one of them is wrong, or stands where `target` does not take a number.
    """
    numbers = numbers_of(target)
    schedules = {}
    for name, given in node.items():
        if isinstance(given, Mapping) and name in numbers:
            schedules[name] = parse(f"{path}.{name}", given)
        elif isinstance(given, Mapping) and "schedule" in given:
            raise UserError(f"{path}.{name} cannot have a schedule: it is not a number." + did_you_mean(name, numbers))
    return schedules


def numbers_of(target: Callable[..., Any]) -> list[str]:
    """The arguments that take a float."""
    function = target.__init__ if inspect.isclass(target) else target
    return [name for name, kind in get_type_hints(function).items() if kind in (float, float | None)]


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
    kinds, make = SCHEDULES[name]
    values = {str(key): value for key, value in given.items() if key != "schedule" and value is not None}
    if unknown := [key for key in values if key not in kinds]:
        raise UserError(f"{path}: schedule {name} has no {unknown[0]!r}." + did_you_mean(unknown[0], kinds))
    if missing := [key for key in kinds if key in NEEDED and key not in values]:
        raise UserError(f"{path}: schedule {name} lacks {missing[0]!r}.")
    return make(path, {key: conform(f"{path}.{key}", value, kinds[key]) for key, value in values.items()})


def _ramp(path: str, given: Mapping[str, Any], shape: Literal["linear", "cosine"] = "linear") -> Ramp:
    unit = _unit(path, given)
    start, end = given.get("start", 0.0), given["end" if "end" in given else "to"]
    return Ramp(start, end, given[unit], unit, given.get("from", 0.0), shape)


def _stairs(path: str, given: Mapping[str, Any]) -> Stairs:
    unit = _unit(path, given)
    values, places = given["values"], given[unit]
    if len(values) != len(places) + 1:
        raise UserError(f"{path}: {len(values)} values need {len(values) - 1} {unit} at which to change.")
    if places != sorted(set(places)):
        raise UserError(f"{path}.{unit}={places}: they must increase.")
    return Stairs(tuple(values), tuple(places), unit)


def _switch(path: str, given: Mapping[str, Any], on: bool) -> Stairs | Latch:
    """`value` where it is on, `otherwise` where it is off."""
    value, otherwise = given["value"], given.get("otherwise", 0.0)
    inside, outside = (value, otherwise) if on else (otherwise, value)
    sides: list[Literal["above", "below"]] = [key for key in ("above", "below") if key in given]
    if "when" in given or sides:
        if len(sides) != 1 or "when" not in given or {"from", "until", "unit"} & given.keys():
            raise UserError(f"{path}: give either `when: <metric>` with `above` or `below`, or `from` and `until`.")
        return Latch(outside, inside, given["when"], sides[0], given[sides[0]])
    if not {"from", "until"} & given.keys():
        raise UserError(f"{path} lacks 'from', 'until' or 'when': it does not say when to change.")
    begin, end = given.get("from", 0.0), given.get("until", math.inf)
    if end <= begin:
        raise UserError(f"{path}: until={end} must come after from={begin}.")
    before, after = [outside] if begin > 0 else [], [outside] if end < math.inf else []
    places = tuple(place for place in (begin, end) if 0 < place < math.inf)
    return Stairs((*before, inside, *after), places, given.get("unit", "epochs"))


def _unit(path: str, given: Mapping[str, Any]) -> Unit:
    """Whichever of `epochs` and `steps` is given."""
    units: list[Unit] = [unit for unit in get_args(Unit) if unit in given]
    if len(units) != 1:
        raise UserError(f"{path}: give either epochs or steps.")
    return units[0]


_LENGTH = Annotated[FiniteFloat, Gt(0)]
_PLACE = Annotated[FiniteFloat, Ge(0)]
_ENDS = {"start": FiniteFloat, "end": FiniteFloat}
_RAMP = {"epochs": _LENGTH, "steps": _LENGTH, "from": _PLACE}
_STAIRS = {"values": list[FiniteFloat], "epochs": list[_LENGTH], "steps": list[_LENGTH]}
_WINDOW = {"value": FiniteFloat, "otherwise": FiniteFloat, "from": _PLACE, "until": _PLACE, "unit": Unit}
_SWITCH = {**_WINDOW, "when": str, "above": FiniteFloat, "below": FiniteFloat}
NEEDED = ("value", "start", "end", "to", "values")  # the arguments that a schedule with them cannot do without
SCHEDULES: dict[str, tuple[Mapping[str, Any], Callable[[str, Mapping[str, Any]], Schedule]]] = {
    "constant": ({"value": FiniteFloat}, lambda _, given: Stairs((given["value"],))),
    "linear": ({**_ENDS, **_RAMP}, _ramp),
    "cosine": ({**_ENDS, **_RAMP}, partial(_ramp, shape="cosine")),
    "warmup": ({"to": FiniteFloat, **_RAMP}, _ramp),
    "step": (_STAIRS, _stairs),
    "on": (_SWITCH, partial(_switch, on=True)),
    "off": (_SWITCH, partial(_switch, on=False)),
}
