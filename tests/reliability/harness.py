"""Faults at any I/O call, kills at any moment, and a hash over everything that a training's state is made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "reliability"
FLAGS = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]


def state_hash(*parts: Any) -> str:
    """SHA-256 over nested dicts, lists and tuples of tensors and plain values; types, shapes and order count.

    A list and a tuple are the same here, as are an int and a float only if they are of one type.
    """
    digest = hashlib.sha256()
    _update(digest, list(parts))
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(f"T{value.dtype}{list(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"D{len(value)}".encode())
        for key, item in value.items():
            _update(digest, key)
            _update(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"L{len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, float):
        digest.update(b"F" + struct.pack(">d", value))
    elif isinstance(value, bytes):
        digest.update(b"B" + len(value).to_bytes(8, "big") + value)
    elif value is None or isinstance(value, bool | int | str):
        text = str(value).encode(errors="surrogatepass")
        digest.update(type(value).__name__.encode() + len(text).to_bytes(8, "big") + text)
    else:
        raise TypeError(f"state_hash: no rule for {type(value)}")


def compiler() -> str | None:
    """The C compiler, or None."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


@cache
def fault_library() -> Path:
    """The library that makes I/O fail, compiled at first use and kept under a hash of its source.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
    """
    source = HERE / "faultio.c"
    name = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = BUILD / f"faultio_{name}.so"
    if not target.exists():
        cc = compiler()
        if cc is None:
            raise RuntimeError("no C compiler: set CC or install gcc")
        BUILD.mkdir(parents=True, exist_ok=True)
        work = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [cc, *FLAGS, str(source), "-o", str(work), "-ldl"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
        os.replace(work, target)
    return target


@dataclass(frozen=True)
class Outcome:
    """How a scenario ended.

    Attributes:
        status: exit code (0: returned, 3: raised), or minus the number of the signal that ended it.
        count: I/O calls under the folder.
        fired: whether the fault was injected (known only of a process that was not killed).
        value: what the scenario returned.
        error: type and text of what it raised.
        seconds: wall time.
        timed_out: it did not end by itself.
    """

    status: int
    count: int
    fired: bool
    value: Any
    error: str
    seconds: float
    timed_out: bool


class FaultServer:
    """A process with warm imports that forks a child for every request; a context manager.

    Args:
        modules: imported before the first fork; a function ``warm_up`` of theirs is called.
    """

    def __init__(self, *modules: str) -> None:
        self.modules = modules

    def __enter__(self) -> FaultServer:
        environment = os.environ | {"LD_PRELOAD": str(fault_library()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-u", str(HERE / "fault_server.py"), *self.modules]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def run(
        self,
        scenario: str,
        folder: Path,
        /,
        *,
        k: int = 0,
        mode: str = "none",
        log: Path | None = None,
        kill_after: float | None = None,
        timeout: float = 120.0,
        trace: bool = False,
        **args: Any,
    ) -> Outcome:
        """Run ``scenario`` ("module:function") on `folder` with `args` while the k-th call under it fails by `mode`."""
        request = {
            "scenario": scenario,
            "args": {"folder": str(folder), **args},
            "folder": str(folder),
            "k": k,
            "mode": mode,
            "log": None if log is None else str(log),
            "kill_after": kill_after,
            "timeout": timeout,
            "trace": trace,
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fault server ended with {self._process.wait()}")
        return Outcome(**json.loads(line))


@dataclass(frozen=True)
class Call:
    """A logged I/O call: see faultio.c."""

    number: int
    name: str
    path: Path
    more: str
    offset: int
    result: int


def read_log(path: Path) -> list[Call]:
    """The calls of a log, in order."""
    calls = []
    for line in path.read_text().splitlines():
        number, name, first, more, offset, result = line.split("\t")
        calls.append(Call(int(number), name, Path(first), more, int(offset), int(result)))
    return calls


@contextmanager
def planned(number: int, what: str) -> Iterator[list[None]]:
    """Fails unless exactly `number` cases are appended to what it gives; prints both figures."""
    done: list[None] = []
    yield done
    print(f"{what}: planned {number}, executed {len(done)}")
    assert len(done) == number, f"{what}: planned {number}, executed {len(done)}"
