"""Measures variants of one computation against each other and against the machine's own ceilings.

Every round runs every variant once, in an order that changes from round to round, together with a large copy
and a matrix product. A ratio is taken inside its round and its median over the rounds is what counts, so that
drift of the machine (frequency, neighbours) falls on numerator and denominator alike.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.measures import (
    Run,
    Work,
    floor_seconds,
    peak_memory,
    quantile,
    relative_error,
    rotated,
    summary,
    time_calls,
)

__all__ = [
    "Bench",
    "Candidate",
    "Case",
    "Options",
    "Run",
    "Variant",
    "Work",
    "bind",
    "make_variants",
    "measure",
]

Role = Literal["ours", "eager", "compiled", "part"]
Samples = dict[str, list[float]]

_MIN_COPY_BYTES = 128 << 20
_QUICK_COPY_BYTES = 8 << 20
_SHORT_SECONDS = 0.1
_LONG_SECONDS = 2.0  # a call that takes longer is warm after its first
_LEAST_ROUNDS = 3
_CUDA_FLUSH_BYTES = 256 << 20  # more than any last-level cache of a GPU


@dataclass(frozen=True)
class Options:
    """What the command line decides for all cases."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    quick: bool = False
    compile: bool = True
    memory: bool = True
    rounds: int = 11
    warmup: int = 2
    threads: int = 1

    @property
    def clock(self) -> str:
        """The clock ratios are taken on.

        Process CPU time does not see other processes, but adds up threads that only wait for each other:
        it stands for the duration on one thread only.
        """
        if self.device == "cuda":
            return "device"
        return "cpu" if self.threads == 1 else "wall"


@dataclass(frozen=True)
class Variant:
    """One implementation, ready to run; ``comparable`` says that its results equal the oracle's.

    The role ``"part"`` is no competitor but something ours does as well, given as a share of ours.
    """

    name: str
    role: Role
    run: Run
    comparable: bool = True


@dataclass(frozen=True)
class Bench:
    """What a setup function returns.

    Attributes:
        variants: what is measured; one of them has the role ``"ours"``.
        oracle: the exact results, where values can be compared.
        profile: says where the time of ours goes, as ``{"table": text, ...}``; called after the rounds.
        amount: what one call goes through, such as ``("tokens", 3200)``; given by the second then.
    """

    variants: list[Variant]
    oracle: Run | None = None
    profile: Callable[[], dict[str, Any]] | None = None
    amount: tuple[str, float] | None = None


@dataclass(frozen=True)
class Case:
    """One row: ``op/pass/device/dtype/shape``, how to set it up, and the work it must do.

    Rounds that would take more than ``seconds`` become fewer, but three at least.
    """

    op: str
    passes: str
    shape: Mapping[str, int | float | str]
    options: Options
    setup: Callable[[Case], Bench]
    work: Work = field(default_factory=Work)
    seconds: float = math.inf

    @property
    def label(self) -> str:
        """The shape as one word, ``N32768-K8-relu``: sizes under their letters, words as they are."""
        return "-".join(v if isinstance(v, str) else f"{k}{v}" for k, v in self.shape.items())

    @property
    def name(self) -> str:
        """The row's name."""
        dtype = str(self.options.dtype).removeprefix("torch.")
        return f"{self.op}/{self.passes}/{self.options.device}/{dtype}/{self.label}"


@dataclass(frozen=True)
class Candidate:
    """An implementation before it is bound to a pass: ``function(*args)``, differentiated by ``leaves``."""

    function: Callable[..., Any]
    args: Sequence[Any]
    leaves: Sequence[Tensor]
    comparable: bool = True


def bind(candidate: Candidate, passes: str, cotangents: Sequence[Tensor] = ()) -> Run:
    """A closure that runs one forward without grad, or one forward and backward; ``"call"`` is for ops without one.

    Outputs come first, then gradients in the order of ``leaves``: leaves that all candidates of a case have
    in common stand in front, and the results are compared as far as the oracle's go.
    """

    def outputs() -> tuple[Tensor, ...]:
        result = candidate.function(*candidate.args)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    if passes in ("call", "forward"):

        def run() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return outputs()

    elif passes == "forward_backward":

        def run() -> tuple[Tensor, ...]:
            values = outputs()
            pairs = [(v, g) for v, g in zip(values, cotangents, strict=True) if v.requires_grad]
            roots, grads = [v for v, _ in pairs], [g.to(v.dtype) for v, g in pairs]
            return values + torch.autograd.grad(roots, candidate.leaves, grads)

    else:
        raise ValueError(f"bind: passes is 'call', 'forward' or 'forward_backward', not {passes!r}")
    return run


def make_variants(
    case: Case,
    ours: Candidate,
    baselines: Mapping[str, Candidate],
    cotangents: Sequence[Tensor] = (),
) -> list[Variant]:
    """``xfercore`` first, then every baseline in eager and, unless switched off, under torch.compile."""
    variants = [Variant("xfercore", "ours", bind(ours, case.passes, cotangents), ours.comparable)]
    for name, base in baselines.items():
        variants.append(Variant(name, "eager", bind(base, case.passes, cotangents), base.comparable))
    if case.options.compile:
        for name, base in baselines.items():
            compiled = Candidate(torch.compile(base.function), base.args, base.leaves, base.comparable)
            run = bind(compiled, case.passes, cotangents)
            variants.append(Variant(f"{name}.compiled", "compiled", run, base.comparable))
    return variants


def _ceilings(case: Case) -> dict[str, tuple[Run, float]]:
    """The copy and the matrix product whose rates are the case's ceilings, with their bytes and FLOPs."""
    options = case.options
    least = _QUICK_COPY_BYTES if options.quick else _MIN_COPY_BYTES
    size = max(least, int(case.work.bytes) // 2) // 4
    source = torch.rand(size, device=options.device)
    target = torch.empty_like(source)
    ceilings: dict[str, tuple[Run, float]] = {"copy": (lambda: [target.copy_(source)], 8.0 * size)}
    if case.work.matmul is not None:
        m, k, n = case.work.matmul
        dtype = case.work.matmul_dtype or options.dtype
        a = torch.randn(m, k, device=options.device, dtype=dtype)
        b = torch.randn(k, n, device=options.device, dtype=dtype)
        out = torch.empty(m, n, device=options.device, dtype=dtype)

        def product() -> Sequence[Tensor]:
            with torch.no_grad():
                return [torch.mm(a, b, out=out)]

        ceilings["matmul"] = (product, 2.0 * m * k * n)
    return ceilings


def _warm_up(run: Run, options: Options, flush: Tensor | None) -> tuple[float, float]:
    """Runs until warm; seconds of the first call and of the fastest after it."""
    start = time.perf_counter()
    run()
    if options.device == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    seconds = math.inf
    for _ in range(options.warmup):
        seconds = min(seconds, time_calls(run, 1, options.device, flush)[options.clock])
        if seconds > _LONG_SECONDS:
            break
    return first, seconds


def measure(case: Case) -> dict[str, Any]:
    """Runs one case and returns its row, ready for JSON (see README.md for the fields)."""
    options = case.options
    torch.manual_seed(0)
    if options.compile:
        torch._dynamo.reset()  # else the second shape of an op is compiled with dynamic sizes
    bench = case.setup(case)
    ceilings = _ceilings(case)
    flush = (
        torch.empty(_CUDA_FLUSH_BYTES, dtype=torch.int8, device="cuda") if options.device == "cuda" else None
    )
    least = 1e-3 if options.quick else 10e-3

    expected = bench.oracle() if bench.oracle is not None else None
    entries: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    durations: dict[str, float] = {}
    for variant in bench.variants:
        entry: dict[str, Any] = {"role": variant.role}
        entries[variant.name] = entry
        try:
            first, seconds = _warm_up(variant.run, options, flush)
        except Exception as error:
            if variant.role == "ours":
                raise
            # A baseline that torch cannot run or compile here is a finding, not the end of the run.
            entry["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if variant.role == "compiled":
            entry["first_call_s"] = first
        if expected is not None and variant.comparable:
            entry["rel_err"] = relative_error(variant.run(), expected)
        runs[variant.name], durations[variant.name] = variant.run, seconds
    del expected
    for name, (run, _) in ceilings.items():
        runs[f"ceiling:{name}"] = run
        _, durations[f"ceiling:{name}"] = _warm_up(run, options, flush)

    # Calls to a sample: enough to last well beyond the clock's resolution.
    repeats = {name: max(1, min(1000, math.ceil(least / max(s, 1e-7)))) for name, s in durations.items()}
    round_seconds = sum(durations[name] * count for name, count in repeats.items())
    if round_seconds * options.rounds > case.seconds:
        fewer = max(_LEAST_ROUNDS, int(case.seconds / round_seconds))
        options = replace(options, rounds=min(options.rounds, fewer))
    samples = _rounds(runs, durations, repeats, options, flush)
    for name, entry in entries.items():
        if name in samples:
            entry["repeats"] = repeats[name]
            entry |= {f"{c}_ms": summary([1e3 * s for s in v]) for c, v in samples[name].items()}
            if bench.amount is not None:
                entry["per_second"] = summary([bench.amount[1] / s for s in samples[name][options.clock]])
            entry["peak_bytes"] = peak_memory(runs[name], options.device) if options.memory else None
    row = {
        "name": case.name,
        "op": case.op,
        "pass": case.passes,
        "device": options.device,
        "dtype": str(options.dtype).removeprefix("torch."),
        "shape": dict(case.shape),
        "clock": options.clock,
        "rounds": options.rounds,
        "variants": entries,
        **_compare(case, entries, samples, {name: amount for name, (_, amount) in ceilings.items()}),
    }
    if bench.amount is not None:
        row["amount"] = {"unit": bench.amount[0], "per_call": bench.amount[1]}
    if bench.profile is not None:
        row["profile"] = bench.profile()
    return row


def _rounds(
    runs: Mapping[str, Run],
    durations: Mapping[str, float],
    repeats: Mapping[str, int],
    options: Options,
    flush: Tensor | None,
) -> dict[str, Samples]:
    """Seconds per call of every run, by clock, one number a round."""
    names = list(runs)
    samples: dict[str, Samples] = {name: {} for name in names}
    untimed = {name for name in names if durations[name] < _SHORT_SECONDS}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_index in range(options.rounds):
            for i in rotated(len(names), round_index):
                name = names[i]
                if name in untimed:
                    runs[name]()  # a short call pays for the cache it finds; so each one finds its own
                for clock, seconds in time_calls(runs[name], repeats[name], options.device, flush).items():
                    samples[name].setdefault(clock, []).append(seconds)
    finally:
        if enabled:
            gc.enable()
    return samples


def _compare(
    case: Case, entries: dict[str, dict[str, Any]], samples: dict[str, Samples], amounts: Mapping[str, float]
) -> dict[str, Any]:
    """Ceilings, floor, share of the floor and speed-ups; writes the per-variant part into ``entries``."""
    clock = case.options.clock
    rates = {
        name: [amount / s for s in samples[f"ceiling:{name}"][clock]] for name, amount in amounts.items()
    }
    flop_rates: Sequence[float | None] = rates.get("matmul", [None] * len(rates["copy"]))
    floors = [floor_seconds(case.work, f, b) for f, b in zip(flop_rates, rates["copy"], strict=True)]
    ours = next(name for name, entry in entries.items() if entry["role"] == "ours")
    best: dict[str, str] = {}
    for name, entry in entries.items():
        if name not in samples:
            continue
        seconds = samples[name][clock]
        if case.work.flops or case.work.bytes:
            entry["share_of_floor"] = summary([f / s for (f, _), s in zip(floors, seconds, strict=True)])
        if name == ours:
            continue
        ratios = [base / own for base, own in zip(seconds, samples[ours][clock], strict=True)]
        role = entry["role"]
        if role == "part":
            entry["share_of_ours"] = summary(ratios)
            continue
        entry["speedup_of_ours"] = summary(ratios)
        if role not in best or quantile(seconds, 0.5) < quantile(samples[best[role]][clock], 0.5):
            best[role] = name
    result: dict[str, Any] = {
        "ceilings": {
            "copy_bytes_per_s": summary(rates["copy"]),
            "matmul_flops_per_s": summary(rates["matmul"]) if "matmul" in rates else None,
            "matmul_shape": case.work.matmul,
        },
        "floor": {
            "flops": case.work.flops,
            "bytes": case.work.bytes,
            "ms": summary([1e3 * seconds for seconds, _ in floors]),
            "bound": max(("flops", "bytes"), key=[bound for _, bound in floors].count),
        },
    }
    for role in ("eager", "compiled"):
        fastest = best.get(role)
        result[f"best_{role}"] = fastest
        result[f"speedup_vs_{role}"] = entries[fastest]["speedup_of_ours"] if fastest else None
    return result
