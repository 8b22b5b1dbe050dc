"""Small files: settings that a person wrote, read with a cap as plain values, and records with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xferkit.files import write_atomic

__all__ = ["MAX_CONFIG_BYTES", "dump_yaml", "read_config", "read_json", "read_sealed", "write_sealed"]

#: Nobody writes a configuration of a mebibyte by hand.
MAX_CONFIG_BYTES = 2**20
_MAX_DEPTH = 20


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a YAML (or JSON) file holds, as plain values.

    A smaller language than YAML 1.1: ``no`` and ``on`` are texts (languages are called so), dates are texts,
    ``1e-3`` is a number, and there are no anchors, no tags and no key twice.

    Raises:
        ValueError: not there, too large, not UTF-8, not YAML, or not a mapping; with the line where there is one.
    """
    text = _read_text(path)
    import yaml

    try:
        content = _loader(yaml, text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: {_one_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({_one_line(str(error))})") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a mapping of settings")
    return dict(content)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """`values` as YAML that :func:`read_config` reads back equal, in their order; other readers do as well."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what either reading of YAML would take for something else than a text."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}
    _resolve_core_schema(Dumper)
    return str(yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))


def read_json(path: str | os.PathLike[str], max_bytes: int = 64 * 2**20) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: not there, too large, or not a JSON object.
    """
    text = _read_text(path, max_bytes)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a JSON object")
    return content


def _read_text(path: str | os.PathLike[str], max_bytes: int = MAX_CONFIG_BYTES) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if len(raw) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes; expected a small file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: holds bytes that are not UTF-8") from None


def _loader(yaml: Any, text: str) -> Any:
    class Loader(yaml.SafeLoader):
        """Plain values alone, by the core schema of YAML 1.2."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                mark = event.start_mark
                raise yaml.MarkedYAMLError(problem="anchors (& and *) are not read", problem_mark=mark)
            if getattr(event, "tag", None) is not None:
                problem = f"the tag {event.tag} is not read; expected plain values"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                problem = f"more than {_MAX_DEPTH} levels"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: dict[str, int] = {}
            for key, _ in node.value:
                name = getattr(key, "value", None)
                if not isinstance(key, yaml.ScalarNode) or not isinstance(name, str):
                    raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
                if name in seen:
                    problem = f"the key {name!r} stands twice, in line {seen[name]} too"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen[name] = key.start_mark.line + 1
            return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    Loader.yaml_implicit_resolvers = {}
    _resolve_core_schema(Loader)
    # The 1.1 constructors read 010 as 8 and 1_0 as 10.
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))
    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))
    return Loader(text)


def _resolve_core_schema(target: Any) -> None:
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ):
        target.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


def _one_line(text: str | None) -> str:
    return " ".join((text or "not YAML").split())


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of itself; whole or not at all. NaN and infinity become null.

    Raises:
        OSError: the folder cannot be written or the disk is full; what was there before stays.
    """
    body = _finite(content)
    sealed = {**body, "sha256": _checksum(body)}
    write_atomic(path, json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote.

    Raises:
        ValueError: not there, or not what was written.
    """
    content = read_json(path)
    checksum = content.pop("sha256", None)
    if checksum != _checksum(content):
        raise ValueError(f"{path} is damaged or was edited: its checksum does not fit its content")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
