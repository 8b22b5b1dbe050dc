"""Methods: a model, its objectives and the order of their updates, by name."""

from xferkit.methods.classifier import ClassifierMethod, ClassifierSpec
from xferkit.methods.gate_weighted import GateWeightedPooling
from xferkit.methods.man_moe import MANMoE, build_man_moe_model
from xferkit.methods.pooled import Pooled
from xferkit.methods.presets import MANMoEConfig, man_moe_preset
from xferkit.methods.protocol import DomainBatch, Method, NextBatch, Phase, PhaseLoss, Stage, train_step
from xferkit.methods.registry import build_method, method_names, register_method

__all__ = [
    "ClassifierMethod",
    "ClassifierSpec",
    "DomainBatch",
    "GateWeightedPooling",
    "MANMoE",
    "MANMoEConfig",
    "Method",
    "NextBatch",
    "Phase",
    "PhaseLoss",
    "Pooled",
    "Stage",
    "build_man_moe_model",
    "build_method",
    "man_moe_preset",
    "method_names",
    "register_method",
    "train_step",
]
