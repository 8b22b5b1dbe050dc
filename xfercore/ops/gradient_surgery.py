"""The coefficients of gradient surgery, each method's from the Gram matrices of :func:`xfercore.task_gram` alone.

``task_gram -> gradvac_coef | pcgrad_coef | mgda_coef | ... -> combine_gradients``: two passes over the gradients
whatever the method, and everything in between on matrices of a few hundred numbers, without a synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xfercore.interop import accept_arrays
from xfercore.ops._checks import check_number, check_tensor
from xfercore.ops._surgery_checks import check_float64, check_gram, check_mask, check_order, check_share
from xfercore.reference.gradient_surgery import AgemCoef, GradNormStats, GradVacCoef, MgdaCoef

__all__ = [
    "AgemCoef",
    "GradNormStats",
    "GradVacCoef",
    "MgdaCoef",
    "agem_coef",
    "gradnorm_stats",
    "gradvac_coef",
    "mgda_coef",
    "pcgrad_coef",
]


@accept_arrays
def gradvac_coef(
    gram: Tensor,
    ema: Tensor | None = None,
    *,
    beta: float = 1e-2,
    order: Tensor | None = None,
    seed_step: Tensor | None = None,
    target: float | Tensor | None = None,
    task_weights: Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    target_clip: float = 1 - 1e-6,
    residual_eps: float = 1e-6,
) -> GradVacCoef:
    r"""GradVac on Gram matrices: all groups, tasks and pairs in one launch.

    For each group k and task i, in an order drawn anew, over the other tasks j, with
    :math:`\phi = \cos(g'_i, g_j)` and the target :math:`\hat\phi` (the moving average of this pair):

    .. math::
        g'_i \mathrel{+}= \frac{\lVert g'_i\rVert\,(\hat\phi\sqrt{1-\phi^2} - \phi\sqrt{1-\hat\phi^2})}
            {\lVert g_j\rVert\sqrt{1-\hat\phi^2}}\; g_j \quad\text{if } \phi < \hat\phi, \qquad
        \hat\phi \leftarrow (1-\beta)\,\hat\phi + \beta\,\phi \quad\text{always}

    Wang et al., *Gradient Vaccine*, ICLR 2021, Algorithm 2 and Eq. 6.3 and 6.4 of the thesis it comes from. The cosine
    is taken with g'_i as modified so far and the raw g_j; the average takes it from before the move.

    Args:
        gram: float64 ``[num_groups, num_tasks, num_tasks]``, from :func:`task_gram`.
        ema: float64, same shape: the moving averages, directional (``ema[k, i, j]`` is for g'_i against g_j); start
            with zeros. May be None where ``target`` is given.
        beta: in [0, 1], the weight of the newest cosine in the average.
        order: int64 broadcastable to ``[num_groups, num_tasks, num_tasks]``: the permutation of the tasks that each
            row visits (itself is passed over).
        seed_step: int64 ``[2]``, (seed, step), in place of ``order``: permutations drawn by a counter generator, the
            same on every device and process. Exactly one of the two.
        target: a number, or float64 ``[num_groups, num_tasks, num_tasks]``, in place of the moving averages. The cosine
            of the pair is lifted to it exactly.
        task_weights: float64 ``[num_tasks]``: ``weights = sum_i task_weights_i coefficients_i``. None: ones. The same
            as weighing the losses.
        task_mask: bool ``[num_tasks]``, False for tasks that are absent: no weight, and neither row nor average moves.
        apply_to: bool ``[num_tasks]``, the tasks that get surgery (the low-resource ones, say); the others are
            only set against. None: all.
        target_clip: targets are clipped to ± this when used: the step grows without bound as they approach 1.
        residual_eps: once ``|g'_i| <= residual_eps |g_i|`` the rest of its row is passed over.

    Returns:
        :class:`GradVacCoef` ``(weights, ema, cosine, moved, coefficients)``, float64 but for ``moved``.

    Raises:
        ValueError: an argument that does not fit, named; on the CPU an order that is no permutation.
        RuntimeError: under ``torch.func`` transforms, or where ``gram`` requires grad.

    A pair whose cosine is not finite is passed over and leaves the average as it was; through
    :func:`combine_gradients` the NaN still reaches the result. Gradients may be float32, bfloat16 or float16: their
    scale does not matter, powers of two not even to the last bit.
    """
    if ema is None and target is None:
        raise ValueError(
            "gradvac_coef(): ema must be given where target is None (start with zeros), got None"
        )
    return _gradvac(
        gradvac_coef.__name__,
        gram,
        ema,
        beta,
        order,
        seed_step,
        target,
        task_weights,
        task_mask,
        apply_to,
        target_clip,
        residual_eps,
    )


def _gradvac(
    op: str,
    gram: Tensor,
    ema: Tensor | None,
    beta: float,
    order: Tensor | None,
    seed_step: Tensor | None,
    target: float | Tensor | None,
    task_weights: Tensor | None,
    task_mask: Tensor | None,
    apply_to: Tensor | None,
    target_clip: float,
    residual_eps: float,
) -> GradVacCoef:
    """The checks and the call behind both public functions; sentences name ``op``."""
    check_gram(op, gram)
    fixed = target if isinstance(target, Tensor) else None
    if target is not None and fixed is None:
        check_number(op, "target", target)
    check_share(op, "beta", beta)
    check_share(op, "target_clip", target_clip, upper_open=True)
    check_share(op, "residual_eps", residual_eps)
    check_order(op, gram, order, seed_step)
    check_float64(op, "ema", ema, gram, "[num_groups, num_tasks, num_tasks]")
    check_float64(op, "target", fixed, gram, "[num_groups, num_tasks, num_tasks]")
    check_float64(op, "task_weights", task_weights, gram, "[num_tasks]")
    check_mask(op, "task_mask", task_mask, gram)
    check_mask(op, "apply_to", apply_to, gram)
    number = None if target is None or fixed is not None else float(target)
    try:
        results = torch.ops.xfercore.gradvac_coef(
            gram,
            ema,
            float(beta),
            order,
            seed_step,
            fixed,
            number,
            task_weights,
            task_mask,
            apply_to,
            float(target_clip),
            float(residual_eps),
        )
    except ValueError as error:  # an order that is no permutation, which only the kernel's side sees
        raise ValueError(str(error).replace("gradvac_coef()", f"{op}()")) from error
    return GradVacCoef(*results)


@accept_arrays
def pcgrad_coef(
    gram: Tensor,
    *,
    order: Tensor | None = None,
    seed_step: Tensor | None = None,
    task_weights: Tensor | None = None,
    task_mask: Tensor | None = None,
    apply_to: Tensor | None = None,
    residual_eps: float = 1e-6,
) -> GradVacCoef:
    r"""PCGrad on Gram matrices: a gradient that conflicts with another loses its component along it.

    .. math:: g'_i \mathrel{-}= \frac{\langle g'_i, g_j\rangle}{\lVert g_j\rVert^2}\, g_j
        \quad\text{if } \langle g'_i, g_j\rangle < 0

    Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1; it is :func:`gradvac_coef` with
    ``target=0.0`` and ``beta=0.0``, to the bit.

    Args:
        gram: float64 ``[num_groups, num_tasks, num_tasks]``, from :func:`task_gram` of float32, bfloat16, float16 or
            float64 gradients.
        order, seed_step, task_weights, task_mask, apply_to, residual_eps: as for :func:`gradvac_coef`.

    Returns:
        :class:`GradVacCoef`; its ``ema`` is zero.

    Raises:
        ValueError, RuntimeError: as :func:`gradvac_coef`.
    """
    return _gradvac(
        pcgrad_coef.__name__,
        gram,
        None,
        0.0,
        order,
        seed_step,
        0.0,
        task_weights,
        task_mask,
        apply_to,
        1 - 1e-6,
        residual_eps,
    )


@accept_arrays
def mgda_coef(
    gram: Tensor,
    *,
    scale: Tensor | None = None,
    task_mask: Tensor | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 2000,
) -> MgdaCoef:
    r"""MGDA on Gram matrices: the shortest convex combination of the gradients.

    .. math:: \min_\alpha \Bigl\lVert \sum_j \alpha_j \frac{g_j}{s_j} \Bigr\rVert^2, \qquad
        \alpha_j \ge 0, \quad \sum_j \alpha_j = 1

    Sener & Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018, Eq. 3; solved by pairwise
    Frank-Wolfe steps with exact line search. The weights are for the gradients as they are, as in the authors' code.

    Args:
        gram: float64 ``[num_groups, num_tasks, num_tasks]``, from :func:`task_gram` of float32, bfloat16, float16 or
            float64 gradients.
        scale: float64 ``[num_groups, num_tasks]``, s: the authors' normalisations are the norms ("l2"), the losses
            ("loss") and their product ("loss+"). None: ones.
        task_mask: bool ``[num_tasks]``, False for tasks that are absent. These, and tasks whose gradient is zero, take
            no part and get weight 0.
        tolerance: stop at this duality gap, relative to the largest squared norm.
        max_iterations: stop after so many steps.

    Returns:
        :class:`MgdaCoef` ``(weights, gap)``. NaN in a group with a gradient that is not finite.

    Raises:
        ValueError: an argument that does not fit, named.
        RuntimeError: under ``torch.func`` transforms, or where ``gram`` requires grad.
    """
    op = mgda_coef.__name__
    check_gram(op, gram)
    check_float64(op, "scale", scale, gram, "[num_groups, num_tasks]")
    check_mask(op, "task_mask", task_mask, gram)
    check_share(op, "tolerance", tolerance)
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 0:
        raise ValueError(f"{op}(): max_iterations must be an integer of at least 0, got {max_iterations!r}")
    return MgdaCoef(
        *torch.ops.xfercore.mgda_coef(gram, scale, task_mask, float(tolerance), min(max_iterations, 2**62))
    )


@accept_arrays
def gradnorm_stats(
    gram: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    weights: Tensor,
    *,
    alpha: float = 1.5,
    task_mask: Tensor | None = None,
) -> GradNormStats:
    r"""GradNorm's loss on the tasks' weights, and its derivative.

    .. math::
        L_k = \sum_i \Bigl| w_i\lVert g_i\rVert - \overline{w\lVert g\rVert}\; r_i^{\,\alpha} \Bigr|, \qquad
        r_i = \frac{L_i / L_i^0}{\overline{L / L^0}}

    Chen et al., *GradNorm*, ICML 2018, Eq. 1 and 2; the second term is a constant to the derivative.

    Args:
        gram: float64 ``[num_groups, num_tasks, num_tasks]``, from :func:`task_gram` of the *unweighted* losses'
            float32, bfloat16, float16 or float64 gradients.
        losses: float64 ``[num_tasks]``, the losses now.
        initial_losses: float64 ``[num_tasks]``, the losses at the first step.
        weights: float64 ``[num_groups, num_tasks]`` or ``[num_tasks]``, the tasks' weights now.
        alpha: how strongly slow tasks are favoured.
        task_mask: bool ``[num_tasks]``, False for tasks that are absent: they count in no mean.

    Returns:
        :class:`GradNormStats` ``(grad_weights, loss, norms)``.

    Raises:
        ValueError: an argument that does not fit, named.
        RuntimeError: under ``torch.func`` transforms, or where ``gram`` requires grad.
    """
    op = gradnorm_stats.__name__
    check_gram(op, gram)
    for name, value in (("losses", losses), ("initial_losses", initial_losses), ("weights", weights)):
        check_tensor(op, name, value)
        per_group = name == "weights" and value.dim() != 1
        check_float64(op, name, value, gram, "[num_groups, num_tasks]" if per_group else "[num_tasks]")
    check_number(op, "alpha", alpha)
    check_mask(op, "task_mask", task_mask, gram)
    return GradNormStats(
        *torch.ops.xfercore.gradnorm_stats(gram, losses, initial_losses, weights, float(alpha), task_mask)
    )


@accept_arrays
def agem_coef(gram: Tensor, *, reference: int = -1) -> AgemCoef:
    r"""A-GEM on Gram matrices: the sum of the gradients, without its component against the episodic memory's.

    .. math:: g - \frac{\min(\langle g, g_{\text{ref}}\rangle, 0)}{\lVert g_{\text{ref}}\rVert^2}\, g_{\text{ref}},
        \qquad g = \sum_{i \ne \text{ref}} g_i

    Chaudhry et al., *Efficient Lifelong Learning with A-GEM*, ICLR 2019, Eq. 11.

    Args:
        gram: float64 ``[num_groups, num_tasks, num_tasks]``, from :func:`task_gram` of float32, bfloat16, float16 or
            float64 gradients.
        reference: the task whose gradient is the memory's; negative numbers count from the last.

    Returns:
        :class:`AgemCoef` ``(weights, cosine)``.

    Raises:
        ValueError: an argument that does not fit, named.
        RuntimeError: under ``torch.func`` transforms, or where ``gram`` requires grad.
    """
    op = agem_coef.__name__
    check_gram(op, gram)
    num_tasks = gram.shape[1]
    if (
        isinstance(reference, bool)
        or not isinstance(reference, int)
        or not -num_tasks <= reference < num_tasks
    ):
        raise ValueError(
            f"{op}(): reference must be a task's number below num_tasks = {num_tasks}, got {reference!r}"
        )
    return AgemCoef(*torch.ops.xfercore.agem_coef(gram, reference))


@torch.library.register_fake("xfercore::gradvac_coef")
def _(
    gram: Tensor,
    ema: Tensor | None,
    beta: float,
    order: Tensor | None,
    seed_step: Tensor | None,
    target: Tensor | None,
    target_value: float | None,
    task_weights: Tensor | None,
    task_mask: Tensor | None,
    apply_to: Tensor | None,
    target_clip: float,
    residual_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    full = [torch.empty_like(gram, memory_format=torch.contiguous_format) for _ in range(3)]
    moved = torch.empty_like(gram, dtype=torch.bool, memory_format=torch.contiguous_format)
    return gram.new_empty(gram.shape[:2]), full[0], full[1], moved, full[2]


@torch.library.register_fake("xfercore::mgda_coef")
def _(
    gram: Tensor, scale: Tensor | None, task_mask: Tensor | None, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    return gram.new_empty(gram.shape[:2]), gram.new_empty(gram.shape[:1])


@torch.library.register_fake("xfercore::gradnorm_stats")
def _(
    gram: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    weights: Tensor,
    alpha: float,
    task_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return gram.new_empty(gram.shape[:2]), gram.new_empty(gram.shape[:1]), gram.new_empty(gram.shape[:2])


@torch.library.register_fake("xfercore::agem_coef")
def _(gram: Tensor, reference: int) -> tuple[Tensor, Tensor]:
    return gram.new_empty(gram.shape[:2]), gram.new_empty(gram.shape[:1])
