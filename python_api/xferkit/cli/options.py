"""Options of ``xferkit train``: settings as jsonargparse options, files and lists as people write them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from xferkit.runs.files import dump_yaml, read_config
from xferkit.runs.schema import Option, flatten, nearest, nested

__all__ = ["parse_train"]

#: Options that take several words: languages with their files, or plain values.
_FILES = ("train", "unlabelled", "dev", "test", "vectors")
_ALIASES = {"--select": "--trainer.select"}


def parse_train(words: Sequence[str]) -> dict[str, Any] | None:
    """Flat settings from the words after ``xferkit train``; None when they only asked to be shown something.

    Settings come from the defaults, then from ``--config`` files in their order, then from the other options.

    Raises:
        ValueError: an option or key that does not exist (with the nearest one), or a value of another type.
    """
    method, rest = _method(list(words))
    configs, rest = _take(rest, "--config")
    trees = [(path, read_config(path)) for path in configs]
    for path, tree in trees:
        named = tree.get("method")
        if named is not None and not isinstance(named, str):
            raise ValueError(f"{path}: method is {named!r}; expected the name of one")
        method = method or named or ""
    from xferkit.runs.config import method_key, run_options

    table = run_options(method_key(method))
    defaults: dict[str, Any] = {}
    for path, tree in trees:
        tree = {key: value for key, value in tree.items() if key != "method"}
        defaults |= flatten(tree, table, str(path))
    values = _parse(method, rest, table, defaults)
    if values is None:
        return None
    return {**values, "method": method}


def _method(words: list[str]) -> tuple[str, list[str]]:
    named, rest = _take(words, "--method")
    if rest and not rest[0].startswith("-"):
        if named and named[-1] != rest[0]:
            raise ValueError(
                f"--method says {named[-1]!r} and the first argument {rest[0]!r}; expected one method"
            )
        return rest[0], rest[1:]
    return (named[-1] if named else ""), rest


def _take(words: list[str], option: str) -> tuple[list[str], list[str]]:
    """Values of every occurrence of `option`, and the words without them."""
    taken, rest = [], []
    queue = iter(words)
    for word in queue:
        if word.startswith(f"{option}="):
            taken.append(word.partition("=")[2])
        elif word == option:
            value = next(queue, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{option} needs a value")
            taken.append(value)
        else:
            rest.append(word)
    return taken, rest


def _parse(
    method: str, words: list[str], table: Mapping[str, Option], defaults: Mapping[str, Any]
) -> dict[str, Any] | None:
    print_config = "--print_config" in words
    words = [word for word in words if word != "--print_config"]  # jsonargparse has its own idea of it
    parser = _parser(method, table, defaults)
    try:
        found = vars(parser.parse_args(_expanded(words, table)).as_flat())
    except argparse.ArgumentError as error:
        raise ValueError(_sentence(error.message)) from None
    values = {key: _numbered(option.kind, found[key]) for key, option in table.items() if key != "method"}
    if print_config:
        from xferkit.runs.config import make_run_config

        shown = make_run_config({**values, "method": method}).values()
        print(dump_yaml(nested(shown)), end="")
        return None
    return values


def _parser(method: str, table: Mapping[str, Option], defaults: Mapping[str, Any]) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"xferkit train {method}",
        usage=f"xferkit train {method} --train LANG=FILE ... [--unlabelled LANG=FILE ...] --out DIR [options]",
        description=f"All settings of {method}; in a YAML file, dots are levels.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings from a YAML file; options go before it")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and stop")
    groups: dict[str, Any] = {}
    for key, option in table.items():
        if key == "method":
            continue
        group = key.rpartition(".")[0]
        if group not in groups:
            groups[group] = parser.add_argument_group(group or "run")
        metavar = {"metavar": name} if (name := _metavar(key, option.kind)) else {}
        groups[group].add_argument(
            f"--{key}",
            type=option.kind,
            default=defaults.get(key, option.default),
            help=option.help.replace("%", "%%") or None,
            **metavar,
        )
    return parser


def _numbered(kind: Any, value: Any) -> Any:
    """A column is a name or a number: where both may be, digits are a number."""
    may_be = get_args(kind)
    if isinstance(value, str) and str in may_be and int in may_be and value.removeprefix("-").isdecimal():
        return int(value)
    return value


def _metavar(key: str, kind: Any) -> str | None:
    if key in _FILES:
        return "LANG=FILE ..."
    return "VALUE ..." if _is_list(kind) else None


def _expanded(words: list[str], table: Mapping[str, Option]) -> list[str]:
    """Every option as one word, ``--seeds 1 2`` as ``--seeds=[1,2]``; unknown ones are refused."""
    known = {f"--{key}" for key in table} | {"--print_config", "--config", "--help"}
    expanded: list[str] = []
    seen: set[str] = set()
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word in ("-h", "--help"):
            expanded.append(word)
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; options begin with --")
        name = _ALIASES.get(name, name)
        if name not in known:
            near = nearest(name.removeprefix("--"), (k.removeprefix("--") for k in (*known, *_ALIASES)))
            near = near.replace("'", "--", 1).replace("'", "")
            raise ValueError(f"unknown option {name}{near} (xferkit train METHOD --help lists all)")
        if name in seen:
            raise ValueError(f"{name} is given twice; expected once, with all its values")
        seen.add(name)
        given = [value] if equals else []
        while index < len(words) and not words[index].startswith("--") and words[index] != "-h":
            given.append(words[index])
            index += 1
        expanded.append(f"{name}={_value(name, given, table)}")
    return expanded


def _value(name: str, given: list[str], table: Mapping[str, Option]) -> str:
    key = name.removeprefix("--")
    if not given:
        raise ValueError(f"{name} needs a value")
    if key in _FILES:
        from xferkit.data.corpus import parse_named_files

        if len(given) == 1 and given[0].startswith("{"):
            return given[0]
        shared = "select_by" in table  # a run on pairs of texts: a file may hold several languages
        named = parse_named_files(given, argument=name, shared=shared)
        return json.dumps({str(k): v for k, v in named.items()})
    if _is_list(table[key].kind):
        if len(given) == 1 and given[0].startswith("["):
            return given[0]
        return json.dumps([_number(word) for word in given])
    if len(given) > 1:
        raise ValueError(f"unexpected argument {given[1]!r} after {name}; expected one value")
    return given[0]


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) in (tuple, list)


def _number(word: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(word)
        except ValueError:
            continue
    return word


def _sentence(message: str) -> str:
    """jsonargparse's message in one line: ``Parser key "steps":\\n  Expected ...`` as ``--steps: expected ...``."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    if text.startswith('Parser key "'):
        key, _, rest = text.removeprefix('Parser key "').partition('":')
        given = rest.rpartition("Given value: ")[2] if "Given value: " in rest else ""
        if given:  # a union: say what was given, and the types without Python's words
            kinds = rest.partition("Subtypes: [")[2].partition("]")[0]
            rest = f" expected one of {kinds}, got {given}"
        rest = rest.strip().replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
        for python, word in _WORDS.items():
            rest = rest.replace(f"<class '{python}'>", word)
        text = f"--{key}: {rest}"
    return text.replace("typing.Literal", "one of ")


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}
