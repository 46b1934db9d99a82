# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign data read with the types that are expected of it; whatever else it holds is a FormatError, never a surprise."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

# Far above what any document of ours or of a server has, far below what Python's own stack holds.
MAX_DEPTH = 64
# No figure in a document is larger; beyond it arithmetic with times and sizes would fail somewhere later.
MAX_NUMBER = 1 << 64
SHOWN_ERRORS = 5

T = TypeVar("T")
_REQUIRED: Any = object()


class FormatError(ValueError):
    """Data that is not what it should be. Its text says what is wrong, and fits after the name of the document."""


def parse_json(document: str | bytes) -> Any:
    """The value of a JSON document.

    Raises FormatError for all else: NaN and infinities, numbers beyond 64 bits, nesting deeper than MAX_DEPTH. So it does
    for bytes that are not UTF-8, and for text that no file can hold (lone surrogates).
    """
    try:
        text = document if isinstance(document, str) else document.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_real)
    except RecursionError:
        raise FormatError("is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"is not JSON ({error})") from None
    for leaf in _leaves(value):
        if isinstance(leaf, str) and not leaf.isascii():
            _require_text(leaf)
    return value


def build(kind: type[T], raw: Any, where: str = "") -> T:
    """A dataclass from the object of a JSON document, as `dataclasses.asdict` gives it.

    Raises FormatError that names the keys that are unknown, missing, or hold another type than the field's.
    """
    if not isinstance(raw, Mapping):
        raise FormatError(f"{where or 'it'} is not an object")
    assert dataclasses.is_dataclass(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    errors = [f"{prefix}{key!s:.40} is not known" for key in raw if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                errors.append(f"{prefix}{name} is missing")
            continue
        try:
            values[name] = convert(raw[name], hints[name], f"{prefix}{name}")
        except FormatError as error:
            errors.append(str(error))
    if errors:
        rest = f" and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise FormatError("; ".join(errors[:SHOWN_ERRORS]) + rest)
    return kind(**values)


def convert(value: Any, hint: Any, where: str) -> Any:
    """The value if it is of the type, whole numbers as float where that is asked for. Raises FormatError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_to_one(value, arguments, where)
    if origin is list and isinstance(value, list):
        return [convert(item, arguments[0], f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            convert(key, arguments[0], f"a key of {where}"): convert(item, arguments[1], f"{where}.{key!s:.40}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) in (int, float) and math.isfinite(value) and abs(value) < MAX_NUMBER:
        return float(value)
    # a bool is an int to Python, and to nobody else
    if isinstance(hint, type) and type(value) is hint and hint is not float:
        return value
    raise FormatError(f"{where} must be {_spelled(hint)}")


def pick(document: Any, *path: str | int, kind: Any, default: Any = _REQUIRED) -> Any:
    """What lies at a path of keys and positions of a document. Raises FormatError if it is another type.

    :param kind: the type that it must have, as in an annotation.
    :param default: what is returned where there is nothing, or null; without it that is an error, too.
    """
    found = document
    for step in path:
        try:
            found = found[step]
        except (KeyError, IndexError):
            found = None
        except TypeError:
            if found is not None:
                raise FormatError(f"{_joined(path)} lies in something of another type") from None
        if found is None:
            break
    if found is None and default is not _REQUIRED:
        return default
    return convert(found, kind, _joined(path))


def _convert_to_one(value: Any, hints: Iterable[Any], where: str) -> Any:
    problems = []
    for hint in hints:
        try:
            return None if hint is types.NoneType and value is None else convert(value, hint, where)
        except FormatError as error:
            problems.append((hint, str(error)))
    # of a type or null, the type's own problem tells more
    raise FormatError(next((text for hint, text in problems if hint is not types.NoneType), where))


def _spelled(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    return names.get(hint) or {list: "a list", dict: "an object"}.get(get_origin(hint) or hint, "something else")


def _joined(path: Iterable[str | int]) -> str:
    return ".".join(str(step) for step in path)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _integer(text: str) -> int:
    if len(text) > len(str(MAX_NUMBER)) or abs(number := int(text)) > MAX_NUMBER:
        raise ValueError(f"{text[:20]}… is too large a number")
    return number


def _real(text: str) -> float:
    number = float(text)
    if abs(number) > MAX_NUMBER:
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def require_document(value: Any) -> None:
    """Raises FormatError unless the value could be a JSON document that `parse_json` takes, without NUL in its texts.

    For options, which may hold what no command and no request can be given.
    """
    for leaf in _leaves(value):
        if isinstance(leaf, str):
            if "\0" in leaf:
                raise FormatError("holds a NUL character")
            _require_text(leaf)
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            raise FormatError(f"holds {leaf}, which is no number")
        elif isinstance(leaf, (int, float)) and abs(leaf) > MAX_NUMBER:
            raise FormatError("holds a number that is too large")
        elif not isinstance(leaf, (int, float, types.NoneType)):
            raise FormatError(f"holds something of type {type(leaf).__name__}")


def _leaves(value: Any) -> Iterator[Any]:
    """The values within a document that hold no others, and the keys. Raises FormatError if it is nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                children += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                children += item
            else:
                yield item
        level = children
    if level:
        raise FormatError("is nested too deeply")


def _require_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("holds text that is not Unicode (lone surrogates)") from None
