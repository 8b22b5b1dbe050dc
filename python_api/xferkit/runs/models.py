"""From what a person names to a model: its own folder, or the folder of a run that holds one."""

from __future__ import annotations

import os
from pathlib import Path

from xferkit.runs.pipeline import Pipeline

__all__ = ["load_model", "model_folder"]


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the model that `path` names: itself, a seed's folder, or a run's folder with one model.

    Raises:
        ValueError: there is no model in it, or several (they are named).
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected one that holds a model, such as run/seed-1/model")
    if (folder / "manifest.json").is_file():
        return folder
    if (folder / "model" / "manifest.json").is_file():
        return folder / "model"
    found = sorted(
        (entry / "model" for entry in folder.glob("seed-*") if (entry / "model" / "manifest.json").is_file()),
        key=lambda model: (len(model.parent.name), model.parent.name),
    )
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(str(model) for model in found[:6])
        raise ValueError(f"{folder} holds {len(found)} models; expected one of them: {shown}")
    more = " (its training is not finished)" if (folder / "run.json").exists() else ""
    raise ValueError(f"{folder} holds no model{more}; expected a folder such as run/seed-1/model")


def load_model(path: str | os.PathLike[str]) -> Pipeline:
    """The model that `path` names; see :func:`model_folder` and :meth:`Pipeline.from_pretrained`."""
    return Pipeline.from_pretrained(model_folder(path))
