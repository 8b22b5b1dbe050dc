"""The safetensors format, written and read with a checksum in one pass over the bytes.

``u64 n | n bytes of JSON: name -> dtype, shape, data_offsets | data``. Written here rather than by the
library so that the bytes are hashed on their way, flushed to the disk, keep their mode and give an errno;
files pass between the two in both directions.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xferkit.checkpoints.errors import DamagedError

__all__ = [
    "DTYPE_NAMES",
    "FileEntry",
    "read_bytes",
    "read_tensors",
    "tensor_header",
    "write_chunks",
    "write_tensors",
]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_MAX_HEADER = 100 * 10**6  # the library's own limit
_CHUNK = 4 * 2**20  # what is hashed is still in the cache when it is written
_MAX_DIMS = 64


@dataclass(frozen=True)
class FileEntry:
    """Length in bytes and SHA-256 of a file, in lower-case hexadecimal."""

    bytes: int
    sha256: str


def write_chunks(path: Path, chunks: Iterator[memoryview | bytes]) -> FileEntry:
    """Write a new file and flush it to the disk.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=_CHUNK) as file:
        for chunk in chunks:
            for start in range(0, len(chunk), _CHUNK):
                part = chunk[start : start + _CHUNK]
                digest.update(part)
                file.write(part)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def tensor_header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str], int]:
    """Head of the file of `tensors` (strided, of a dtype in ``DTYPE_NAMES``), their order, bytes of the file.

    Wide dtypes come first, so that every tensor is aligned to its items; then by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, order, len(head) + offset


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write `tensors` of any device and strides as a new safetensors file and flush it to the disk.

    Raises:
        OSError: as :func:`write_chunks`.
    """
    head, order, _ = tensor_header(tensors)

    def chunks() -> Iterator[memoryview | bytes]:
        yield head
        for name in order:
            yield _bytes_of(tensors[name])

    return write_chunks(path, chunks())


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class _CheckedFile:
    """Reads a regular file from the front, hashing what it reads; a context manager."""

    def __init__(self, path: Path, expected: FileEntry | None) -> None:
        self.path, self.expected = path, expected
        self.digest = hashlib.sha256()

    def __enter__(self) -> _CheckedFile:
        try:
            # O_NONBLOCK: a named pipe in the place of a file must not hang the reader.
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.path} is missing.") from error
        try:
            status = os.fstat(fd)
            self.size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{self.path} is not a regular file.")
            if self.expected is not None and self.size != self.expected.bytes:
                raise DamagedError(
                    f"{self.path} has {self.size} bytes, but {self.expected.bytes} were written."
                )
            self.file = os.fdopen(fd, "rb", buffering=0)
        except BaseException:
            os.close(fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def fill(self, view: memoryview) -> None:
        while len(view):
            part = view[:_CHUNK]
            count = self.file.readinto(part)
            if not count:
                raise DamagedError(f"{self.path} ends before its {self.size} bytes.")
            self.digest.update(part[:count])
            view = view[count:]

    def finish(self) -> None:
        """Compare the checksum; the whole file has been read."""
        if self.expected is not None and self.digest.hexdigest() != self.expected.sha256:
            raise DamagedError(f"{self.path} does not have the SHA-256 it was written with.")


def read_bytes(path: Path, expected: FileEntry | None, max_bytes: int) -> bytes:
    """Content of a regular file of at most `max_bytes` bytes, checked against `expected` where given.

    Raises:
        DamagedError: missing, too long, no file, of another length or checksum.
        OSError: it cannot be read.
    """
    with _CheckedFile(path, expected) as file:
        if file.size > max_bytes:
            raise DamagedError(f"{path} has {file.size} bytes, more than the {max_bytes} allowed.")
        content = bytearray(file.size)
        file.fill(memoryview(content))
        file.finish()
    return bytes(content)


def check_bytes(path: Path, expected: FileEntry) -> None:
    """Read a file from the disk (not from the cache where that can be had) and compare it with `expected`.

    Raises:
        DamagedError: it differs.
        OSError: it cannot be read.
    """
    with _CheckedFile(path, expected) as file:
        os.posix_fadvise(file.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left, buffer = file.size, memoryview(bytearray(min(_CHUNK, file.size)))
        while left:
            part = buffer[: min(left, _CHUNK)]
            file.fill(part)
            left -= len(part)
        file.finish()


def read_tensors(path: Path, expected: FileEntry | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, each with memory of its own.

    Every size in the head is checked against the file before memory is asked for; no tensor is returned
    before the whole file's checksum was compared with `expected`.

    Raises:
        DamagedError: not a safetensors file, or not the one that was written; the sentence says where.
        OSError: it cannot be read.
    """
    with _CheckedFile(path, expected) as file:
        entries = _read_header(file)
        tensors = {}
        for name, dtype, shape in entries:
            flat = torch.empty(math.prod(shape), dtype=dtype)
            raw = flat.view(torch.uint8)
            file.fill(raw.numpy().data)
            if dtype is torch.bool and raw.numel() and int(raw.max()) > 1:
                raise DamagedError(f"{path}: {name!r} has booleans that are neither 0 nor 1.")
            tensors[name] = flat.reshape(shape)
        file.finish()
    return tensors


def _read_header(file: _CheckedFile) -> list[tuple[str, torch.dtype, list[int]]]:
    """Names, dtypes and shapes in the order of their bytes, which fill the file without a gap."""
    path = file.path
    if file.size < 8:
        raise DamagedError(f"{path} is no safetensors file: it has {file.size} bytes, 8 are the least.")
    start = bytearray(8)
    file.fill(memoryview(start))
    (length,) = struct.unpack("<Q", start)
    if length > min(file.size - 8, _MAX_HEADER):
        raise DamagedError(f"{path} is no safetensors file: its head of {length} bytes does not fit into it.")
    text = bytearray(length)
    file.fill(memoryview(text))
    content = parse_json(path, bytes(text))
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: the head is a {type(content).__name__}, expected an object.")
    content.pop("__metadata__", None)
    found = sorted(_header_entry(path, name, value) for name, value in content.items())
    position = 0
    for begin, end, name, *_ in found:
        if begin != position:
            raise DamagedError(f"{path}: {name!r} begins at byte {begin}, expected {position}.")
        position = end
    if position != file.size - 8 - length:
        raise DamagedError(f"{path}: the tensors fill {position} bytes of {file.size - 8 - length}.")
    return [(name, _DTYPES[dtype], shape) for _, _, name, dtype, shape in found]


def _header_entry(path: Path, name: str, value: Any) -> tuple[int, int, str, str, list[int]]:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        item = _DTYPES[dtype].itemsize
        sizes = [*shape, begin, end]
        if any(type(n) is not int or not 0 <= n < 2**63 for n in sizes) or len(shape) > _MAX_DIMS:
            raise ValueError
        # The product over the sizes that are not 0: an empty tensor must not overflow either.
        if math.prod(n for n in shape if n) * item >= 2**63 or end - begin != math.prod(shape) * item:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: the head's entry {name[:80]!r} is not valid.") from error
    return begin, end, name, dtype, shape


def parse_json(path: Path, text: bytes) -> Any:
    """JSON as its standard has it: UTF-8, no NaN, no key twice, no depth that exhausts the stack.

    Raises:
        DamagedError: it is not.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key comes twice")
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise DamagedError(f"{path} is nested too deeply.") from error
    except ValueError as error:
        raise DamagedError(f"{path} is no valid JSON: {error}.") from error
