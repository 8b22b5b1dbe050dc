"""Does this source help or hurt me? Negative transfer measured, for any training that can be called as a function.

::

    from xferkit.transfer import diagnose

    def train_fn(tasks: tuple[str, ...], seed: int) -> dict[str, float]:
        ...  # train `tasks` together, any framework; return the test score of each

    answer = diagnose(train_fn, ["en", "de", "fr"], seeds=5, target="en", out="runs")
    print(answer)

Nothing here imports a deep learning framework.
"""

from xferkit.runs.errors import RunError
from xferkit.transfer.bootstrap import ExampleInterval, bootstrap_examples
from xferkit.transfer.cells import Cell, Score
from xferkit.transfer.diagnose import diagnose
from xferkit.transfer.diagnosis import Diagnosis, assemble
from xferkit.transfer.gap import TransferGap, transfer_gap
from xferkit.transfer.perturb import ImageKind, WordKind, perturb_images, perturb_texts
from xferkit.transfer.perturb_labels import flip_labels, label_subset
from xferkit.transfer.plan import Budget, Comparison, Kind, Matching, Plan, Run, make_plan
from xferkit.transfer.statistics import Judgement, Verdict, holm, judge, more_seeds, paired_p_value
from xferkit.transfer.work import Declined, Estimate, RunProgress

__all__ = [
    "Budget",
    "Cell",
    "Comparison",
    "Declined",
    "Diagnosis",
    "Estimate",
    "ExampleInterval",
    "ImageKind",
    "Judgement",
    "Kind",
    "Matching",
    "Plan",
    "Run",
    "RunError",
    "RunProgress",
    "Score",
    "TransferGap",
    "Verdict",
    "WordKind",
    "assemble",
    "bootstrap_examples",
    "diagnose",
    "flip_labels",
    "holm",
    "judge",
    "label_subset",
    "make_plan",
    "more_seeds",
    "paired_p_value",
    "perturb_images",
    "perturb_texts",
    "transfer_gap",
]
