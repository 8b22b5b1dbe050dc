"""Settings of MAN-MoE: its ablations, and what the paper states and what its authors' code runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from xferkit.models import EncoderConfig

__all__ = [
    "ABLATIONS",
    "MANMoEConfig",
    "PresetKind",
    "PresetTask",
    "ablations",
    "encoder_preset",
    "man_moe_preset",
]

PresetKind = Literal["paper", "code"]
PresetTask = Literal["slots", "ner", "amazon"]


@dataclass(frozen=True)
class MANMoEConfig:
    """Every choice of MAN-MoE; the defaults are the paper's where it states one.

    Attributes:
        lambda1: weight of the discriminator's loss in the main step.
        lambda2: weight of the gate losses.
        k: discriminator steps per main step.
        adversary: False is the ablation without MAN: lambda1 and k count as 0.
        private_moe: False is the ablation without private features.
        predictor_moe: False is the ablation with a perceptron for a predictor. Neither mixture leaves shared
            features and the adversary: MAN without private features.
        private_per_source: MAN proper: a private encoder per source in place of the mixture, zeros for the
            target; needs ``private_moe=False``.
        mix: ``"prob"`` mixes the predictor's expert probabilities (the paper), ``"logprob"`` their
            logarithms (the code; not normalised).
        gate: ``"text"``: weights by a gate per token or text (the paper); ``"language"``: one set of weights
            per language, ``softmax(gate_scale * mean gate logits over texts of that language)``.
        gate_scale: factor of the language-level gate.
        detach_gate_input: the gate losses train the gates alone.
        private_dim: size of the private features.
        expert_hidden: hidden units of a private expert.
        predictor_hidden: hidden units of a predictor expert or of the perceptron.
        discriminator_hidden: hidden units of the discriminator.
        dropout: dropout probability outside the encoders.
        learning_rate: Adam's learning rate, both optimisers, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
    """

    lambda1: float = 0.002
    lambda2: float = 0.1
    k: int = 1
    adversary: bool = True
    private_moe: bool = True
    predictor_moe: bool = True
    private_per_source: bool = False
    mix: Literal["prob", "logprob"] = "prob"
    gate: Literal["text", "language"] = "text"
    gate_scale: float = 2.0
    detach_gate_input: bool = True
    private_dim: int = 128
    expert_hidden: int = 128
    predictor_hidden: int = 128
    discriminator_hidden: int = 128
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 1e-8
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.private_per_source and self.private_moe:
            raise ValueError("MANMoEConfig: private_per_source needs private_moe=False")
        if self.lambda1 < 0 or self.lambda2 < 0 or self.k < 0:
            raise ValueError(
                f"MANMoEConfig: lambda1, lambda2 and k must not be negative, got {self.lambda1}, "
                f"{self.lambda2} and {self.k}"
            )
        for name in ("private_dim", "expert_hidden", "predictor_hidden", "discriminator_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"MANMoEConfig: {name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"MANMoEConfig: dropout must be in [0, 1), got {self.dropout}")
        for name, value, allowed in (
            ("mix", self.mix, ("prob", "logprob")),
            ("gate", self.gate, ("text", "language")),
        ):
            if value not in allowed:
                raise ValueError(f"MANMoEConfig: {name} must be one of {allowed}, got {value!r}")


#: The ablations of Chen et al., ACL 2019, Table 3, by name: what each takes away.
ABLATIONS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "no_c_moe": {"predictor_moe": False},
        "no_private_moe": {"private_moe": False},
        "no_moe": {"private_moe": False, "predictor_moe": False},
        "no_man": {"adversary": False},
    }
)


def ablations(config: MANMoEConfig | None = None) -> dict[str, MANMoEConfig]:
    """The whole method (``"man_moe"``) and each ablation of the paper's Table 3, by name of its method.

    Args:
        config: all other settings; None: the defaults.
    """
    whole = config or MANMoEConfig()
    return {"man_moe": whole} | {name: replace(whole, **fixed) for name, fixed in ABLATIONS.items()}


# (lambda1, lambda2, k, batch size) of Chen et al., ACL 2019, appendix B.
_PAPER = {
    "slots": (0.01, 1.0, 5, 64),
    "ner": (1e-4, 0.01, 1, 16),
    "amazon": (0.002, 0.1, 1, 16),
}


def _check_preset(function: str, kind: str, task: str) -> None:
    if kind not in ("paper", "code") or task not in _PAPER:
        raise ValueError(
            f"{function}: kind must be 'paper' or 'code' and task one of {sorted(_PAPER)}, got {kind!r} and {task!r}"
        )


def man_moe_preset(kind: PresetKind, task: PresetTask) -> MANMoEConfig:
    """The method's settings for a task of the paper; :func:`encoder_preset` has its encoders'.

    The published code differs from the paper: log-probabilities are mixed, gates read detached features, and
    a predictor expert has as many hidden units as it has inputs; NER runs with 200 units and lambda1 = 0.002,
    Amazon with lambda2 = 0.01. It has no figures for slots that differ.

    Args:
        kind: ``"paper"`` or ``"code"``.
        task: ``"slots"``, ``"ner"`` or ``"amazon"``.

    Raises:
        ValueError: for another kind or task.
    """
    _check_preset("man_moe_preset", kind, task)
    lambda1, lambda2, k, batch_size = _PAPER[task]
    # The paper does not mention a detached gate input; the code has it.
    config = MANMoEConfig(
        lambda1=lambda1, lambda2=lambda2, k=k, batch_size=batch_size, detach_gate_input=False
    )
    if kind == "paper":
        return config
    config = replace(config, mix="logprob", detach_gate_input=True, predictor_hidden=256)
    if task == "ner":
        return replace(
            config,
            lambda1=0.002,
            private_dim=200,
            expert_hidden=200,
            predictor_hidden=400,
            discriminator_hidden=200,
        )
    if task == "amazon":
        return replace(config, lambda2=0.01)
    return config


def encoder_preset(kind: PresetKind, task: PresetTask, vectors: str | None = None) -> EncoderConfig:
    """The encoders' settings for a task of the paper.

    Fixed 300-dimensional cross-lingual word vectors; for slots and NER beside a CharCNN of 200 units of each
    of the widths 3, 4 and 5 (Amazon runs without, as the published scripts do); two BiLSTM layers, dropout 0.5. The
    code keeps character embeddings (of size 128) as they were drawn and runs NER with 200 units; the paper
    does not give the size of character embeddings, so that of the code stands in both. Here a character's
    case is a flag beside it, where the code has two characters.

    Args:
        kind: ``"paper"`` or ``"code"``.
        task: ``"slots"``, ``"ner"`` or ``"amazon"``.
        vectors: file of the word vectors; None learns word embeddings of that size.

    Raises:
        ValueError: for another kind or task.
    """
    _check_preset("encoder_preset", kind, task)
    return EncoderConfig(
        kind="words",
        feature_dim=200 if (kind, task) == ("code", "ner") else 128,
        layers=2,
        dropout=0.5,
        word_dim=300,
        vectors=vectors,
        freeze_vectors=True,
        char_dim=0 if task == "amazon" else 128,
        char_channels=200,
        char_widths=(3, 4, 5),
        char_out=128,
        freeze_char_embedding=kind == "code",
    )
