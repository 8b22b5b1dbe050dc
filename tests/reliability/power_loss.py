"""What a power cut may leave of a logged sequence of I/O calls, and the rules of order that make it harmless.

The disk of this model keeps what was flushed and nothing else for certain: a file's bytes are safe after its
``fsync``, a name (made, renamed, removed) after an ``fsync`` of its folder. Of the rest, any part may have arrived.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import Call


@dataclass
class _File:
    """A file: its bytes now and after its last flush."""

    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""


@dataclass
class _Folder:
    """A folder: its names now; what is certain is the names at the start plus flushed changes."""

    now: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    #: Changes since the last flush: names with what they stand for afterwards (None: nothing).
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, change: dict[str, _File | _Folder | None]) -> None:
        self.pending.append(change)
        _apply(self.now, change)


def _apply(names: dict[str, _File | _Folder], change: dict[str, _File | _Folder | None]) -> None:
    for name, target in change.items():
        if target is None:
            names.pop(name, None)
        else:
            names[name] = target


class Disk:
    """Replays logged calls under `root`, which existed and was empty and flushed before the first one."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, _Folder()

    def _folder(self, path: Path) -> _Folder:
        folder = self.top
        for part in path.relative_to(self.root).parts:
            found = folder.now[part]
            assert isinstance(found, _Folder), path
            folder = found
        return folder

    def _target(self, path: Path) -> _File | _Folder:
        return self.top if path == self.root else self._folder(path.parent).now[path.name]

    def apply(self, call: Call) -> None:
        """Make the call's change; a failed call and one that only reads makes none."""
        path = call.path
        if call.result < 0:
            return
        if call.name == "create":
            if path.name not in self._folder(path.parent).now:
                self._folder(path.parent).change({path.name: _File()})
        elif call.name == "mkdir":
            self._folder(path.parent).change({path.name: _Folder()})
        elif call.name in ("unlink", "rmdir"):
            self._folder(path.parent).change({path.name: None})
        elif call.name in ("rename", "exchange"):
            other = Path(call.more)
            assert other.parent == path.parent, "the model knows renames within a folder only"
            moved = self._target(path)
            back = self._target(other) if call.name == "exchange" else None
            self._folder(path.parent).change({path.name: back, other.name: moved})
        elif call.name == "write":
            file = self._target(path)
            assert isinstance(file, _File)
            data = bytes.fromhex(call.more)
            file.now.extend(b"\0" * (call.offset + len(data) - len(file.now)))
            file.now[call.offset : call.offset + len(data)] = data
        elif call.name == "truncate":
            file = self._target(path)
            assert isinstance(file, _File)
            del file.now[int(call.more) :]
        elif call.name == "fsync":
            target = self._target(path)
            if isinstance(target, _File):
                target.safe = bytes(target.now)
            else:
                target.safe, target.pending = dict(target.now), []

    def after_a_cut(self, into: Path, arrives: Callable[[], bool]) -> None:
        """Write what is left; `arrives` says of each unflushed change whether it reached the disk."""
        self._write(self.top, into, arrives)

    def _write(self, folder: _Folder, into: Path, arrives: Callable[[], bool]) -> None:
        into.mkdir()
        names = dict(folder.safe)
        for change in folder.pending:
            if arrives():
                _apply(names, change)
        for name, target in names.items():
            if isinstance(target, _Folder):
                self._write(target, into / name, arrives)
            elif bytes(target.now) == target.safe or not arrives():
                (into / name).write_bytes(target.safe)
            else:
                # Half of what came after the flush: the length can arrive before the bytes.
                half = (len(target.safe) + len(target.now)) // 2
                zeros = b"\0" * (len(target.now) - half)
                (into / name).write_bytes(bytes(target.now[:half]) + (zeros if arrives() else b""))


def cuts(
    calls: Sequence[Call], root: Path, seed: int, samples: int
) -> Iterator[tuple[int, str, Callable[[Path], None]]]:
    """After each call: number of calls made, a name, and a function that writes what a power cut leaves there.

    Nothing unflushed arrives, everything does, and `samples` random parts of it.
    """
    disk = Disk(root)
    for made in range(len(calls) + 1):
        if made:
            disk.apply(calls[made - 1])

        def random_part(name: str) -> Callable[[], bool]:
            generator = random.Random(f"{seed} {name}")
            return lambda: generator.random() < 0.5

        rules: list[tuple[str, Callable[[], bool]]] = [
            ("nothing", lambda: False),
            ("everything", lambda: True),
        ]
        rules += [(f"part {n}", random_part(f"{made} {n}")) for n in range(samples)]
        for name, arrives in rules:
            yield made, name, lambda into, arrives=arrives: disk.after_a_cut(into, arrives)


def order_violations(calls: Iterable[Call], is_final: Callable[[Path], bool]) -> list[str]:
    """Breaches of: flush every file and its folder, then rename, then flush the parent, then remove old ones.

    Args:
        calls: a log.
        is_final: whether a path is the final name of a checkpoint folder.
    """
    dirty: dict[Path, str] = {}  # files and folders with unflushed changes
    found = []
    for call in calls:
        if call.result < 0 or call.path.name == ".lock":
            continue
        if call.name in ("rename", "unlink", "rmdir"):
            gone = [call.path, *call.path.parents]
            other = Path(call.more) if call.name == "rename" else None
            if other is not None and is_final(other):
                for path, why in dirty.items():
                    if path == call.path or call.path in path.parents:
                        found.append(f"{call.number}: {other.name} gets its name, but {path.name} has {why}")
            if any(is_final(path) for path in gone):
                for path, why in dirty.items():
                    if why.startswith("a checkpoint's name"):
                        found.append(f"{call.number}: {call.path.name} is removed, but {path.name} has {why}")
            dirty = {p: w for p, w in dirty.items() if p != call.path and call.path not in p.parents}
            if other is not None:
                kind = "a checkpoint's name" if is_final(other) else "a new name"
                dirty[other.parent] = f"{kind} that is not flushed"
        elif call.name == "write":
            dirty[call.path] = "bytes that are not flushed"
        elif call.name in ("create", "mkdir"):
            dirty.setdefault(call.path.parent, "a new name that is not flushed")
        elif call.name == "fsync":
            dirty.pop(call.path, None)
    found += [f"end: {p.name} has {w}" for p, w in dirty.items() if w.startswith("a checkpoint's name")]
    return found
