"""Hard-Concrete masks of any module: which parameters does a language (a task) need, and which do several share?

    from xferkit.masks import HardConcreteMasks, MaskTrainingConfig, compare_masks, find_sites, prune, train_masks

    sites = find_sites(model, ("head", "ffn_unit"))
    masks = {language: HardConcreteMasks(model, sites) for language in ("de", "fr")}
    for language, mask in masks.items():
        train_masks(model, loss, batches[language], mask, MaskTrainingConfig(target_sparsity=0.5))
    print(compare_masks(masks["de"], masks["fr"]).whole)
    small = prune(model, masks["de"], shrink=True)

The model is not touched: it keeps its parameters, their values and its ``state_dict``.
"""

from xferkit.masks.comparison import MaskAgreement, MaskComparison, compare_masks
from xferkit.masks.discovery import find_sites
from xferkit.masks.files import load_masks, restore_masks, save_masks
from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.overlap import Overlap, overlap
from xferkit.masks.pruning import prune
from xferkit.masks.ranking import GateRanking, GateScore, rank_groups
from xferkit.masks.settings import Count, GateSettings, Mode, Sparsity
from xferkit.masks.sites import Granularity, Kind, MaskPart, MaskSite, declare_site
from xferkit.masks.training import MaskTrainer, MaskTrainingConfig, MaskTrainingRecord, train_masks

__all__ = [
    "Count",
    "GateRanking",
    "GateScore",
    "GateSettings",
    "Granularity",
    "HardConcreteMasks",
    "Kind",
    "MaskAgreement",
    "MaskComparison",
    "MaskPart",
    "MaskSite",
    "MaskTrainer",
    "MaskTrainingConfig",
    "MaskTrainingRecord",
    "Mode",
    "Overlap",
    "Sparsity",
    "compare_masks",
    "declare_site",
    "find_sites",
    "load_masks",
    "overlap",
    "prune",
    "rank_groups",
    "restore_masks",
    "save_masks",
    "train_masks",
]
