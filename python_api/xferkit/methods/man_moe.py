"""MAN-MoE (Chen et al., ACL 2019): what to share is learned; with MAN, the ablations, a gate per language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import ClassifierSpec, evaluating, frozen, labels_of, make_adam
from xferkit.methods.pooled import make_pool
from xferkit.methods.presets import MANMoEConfig
from xferkit.methods.protocol import NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import (
    CNNDiscriminator,
    MixtureOfExperts,
    MLPDiscriminator,
    MLPPredictor,
    PrivateExperts,
    PrivatePerDomain,
    SharedPrivateClassifier,
    TokenSequences,
)
from xferkit.objectives import classification_nll, discriminator_accuracy, discriminator_loss, gate_nll

__all__ = ["MANMoE", "build_man_moe_model"]


def build_man_moe_model(spec: ClassifierSpec, config: MANMoEConfig) -> SharedPrivateClassifier:
    """The classifier of MAN-MoE, or of the ablation that ``config`` asks for."""
    shared = spec.make_encoder()
    private: PrivateExperts | PrivatePerDomain | None = None
    dim = shared.out_dim
    if config.private_moe:
        encoder = spec.make_encoder()
        experts = MixtureOfExperts(
            encoder.out_dim,
            spec.num_sources,
            config.expert_hidden,
            config.private_dim,
            act2="tanh",
            dropout=config.dropout,
            detach_gate_input=config.detach_gate_input,
            bag_scale=config.gate_scale,
            ops=spec.ops,
        )
        private = PrivateExperts(encoder, experts)
        dim += config.private_dim
    elif config.private_per_source:
        private = PrivatePerDomain(spec.make_encoder, spec.num_sources)
        dim += private.out_dim
    predictor: MixtureOfExperts | MLPPredictor
    if config.predictor_moe:
        predictor = MixtureOfExperts(
            dim,
            spec.num_sources,
            config.predictor_hidden,
            spec.num_classes,
            act2="log_softmax",
            mix="logsumexp" if config.mix == "prob" else "sum",
            dropout=config.dropout,
            detach_gate_input=config.detach_gate_input,
            bag_scale=config.gate_scale,
            ops=spec.ops,
        )
    else:
        predictor = MLPPredictor(dim, config.predictor_hidden, spec.num_classes, dropout=config.dropout)
    return SharedPrivateClassifier(
        shared, predictor, private=private, pool=make_pool(shared, dim, config.dropout)
    )


class MANMoE:
    """``min_{F,C} J_C - lambda1 J_D + lambda2 (J_G1 + J_G2)`` against ``min_D J_D``, in turns.

    Each step makes k updates of the discriminator D on samples of all languages, each with its own draw,
    then one main update: the task and gate losses of every source, then ``-lambda1`` times D's loss on a
    fresh draw of all languages. The minus sign is explicit, D and the rest have an optimiser each, and
    neither update touches the other's parameters. All languages of an update go through the model as one
    batch; each loss is the sum over languages of their means, as a loop over languages accumulates it.

    Args:
        spec: encoder, sizes and optimiser; the language-level gate needs ``target_inputs``.
        config: the choices of the method; its sizes and losses count, its optimiser settings are those of
            ``spec``.

    Raises:
        ValueError: when the language-level gate has no target texts or no mixture to steer.
    """

    def __init__(self, spec: ClassifierSpec, config: MANMoEConfig | None = None) -> None:
        self.config = config = config or MANMoEConfig()
        self.num_sources = spec.num_sources
        self.model = build_man_moe_model(spec, config)
        self.target_inputs = spec.target_inputs
        self._target_gate: dict[str, Tensor] | None = None
        if config.gate == "language":
            if spec.target_inputs is None:
                raise ValueError("MANMoE: gate='language' needs unlabelled texts in spec.target_inputs")
            if not (config.private_moe or config.predictor_moe):
                raise ValueError("MANMoE: gate='language' needs private_moe or predictor_moe")
        modules: dict[str, nn.Module] = {"model": self.model}
        self._optimizers: dict[str, Optimizer] = {"main": make_adam(self.model, spec)}
        self.discriminator: MLPDiscriminator | CNNDiscriminator | None = None
        if config.adversary:
            kind = CNNDiscriminator if self.model.shared.is_sequence else MLPDiscriminator
            self.discriminator = kind(
                self.model.shared.out_dim,
                spec.num_sources + 1,
                hidden_dim=config.discriminator_hidden,
                dropout=config.dropout,
                ops=spec.ops,
            )
            modules["discriminator"] = self.discriminator
            self._optimizers["discriminator"] = make_adam(self.discriminator, spec)
        self._module = nn.ModuleDict(modules)

    @property
    def module(self) -> nn.Module:
        """Classifier and discriminator."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """``main`` and, with an adversary, ``discriminator``."""
        return self._optimizers

    def stages(self, steps: int) -> Sequence[Stage]:
        """One stage: k discriminator updates and a main update per step."""
        phases = [Phase("main", self.main_loss, ("main",))]
        if self.discriminator is not None and self.config.k:
            discriminator = Phase(
                "discriminator", self.discriminator_phase_loss, ("discriminator",), repeats=self.config.k
            )
            phases.insert(0, discriminator)
        on_end = self._measure_target_gate if self.config.gate == "language" else None
        return [Stage("train", phases, steps, on_end=on_end)]

    def discriminator_phase_loss(self, next_batch: NextBatch) -> PhaseLoss:
        """J_D on a fresh unlabelled batch; the shared features are constants (dropout stays active)."""
        batch = next_batch("unlabelled")
        with torch.no_grad():
            features, mask = self.model.discriminator_inputs(batch.inputs)
        assert self.discriminator is not None
        logits = self.discriminator(features, mask)
        loss = discriminator_loss(logits, batch.domains)
        accuracy = discriminator_accuracy(logits, batch.domains)
        return PhaseLoss(loss, {"nll": loss.detach(), "accuracy": accuracy})

    def main_loss(self, next_batch: NextBatch) -> PhaseLoss:
        """J_C + lambda2 (J_G1 + J_G2) on a labelled batch, - lambda1 J_D on a fresh unlabelled one."""
        config = self.config
        batch = next_batch("labelled")
        language_gate = config.gate == "language"
        output = self.model(
            batch.inputs,
            domains=batch.domains,
            bags=batch.domains if language_gate else None,
            num_bags=self.num_sources,
        )
        total = classification_nll(output.log_probs, labels_of(batch), batch.domains, self.num_sources)
        metrics = {"task": total.detach() / self.num_sources}
        for name, logits in output.gate_logits.items():
            loss = gate_nll(logits, batch.domains, mask=batch.inputs.mask if logits.dim() == 3 else None)
            total = total + config.lambda2 * loss
            metrics[f"gate_{name}"] = loss.detach() / self.num_sources
        if self.discriminator is not None and config.lambda1:
            unlabelled = next_batch("unlabelled")
            features, mask = self.model.discriminator_inputs(unlabelled.inputs)
            with frozen(self.discriminator):
                logits = self.discriminator(features, mask)
            total = total - config.lambda1 * discriminator_loss(logits, unlabelled.domains)
        return PhaseLoss(total, metrics)

    def _measure_target_gate(self) -> None:
        assert self.target_inputs is not None
        with evaluating(self.model):
            bags = _one_bag(self.target_inputs)
            self._target_gate = dict(self.model(self.target_inputs, bags=bags).bag_logits)

    def predict(self, inputs: TokenSequences) -> Tensor:
        """Class log-probabilities of target texts in evaluation mode.

        Private encoders per source give zeros; the language-level gate mixes with the weights measured on
        the target's unlabelled texts at the end of training (of these texts before).
        """
        with evaluating(self.model):
            if self.config.gate == "text":
                log_probs: Tensor = self.model(inputs).log_probs
                return log_probs
            log_probs = self.model(inputs, bags=_one_bag(inputs), bag_logits=self._target_gate).log_probs
            return log_probs

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """Mean gate weights over tokens, then texts (section 4.4); of the private mixture if there is one."""
        gates = [n for n, on in (("private", self.config.private_moe), ("predictor", True)) if on]
        with evaluating(self.model):
            if self.config.gate == "language" and self._target_gate is not None:
                logits = self._target_gate
            else:
                logits = dict(self.model(inputs).gate_logits)
            name = next((n for n in gates if n in logits), None)
            if name is None:
                return None
            weights = torch.softmax(logits[name], dim=-1)
            if weights.dim() == 3:
                mask = inputs.mask.unsqueeze(-1).to(weights.dtype)
                weights = (weights * mask).sum(1) / mask.sum(1)
            return weights.mean(0)


def _one_bag(inputs: TokenSequences) -> Tensor:
    return torch.zeros(len(inputs), dtype=torch.int64, device=inputs.ids.device)
