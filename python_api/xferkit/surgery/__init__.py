"""Gradient surgery for anybody's training loop: tasks that share parameters, and one gradient that suits them all.

    from xferkit.surgery import GradVac

    surgery = GradVac(model.encoder, tasks=("de", "fr"))
    ...
    surgery.backward({"de": loss_de, "fr": loss_fr})
    optimizer.step()

Needs torch and xfercore alone.
"""

from xferkit.surgery.arena import TaskGradients
from xferkit.surgery.base import Surgery
from xferkit.surgery.gradnorm import GradNorm
from xferkit.surgery.gradvac import FixedTarget, GradVac, PairwiseSurgery, PCGrad
from xferkit.surgery.grouping import Grouping, GroupingName, group_names
from xferkit.surgery.info import SurgeryInfo
from xferkit.surgery.mgda import MGDA, Normalization
from xferkit.surgery.passes import BackwardName
from xferkit.surgery.shared import Shared, SharedParameters
from xferkit.surgery.state import SurgeryState
from xferkit.surgery.step import Solution, Step
from xferkit.surgery.tasks import Loss, Losses
from xferkit.surgery.total import Sum

__all__ = [
    "MGDA",
    "BackwardName",
    "FixedTarget",
    "GradNorm",
    "GradVac",
    "Grouping",
    "GroupingName",
    "Loss",
    "Losses",
    "Normalization",
    "PCGrad",
    "PairwiseSurgery",
    "Shared",
    "SharedParameters",
    "Solution",
    "Step",
    "Sum",
    "Surgery",
    "SurgeryInfo",
    "SurgeryState",
    "TaskGradients",
    "group_names",
]
