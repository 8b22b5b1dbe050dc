"""Problems of which a diagnosis asks which tasks help a target: one model trained on any of them, every task scored."""

from xferkit.diagnosis.folder import read_folder
from xferkit.diagnosis.images import DigitProblem
from xferkit.diagnosis.names import NameProblem
from xferkit.diagnosis.observe import GradientObserver
from xferkit.diagnosis.problem import Look, Matching, Part, Problem, RunResult, RunSpec, SplitName
from xferkit.diagnosis.recipe import Recipe
from xferkit.diagnosis.tagging import TagProblem
from xferkit.diagnosis.texts import TextProblem
from xferkit.diagnosis.training import TaskData, TrainedProblem

__all__ = [
    "DigitProblem",
    "GradientObserver",
    "Look",
    "Matching",
    "NameProblem",
    "Part",
    "Problem",
    "Recipe",
    "RunResult",
    "RunSpec",
    "SplitName",
    "TagProblem",
    "TaskData",
    "TextProblem",
    "TrainedProblem",
    "read_folder",
]
