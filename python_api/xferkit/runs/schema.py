"""Dataclasses as flat options, ``encoder.layers`` say: one table for the command line, YAML, JSON and help.

The table knows of each option its type, default and the words of its dataclass's ``Attributes:`` section. Values
that come from a file are checked against it; a key that it lacks is refused with the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Option",
    "build",
    "checked_value",
    "flat_values",
    "flatten",
    "nearest",
    "nested",
    "options_of",
    "plain",
    "run_table",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        key: its name with dots, ``trainer.schedule``.
        kind: its type, as annotated.
        default: its default; None too where it has none, which only required texts do.
        help: what its dataclass says of it.
    """

    key: str
    kind: Any
    default: Any
    help: str = ""


def options_of(kind: type, prefix: str = "", skip: Iterable[str] = ()) -> dict[str, Option]:
    """The options of a dataclass by key, those of nested dataclasses with their name before them.

    Args:
        kind: the dataclass; every field needs a default.
        prefix: stands before every key.
        skip: names of fields that are left out.
    """
    hints, words = get_type_hints(kind), _attribute_docs(kind)
    found: dict[str, Option] = {}
    for field in dataclasses.fields(kind):
        if field.name in skip or not field.init:
            continue
        hint, key = hints[field.name], f"{prefix}{field.name}"
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = options_of(hint, f"{key}.")
            if dataclasses.is_dataclass(default) and not isinstance(default, type):
                own = {f"{key}.{k}": v for k, v in _leaves(default).items()}
                inner = {k: dataclasses.replace(o, default=own[k]) for k, o in inner.items()}
            found |= inner
            continue
        if default is dataclasses.MISSING:
            raise TypeError(f"{kind.__name__}.{field.name} needs a default to become an option")
        found[key] = Option(key, hint, default, words.get(field.name, ""))
    return found


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= _leaves(value, f"{prefix}{field.name}.")
        else:
            values[f"{prefix}{field.name}"] = value
    return values


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "", **given: Any) -> T:
    """An instance of the dataclass `kind` from flat `values`; missing ones take their defaults.

    Args:
        kind: the dataclass.
        values: by key with dots, as :func:`options_of` names them.
        prefix: stands before the keys of this dataclass.
        given: fields that are given as they are.

    Raises:
        ValueError: the dataclass refuses a value.
    """
    hints, arguments = get_type_hints(kind), dict(given)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = f"{prefix}{field.name}"
        if field.name in given or not field.init:
            continue
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            # A field may have defaults of its own for the settings in it.
            factory = field.default_factory
            own = {} if factory is dataclasses.MISSING else _leaves(factory(), f"{key}.")
            arguments[field.name] = build(hint, {**own, **values}, f"{key}.")
        elif key in values:
            arguments[field.name] = values[key]
    return kind(**arguments)


def plain(config: Any) -> dict[str, Any]:
    """All options of a dataclass instance, flat, as values that JSON and YAML hold: tuples become lists."""

    def simple(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [simple(item) for item in value]
        if isinstance(value, Mapping):
            return {str(k): simple(v) for k, v in value.items()}
        return value

    return {key: simple(value) for key, value in _leaves(config).items()}


def flat_values(config: Any) -> dict[str, Any]:
    """All settings of a run, flat, as values that JSON and YAML hold; those of its method behind its encoder's."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "options":
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= {f"{field.name}.{key}": v for key, v in plain(value).items()}
        elif isinstance(value, (tuple, list)):
            flat[field.name] = list(value)
        else:
            flat[field.name] = dict(value) if isinstance(value, Mapping) else value
        if field.name == "encoder" and config.options is not None:  # in the order of the options
            flat |= {f"options.{key}": v for key, v in plain(config.options).items()}
    return flat


def run_table(kind: type, method: type) -> dict[str, Option]:
    """All options of a run: those of its dataclass `kind`, and under ``options.`` those of its method's settings."""
    own = options_of(method, "options.")
    ordered: dict[str, Option] = {}
    for name, option in options_of(kind, skip=("options",)).items():
        if name.startswith("trainer.") and not any(k in ordered for k in own):
            ordered |= own
        ordered[name] = option
    return ordered | own


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values as nested mappings: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return tree


def flatten(tree: Mapping[str, Any], options: Mapping[str, Option], where: str) -> dict[str, Any]:
    """Nested values of a file as flat ones, checked against `options`.

    Args:
        tree: what the file holds; ``trainer: {steps: 3}`` and ``trainer.steps: 3`` are the same.
        options: the options there are.
        where: the file, for errors.

    Raises:
        ValueError: a key that is no option (named with the nearest one), given twice, or a value of another type.
    """
    values: dict[str, Any] = {}

    def walk(branch: Mapping[str, Any], prefix: str) -> None:
        for name, value in branch.items():
            key = f"{prefix}{name}"
            if key in options:
                if key in values:
                    raise ValueError(f"{where}: {key} is given twice; expected once")
                values[key] = checked_value(options[key], value, where)
            elif any(known.startswith(f"{key}.") for known in options):
                if not isinstance(value, Mapping):
                    raise ValueError(f"{where}: {key} holds {value!r}; expected a mapping of its settings")
                walk(value, f"{key}.")
            else:
                groups = {".".join(k.split(".")[:i]) for k in options for i in range(1, k.count(".") + 1)}
                raise ValueError(f"{where}: unknown key {key!r}{nearest(key, [*options, *sorted(groups)])}")

    walk(tree, "")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; the nearest is 'steps'"`` for the end of a sentence, or nothing where nothing is near."""
    known = list(known)
    lower = {k.lower().replace("-", "_"): k for k in reversed(known)}
    wanted = name.lower().replace("-", "_")
    found = difflib.get_close_matches(wanted, lower, n=1, cutoff=0.6)
    if not found:  # the right word in the wrong group: trainer.layers for encoder.layers
        last = wanted.rsplit(".", 1)[-1]
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(list(lower))}
        found = [tails[t] for t in difflib.get_close_matches(last, tails, n=1, cutoff=0.7)]
    return f"; the nearest is {lower[found[0]]!r}" if found else ""


def checked_value(option: Option, value: Any, where: str) -> Any:
    """`value` as the option's type wants it (a list becomes a tuple, 1 becomes 1.0).

    Raises:
        ValueError: a value of another type; the sentence has the file and the key.
    """
    try:
        return _convert(option.kind, value)
    except _MismatchError as error:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise ValueError(f"{where}: {option.key} is {shown}; expected {error}") from None


class _MismatchError(Exception):
    """What was expected."""


def _convert(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        reasons = []
        for choice in arguments:
            try:
                return _convert(choice, value)
            except _MismatchError as error:
                reasons.append(str(error))
        raise _MismatchError(" or ".join(dict.fromkeys(reasons)))
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _MismatchError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _MismatchError("a list")
        if origin is list or arguments[-1] is Ellipsis:
            return origin(_convert(arguments[0], item) for item in value)
        if len(value) != len(arguments):
            raise _MismatchError(f"a list of {len(arguments)}")
        return tuple(_convert(k, item) for k, item in zip(arguments, value, strict=True))
    if origin in (dict, Mapping) or kind is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _MismatchError("a mapping with texts for keys")
        return {key: _convert(arguments[1], item) if arguments else item for key, item in value.items()}
    return _convert_simple(kind, value)


def _convert_simple(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if kind in (None, type(None)):
        if value is not None:
            raise _MismatchError("nothing (null)")
        return None
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _MismatchError("a finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise _MismatchError(words.get(kind, getattr(kind, "__name__", str(kind))))


_ENTRY = re.compile(r"^ {4}(\w+): (.*)$")


def _attribute_docs(kind: type) -> dict[str, str]:
    """What the ``Attributes:`` section of a docstring says of each field, in one line each."""
    lines = iter(inspect.cleandoc(kind.__doc__ or "").splitlines())
    words: dict[str, str] = {}
    name = ""
    for line in lines:
        if line.strip() == "Attributes:":
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1]
            words[name] = entry[2]
        elif name and line.strip():
            words[name] += f" {line.strip()}"
    return {key: text.replace("``", "") for key, text in words.items()}
