"""Whether an answer is right: functions of the answer and the row of its prompt.

Any function with these two arguments serves, as `verifier._target_=my_module.my_function`.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from distillery.core.errors import UserError

Verifier = Callable[[str, Mapping[str, Any]], bool]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact(answer: str, row: Mapping[str, Any], key: str = "answer") -> bool:
    """The answer is the row's, but for case, white space and a full stop at the end.

    Raises:
        UserError: the row has no answer under this `key`.
    """
    return _plain(answer) == _plain(_expected(row, key))


def numeric(answer: str, row: Mapping[str, Any], key: str = "answer", tolerance: float = 1e-6) -> bool:
    """The last number of the answer is the last number of the row's, within a relative or absolute `tolerance`.

    Raises:
        UserError: the row has no number under this `key`.
    """
    right = _last_number(_expected(row, key))
    if right is None:
        raise UserError(f"'{key}' has no number: {str(row[key])[:80]!r}.")
    found = _last_number(answer)
    return found is not None and math.isclose(found, right, rel_tol=tolerance, abs_tol=tolerance)


def regex(answer: str, row: Mapping[str, Any], key: str = "answer") -> bool:
    """The row's regular expression matches the whole answer, but for white space around it.

    Raises:
        UserError: the row has no regular expression under this `key`.
    """
    pattern = _expected(row, key)
    try:
        return re.fullmatch(pattern, answer.strip()) is not None
    except re.error as error:
        raise UserError(f"'{key}' is no regular expression: {error}: {pattern[:80]!r}.") from error


def accepts(verifier: Verifier, answer: str, row: Mapping[str, Any], where: str) -> bool:
    """What the verifier says.

    Raises:
        UserError: it fails.
    """
    try:
        return bool(verifier(answer, row))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        raise UserError(f"{where}: the verifier fails with {type(error).__name__}: {error}") from error


def _expected(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        raise UserError(f"there is no '{key}' to compare an answer with, but the keys {', '.join(row)}.")
    return str(row[key])


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
