"""A state as JSON text plus named tensors, and back, to the bit.

Plain JSON where JSON can say it; an object with one key that begins with ``$`` where it cannot:
``{"$tensor": name}``, ``{"$complex128": name}``, ``{"$bytes": name}``, ``{"$tuple": [...]}``,
``{"$float": hex of the IEEE bits}`` (infinities, NaNs), ``{"$dict": [[key, value], ...]}`` (a dict with integer
keys, or with one that begins with ``$``).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xferkit.checkpoints.errors import CheckpointError, DamagedError
from xferkit.checkpoints.tensor_file import DTYPE_NAMES, parse_json

__all__ = ["MAX_TREE_BYTES", "decode_tree", "encode_tree"]

#: Largest text of a state's tree; what is long belongs in a tensor.
MAX_TREE_BYTES = 64 * 2**20

_MAX_DEPTH = 100
_MAX_INT_BITS = 4096


def encode_tree(state: Mapping[str, Any]) -> tuple[bytes, dict[str, Tensor]]:
    """Text and tensors of `state`: nested dicts, lists and tuples of tensors and plain values.

    A tensor that comes several times (the same memory, shape, strides and dtype) is kept once. Tensors stay
    where they are, no bytes are copied.

    Raises:
        CheckpointError: a value that cannot be kept; the sentence says where it is and what it is.
    """
    encoder = _Encoder()
    tree = encoder.value((), state, 0)
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(text) > MAX_TREE_BYTES:
        raise CheckpointError(
            f"the state's plain values take {len(text)} bytes, at most {MAX_TREE_BYTES} are allowed; keep long "
            "lists as tensors."
        )
    return text, encoder.tensors


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def value(self, where: tuple[Any, ...], value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{_at(where[:3])} is nested deeper than {_MAX_DEPTH} levels.")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            if value.bit_length() > _MAX_INT_BITS:
                raise CheckpointError(f"{_at(where)} is an integer of more than {_MAX_INT_BITS} bits.")
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        if kind is bytes:
            return (
                {"$bytes": self._add(where, torch.frombuffer(bytearray(value), dtype=torch.uint8))}
                if value
                else {"$bytes": ""}
            )
        if isinstance(value, Tensor):
            return self._tensor(where, value)
        if isinstance(value, Mapping):
            return self._mapping(where, value, depth)
        if isinstance(value, list | tuple):
            items = [self.value((*where, i), item, depth + 1) for i, item in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        raise CheckpointError(
            f"{_at(where)} is a {kind.__module__}.{kind.__qualname__}; a checkpoint keeps tensors, int, float, "
            "bool, str, bytes, None, and dicts, lists and tuples of them."
        )

    def _mapping(self, where: tuple[Any, ...], value: Mapping[Any, Any], depth: int) -> Any:
        for key in value:
            if type(key) not in (str, int):
                raise CheckpointError(f"{_at(where)} has the key {key!r}; keys must be str or int.")
        items = [(key, self.value((*where, key), item, depth + 1)) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(items)
        return {"$dict": [list(item) for item in items]}

    def _tensor(self, where: tuple[Any, ...], tensor: Tensor) -> dict[str, str]:
        plain = tensor.detach()
        if type(plain) is not Tensor:
            raise CheckpointError(
                f"{_at(where)} is a {type(plain).__qualname__}; gather it into a plain tensor before saving."
            )
        if plain.layout is not torch.strided or plain.is_quantized or plain.is_nested or plain.is_meta:
            raise CheckpointError(
                f"{_at(where)} is a tensor without plain memory ({_without_memory(plain)}), which cannot be saved."
            )
        if plain.dtype is torch.complex128:
            return {"$complex128": self._add(where, torch.view_as_real(plain.resolve_conj().resolve_neg()))}
        if plain.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{_at(where)} is of {plain.dtype}, which safetensors cannot hold.")
        return {"$tensor": self._add(where, plain)}

    def _add(self, where: tuple[Any, ...], tensor: Tensor) -> str:
        # A conjugated or negated view shares the memory of its base, but not its values.
        view = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
        same = (tensor.data_ptr(), tensor.device, *view)
        if tensor.numel() and same in self._names:
            return self._names[same]
        base = "/".join(str(part) for part in where).encode(errors="backslashreplace").decode()
        name, number = base, 1
        while name in self.tensors or name in ("", "__metadata__"):
            number += 1
            name = f"{base}#{number}"
        self.tensors[name] = tensor
        if tensor.numel():
            self._names[same] = name
        return name


def _without_memory(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta device"
    return "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)


def _at(where: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{part!r}]" for part in where)


def decode_tree(path: Path, text: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of `text` (the content of `path`) with its `tensors`.

    A tensor that was kept once for several places comes back as tensors of their own.

    Raises:
        DamagedError: the text is no state, or names a tensor that is not there; the sentence says where.
    """
    decoder = _Decoder(path, tensors)
    state = decoder.value((), parse_json(path, text), 0)
    if not isinstance(state, dict):
        raise DamagedError(f"{path} holds a {type(state).__name__}, expected an object.")
    left = sorted(set(tensors) - decoder.used)
    if left:
        raise DamagedError(f"{path} does not name the tensor {left[0]!r}.")
    return state


class _Decoder:
    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors
        self.used: set[str] = set()

    def value(self, where: tuple[Any, ...], value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise DamagedError(f"{self.path}: nested deeper than {_MAX_DEPTH} levels.")
        if isinstance(value, list):
            return [self.value((*where, i), item, depth + 1) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        special = next((key for key in value if key.startswith("$")), None)
        if special is None:
            return {key: self.value((*where, key), item, depth + 1) for key, item in value.items()}
        try:
            if len(value) != 1:
                raise ValueError
            return self._special(special, where, value[special], depth)
        except (ValueError, TypeError, KeyError, struct.error) as error:
            if isinstance(error, DamagedError):
                raise
            raise DamagedError(f"{self.path}: {_at(where)} is no valid {special[:20]!r}.") from error

    def _special(self, kind: str, where: tuple[Any, ...], content: Any, depth: int) -> Any:
        if kind == "$float":
            return struct.unpack(">d", bytes.fromhex(content))[0]
        if kind == "$tensor":
            return self._tensor(content)
        if kind == "$complex128":
            return torch.view_as_complex(self._tensor(content))
        if kind == "$bytes":
            return bytes(self._tensor(content).numpy()) if content else b""
        if kind == "$tuple" and isinstance(content, list):
            return tuple(self.value((*where, i), item, depth + 1) for i, item in enumerate(content))
        if kind == "$dict" and isinstance(content, list):
            table = {key: self.value((*where, key), item, depth + 1) for key, item in content}
            if len(table) == len(content) and all(type(key) in (str, int) for key in table):
                return table
        raise ValueError

    def _tensor(self, name: Any) -> Tensor:
        if type(name) is not str or name not in self.tensors:
            raise DamagedError(f"{self.path} names the tensor {str(name)[:80]!r}, which is not in the file.")
        if name in self.used:
            return self.tensors[name].clone()
        self.used.add(name)
        return self.tensors[name]
