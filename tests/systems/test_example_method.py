"""The example in examples/ is a whole method in a page: it trains, is cut into parts, and does what it is for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from xferkit.data.streams import DomainData, DomainStream
from xferkit.methods import ClassifierSpec, build_method, method_config
from xferkit.models import CharCNNEncoder, TokenSequences
from xferkit.trainers import Trainer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def registered():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import uncertainty_weighting
    finally:
        sys.path.remove(str(EXAMPLES))
    return uncertainty_weighting


def streams() -> dict[str, DomainStream]:
    """The class is the first token's parity; the second source has random labels."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 20, (2, 60, 4), generator=generator)
    noise = torch.randint(0, 2, (60,), generator=generator)
    domains = [
        DomainData("clean", TokenSequences.from_lists(rows[0].tolist()), rows[0, :, 0] % 2),
        DomainData("noisy", TokenSequences.from_lists(rows[1].tolist()), noise),
    ]
    return {"labelled": DomainStream(domains, 12, seed=0, name="labelled")}


def train(steps: int = 60, **options):
    torch.manual_seed(0)
    encoder = lambda: CharCNNEncoder(20, 16, flag_dim=0, channels=16, widths=(1,), dropout=0.0)  # noqa: E731
    spec = ClassifierSpec(encoder, num_classes=2, num_sources=2, dropout=0.0, learning_rate=0.01)
    method = build_method("uncertainty-weighting", spec)
    history = Trainer(progress="silent", log_every=1, **options).fit(method, streams(), steps)
    return method, history


def test_it_is_registered_and_fits_a_page(registered):
    assert method_config("uncertainty_weighting") is registered.UncertaintyConfig
    assert len(Path(registered.__file__).read_text().splitlines()) <= 65


def test_the_noisy_source_comes_to_count_less(registered):
    method, history = train()
    weights = method.source_weights(TokenSequences.from_lists([[1]]))
    assert weights[0] > weights[1] + 0.05
    assert history.records[-1].metrics["main/task"] < history.records[0].metrics["main/task"]


def test_a_penalty_is_counted_once_when_a_batch_is_cut(registered):
    whole, cut = train(5)[0], train(5, accumulation=4)[0]
    for a, b in zip(whole.module.parameters(), cut.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
