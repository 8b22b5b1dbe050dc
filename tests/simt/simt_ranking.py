"""Arguments of the ranking kernels, and inbatch_softmax_loss put together from its passes, as the bindings do."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from simt_harness import DTYPES, Arena, call
from torch import Tensor

_P, _I64, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
STATS, FINISH, GRADS, RANKS, FIRST = 1, 2, 4, 8, 16


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """`fields`: names in order, each followed by its type's letter: p pointer, i int64, n int32, d double, b bool."""
    kinds = {"p": _P, "i": _I64, "n": _I32, "d": ctypes.c_double, "b": ctypes.c_bool}
    words = fields.split()
    pairs = [(word, kinds[kind]) for word, kind in zip(words[::2], words[1::2], strict=True)]
    return type(name, (ctypes.Structure,), {"_fields_": pairs})


RowsArgs: Any = _struct(
    "RowsArgs",
    "dtype n passes n num_rows i num_columns i first_column i num_all i sim p num_hard i hard_sim p scale p margin d "
    "targets p first_target i row_ids p col_ids p hard_ids p coef p scaled b col_lse p col_coef p pos_extra p "
    "row_max p row_rest p pos_sim p lse p pos_logit p loss p grad_scale p rank p argmax p best_sim p status p "
    "status_bit n stream p",
)
ColumnsArgs: Any = _struct(
    "ColumnsArgs",
    "dtype n num_rows i num_columns i first_column i num_all i sim p scale p margin d targets p first_target i "
    "row_ids p col_ids p coef p max p rest p positive p count p coef_sum p stream p",
)
HardSimsArgs: Any = _struct("HardSimsArgs", "dtype n num_rows i num_hard i dim i u p hard p sims p stream p")
HardGradsArgs: Any = _struct(
    "HardGradsArgs",
    "dtype n num_rows i num_hard i dim i d p u p hard p factor p grad_u p grad_hard p stream p",
)
TopkArgs: Any = _struct(
    "TopkArgs",
    "dtype n num_rows i num_columns i first_column i k i first b last b sim p factor d key_offset p values p "
    "indices p stream p",
)


@dataclass
class Ranking:
    """One block of rows. ``sim`` and ``hard`` are the similarities themselves, as the products leave them."""

    sim: Tensor  # [B, N]
    hard: Tensor  # [B, H]
    coef: Tensor  # [B]
    scale: float = 1.0
    margin: float = 0.0
    targets: Tensor | None = None
    row_ids: Tensor | None = None
    col_ids: Tensor | None = None
    hard_ids: Tensor | None = None


def run_columns(p: Ranking, tile: int, seed: int = 0) -> Tensor:
    """``[5, N]``: max, rest, positive, count, coef_sum, in two blocks of rows and tiles of columns."""
    rows, columns = p.sim.shape
    out = torch.zeros(5, columns)
    out[0] = -torch.inf
    half = (rows + 1) // 2
    for start, end in ((0, half), (half, rows)):
        for begin in range(0, columns, tile):
            part = slice(begin, min(begin + tile, columns))
            arena = Arena()
            names = ("max", "rest", "positive", "count", "coef_sum")
            stats = {name: arena.output(name, (part.stop - begin,), torch.float32) for name in names}
            for name, row in zip(names, out, strict=True):
                arena.outputs[name].copy_(row[part])
            ids = {} if p.row_ids is None else {"row_ids": arena.input("row_ids", p.row_ids[start:end])}
            if p.col_ids is not None:
                ids["col_ids"] = arena.input("col_ids", p.col_ids[part])
            if p.targets is not None:
                ids["targets"] = arena.input("targets", p.targets[start:end])
            args = ColumnsArgs(
                dtype=0,
                num_rows=end - start,
                num_columns=part.stop - begin,
                first_column=begin,
                num_all=columns,
                sim=arena.input("sim", p.sim[start:end, part].contiguous()),
                scale=arena.input("scale", torch.tensor(p.scale)),
                margin=p.margin,
                first_target=start,
                coef=arena.input("coef", p.coef[start:end]),
                **stats,
                **ids,
            )
            call("inbatch_softmax_columns", args, seed)
            for name, row in zip(names, out, strict=True):
                row[part] = arena.outputs[name]
    return out


def run_rows(
    p: Ranking,
    tile: int,
    dtype: torch.dtype = torch.float32,
    column_terms: tuple[Tensor, Tensor, Tensor] | None = None,
    seed: int = 0,
    layout: int = 0,
    late: int = RANKS | GRADS,
    stale_pos: float = torch.nan,
) -> dict[str, Tensor]:
    """What the passes give. One tile: all at once. Several: statistics of all, then ranks and gradients of all.

    ``stale_pos`` is what an earlier block of rows left in ``pos_sim``.
    """
    rows, columns = p.sim.shape
    arena = Arena(layout)
    for name in ("row_max", "row_rest", "pos_sim", "lse", "pos_logit", "loss", "grad_scale", "best_sim"):
        arena.output(name, (rows,), torch.float32)
    arena.output("rank", (rows,), torch.int64)
    arena.output("argmax", (rows,), torch.int64)
    arena.output("status", (1,), torch.int32)
    arena.output("hard_sim", p.hard.shape, torch.float32)
    arena.outputs["status"].zero_()
    arena.outputs["hard_sim"].copy_(p.hard)
    arena.outputs["pos_sim"].fill_(stale_pos)
    addresses = {name: value.data_ptr() for name, value in arena.outputs.items()}
    grad = torch.zeros(rows, columns)
    whole = tile >= columns
    for sweep in range(1 if whole else 2):
        for begin in range(0, columns, tile):
            part = slice(begin, min(begin + tile, columns))
            width = part.stop - begin
            passes = (STATS | (late if whole else 0)) if sweep == 0 else late
            passes |= FIRST if begin == 0 else 0
            passes |= FINISH if sweep == 0 and part.stop == columns else 0
            name = f"sim {sweep} {begin}"
            sim = arena.output(name, (rows, width), torch.float32)
            arena.outputs[name].copy_(p.sim[:, part])
            terms = {}
            if column_terms is not None:
                lse, coef, extra = column_terms
                terms = {
                    "col_lse": arena.input("col_lse", lse[part].contiguous()),
                    "col_coef": arena.input("col_coef", coef[part].contiguous()),
                    "pos_extra": arena.input("pos_extra", extra),
                }
            args = RowsArgs(
                dtype=DTYPES[dtype],
                passes=passes,
                num_rows=rows,
                num_columns=width,
                first_column=begin,
                num_all=columns,
                sim=sim,
                num_hard=p.hard.shape[1],
                scale=arena.input("scale", torch.tensor(p.scale)),
                margin=p.margin,
                targets=arena.input("targets", p.targets),
                row_ids=arena.input("row_ids", p.row_ids),
                col_ids=arena.input("col_ids", None if p.col_ids is None else p.col_ids[part].contiguous()),
                hard_ids=arena.input("hard_ids", p.hard_ids),
                coef=arena.input("coef", p.coef),
                scaled=dtype == torch.float32,
                status_bit=4,
                **terms,
                **addresses,
            )
            call("inbatch_softmax_rows", args, seed)
            if passes & GRADS:
                replaced = arena.outputs[name].view(dtype)[:, :width]
                grad[:, part] = replaced.float() * (1.0 if dtype == torch.float32 else p.scale)
    out = {name: value.clone() for name, value in arena.outputs.items() if not name.startswith("sim ")}
    if dtype != torch.float32:
        out["hard_sim"] *= p.scale
    return out | {"grad": grad}
