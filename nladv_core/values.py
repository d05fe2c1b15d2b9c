"""Frozen dataclasses as values: fields of the declared types, only what differs from the defaults written down.

Two specifications that mean the same must be equal and hash to the same key, whether a caller wrote `1`, `1.0` or
`numpy.float64(1)`; a notebook parameter of the wrong type must be refused before anything is computed with it.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from nladv_core.errors import SpecError


@cache
def hints(cls: Any) -> dict[str, Any]:
    """Declared type of each field of a dataclass, annotations resolved."""
    every = get_type_hints(cls)
    return {f.name: every[f.name] for f in fields(cls)}


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def describe(hint: Any) -> str:
    """A declared type in words, for messages."""
    args = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if get_origin(hint) in (tuple, list):
        return f"a list of {describe(args[0]).removeprefix('a ').removeprefix('an ')}s"
    names = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def coerce(value: Any, hint: Any) -> Any:
    """`value` as the declared type `hint`; integers pass for floats and whole floats for integers, nothing else bends.

    Raises:
        TypeError: it does not fit (the caller knows the field's name and says so).
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return coerce(value, arg)
            except TypeError:
                continue
    elif origin is tuple and isinstance(value, (tuple, list)):
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(each) == len(value):
            return tuple(coerce(item, arg) for item, arg in zip(value, each, strict=True))
    elif hint is bool and isinstance(value, bool):
        return value
    elif hint is int and isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            return int(value)
        if float(value).is_integer():
            return int(float(value))
    elif hint is float and isinstance(value, Real) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value) + 0.0  # -0.0 becomes 0.0
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and hint not in (bool, int, float) and isinstance(value, hint):
        return str(value) if hint is str else value
    raise TypeError(describe(hint))


def canonical(instance: Any, what: str = "") -> None:
    """Coerce every field of a frozen dataclass in place, from its `__post_init__`.

    Raises:
        SpecError: a field of the wrong type, named with what was found and what was expected.
    """
    what = what or type(instance).__name__.lower()
    for name, hint in hints(instance.__class__).items():
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, coerce(value, hint))
        except TypeError as wrong:
            raise SpecError(f"{what}: {name} is {value!r}, expected {wrong}") from None


def changed(instance: Any) -> dict[str, Any]:
    """The fields that differ from their defaults or have none, as JSON values; dataclasses within likewise."""
    found = {}
    for f in fields(instance):
        value = getattr(instance, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if default is MISSING or value != default:
            found[f.name] = changed(value) if is_dataclass(value) else value
    return found


def build(cls: type, found: Any, what: str = "") -> Any:
    """A dataclass from JSON values as `changed` writes them.

    Raises:
        SpecError: not an object, an unknown field, a missing one, or one of the wrong type.
    """
    what = what or cls.__name__.lower()
    if not isinstance(found, dict):
        raise SpecError(f"{what}: found {type(found).__name__}, expected an object with the fields of {cls.__name__}")
    known = hints(cls)
    values = {}
    for name, value in found.items():
        if name not in known:
            raise SpecError(f"{what}: unknown field {name!r}{nearest(name, known)}")
        inner = next((t for t in (known[name], *get_args(known[name])) if is_dataclass(t)), None)
        if isinstance(inner, type) and get_origin(known[name]) is tuple and isinstance(value, list):
            values[name] = tuple(build(inner, item, name) for item in value)
        else:
            values[name] = build(inner, value, name) if isinstance(inner, type) and value is not None else value
    lacking = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory is MISSING]
    if lacking:
        raise SpecError(f"{what}: {', '.join(lacking)} missing; add {'it' if len(lacking) == 1 else 'them'}")
    return cls(**values)


def text(found: Any) -> str:
    """Canonical JSON: sorted names, no blanks, ASCII, no NaN."""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
