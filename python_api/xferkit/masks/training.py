"""Trains masks on a frozen module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from xferkit.masks.frozen import frozen
from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.lagrangian import FixedPrice, LagrangianPrice, Price
from xferkit.masks.settings import Count, Sparsity

__all__ = ["MaskTrainer", "MaskTrainingConfig", "MaskTrainingRecord", "train_masks"]

Batches = Callable[[int], Any] | Sequence[Any]
"""A function of the step's number, or a list that is gone through round after round."""

Progress = Callable[[int, int, float, float], None]
"""Called with steps done, steps in all, loss and expected sparsity."""


@dataclass(frozen=True)
class MaskTrainingConfig:
    """How masks are trained.

    Wang's thesis leaves group, penalty weight and optimiser of its masks open, and compares languages at one
    weight; masks of different sparsity are hard to compare, so the default here aims at one sparsity for all.

    Attributes:
        steps: updates of log alpha.
        lr: of Adam on log alpha. A gate needs to move by about 5 to close from its usual start: 0.05 leaves room to
            go there and back in a few hundred steps; 0.01, a common choice, wants several thousand.
        target_sparsity: expected sparsity to reach, in [0, 1); None: ``penalty_weight`` is the price instead.
        penalty_weight: with no target, the price of keeping everything: lambda of the L0 penalty times the number
            of all that is masked.
        count: what sparsity and penalty count.
        warmup: fraction of the steps over which the target rises from 0.
        limit: log alpha is kept within plus and minus this; far beyond it a gate has no gradient to come back by.
            Louizos et al. have log 100 in their code, at which a closed gate is still open in one draw of 20.
        multiplier_lr: step size of the multipliers' ascent; see :class:`~xferkit.masks.lagrangian.LagrangianPrice`.
        multiplier_start: the second multiplier at the start.
        mode: of the module meanwhile: "eval" (dropout off; BatchNorm by its running statistics), or "train".

    Raises:
        ValueError: a field out of its range.
    """

    steps: int = 1000
    lr: float = 0.05
    target_sparsity: float | None = 0.5
    penalty_weight: float = 0.0
    count: Count = "parameters"
    warmup: float = 0.3
    limit: float = 8.0
    multiplier_lr: float = 1.0
    multiplier_start: float = 100.0
    mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        target = self.target_sparsity
        for name, fits, wanted in (
            ("steps", self.steps >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "positive"),
            ("target_sparsity", target is None or 0 <= target < 1, "in [0, 1), or None"),
            ("penalty_weight", 0 <= self.penalty_weight < math.inf, "at least 0"),
            ("count", self.count in get_args(Count), f"one of {', '.join(get_args(Count))}"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("limit", 0 < self.limit < math.inf, "positive"),
            ("multiplier_lr", 0 < self.multiplier_lr < math.inf, "positive"),
            ("multiplier_start", 0 <= self.multiplier_start < math.inf, "at least 0"),
            ("mode", self.mode in ("eval", "train"), "one of eval, train"),
        ):
            if not fits:
                raise ValueError(f"MaskTrainingConfig: {name} must be {wanted}, got {getattr(self, name)!r}")
        if target is not None and self.penalty_weight:
            raise ValueError(
                f"MaskTrainingConfig: expected a target_sparsity or a penalty_weight, got both ({target} and "
                f"{self.penalty_weight}); target_sparsity=None leaves the weight alone"
            )


@dataclass(frozen=True)
class MaskTrainingRecord:
    """How a training of masks went.

    Attributes:
        loss: of each step, without the price.
        sparsity: expected, of each step before its update, of what the settings count.
        final: at the end.
        multipliers: the two of the price at the end; the weight and 0 with a fixed one.
        done: whether all steps were made.
    """

    loss: tuple[float, ...]
    sparsity: tuple[float, ...]
    final: Sparsity
    multipliers: tuple[float, float]
    done: bool


class MaskTrainer:
    """Trains log alpha, and nothing else, step by step::

        trainer = MaskTrainer(model, lambda model, batch: cross_entropy(model(batch.x), batch.y), batches, masks)
        trainer.run()

    Each step draws one set of gates, for forward and backward pass; the next draws others. All of its state is in
    :meth:`state_dict`: a training that was stopped and resumed has the bits of one that was not, if the loss draws
    nothing itself.

    Args:
        module: frozen meanwhile; behind every :meth:`run` it is as it was.
        loss: from module and batch; it calls the module, which is masked, and returns a scalar.
        batches: a function of the step's number (from 0), or a list that is gone through round after round.
        masks: whose log alphas are trained.
        config: settings.

    Raises:
        ValueError: an empty list of batches, or masks that do not fit the module.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Batches,
        masks: HardConcreteMasks,
        config: MaskTrainingConfig | None = None,
    ) -> None:
        self.module, self.loss, self.masks = module, loss, masks
        self.config = config or MaskTrainingConfig()
        if not callable(batches) and len(batches) == 0:
            raise ValueError("MaskTrainer: batches is empty; expected at least one batch")
        self._batches = batches
        with torch.no_grad():
            masks.masked(module, "eval")
        self.optimizer = torch.optim.Adam(masks.parameters(), lr=self.config.lr)
        self.price = _price(self.config)
        self.step = 0
        self._loss: list[float] = []
        self._sparsity: list[float] = []

    @property
    def done(self) -> bool:
        """Whether all steps were made."""
        return self.step >= self.config.steps

    def run(self, steps: int | None = None, *, progress: Progress | None = None) -> MaskTrainingRecord:
        """Make the next `steps` steps, or all that are left.

        Raises:
            ValueError: a loss that is no scalar, does not depend on the masks, or is not finite.
        """
        last = self.config.steps if steps is None else min(self.config.steps, self.step + steps)
        with frozen(self.module, training=self.config.mode == "train"):
            while self.step < last:
                self._update()
                if progress is not None:
                    progress(self.step, self.config.steps, self._loss[-1], self._sparsity[-1])
        return self.record()

    def record(self) -> MaskTrainingRecord:
        """How it went so far."""
        return MaskTrainingRecord(
            tuple(self._loss),
            tuple(self._sparsity),
            self.masks.sparsity(),
            self.price.multipliers(),
            self.done,
        )

    def state_dict(self) -> dict[str, Any]:
        """Masks, optimiser, multipliers, step and curves; tensors are copies."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "masks": {name: tensor.clone() for name, tensor in self.masks.state_dict().items()},
            "optimizer": _copied(self.optimizer.state_dict()),
            "price": self.price.state_dict(),
            "loss": torch.tensor(self._loss, dtype=torch.float64),
            "sparsity": torch.tensor(self._sparsity, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where that state was taken.

        Raises:
            ValueError: a state that lacks something, of other settings or of other masks; nothing was changed.
        """
        for key in ("config", "step", "masks", "optimizer", "price", "loss", "sparsity"):
            if key not in state:
                raise ValueError(f"MaskTrainer: the state lacks {key!r}; expected what state_dict() gave")
        for name, value in asdict(self.config).items():
            if state["config"].get(name) != value:
                raise ValueError(
                    f"MaskTrainer: the state is of {name} {state['config'].get(name)!r}; expected {value!r}"
                )
        own = self.masks.state_dict()
        for name in sorted({*own, *state["masks"]}):
            found, wanted = (d[name].shape if name in d else None for d in (state["masks"], own))
            if found != wanted:
                got, need = ("nothing" if s is None else f"shape {list(s)}" for s in (found, wanted))
                raise ValueError(
                    f"MaskTrainer: the state has {got} for {name!r} of the masks; expected {need}"
                )
        self.masks.load_state_dict(state["masks"])
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        self.price.load_state_dict(state["price"])
        self.step = int(state["step"])
        self._loss, self._sparsity = state["loss"].tolist(), state["sparsity"].tolist()

    def _update(self) -> None:
        batches = self._batches
        batch = batches(self.step) if callable(batches) else batches[self.step % len(batches)]
        log_alphas = list(self.masks.parameters())
        with self.masks.applied(self.module, mode="sample"):
            loss = self.loss(self.module, batch)
            self._check(loss)
            of_loss = torch.autograd.grad(loss, log_alphas, allow_unused=True, materialize_grads=True)
        sparsity = self.masks.expected_sparsity(self.config.count)
        of_sparsity = torch.autograd.grad(sparsity, log_alphas)
        slope = self.price.slope(sparsity.item(), self.step, _size(of_loss), _size(of_sparsity))
        for log_alpha, first, second in zip(log_alphas, of_loss, of_sparsity, strict=True):
            log_alpha.grad = first + slope * second
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._clamp()
        self._loss.append(loss.item())
        self._sparsity.append(sparsity.item())
        self.price.ascend(self._sparsity[-1], self.step)
        self.masks.advance()
        self.step += 1

    @torch.no_grad()
    def _clamp(self) -> None:
        for log_alpha in self.masks.parameters():
            log_alpha.clamp_(-self.config.limit, self.config.limit)

    def _check(self, loss: Tensor) -> None:
        where = f"MaskTrainer: the loss of step {self.step}"
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f"{where} must be a scalar tensor, got {got}")
        if not loss.requires_grad:
            raise ValueError(
                f"{where} does not depend on the masks; expected one computed by the module it is given"
            )
        if not bool(loss.isfinite()):
            raise ValueError(f"{where} is {loss.item()}; expected a finite number")


def train_masks(
    module: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    masks: HardConcreteMasks,
    config: MaskTrainingConfig | None = None,
    *,
    progress: Progress | None = None,
) -> MaskTrainingRecord:
    """Train `masks` on the frozen `module` to the end; see :class:`MaskTrainer`, which can stop and resume.

    Raises:
        ValueError: as :class:`MaskTrainer` and its :meth:`~MaskTrainer.run`.
    """
    return MaskTrainer(module, loss, batches, masks, config).run(progress=progress)


def _size(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([g.abs().sum() for g in gradients]).sum())


def _price(config: MaskTrainingConfig) -> Price:
    if config.target_sparsity is None:
        return FixedPrice(config.penalty_weight)
    return LagrangianPrice(
        config.target_sparsity,
        warmup=round(config.warmup * config.steps),
        lr=config.multiplier_lr,
        start=config.multiplier_start,
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
