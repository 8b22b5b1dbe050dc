"""What benchmarks of training steps share: other mixtures in the same model, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Run

__all__ = ["Groups", "mixture_function", "profile_step"]

#: Where an operator's own time belongs: the first group one of whose fragments its name contains.
Groups = tuple[tuple[str, tuple[str, ...]], ...]

_OTHER = "copies, element-wise and the rest"


@contextmanager
def mixture_function(function: Callable[..., Any] | None) -> Iterator[None]:
    """Lets a model's mixtures call ``function`` in place of the op they would choose."""
    import xferkit.models.moe as module

    chosen = vars(module)["resolve_ops"]
    if function is not None:
        vars(module)["resolve_ops"] = lambda name: SimpleNamespace(moe_mlp_mix=function)
    try:
        yield
    finally:
        vars(module)["resolve_ops"] = chosen


def profile_step(step: Run, device: str, groups: Groups, calls: int = 10, steps: int = 1) -> dict[str, Any]:
    """Own time per step by group and by operator, where the kernels run; phases and fused ops as a whole.

    Args:
        step: one step or several; regions named ``phase:...`` in it are its phases.
        device: where the kernels run.
        groups: of operators.
        calls: how many are profiled.
        steps: in each of them.
    """
    steps *= calls
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    step()
    with profile(activities=activities) as recorded:
        for _ in range(calls):
            step()
    own_ms: dict[str, float] = {}
    operators, phases, fused = [], {}, 0.0
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel by itself; the operator that launched it has its time as well
        own = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / steps
        operators.append({"name": event.key, "ms": own, "calls": event.count / steps})
        name = next((g for g, parts in groups if any(part in event.key for part in parts)), _OTHER)
        own_ms[name] = own_ms.get(name, 0.0) + own
        inclusive = (event.device_time_total if cuda else event.cpu_time_total) / 1e3 / steps
        if event.key.startswith("phase:"):
            phases[event.key.removeprefix("phase:")] = inclusive
        elif event.key.startswith("xfercore::"):
            fused += inclusive
    operators.sort(key=lambda entry: -entry["ms"])
    total = sum(own_ms.values())
    ordered = sorted(own_ms.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in phases.items())
    lines = [
        f"  where the time of ours goes, wall time under the profiler: {total:.2f} ms a step ({parts});",
        f"  the fused ops with their products: {fused:.2f} ms, {100 * fused / total:.0f} %; own times:",
    ]
    lines += [f"    {100 * ms / total:5.1f} %  {ms:7.3f} ms  {name}" for name, ms in ordered]
    lines += ["  largest operators"]
    lines += [f"    {o['ms']:7.3f} ms  {o['calls']:6.1f} calls  {o['name']}" for o in operators[:10]]
    return {
        "steps": steps,
        "ms": total,
        "phases_ms": phases,
        "fused_ops_ms": fused,
        "groups_ms": dict(ordered),
        "operators": operators[:25],
        "table": "\n".join(lines),
    }
