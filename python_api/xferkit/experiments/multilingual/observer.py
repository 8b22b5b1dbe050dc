"""What surgery sees and does in training: cosines of gradients before and after it, and pairs that were turned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from xfercore import gradvac_coef, pcgrad_coef
from xferkit.experiments.multilingual.cell import Matrix, PairRecord
from xferkit.surgery import FixedTarget, GradVac, PairwiseSurgery, PCGrad, Sum, Surgery, SurgeryInfo
from xferkit.surgery.similarity import SimilarityRecorder

__all__ = ["Observer", "coefficients_of"]


class Observer:
    """Looks at the steps of a surgery; the training comes out the same with it and without.

    Args:
        surgery: what is looked at; None, or a plain sum, which takes no gradients apart: nothing is.
        every: of so many steps one is looked at; 0: none.

    Attributes:
        cpu_seconds: processor time that looking took.
    """

    def __init__(self, surgery: Surgery | None, every: int = 1) -> None:
        self.surgery = None if isinstance(surgery, Sum) or every < 1 else surgery
        self.cpu_seconds = 0.0
        self._every, self._calls = every, 0
        self._raw, self._turned = SimilarityRecorder(), SimilarityRecorder()
        if self.surgery is not None:
            # The one place that every step of a surgery goes through, however its losses were collected.
            self._combine: Callable[[], SurgeryInfo] = self.surgery.combine
            self.surgery.combine = self._looking  # type: ignore[method-assign]

    def record(self) -> PairRecord | None:
        """What was seen so far; None where nothing was."""
        if self.surgery is None or not self._calls:
            return None
        seen, turned = self._raw.record(), self._turned.record()
        before = self._matrices(self._raw)
        after = self._matrices(self._turned) if turned.tasks else None
        return PairRecord(
            steps=int(seen.steps.sum()),
            groups=self.surgery.groups,
            before=before[0],
            before_groups=before[1:],
            after=after[0] if after else None,
            after_groups=after[1:] if after else (),
            visited=int(seen.visited.sum()),
            active=int(seen.moved.sum()),
        )

    def _matrices(self, recorder: SimilarityRecorder) -> tuple[Matrix, ...]:
        """Mean cosines of the whole model, then of each group; None where a pair never met, and on the diagonal."""
        assert self.surgery is not None
        record = recorder.record()
        places = {name: n for n, name in enumerate(record.tasks)}
        found = []
        for group in (None, *record.groups):
            mean = record.mean(group)
            found.append(
                tuple(
                    tuple(
                        float(mean[places[a], places[b]])
                        if a != b
                        and a in places
                        and b in places
                        and not math.isnan(mean[places[a], places[b]])
                        else None
                        for b in self.surgery.tasks
                    )
                    for a in self.surgery.tasks
                )
            )
        return tuple(found)

    def _looking(self) -> SurgeryInfo:
        assert self.surgery is not None
        self._calls += 1
        if (self._calls - 1) % self._every:
            return self._combine()
        start = time.process_time()
        before = {name: value.clone() for name, value in self.surgery.state.named_buffers()}
        self.cpu_seconds += time.process_time() - start
        info = self._combine()
        start = time.process_time()
        self._look(info, before)
        self.cpu_seconds += time.process_time() - start
        return info

    @torch.no_grad()
    def _look(self, info: SurgeryInfo, before: dict[str, Tensor]) -> None:
        self._raw(info, self._calls)
        if isinstance(self.surgery, PairwiseSurgery):
            coefficients = coefficients_of(self.surgery, info, before)
            assert info.gram is not None
            turned = coefficients @ info.gram @ coefficients.transpose(1, 2)
            self._turned.add(turned, info.tasks, info.groups, step=self._calls)


def coefficients_of(surgery: PairwiseSurgery, info: SurgeryInfo, before: dict[str, Tensor]) -> Tensor:
    """``float64[K, t, t]`` with ``g'_i = sum_j coefficients_ij g_j`` of a step that was made.

    The order of the pairs is a function of the seed and the step alone, so that a step can be made again from its
    Gram matrices and the state before it.

    Args:
        surgery: which surgery.
        info: what it said of the step.
        before: its state before the step, by name.
    """
    assert info.gram is not None
    order = before["seed_step"]
    places = torch.tensor([surgery.tasks.index(name) for name in info.tasks], device=info.gram.device)
    chosen = torch.tensor([name in surgery.apply_to for name in info.tasks], device=info.gram.device)
    if isinstance(surgery, GradVac):
        ema = before["ema"][:, places][:, :, places]
        raw = surgery.ema_of == "raw"
        return gradvac_coef(
            info.gram,
            None if raw else ema,
            beta=0.0 if raw else surgery.beta,
            target=ema if raw else None,
            seed_step=order,
            apply_to=chosen,
        ).coefficients
    if isinstance(surgery, FixedTarget):
        target = surgery.target
        if isinstance(target, Tensor):
            target = target[:, places][:, :, places]
        return gradvac_coef(info.gram, beta=0.0, target=target, seed_step=order, apply_to=chosen).coefficients
    assert isinstance(surgery, PCGrad)
    return pcgrad_coef(info.gram, seed_step=order, apply_to=chosen).coefficients
