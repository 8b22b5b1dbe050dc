"""Methods: a model, its objectives and the order of their updates, by name."""

from xferkit.methods.classifier import ClassifierMethod, ClassifierSpec, TargetTexts
from xferkit.methods.dual_encoder import DualEncoderConfig, DualEncoderMethod
from xferkit.methods.gate_weighted import GateWeightedConfig, GateWeightedPooling
from xferkit.methods.man_moe import MANMoE, build_man_moe_model
from xferkit.methods.masked_lm import MaskedLmConfig, MaskedLmMethod
from xferkit.methods.pooled import Pooled, PooledConfig
from xferkit.methods.presets import ABLATIONS, MANMoEConfig, ablations, encoder_preset, man_moe_preset
from xferkit.methods.protocol import (
    DomainBatch,
    Loop,
    Method,
    NextBatch,
    Phase,
    PhaseLoss,
    Stage,
    train_step,
)
from xferkit.methods.registry import build_method, method_config, method_names, register_method
from xferkit.methods.surgery import PooledSurgery, SurgeryConfig

__all__ = [
    "ABLATIONS",
    "ClassifierMethod",
    "ClassifierSpec",
    "DomainBatch",
    "DualEncoderConfig",
    "DualEncoderMethod",
    "GateWeightedConfig",
    "GateWeightedPooling",
    "Loop",
    "MANMoE",
    "MANMoEConfig",
    "MaskedLmConfig",
    "MaskedLmMethod",
    "Method",
    "NextBatch",
    "Phase",
    "PhaseLoss",
    "Pooled",
    "PooledConfig",
    "PooledSurgery",
    "Stage",
    "SurgeryConfig",
    "TargetTexts",
    "ablations",
    "build_man_moe_model",
    "build_method",
    "encoder_preset",
    "man_moe_preset",
    "method_config",
    "method_names",
    "register_method",
    "train_step",
]
