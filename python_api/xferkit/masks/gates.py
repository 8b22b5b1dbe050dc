"""Hard-Concrete masks of a module's parameters, kept beside the module."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xfercore import hard_concrete, hard_concrete_eval
from xferkit.masks.names import nearest
from xferkit.masks.settings import START, Count, GateSettings, Mode, Sparsity, start_values
from xferkit.masks.sites import MaskSite, check_sites
from xferkit.masks.swapping import checkpointing_module, swapped_parameters

__all__ = ["HardConcreteMasks"]


class HardConcreteMasks(nn.Module):
    r"""Learned masks over groups of a module's parameters; the module itself is not touched.

    .. math:: s = \sigma\big((\log u - \log(1 - u) + \log\alpha) / \beta\big), \qquad
              z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)), \qquad u \sim U(0, 1)
    .. math:: P(z > 0) = \sigma\big(\log\alpha - \beta \log(-\gamma / \zeta)\big)

    and in evaluation :math:`\hat z = \min(1, \max(0, \sigma(\log\alpha) (\zeta - \gamma) + \gamma))`: Louizos,
    Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018); over groups of a frozen
    multilingual model's parameters, one mask a language: Wang, thesis, chapter 4::

        masks = HardConcreteMasks(model, find_sites(model))
        logits = masks.call(model, tokens, mode="sample")
        (loss(logits) + weight * masks.penalty()).backward()
        optimizer.step()                  # of masks.parameters()
        masks.advance()                   # other gates from here on

    Draws depend on seed, step and site alone: the same until :meth:`advance`, so that a replay (gradient
    checkpointing around :meth:`call`, a second pass) sees the same gates, and all parameters of a site share them.

    The masks are no part of the module, whose ``state_dict`` stays as it is; they do move with ``masks.to(device)``.

    Args:
        module: whose parameters the sites name; None: they are checked when they are used.
        sites: of :func:`find_sites` or :func:`declare_site`; no parameter in two of them.
        init: log alpha at the start, for all gates or by the names of sites (those left out get 2.5). At 2.5 gates
            are 1 in evaluation, so that masking starts from the module as it is, and open in 98 of 100 draws.
        seed: of the draws, in [0, 2^62).
        settings: constants.

    Attributes:
        sites: as given.
        settings: as given.
        draw: ``int64[2]``, seed and step.

    Raises:
        ValueError: sites that the module lacks or that overlap, a start of another shape or not finite, a bad seed.
    """

    draw: Tensor
    salts: Tensor

    def __init__(
        self,
        module: nn.Module | None,
        sites: Sequence[MaskSite],
        *,
        init: float | Mapping[str, Tensor | float] = START,
        seed: int = 0,
        settings: GateSettings | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.settings = tuple(sites), settings or GateSettings()
        known = None if module is None else dict(module.named_parameters(remove_duplicate=False))
        check_sites(type(self).__name__, self.sites, known)
        if not 0 <= seed < 2**62:
            raise ValueError(f"HardConcreteMasks: seed must be in [0, 2^62), got {seed}")
        device = known[self.sites[0].parts[0].name].device if known else torch.device("cpu")
        starts = start_values(self.sites, init)
        self.log_alphas = nn.ParameterDict(
            {_key(site): nn.Parameter(starts[site.name].to(device)) for site in self.sites}
        )
        self.register_buffer("draw", torch.tensor([seed, 0], dtype=torch.int64, device=device))
        salts = [[_salt(site.name), 0] for site in self.sites]
        self.register_buffer("salts", torch.tensor(salts, dtype=torch.int64, device=device), persistent=False)

    def site(self, name: str) -> MaskSite:
        """The site of that name.

        Raises:
            ValueError: there is none; the sentence has the nearest names.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = [site.name for site in self.sites]
        raise ValueError(f"HardConcreteMasks: unknown site {name!r}{nearest(name, known)}")

    def log_alpha(self, site: str | MaskSite) -> nn.Parameter:
        """The parameter of a site's gates, of ``site.shape``.

        Raises:
            ValueError: as :meth:`site`.
        """
        name = site.name if isinstance(site, MaskSite) else site
        return self.log_alphas[_key(self.site(name))]

    def gates(self, site: str | MaskSite, mode: Mode = "eval") -> Tensor:
        """The gates of a site, in [0, 1], of ``site.shape``; with "off" all are 1.

        Raises:
            ValueError: as :meth:`site`, or an unknown mode.
        """
        _check("mode", mode, get_args(Mode))
        log_alpha, chosen = self.log_alpha(site), self.site(site.name if isinstance(site, MaskSite) else site)
        if mode == "off":
            return torch.ones_like(log_alpha)
        return self._apply_gates(self.sites.index(chosen), log_alpha, None, None, mode)

    def masked(self, module: nn.Module, mode: Mode = "sample") -> dict[str, Tensor]:
        """The masked parameters by name, for ``torch.func.functional_call``; empty with "off".

        Raises:
            ValueError: an unknown mode, a parameter that the module lacks, of another shape or device, or masked.
        """
        _check("mode", mode, get_args(Mode))
        if mode == "off":
            return {}
        found: dict[str, Tensor] = {}
        for number, site in enumerate(self.sites):
            log_alpha = self.log_alphas[_key(site)]
            for part in site.parts:
                theta = self._parameter(module, site, part.name, part.shape)
                seen = theta.reshape(part.view)
                dims = part.group_dims or None
                found[part.name] = self._apply_gates(number, log_alpha, seen, dims, mode).reshape(part.shape)
        return found

    def call(self, module: nn.Module, *args: Any, mode: Mode = "sample", **kwargs: Any) -> Any:
        """``module(*args, **kwargs)`` with masked parameters; tied parameters are masked under all their names.

        Raises:
            ValueError: as :meth:`masked`.
            RuntimeError: a part of the module recomputes its forward pass in backward, when the masks would be gone.
        """
        masked = self.masked(module, mode)
        if not masked:
            return module(*args, **kwargs)
        name = checkpointing_module(module)
        if name is not None and torch.is_grad_enabled():
            raise RuntimeError(
                f"HardConcreteMasks: {name} recomputes its forward pass in backward, where call() has ended and its "
                "parameters are not masked; expected masks.applied(module) around forward and backward"
            )
        return functional_call(module, masked, args, kwargs)

    @contextmanager
    def applied(self, module: nn.Module, *, mode: Mode = "sample") -> Iterator[None]:
        """Inside the block ``module(...)`` is masked, whoever calls it; one draw for the whole block.

        The module has its own parameters back behind the block, whatever happens in it. Inside, ``parameters()`` and
        ``state_dict()`` give the masked tensors. With gradient checkpointing in the module, backward belongs inside.

        Raises:
            ValueError: as :meth:`masked`.
        """
        with swapped_parameters(module, self.masked(module, mode)):
            yield

    @torch.no_grad()
    def advance(self) -> None:
        """The next step: other gates are drawn from here on."""
        self.draw[1] += 1

    def penalty(self, count: Count = "parameters") -> Tensor:
        r"""Expected number of kept parameters, :math:`\sum_g |g|\, P(z_g > 0)`, or of kept gates; differentiable.

        Raises:
            ValueError: an unknown count.
        """
        _check("count", count, get_args(Count))
        shift = self.settings.beta * math.log(-self.settings.gamma / self.settings.zeta)
        terms = []
        for site in self.sites:
            kept = torch.sigmoid(self.log_alphas[_key(site)] - shift).sum()
            terms.append(kept * (site.parameters_per_gate if count == "parameters" else 1))
        return torch.stack(terms).sum()

    def total(self, count: Count = "parameters") -> int:
        """Number of masked parameters, or of gates.

        Raises:
            ValueError: an unknown count.
        """
        _check("count", count, get_args(Count))
        return sum(site.num_parameters if count == "parameters" else site.num_gates for site in self.sites)

    def expected_sparsity(self, count: Count = "parameters") -> Tensor:
        """``1 - penalty / total``, differentiable.

        Raises:
            ValueError: an unknown count.
        """
        return 1 - self.penalty(count) / self.total(count)

    @torch.no_grad()
    def sparsity(self) -> Sparsity:
        """How much is taken away, expected over draws and in evaluation."""
        closed = [int((self.gates(site, "eval") == 0).sum()) for site in self.sites]
        parameters = sum(n * site.parameters_per_gate for n, site in zip(closed, self.sites, strict=True))
        return Sparsity(
            float(self.expected_sparsity("parameters")),
            float(self.expected_sparsity("gates")),
            parameters / self.total("parameters"),
            sum(closed) / self.total("gates"),
        )

    def _apply_gates(
        self, number: int, log_alpha: Tensor, theta: Tensor | None, dims: tuple[int, ...] | None, mode: Mode
    ) -> Tensor:
        constants = self.settings
        if mode == "eval":
            return hard_concrete_eval(
                log_alpha, theta, gamma=constants.gamma, zeta=constants.zeta, group_dims=dims
            )
        masked, _ = hard_concrete(
            log_alpha,
            theta,
            beta=constants.beta,
            gamma=constants.gamma,
            zeta=constants.zeta,
            seed_offset=self.draw + self.salts[number],
            group_dims=dims,
        )
        return masked

    def _parameter(
        self, module: nn.Module, site: MaskSite, name: str, shape: tuple[int, ...]
    ) -> nn.Parameter:
        path, _, leaf = name.rpartition(".")
        try:
            tensor = module.get_submodule(path)._parameters.get(leaf)
        except AttributeError:
            tensor = None
        where = f"HardConcreteMasks: {name!r} of site {site.name!r}"
        if tensor is None:
            known = [known for known, _ in module.named_parameters(remove_duplicate=False)]
            raise ValueError(f"{where} is no parameter of the {type(module).__name__}{nearest(name, known)}")
        if not isinstance(tensor, nn.Parameter):
            raise ValueError(f"{where} is replaced already; expected one mask at a time on a parameter")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where} has shape {list(tensor.shape)}; expected {list(shape)}")
        if tensor.device != self.draw.device:
            raise ValueError(
                f"{where} is on {tensor.device}; expected {self.draw.device} as the masks are; masks.to(...) moves them"
            )
        return tensor


def _key(site: MaskSite) -> str:
    """The site's name as an attribute of a module may be called: without dots, and no method of ParameterDict."""
    return "site:" + site.name.replace("%", "%25").replace(".", "%2E")


def _salt(name: str) -> int:
    """What is added to the seed for a site, from its name: draws do not depend on what other sites there are."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 2


def _check(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"HardConcreteMasks: {argument} must be one of {', '.join(known)}, got {value!r}")
