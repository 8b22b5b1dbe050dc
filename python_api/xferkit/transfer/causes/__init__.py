"""Why does this source hurt? Measured causes, each against its own null.

    from xferkit.transfer.causes import gradient_conflict, label_shift, rank_causes

    conflict = gradient_conflict(pair, null_target, null_source, target="en", source="fr")
    ranked = rank_causes([conflict, label_shift(labels["en"], labels["fr"])], {"capacity": "one width was
    trained"}) print("\\n".join(ranked.sentences()))

Every result is frozen and has ``flag`` ("yes", "no", "not clear"), ``effect`` in [0, 1], ``sentence()`` and
``to_json()``. A flag says that something differs from its null, beside a source that hurts: it is a sign and
not a proof.
"""

from xferkit.transfer.causes.capacity import Capacity, capacity
from xferkit.transfer.causes.cause import Cause, Flag
from xferkit.transfer.causes.clusters import SourceCluster, SourceClusters, cluster_sources
from xferkit.transfer.causes.collect import CAUSES, RankedCauses, rank_causes
from xferkit.transfer.causes.conflict import GradientConflict, GroupConflict, gradient_conflict
from xferkit.transfer.causes.domination import Domination, TaskShare, domination
from xferkit.transfer.causes.gates import GateChoice, SourceWeight, gate_choice
from xferkit.transfer.causes.input_shift import InputShift, input_shift
from xferkit.transfer.causes.leakage import DuplicateExample, Leakage, PartDuplicates, TextPart, leakage
from xferkit.transfer.causes.mask_overlap import LayerOverlap, MaskOverlap, mask_overlap
from xferkit.transfer.causes.rank_correlation import RankCorrelation, rank_correlation
from xferkit.transfer.causes.shift import LabelShift, MissingClasses, label_shift, missing_classes
from xferkit.transfer.causes.shingles import fold_text, near_pairs
from xferkit.transfer.causes.tokens import LanguageTokens, TokenCosts, TokenExcess, token_costs
from xferkit.transfer.causes.vocabulary import WordCoverage, word_coverage

__all__ = [
    "CAUSES",
    "Capacity",
    "Cause",
    "Domination",
    "DuplicateExample",
    "Flag",
    "GateChoice",
    "GradientConflict",
    "GroupConflict",
    "InputShift",
    "LabelShift",
    "LanguageTokens",
    "LayerOverlap",
    "Leakage",
    "MaskOverlap",
    "MissingClasses",
    "PartDuplicates",
    "RankCorrelation",
    "RankedCauses",
    "SourceCluster",
    "SourceClusters",
    "SourceWeight",
    "TaskShare",
    "TextPart",
    "TokenCosts",
    "TokenExcess",
    "WordCoverage",
    "capacity",
    "cluster_sources",
    "domination",
    "fold_text",
    "gate_choice",
    "gradient_conflict",
    "input_shift",
    "label_shift",
    "leakage",
    "mask_overlap",
    "missing_classes",
    "near_pairs",
    "rank_causes",
    "rank_correlation",
    "token_costs",
    "word_coverage",
]
