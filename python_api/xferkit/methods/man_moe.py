"""MAN-MoE (Chen et al., ACL 2019): what to share is learned; with MAN, the ablations, a gate per language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import (
    ClassifierSpec,
    counts_of,
    evaluating,
    frozen,
    labels_of,
    make_adam,
    make_pool,
)
from xferkit.methods.presets import MANMoEConfig
from xferkit.methods.protocol import DomainBatch, NextBatch, Phase, PhaseLoss, Stage
from xferkit.methods.target_gate import TargetGate, mean_bag_logits
from xferkit.models import (
    CNNDiscriminator,
    MixtureOfExperts,
    MLPDiscriminator,
    MLPPredictor,
    PrivateExperts,
    PrivatePerDomain,
    SharedPrivateClassifier,
    TokenSequences,
    take_apart,
)
from xferkit.objectives import classification_nll, discriminator_accuracy, discriminator_loss, gate_nll

__all__ = ["MANMoE", "build_man_moe_model"]


def build_man_moe_model(spec: ClassifierSpec, config: MANMoEConfig) -> SharedPrivateClassifier:
    """The classifier or tagger of MAN-MoE, or of the ablation that ``config`` asks for.

    Raises:
        ValueError: when an encoder of whole texts is to tag tokens.
    """
    embedder, shared, another = take_apart(spec.make_encoder)
    private: PrivateExperts | PrivatePerDomain | None = None
    dim = shared.out_dim
    if config.private_moe:
        encoder = another()
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
        private = PrivatePerDomain(another, spec.num_sources)
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
    pool = make_pool(shared, dim, config.dropout, spec.tagging)
    return SharedPrivateClassifier(shared, predictor, private=private, pool=pool, embedder=embedder)


class MANMoE:
    """``min_{F,C} J_C - lambda1 J_D + lambda2 (J_G1 + J_G2)`` against ``min_D J_D``, in turns.

    Each step makes k updates of the discriminator D on samples of all languages, each with its own draw,
    then one main update: the task and gate losses of every source, then ``-lambda1`` times D's loss on a
    fresh draw of all languages. The minus sign is explicit, D and the rest have an optimiser each, and
    neither update touches the other's parameters. All languages of an update go through the model as one
    batch; each loss is the sum over languages of their means, as a loop over languages accumulates it.

    When tagging, both gates decide for each token, task and gate losses are means over real tokens, and D
    reads the sequence of a text's shared features. When an encoder of sequences classifies texts, the private
    gate still decides (and is taught) token by token, and the predictor's text by text.

    Args:
        spec: encoder, sizes and optimiser; the language-level gate needs ``target_inputs``.
        config: the choices of the method; its sizes and losses count, its optimiser settings are those of
            ``spec``.

    Raises:
        ValueError: when the language-level gate has no target texts or no mixture to steer.
    """

    def __init__(self, spec: ClassifierSpec, config: MANMoEConfig | None = None) -> None:
        self.config = config = config or MANMoEConfig()
        self.num_sources, self.tagging = spec.num_sources, spec.tagging
        self.model = build_man_moe_model(spec, config)
        self.target_inputs = spec.target_inputs
        self._gates = [n for n in ("private", "predictor") if getattr(config, f"{n}_moe")]
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
        self.target_gate: TargetGate | None = None
        if config.gate == "language":
            self.target_gate = modules["target_gate"] = TargetGate(self._gates, spec.num_sources)
        self._module = nn.ModuleDict(modules)

    @property
    def replicable(self) -> bool:
        """False with a gate per language: it averages over the texts of a batch."""
        return self.config.gate != "language"

    @property
    def module(self) -> nn.Module:
        """Classifier, discriminator, and the target's gate where it is measured."""
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
        loss = discriminator_loss(logits, batch.domains, counts=batch.text_counts)
        accuracy = discriminator_accuracy(logits, batch.domains, counts=batch.text_counts)
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
        total = classification_nll(
            output.log_probs,
            labels_of(batch),
            batch.domains,
            self.num_sources,
            counts=counts_of(batch, self.tagging),
        )
        metrics = {"task": total.detach() / self.num_sources}
        for name, logits in output.gate_logits.items():
            loss = self._gate_loss(logits, batch)
            total = total + config.lambda2 * loss
            metrics[f"gate_{name}"] = loss.detach() / self.num_sources
        if self.discriminator is not None and config.lambda1:
            unlabelled = next_batch("unlabelled")
            features, mask = self.model.discriminator_inputs(unlabelled.inputs)
            with frozen(self.discriminator):
                logits = self.discriminator(features, mask)
            adversarial = discriminator_loss(logits, unlabelled.domains, counts=unlabelled.text_counts)
            total = total - config.lambda1 * adversarial
        return PhaseLoss(total, metrics)

    @staticmethod
    def _gate_loss(logits: Tensor, batch: DomainBatch) -> Tensor:
        per_token = logits.dim() == 3
        mask = batch.inputs.mask if per_token else None
        return gate_nll(logits, batch.domains, mask=mask, counts=counts_of(batch, per_token))

    def _measure_target_gate(self) -> None:
        assert self.target_inputs is not None and self.target_gate is not None
        with evaluating(self.model):
            self.target_gate.keep(mean_bag_logits(self.model, self.target_inputs, self._gates))

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        """Log-probabilities in evaluation mode: ``[n, num_classes]``, or ``[n, length, num_classes]`` of tags.

        With a private encoder per source, the target's private features are zero and a source's those of its
        own encoder. The language-level gate mixes target texts with the weights measured on the target's
        unlabelled texts at the end of training; before that, and for a source, with those of ``inputs``.
        """
        with evaluating(self.model):
            everywhere = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.ids.device)
            domains = None if source is None else everywhere + source
            if self.target_gate is None:
                log_probs: Tensor = self.model(inputs, domains=domains).log_probs
                return log_probs
            logits = self.target_gate.logits if source is None else None
            log_probs = self.model(inputs, bags=everywhere, bag_logits=logits).log_probs
            return log_probs

    def gate_weights(self, inputs: TokenSequences) -> dict[str, Tensor]:
        """Each gate's weights for texts of one language, ``float[num_sources]`` by gate, summing to 1.

        Means over a text's tokens where a gate decides by token, then over texts (Chen et al., ACL 2019,
        section 4.4). The language-level gate's are those it mixes target texts with.
        """
        with evaluating(self.model):
            measured = None if self.target_gate is None else self.target_gate.logits
            if measured is not None:
                return {name: torch.softmax(logits[0], dim=-1) for name, logits in measured.items()}
            if self.target_gate is not None:
                found = mean_bag_logits(self.model, inputs, self._gates)
                return {name: torch.softmax(logits[0], dim=-1) for name, logits in found.items()}
            weights: dict[str, Tensor] = {}
            for name, logits in self.model(inputs).gate_logits.items():
                share = torch.softmax(logits, dim=-1)
                if share.dim() == 3:
                    mask = inputs.mask.unsqueeze(-1).to(share.dtype)
                    share = (share * mask).sum(1) / mask.sum(1)
                weights[name] = share.mean(0)
            return weights

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """Mean weights of the private gate, or of the predictor's where there is no private one; or None."""
        weights = self.gate_weights(inputs)
        return next((weights[name] for name in self._gates), None)
