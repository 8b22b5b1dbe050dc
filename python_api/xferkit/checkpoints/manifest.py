"""``manifest.json``: what a folder holds, with a checksum of everything including itself.

The text ends in ``"sha256"``, the checksum of all bytes before that line; this tail stays the same in every
schema, so that a newer schema can be told from damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xferkit.checkpoints.errors import CheckpointError, DamagedError
from xferkit.checkpoints.tensor_file import FileEntry, parse_json

__all__ = ["MANIFEST_NAME", "MAX_MANIFEST_BYTES", "SCHEMA", "Manifest", "check_file_name"]

MANIFEST_NAME = "manifest.json"
#: Number of the form of the files; a folder with a greater one is refused.
SCHEMA = 1
MAX_MANIFEST_BYTES = 2**20

_FORMAT = "xferkit folder"


@dataclass(frozen=True)
class Manifest:
    """Content of a manifest.

    Attributes:
        kind: ``"checkpoint"``, ``"model"``, ...
        files: length and checksum of every other file, by name.
        identity: what the content belongs to (model, data, ...).
        step: number of a checkpoint.
    """

    kind: str
    files: Mapping[str, FileEntry]
    identity: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None

    def to_bytes(self) -> bytes:
        """The file's content: the same for the same manifest, on every machine and day."""
        content = {
            "format": _FORMAT,
            "schema": SCHEMA,
            "kind": self.kind,
            "step": self.step,
            "identity": dict(sorted(self.identity.items())),
            "files": {n: {"bytes": e.bytes, "sha256": e.sha256} for n, e in sorted(self.files.items())},
        }
        return _sealed(json.dumps(content, indent=1).encode().removesuffix(b"\n}"))

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> Manifest:
        """The manifest in `raw`, the content of `path`.

        Raises:
            DamagedError: a byte differs from what was written, or something is missing.
            CheckpointError: a newer schema, or a file of another format.
        """
        if raw != _sealed(raw[: -len(_sealed(b""))]):
            raise DamagedError(f"{path} does not have the SHA-256 it was written with.")
        content = parse_json(path, raw)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DamagedError(f"{path} is no manifest of {_FORMAT!r}.")
        schema = content.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise CheckpointError(
                f"{path} has schema {str(schema)[:40]}, this version reads up to {SCHEMA}; use the one that wrote it "
                "or a newer one."
            )
        if type(schema) is not int or schema < 1:
            raise DamagedError(
                f"{path}: schema is {str(schema)[:40]!r}, expected a number from 1 to {SCHEMA}."
            )
        try:
            return cls._checked(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DamagedError(f"{path} is no valid manifest: {reason}.") from error

    @classmethod
    def _checked(cls, content: Mapping[str, Any]) -> Manifest:
        files = {}
        for name, entry in content["files"].items():
            check_file_name(name)
            length, digest = entry["bytes"], entry["sha256"]
            if type(length) is not int or not 0 <= length < 2**63:
                raise ValueError(f"the length of {name!r} is {str(length)[:40]!r}")
            if type(digest) is not str or len(digest) != 64:
                raise ValueError(f"the checksum of {name!r} is {str(digest)[:80]!r}")
            files[name] = FileEntry(length, digest)
        kind, step, identity = content["kind"], content["step"], content["identity"]
        if type(kind) is not str or any(type(v) is not str for v in identity.values()):
            raise ValueError("kind and the values of identity must be strings")
        if step is not None and (type(step) is not int or step < 0):
            raise ValueError(f"step is {str(step)[:40]!r}")
        return cls(kind, files, dict(identity), step)

    def check_identity(self, folder: Path, expected: Mapping[str, str]) -> None:
        """Compare with the identity of the reader.

        Raises:
            CheckpointError: they differ; the sentence has the keys, what was found and what was expected.
        """
        keys = sorted(k for k in {*expected, *self.identity} if expected.get(k) != self.identity.get(k))
        if not keys:
            return
        parts = [
            f"{k} is {_shown(self.identity.get(k))}, expected {_shown(expected.get(k))}" for k in keys[:3]
        ]
        more = f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""
        raise CheckpointError(
            f"{folder} belongs to something else: {'; '.join(parts)}{more}; nothing was loaded, choose another folder."
        )


def check_file_name(name: str) -> None:
    """Refuse names that could leave their folder or stand for the manifest.

    Raises:
        ValueError: such a name.
    """
    if name in ("", ".", "..", MANIFEST_NAME) or "/" in name or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no name of a file in the folder")


def _sealed(head: bytes) -> bytes:
    return head + b',\n "sha256": "' + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'


def _shown(value: str | None) -> str:
    return "not recorded" if value is None else repr(value)
