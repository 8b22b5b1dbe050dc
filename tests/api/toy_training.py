"""A small adversarial method on made-up token data: two optimisers, dropout, uneven texts, an inner loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xferkit.data.streams import DomainData, DomainStream
from xferkit.methods import DomainBatch, Loop, Phase, PhaseLoss, Stage
from xferkit.models import TokenSequences

CLASSES, DOMAINS, TOKENS = 3, 2, 40


def toy_domain(name: str, num: int, seed: int) -> DomainData:
    """Texts of 1 to 6 tokens whose class is the sum of their tokens, modulo the classes."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (num,), generator=generator).tolist()
    rows = [torch.randint(1, TOKENS, (n,), generator=generator).tolist() for n in lengths]
    return DomainData(name, TokenSequences.from_lists(rows), torch.tensor([sum(r) % CLASSES for r in rows]))


def toy_streams(seed: int = 0, batch_size: int = 6) -> dict[str, DomainStream]:
    domains = [toy_domain("x", 23, 1), toy_domain("y", 17, 2)]
    return {
        name: DomainStream(domains, batch_size, seed=seed, name=name) for name in ("labelled", "unlabelled")
    }


class ToyMethod:
    """``min_F J_C - 0.1 J_D`` against ``min_D J_D``; losses are normalised by the counts of the whole batch."""

    def __init__(self, seed: int = 0, dropout: float = 0.3, lr: float = 0.05) -> None:
        torch.manual_seed(seed)
        self.model = nn.ModuleDict(
            {
                "embed": nn.Embedding(TOKENS, 8, padding_idx=0),
                "drop": nn.Dropout(dropout),
                "rnn": nn.LSTM(8, 5, batch_first=True),
                "out": nn.Linear(5, CLASSES),
            }
        )
        self.discriminator = nn.Linear(5, DOMAINS)
        self.module = nn.ModuleDict({"model": self.model, "discriminator": self.discriminator})
        self.model.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.optimizers = {
            "main": torch.optim.AdamW(self.model.parameters(), lr=lr),
            "discriminator": torch.optim.AdamW(self.discriminator.parameters(), lr=lr),
        }

    def features(self, batch: DomainBatch) -> Tensor:
        x = self.model["drop"](self.model["embed"](batch.inputs.ids))
        return self.model["rnn"](x)[0].mul(batch.inputs.mask.unsqueeze(-1)).sum(1)

    @staticmethod
    def _mean(losses: Tensor, batch: DomainBatch) -> Tensor:
        return (losses / batch.text_counts.to(losses)[batch.domains]).sum()

    def discriminator_loss(self, next_batch) -> PhaseLoss:
        batch = next_batch("unlabelled")
        with torch.no_grad():
            features = self.features(batch)
        losses = cross_entropy(self.discriminator(features), batch.domains, reduction="none")
        total = self._mean(losses, batch)
        return PhaseLoss(total, {"nll": total.detach()})

    def main_loss(self, next_batch) -> PhaseLoss:
        batch = next_batch("labelled")
        if self.module.training:
            self.model.updates += 1
        losses = cross_entropy(self.model["out"](self.features(batch)), batch.labels, reduction="none")
        task = self._mean(losses, batch)
        other = next_batch("unlabelled")
        self.discriminator.requires_grad_(False)
        fooled = cross_entropy(self.discriminator(self.features(other)), other.domains, reduction="none")
        self.discriminator.requires_grad_(True)
        return PhaseLoss(task - 0.1 * self._mean(fooled, other), {"nll": task.detach()})

    def stages(self, steps: int) -> list[Stage]:
        discriminator = Phase("discriminator", self.discriminator_loss, ("discriminator",))
        main = Phase("main", self.main_loss, ("main",))
        return [Stage("warm", [main], 2), Stage("train", [Loop([discriminator], 2), main], steps)]

    def score(self) -> dict[str, float]:
        """Accuracy on texts that no stream has."""
        domain = toy_domain("z", 40, 3)
        inputs = domain.inputs.select(torch.arange(40))
        with torch.no_grad():
            logits = self.model["out"](self.features(DomainBatch(inputs, torch.zeros(40, dtype=torch.int64))))
        return {"source_dev/score": (logits.argmax(1) == domain.labels).float().mean().item()}


def weights(method: ToyMethod) -> Tensor:
    return torch.cat([v.detach().flatten().double() for v in method.module.state_dict().values()])
