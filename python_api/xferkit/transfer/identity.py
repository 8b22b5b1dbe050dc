"""What decides a run's result beside the run, as far as it can be seen: the training function's code and values.

A value counts by what a worker process would be sent to build it again, so a plain object counts by its fields. No
value is kept: the result is a hash.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from xferkit.transfer.code_names import held_by
from xferkit.transfer.own_code import MAX_PARTS, OwnCode, functions_of, source_text

__all__ = ["first_of", "function_conditions", "settings_text"]

_SCALARS = frozenset({type(None), bool, int, float, str})
#: Deeper values, values behind so many others, and bytes beyond these would take longer than they are worth.
_MAX_DEPTH, _MAX_VALUES = 64, 1_000_000
_MAX_BYTES, _MAX_ALL_BYTES = 64 * 2**20, 512 * 2**20
#: A note names no more than so many values or changes.
_MAX_NAMED = 5
#: Counts how code and values were made to text: hashes of another way tell nothing of what changed.
_FORMAT = "2"


def first_of(names: list[str]) -> str:
    """``a, b``; of more than five the first five: ``a, b, c, d, e and 2 more``."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"


def settings_text(settings: Mapping[str, Any] | None) -> str:
    """`settings` as canonical JSON.

    Raises:
        ValueError: they are no plain JSON values.
    """
    try:
        return json.dumps(dict(settings or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must hold plain JSON values by name: {error}") from error


def function_conditions(
    train_fn: Callable[..., Any],
    settings: Mapping[str, Any] | None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """What decides a run's result beside the run, as far as it can be seen, by name.

    Seen are the function's own text and what it holds: defaults, closure, arguments of :func:`functools.partial`,
    the object of a method, in whole: numbers, texts, containers, paths, fields of objects, arrays and tensors by
    their bytes, texts of functions and classes. Seen is also the own code that it names, see
    :class:`~xferkit.transfer.own_code.OwnCode`. What it reads from files, mutable globals and libraries is not, nor is
    what cannot be copied (open files, locks, generators), a module that it holds, or an array above 64 MiB.
    `settings` names that.

    Args:
        train_fn: the training.
        settings: what else decides results.
        warn: called with one sentence that names what `train_fn` holds and cannot be seen, where `settings` are none.

    Returns:
        ``train_fn``: a hash; ``settings``: as JSON; ``code``: a JSON object of hashes by the names of own code;
        ``format``: how these were made.

    Raises:
        ValueError: `settings` are no plain JSON values.
    """
    named = settings_text(settings)
    look = _Look()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about copies that nobody makes
        text = json.dumps(look.at(train_fn), sort_keys=True)
        code = look.own_code.parts()
    if not look.own_code.complete:
        look.unseen.setdefault(f"own code (beyond {MAX_PARTS:,} functions and classes)")
    if look.unseen and not settings:
        warn(
            "Finished runs are used again where train_fn is the same; changes of "
            f"{first_of(list(look.unseen))} are not seen; name them in settings."
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    code_text = json.dumps(code, sort_keys=True)
    return {"train_fn": digest, "settings": named, "code": code_text, "format": _FORMAT}


class _Look:
    """One look at a value and all that it holds.

    Attributes:
        unseen: names of what stayed opaque, in the order of the look.
        own_code: what functions and classes name, wherever they are held.
    """

    def __init__(self) -> None:
        self.own_code = OwnCode(self.at)
        self.unseen: dict[str, None] = {}
        self._path: list[str] = []
        self._above: dict[int, int] = {}
        self._classes: dict[int, tuple[type, list[Any]]] = {}
        self._values_left, self._bytes_left = _MAX_VALUES, _MAX_ALL_BYTES

    def at(self, value: Any, name: str = "") -> Any:
        """The value as plain JSON, equal for values that would train alike. `name`: where it was found."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if id(value) in self._above:  # it holds itself, as a closure does that calls itself
            return ["above", len(self._above) - self._above[id(value)]]
        self._values_left -= 1
        self._above[id(value)] = len(self._above)
        self._path.append(name)
        try:
            if self._values_left < 0:
                return self._opaque(kind, "one of too many values") if self._values_left == -1 else None
            if len(self._above) > _MAX_DEPTH:
                return self._opaque(kind, "nested too deep")
            return self._inside(value, kind)
        except Exception:  # whatever code of other people raises when it is asked for its values
            return self._opaque(kind)
        finally:
            self._path.pop()
            del self._above[id(value)]

    def _opaque(self, kind: type, what: str = "") -> list[Any]:
        path = "".join(part if part.startswith("[") else f".{part}" for part in self._path if part)
        self.unseen.setdefault(f"{path.lstrip('.') or 'train_fn itself'} ({what or kind.__qualname__})")
        return ["opaque", kind.__module__, kind.__qualname__]

    def _inside(self, value: Any, kind: type) -> Any:
        if kind in (list, tuple):
            return self._items(value)
        if kind in (dict, MappingProxyType):
            return self._pairs(value.items())
        if isinstance(value, (set, frozenset)):  # their order is another one in each process
            items = sorted(json.dumps(self.at(item), sort_keys=True) for item in value)
            return ["set", self.at(kind), items, self._fields(getattr(value, "__dict__", {}), kind)]
        if isinstance(value, functools.partial):
            arguments = [self.at(a, f"argument {i}") for i, a in enumerate(value.args, 1)]
            return ["partial", self.at(value.func), arguments, self._named(value.keywords)]
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            return ["method", self.at(value.__func__), self.at(value.__self__)]
        if kind is CodeType:
            return self._code(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            self._opaque(kind, f"module {value.__name__}")
            return ["module", value.__name__]
        if isinstance(value, PurePath):
            return ["path", kind.__qualname__, str(value)]
        if kind in (bytes, bytearray, memoryview):
            return [kind.__qualname__, self._hash(kind, memoryview(value).nbytes, lambda: bytes(value))]
        if isinstance(value, np.generic):
            item = value.item()  # of a long double it is one again
            return ["number", value.dtype.str, str(item) if isinstance(item, np.generic) else self.at(item)]
        if isinstance(value, np.ndarray):
            return self._array(value, kind)
        tensor = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is not None and isinstance(value, tensor):
            return self._tensor(value, kind)
        return self._object(value, kind)

    def _items(self, value: Iterable[Any]) -> list[Any]:
        return [item if type(item) in _SCALARS else self.at(item, f"[{i}]") for i, item in enumerate(value)]

    def _pairs(self, pairs: Iterable[tuple[Any, Any]]) -> Any:
        held = list(pairs)
        if all(type(key) is str for key, _ in held):
            return {key: self.at(item, f"[{key!r}]") for key, item in held}
        found = [[self.at(key), self.at(item, f"[{_short(key)}]")] for key, item in held]
        return ["dict", sorted(found, key=lambda pair: json.dumps(pair, sort_keys=True))]

    def _named(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.at(item, name) for name, item in fields.items()}

    def _fields(self, fields: Mapping[str, Any], kind: type) -> dict[str, Any]:
        """Fields of an object without the results that it only caches."""
        cached = {n for c in kind.__mro__ for n, v in vars(c).items() if type(v) is functools.cached_property}
        return self._named({str(name): item for name, item in fields.items() if name not in cached})

    def _function(self, value: Any) -> list[Any]:
        self.own_code.follow(value)
        code, (defaults, cells) = value.__code__, held_by(value)
        text = source_text(code)  # of the code, not the function, whose text would be that of one it wraps
        found = [value.__module__, value.__qualname__, text, self._named(defaults), self._named(cells)]
        if not text or value.__name__ == "<lambda>":  # lambdas of one line share their text
            found.append(self._code(code))
        # torch.compile leaves addresses behind, which are others in each process.
        fields = {n: v for n, v in vars(value).items() if not n.startswith(("__wrapped__", "_torchdynamo"))}
        return [*found, self._named(fields)] if fields else found

    def _code(self, code: CodeType) -> list[Any]:
        digest = hashlib.sha256(code.co_code).hexdigest()
        return ["code", digest, [self.at(c) for c in code.co_consts], code.co_names, code.co_varnames]

    def _class(self, value: type) -> list[Any]:
        """Its name and a hash of its text, its bases and its plain attributes: many objects may share them."""
        if id(value) not in self._classes:
            self.own_code.follow(value)
            own = {n: v for n, v in vars(value).items() if not n.startswith("__") and type(v) in _SCALARS}
            text = source_text(value)
            content = [text, own, [self.at(base) for base in value.__bases__]]
            if not text:
                content.append({n: self.at(f, n) for n, v in vars(value).items() for f in functions_of(v)})
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            self._classes[id(value)] = (value, ["class", value.__module__, value.__qualname__, digest])
        return self._classes[id(value)][1]

    def _array(self, value: np.ndarray, kind: type) -> list[Any]:
        held = [self.at(kind), list(value.shape), value.dtype.str]
        if value.dtype.kind in "biufcmMSU" and value.dtype.char not in "gG":
            held.append(self._hash(kind, value.nbytes, value.tobytes))
        elif value.nbytes > _MAX_BYTES:
            held.append(self._opaque(kind))
        else:  # bytes of objects are addresses, those of records and long doubles have gaps of any content
            held.append(self.at(value.tolist()))
        return [*held, self._fields(getattr(value, "__dict__", {}), kind)]

    def _tensor(self, value: Any, kind: type) -> list[Any]:
        def content() -> bytes:
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            return bytes(plain.view(sys.modules["torch"].uint8).numpy().tobytes())

        size = value.nelement() * value.element_size()
        shape = [int(n) for n in value.shape]
        return [self.at(kind), shape, str(value.dtype), value.requires_grad, self._hash(kind, size, content)]

    def _hash(self, kind: type, size: int, content: Callable[[], bytes]) -> Any:
        if size > min(_MAX_BYTES, self._bytes_left):
            return self._opaque(kind, f"{kind.__qualname__} of {size / 2**20:.0f} MiB")
        self._bytes_left -= size
        return hashlib.sha256(content()).hexdigest()

    def _object(self, value: Any, kind: type) -> list[Any]:
        held: list[Any] = [self.at(kind)]
        size = getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _MAX_BYTES:
            return [*held, self._opaque(kind, f"{kind.__qualname__} of {size / 2**20:.0f} MiB")]
        try:
            registered = copyreg.dispatch_table.get(kind)
            parts = registered(value) if registered else value.__reduce_ex__(4)
        except Exception:  # files, locks and generators refuse; what they hold in fields is seen all the same
            if hasattr(value, "__array__"):
                return [*held, self.at(np.asarray(value))]
            return [*held, self._opaque(kind), self._fields(getattr(value, "__dict__", {}), kind)]
        if isinstance(parts, str):  # known by its name, as a cache around a function is
            return [*held, parts, self._fields(getattr(value, "__dict__", {}), kind)]
        make, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        known = None if isinstance(make, type) else getattr(make, "__qualname__", None)
        held += [self.at(make) if known is None else [make.__module__, known], self.at(arguments)]
        for fields in (
            state if type(state) is tuple and len(state) == 2 else (state,)
        ):  # a pair: those in slots
            held.append(self._fields(fields, kind) if type(fields) is dict else self.at(fields))
        return [*held, self._items(items or ()), self._pairs(pairs or ())]


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 40 else text[:40] + "…"
