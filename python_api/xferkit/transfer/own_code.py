"""A person's own code behind a training function: functions, classes and constants that it names, and theirs in turn.

Own is what lies neither in the standard library nor among installed packages. Functions count by their bytecode, which
is what runs: the text of a file may have changed since it was imported.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from xferkit.transfer.code_names import Import, cell_content, held_by, names_of

__all__ = ["MAX_PARTS", "OwnCode", "functions_of", "source_text"]

#: More functions, classes and modules than this are not followed.
MAX_PARTS = 2000

_PLAIN = (str, bytes, int, float, complex, type(None), PurePath, np.generic, enum.Enum, re.Pattern)
_MAX_DEPTH, _MAX_CONTAINED, _MAX_MODULE_BYTES = 20, 1000, 4 * 2**20
_MAX_LITERAL_DEPTH = 4
_SINGLETONS = frozenset({"torch.dtype", "torch.layout", "torch.memory_format"})  # they hash by address
_LIBRARIES = frozenset({"xferkit", "xfercore"})  # wherever they lie, as after pip install -e
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})
_STANDARD = tuple(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib"))
_MISSING = object()
#: Lists, dictionaries and sets among defaults, as they were first seen: later, calls may have filled them.
_first_defaults: weakref.WeakKeyDictionary[FunctionType, dict[tuple[str, int], Any]] = (
    weakref.WeakKeyDictionary()
)


class OwnCode:
    """Follows names from functions and classes of own code, and keeps what it finds by name.

    Kept are functions, classes, and globals, class attributes, defaults and variables of a closure, as far as nobody
    can change them: numbers, texts, paths, tuples and frozen dataclasses of these, and the names of functions, classes
    and modules, those of libraries too. Of other values (lists, dictionaries, objects) the name of their class is kept
    alone, since what they hold is state as often as data; functions and classes in them are followed. Lists,
    dictionaries and sets among defaults count as they were when first seen. What own code itself assigns stays out.
    A module that a function imports, or hands on as a whole, counts by its text.

    Args:
        encode: a plain value or a code object, found under a name, as plain JSON.

    Attributes:
        complete: False: there were more than :data:`MAX_PARTS`.
    """

    def __init__(self, encode: Callable[[Any, str], Any]) -> None:
        self.complete = True
        self._encode = encode
        self._seen: dict[Any, Any] = {}  # with the values, so that no address is used again
        self._waiting: deque[Any] = deque()
        self._parts: dict[str, set[str]] = {}
        self._globals: dict[tuple[str, str], Any] = {}
        self._attributes: dict[tuple[str, str, str], Any] = {}
        self._stored_globals: set[tuple[str, str]] = set()
        self._stored_attributes: set[str] = set()

    def follow(self, value: Any) -> None:
        """Begin at a function or class, if it is own code."""
        self._wait(value)
        while self._waiting:
            found = self._waiting.popleft()
            if isinstance(found, type):
                self._class(found)
            else:
                self._function(found)

    def parts(self) -> dict[str, str]:
        """A hash of each part by its name."""
        texts = {name: set(found) for name, found in self._parts.items()}
        held = [
            (_label(module, name), value)
            for (module, name), value in self._globals.items()
            if (module, name) not in self._stored_globals
        ]
        held += [
            (_label(module, f"{owner}.{name}"), value)
            for (module, owner, name), value in self._attributes.items()
            if name not in self._stored_attributes
        ]
        for label, value in held:
            texts.setdefault(label, set()).add(_json(["value", self._encode(value, label)]))
        return {name: _hash("\n".join(sorted(found))) for name, found in sorted(texts.items())}

    def _new(self, key: Any, value: Any) -> bool:
        if key in self._seen:
            return False
        if len(self._seen) >= MAX_PARTS:
            self.complete = False
            return False
        self._seen[key] = value
        return True

    def _wait(self, value: Any) -> None:
        if _is_own(value) and self._new(id(value), value):
            self._waiting.append(value)

    def _follow_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._wait(value)

    def _add(self, label: str, content: Any) -> None:
        self._parts.setdefault(label, set()).add(_json(content))

    def _function(self, function: FunctionType) -> None:
        code, names = function.__code__, names_of(function.__code__)
        owner = str(function.__globals__.get("__name__", ""))
        self._stored_globals |= {(owner, name) for name in names.stored_globals}
        self._stored_attributes |= names.stored_attributes
        defaults, cells = held_by(function)
        held = defaults | {name: value for name, value in cells.items() if name not in names.stored_cells}
        label, constants = _label(function.__module__ or "", function.__qualname__), {}
        for name, value in held.items():
            literal = name in defaults and type(value) in (list, dict, set)
            constant = self._constant(value, literal=literal)
            if literal:
                seen = _first_defaults.setdefault(function, {})
                constant = seen.setdefault((name, id(value)), constant)
            if constant is not _MISSING:
                constants[name] = self._encode(constant, f"{label}.{name}")
        self._add(label, [self._encode(code, label), constants])
        self._constant(vars(function).get("__wrapped__"))
        for chain in names.chains:
            self._chain(owner, function.__globals__, chain)
        for statement in names.imports:
            self._import(statement, _package(function.__globals__))

    def _class(self, found: type) -> None:
        text = source_text(found)
        self._add(_label(found.__module__, found.__qualname__), text)
        self._follow_all(found.__bases__)
        for name, attribute in vars(found).items():
            functions = functions_of(attribute)
            # What a decorator has written, as for a dataclass, follows from the text.
            self._follow_all(f for f in functions if not (text and f.__code__.co_filename.startswith("<")))
            if not functions and not _is_special(name):
                constant = self._constant(attribute)
                if constant is not _MISSING:
                    self._attributes[found.__module__, found.__qualname__, name] = constant

    def _chain(self, owner: str, names: Mapping[str, Any], chain: tuple[str, ...]) -> None:
        """From ``a.b.c`` through own modules to the first value that is none; the rest are attributes of it."""
        for depth, name in enumerate(chain):
            value = names.get(name, _MISSING)
            if value is _MISSING and depth > 0:
                break  # the module makes it when asked
            if value is _MISSING or _is_special(name):  # a builtin; or the name or file of the module
                return
            if (constant := self._constant(value)) is not _MISSING:
                self._globals[owner, name] = constant
            # isinstance would ask a stand-in
            if not issubclass(type(value), ModuleType) or not _is_own_module(value.__name__):
                return
            owner, names = value.__name__, vars(value)
        self._module(owner, names.get("__file__"))

    def _constant(self, value: Any, *, literal: bool = False) -> Any:
        """What of the value nobody can change; what is code in it is followed, whatever it is."""
        try:
            constant, behind = _constant(value, literal=literal), list(_code_in(value))
        except Exception:  # a stand-in for another object, which is asked for that one
            return _MISSING
        self._follow_all(behind)
        return constant

    def _import(self, statement: Import, package: str) -> None:
        name = statement.module
        if statement.level:
            try:
                name = importlib.util.resolve_name("." * statement.level + name, package)
            except ImportError:
                return
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            self._module(".".join(parts[:end]))
        for inner in statement.names:
            self._module(f"{name}.{inner}")

    def _module(self, name: str, file: str | None = None) -> None:
        """The text of an own module and of those that it imports; it need not have been imported yet."""
        path = _file_of(name) or (Path(file) if file else None)
        if path is None or name.partition(".")[0] in _LIBRARIES or not _is_own_file(str(path)):
            return
        if not self._new(("module", name), None):
            return
        try:
            text = path.read_bytes()[:_MAX_MODULE_BYTES]
            statements = _imports(ast.parse(text))
        except (OSError, SyntaxError, ValueError):
            return
        self._add(name, hashlib.sha256(text).hexdigest())
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for statement in statements:
            self._import(statement, package)


def _imports(tree: ast.AST) -> Iterator[Import]:
    """All import statements of a module, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, 0, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", node.level, tuple(alias.name for alias in node.names))


def functions_of(attribute: Any) -> list[FunctionType]:
    """Functions behind an attribute of a class."""
    if isinstance(attribute, property):
        behind = [attribute.fget, attribute.fset, attribute.fdel]
    elif isinstance(attribute, functools.cached_property):
        behind = [attribute.func]
    else:
        behind = [getattr(attribute, "__func__", attribute)]
    return [f for f in behind if isinstance(f, FunctionType)]


def source_text(value: Any) -> str:
    """The text of a function, class or code object, or nothing."""
    try:
        return inspect.getsource(value)
    except Exception:  # typed at a prompt, compiled, or its file changed into no Python: many kinds
        return ""


def _constant(value: Any, depth: int = 0, *, literal: bool = False) -> Any:
    """What of a value nobody can change, in tuples; `literal`: what lists, dictionaries and sets hold as well."""

    def inner(values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(_constant(item, depth + 1, literal=literal) for item in values)

    kind = type(value)
    name = _label(kind.__module__, kind.__qualname__)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, ModuleType):
        return ("module", value.__name__)
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return ("named", _label(value.__module__ or "", value.__qualname__))
    if depth > _MAX_DEPTH:
        return ("object", name)
    if isinstance(value, functools.partial):
        return (name, *inner((value.func, value.args, tuple(sorted(value.keywords.items())))))
    if isinstance(value, MethodType):
        return (name, *inner((value.__func__, value.__self__)))
    if isinstance(value, (tuple, frozenset)):
        return (name, inner(value) if isinstance(value, tuple) else frozenset(inner(value)))
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        fields = [f.name for f in dataclasses.fields(kind)]
        return (name, *zip(fields, inner(getattr(value, field, None) for field in fields), strict=True))
    if literal and kind in (list, dict, set) and depth < _MAX_LITERAL_DEPTH and len(value) <= _MAX_CONTAINED:
        held = inner(value.items() if kind is dict else value)
        return (name, frozenset(held) if kind is set else held)
    return ("object", name, *_library_text(value, kind, name))


def _library_text(value: Any, kind: type, name: str) -> Iterator[str]:
    """What tells a value of a library from others of its class, where nobody can change that: its text or its name."""
    if _is_own(kind):
        return
    make_hash: Any = kind.__hash__
    by_content = make_hash not in (None, object.__hash__) and not hasattr(value, "__dict__")
    if by_content or name in _SINGLETONS or kind is slice:
        if "0x" not in (text := repr(value)):  # an address, another one in each process
            yield text
    elif callable(value):
        found = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if isinstance(found, str):  # as of numpy.tanh or a cached function
            yield _label(str(getattr(value, "__module__", None) or ""), found)


def _code_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """Functions and classes that a value is, holds or wraps, and the class of an object."""
    if isinstance(value, type):
        yield value
        return
    behind: list[Any] = []
    if isinstance(value, FunctionType):
        yield value
        if not _is_own(value):  # the wrapper of a library
            behind = [vars(value).get("__wrapped__"), *map(cell_content, value.__closure__ or ())]
    elif isinstance(value, MethodType):
        behind = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        behind = [value.func, *value.args, *value.keywords.values()]
    elif type(value) in (list, tuple, set, frozenset):
        behind = [item for item in list(value)[:_MAX_CONTAINED] if _is_code(item)]
    elif type(value) is dict:
        behind = [item for item in list(value.values())[:_MAX_CONTAINED] if _is_code(item)]
    else:
        yield type(value)
        behind = [getattr(value, "__dict__", {}).get("__wrapped__")]
    for inner in behind if depth < _MAX_DEPTH else ():
        if inner is not None:
            yield from _code_in(inner, depth + 1)


def _is_code(value: Any) -> bool:
    return isinstance(value, (type, FunctionType, MethodType, functools.partial))


def _is_own(value: Any) -> bool:
    if isinstance(value, FunctionType):
        top = str(value.__globals__.get("__name__", "")).partition(".")[0]
        return top not in _LIBRARIES and _is_own_file(value.__code__.co_filename)
    return isinstance(value, type) and _is_own_module(str(value.__module__))


def _is_own_module(name: str) -> bool:
    if name.partition(".")[0] in _LIBRARIES:
        return False
    module = sys.modules.get(name)
    held = {} if module is None else vars(module)  # some modules answer to every name
    file = held.get("__file__") or next(iter(held.get("__path__", ())), None)
    if file:
        return _is_own_file(str(file))
    # Typed at a prompt, or executed without a module; what the interpreter was built with has a specification.
    return name == "__main__" or held.get("__spec__") is None


@functools.lru_cache(maxsize=4096)
def _is_own_file(name: str) -> bool:
    if name.startswith("<frozen"):
        return False
    path = Path(name)
    return not _LIBRARY_FOLDERS.intersection(path.parts) and not any(map(path.is_relative_to, _STANDARD))


def _file_of(name: str) -> Path | None:
    """Where a module lies, as the import system would find it, without importing it or a package above it."""
    spec = _spec_of(name)
    return None if spec is None or not (spec.origin or "").endswith(".py") else Path(str(spec.origin))


def _spec_of(name: str) -> ModuleSpec | None:
    above, folders = name.rpartition(".")[0], None
    if above:
        package = _spec_of(above)
        if package is None or package.submodule_search_locations is None:
            return None
        folders = list(package.submodule_search_locations)
    try:
        return PathFinder.find_spec(name, folders)
    except (ImportError, ValueError):
        return None


def _package(names: Mapping[str, Any]) -> str:
    given, name = names.get("__package__"), str(names.get("__name__", ""))
    return given if isinstance(given, str) else name if "__path__" in names else name.rpartition(".")[0]


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _label(module: str, name: str) -> str:
    return name if module in ("", "__main__", "__mp_main__") else f"{module}.{name}"


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
