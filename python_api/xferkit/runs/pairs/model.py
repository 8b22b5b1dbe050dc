"""A trained dual encoder as a folder, and texts to vectors with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from xferkit.checkpoints import open_folder
from xferkit.checkpoints.folder import write_folder
from xferkit.data.hashing import TextHasher
from xferkit.data.seeding import seeded
from xferkit.methods.dual_encoder import DualEncoderConfig, DualEncoderMethod
from xferkit.models import HashedEncoderConfig, Side
from xferkit.runs.environment import versions

__all__ = ["TextEncoder"]

_KIND = "dual_encoder"
_SCHEMA = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class TextEncoder:
    """Texts to vectors whose inner product says how alike they are.

    Args:
        method: the trained dual encoder.
        encoder: what its texts are cut into.
        facts: what to keep with it: scores, steps.
    """

    def __init__(
        self, method: DualEncoderMethod, encoder: HashedEncoderConfig, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.method, self.encoder, self.facts = method, encoder, dict(facts or {})
        self._hasher = TextHasher(encoder)

    def encode(self, texts: Sequence[str], side: Side = "first") -> Tensor:
        """``float32[n, out_dim]``, the vectors of n texts; ``side`` matters where the towers differ."""
        self._hasher.clear()
        return self.method.encode(self._hasher(texts), side)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write config.json, model.safetensors and a manifest of checksums; whole or not there.

        Raises:
            CheckpointError: the folder is there, or cannot be written.
        """
        weights = {name: value.detach().cpu() for name, value in self.method.module.state_dict().items()}
        config = {
            "schema": _SCHEMA,
            "encoder": asdict(self.encoder),
            "options": asdict(self.method.config),
            "facts": self.facts,
            "versions": versions(),
        }
        text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_folder(Path(folder), {_CONFIG: text, _WEIGHTS: weights}, kind=_KIND, replace=overwrite)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> TextEncoder:
        """The model that :meth:`save_pretrained` wrote, every byte compared with its checksum.

        Raises:
            ValueError: no model, a damaged one, one of another kind or of a newer version.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder; expected one that holds a model, such as run/seed-1/model"
            )
        checked = open_folder(path, kind=_KIND)
        config = checked.json(_CONFIG)
        if not isinstance(config, Mapping) or config.get("schema") != _SCHEMA:
            schema = config.get("schema") if isinstance(config, Mapping) else None
            raise ValueError(f"{path / _CONFIG} has schema {schema!r}, and this version reads {_SCHEMA}")
        encoder = HashedEncoderConfig(**_tuples(config["encoder"]))
        with seeded(0):  # what is drawn here is replaced at once
            method = DualEncoderMethod(encoder, DualEncoderConfig(**_tuples(config["options"])))
        method.module.load_state_dict(checked.tensors(_WEIGHTS))
        method.module.eval()
        return cls(method, encoder, config.get("facts"))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
