"""One training step of MAN-MoE on characters: k discriminator updates, then the main update.

The settings are the name-transfer experiment's: 13 source languages of 16 names, convolutional encoders and
expert mixtures, on synthetic names (lengths as names have them; time does not depend on the letters). With
dropout the model's own reference draws masks from an emulated counter generator, slower than what anyone
would train with, so the model runs on batched products and torch's dropout as well.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks.harness import Bench, Case, Options, Variant
from benchmarks.ops.bench_moe_mlp_mix import batched_mixture
from benchmarks.systems.steps import Groups, mixture_function, profile_step

__all__ = ["cases"]

_NUM_TOKENS = 120
_NUM_CLASSES = 6
_BATCHES = 8

_GROUPS: Groups = (
    ("expert mixtures (xfercore ops)", ("xfercore::",)),
    ("autograd engine", ("autograd::engine", "Backward", "AccumulateGrad")),
    ("optimisers", ("adam", "Optimizer")),
    ("character CNN: lookup and max-pool", ("embedding", "segment_reduce", "unfold", "index")),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "einsum", "linear")),
    ("dropout and random numbers", ("bernoulli", "dropout", "random")),
    ("softmax and losses", ("softmax", "nll", "cross_entropy", "gather", "one_hot", "scatter")),
    ("Python between operators", ("phase:",)),
)


def _names(count: int, device: str) -> Any:
    from xferkit.models import TokenSequences

    lengths = torch.randint(4, 21, (count,))
    real = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids, flags = torch.randint(1, _NUM_TOKENS, real.shape), torch.randint(0, 2, real.shape)
    return TokenSequences(ids * real, lengths, flags * real).to(device)


def _batches(num_sources: int, per_language: int, device: str) -> dict[str, list[Any]]:
    from xferkit.methods import DomainBatch

    def domains(languages: int) -> Tensor:
        return torch.arange(languages, device=device).repeat_interleave(per_language)

    labelled = num_sources * per_language
    return {
        "labelled": [
            DomainBatch(
                _names(labelled, device),
                domains(num_sources),
                torch.randint(_NUM_CLASSES, (labelled,), device=device),
            )
            for _ in range(_BATCHES)
        ],
        "unlabelled": [
            DomainBatch(_names(labelled + per_language, device), domains(num_sources + 1))
            for _ in range(_BATCHES)
        ],
    }


class _Stepper:
    """A method with parameters of its own, trained one step at a call."""

    def __init__(
        self,
        case: Case,
        batches: dict[str, list[Any]],
        ops: Any,
        mixture: Callable[..., Any] | None = None,
    ) -> None:
        from xferkit.experiments.name_transfer import NAME_CONFIG, NameSettings
        from xferkit.methods import ClassifierSpec, MANMoE
        from xferkit.models import CharCNNEncoder

        settings, p = NameSettings(), float(case.shape["p"])
        torch.manual_seed(0)
        spec = ClassifierSpec(
            make_encoder=lambda: CharCNNEncoder(
                _NUM_TOKENS,
                settings.feature_dim,
                channels=settings.channels,
                widths=(settings.width,),
                dropout=p,
            ),
            num_classes=_NUM_CLASSES,
            num_sources=int(case.shape["K"]),
            dropout=p,
            learning_rate=1e-4,
            ops=ops,
        )
        self.method = MANMoE(spec, dataclasses.replace(NAME_CONFIG, dropout=p))
        self.method.module.to(case.options.device).train()
        self.phases = self.method.stages(1)[0].phases
        self.streams = {name: itertools.cycle(items) for name, items in batches.items()}
        self.mixture = mixture

    def __call__(self) -> Sequence[Tensor]:
        """One step: every phase in order."""
        from xferkit.methods.protocol import train_step

        with mixture_function(self.mixture):
            for phase in self.phases:
                with record_function(f"phase:{phase.name}"):
                    train_step(self.method, [phase], lambda name: next(self.streams[name]))
        return ()

    def first_loss(self) -> float:
        """The main loss of the untrained model, dropout masks from a fixed seed."""
        torch.manual_seed(1)
        with mixture_function(self.mixture):
            return float(self.method.main_loss(lambda name: next(self.streams[name])).total.detach())


def _setup(case: Case) -> Bench:
    batches = _batches(int(case.shape["K"]), int(case.shape["batch"]), case.options.device)
    fused = _Stepper(case, batches, "fused")
    plain = _Stepper(case, batches, "reference")
    ours, expected = (_Stepper(case, batches, ops).first_loss() for ops in ("fused", "reference"))
    if not abs(ours - expected) <= 1e-3 * abs(expected):
        raise RuntimeError(f"{case.name}: fused and reference losses differ, {ours} and {expected}")
    variants = [Variant("fused", "ours", fused), Variant("reference", "eager", plain)]
    variants.append(Variant("batched", "eager", _Stepper(case, batches, "reference", batched_mixture)))
    if case.options.compile:
        compiled = _Stepper(case, batches, "reference", torch.compile(batched_mixture))
        variants.append(Variant("batched.compiled", "compiled", compiled))
    return Bench(variants, profile=lambda: profile_step(fused, case.options.device, _GROUPS))


def cases(options: Options) -> list[Case]:
    """Rows: the step without and with the experiment's dropout."""
    per_language = 2 if options.quick else 16
    return [
        Case(
            op="man_moe_step",
            passes="step",
            shape={"K": 13, "batch": per_language, "p": p},
            options=options,
            setup=_setup,
        )
        for p in (0.0, 0.3)
    ]
