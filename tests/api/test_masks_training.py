"""Training of masks: sparsity reached, planted features kept, nothing else changed, stopped and resumed bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from xferkit.masks import HardConcreteMasks, MaskTrainer, MaskTrainingConfig, find_sites, train_masks

USED, ALL = 12, 24


class Planted:
    """A linear map whose target needs the first features alone; the weights of the others are noise."""

    def __init__(self, used: range = range(USED)) -> None:
        generator = torch.Generator().manual_seed(4)
        self.model = nn.Linear(ALL, 1)
        weight = torch.randn(1, ALL, generator=generator) * 0.3
        weight[0, list(used)] = 1.0
        with torch.no_grad():
            self.model.weight.copy_(weight)
            self.model.bias.zero_()
        wanted = torch.zeros(ALL)
        wanted[list(used)] = 1.0
        xs = torch.randn(8, 64, ALL, generator=generator)
        self.batches = [(x, x @ wanted) for x in xs]

    def masks(self, **options) -> HardConcreteMasks:
        return HardConcreteMasks(self.model, find_sites(self.model, "column"), **options)


def loss(model, batch):
    x, y = batch
    return (model(x)[:, 0] - y).square().mean()


@pytest.mark.parametrize(("target", "kept"), [(0.5, USED), (0.75, 6), (0.25, 18)])
def test_the_target_is_reached_and_what_matters_is_kept(target, kept):
    toy = Planted()
    masks = toy.masks()
    record = train_masks(
        toy.model, loss, toy.batches, masks, MaskTrainingConfig(steps=500, target_sparsity=target)
    )
    assert record.done and len(record.loss) == len(record.sparsity) == 500
    assert record.sparsity[0] < 0.05
    assert record.final.expected_parameters == pytest.approx(target, abs=0.03)
    assert record.final == masks.sparsity()
    log_alpha = masks.log_alpha("weight/columns").detach()
    # The gates that are open most are the planted ones, or all of these before any other.
    best = set(log_alpha.topk(min(kept, USED)).indices.tolist())
    assert best <= set(range(USED))
    if target == 0.5:
        assert ((masks.gates("weight/columns") > 0) == (torch.arange(ALL) < USED)).sum() >= ALL - 1


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_settings_hold_whatever_the_scale_of_the_loss(scale):
    toy = Planted()
    masks = toy.masks()
    config = MaskTrainingConfig(steps=400, target_sparsity=0.5)
    record = train_masks(toy.model, lambda m, b: loss(m, b) * scale, toy.batches, masks, config)
    assert record.final.expected_parameters == pytest.approx(0.5, abs=0.03)
    assert (masks.gates("weight/columns") > 0)[:USED].sum() >= USED - 1


def test_a_fixed_weight_takes_away_what_costs_more_than_it_brings():
    config = MaskTrainingConfig(steps=400, target_sparsity=None, penalty_weight=2.0)
    sparsity = []
    for weight in (0.0, 2.0, 1e4):
        toy = Planted()
        masks = toy.masks()
        config = MaskTrainingConfig(steps=300, target_sparsity=None, penalty_weight=weight)
        record = train_masks(toy.model, loss, toy.batches, masks, config)
        assert record.multipliers == (weight, 0.0)
        sparsity.append(record.final.expected_parameters)
        if weight == 2.0:
            kept = masks.log_alpha("weight/columns").detach() > 0
            assert kept[:USED].all() and kept[USED:].sum() <= 4
    assert sparsity[0] < sparsity[1] < sparsity[2] and sparsity[2] > 0.95


def test_log_alpha_stays_within_the_limit():
    toy = Planted()
    masks = toy.masks()
    config = MaskTrainingConfig(steps=60, lr=0.5, target_sparsity=None, penalty_weight=1e4, limit=3.0)
    train_masks(toy.model, loss, toy.batches, masks, config)
    assert masks.log_alpha("weight/columns").min().item() == -3.0
    again = toy.masks(init=-2.0)
    train_masks(
        toy.model,
        loss,
        toy.batches,
        again,
        MaskTrainingConfig(steps=60, lr=0.5, target_sparsity=None, limit=3.0),
    )
    assert again.log_alpha("weight/columns").max().item() == 3.0


def test_counting_gates_differs_from_counting_parameters():
    model = nn.Sequential(nn.Linear(30, 4), nn.Linear(4, 2))
    batches = [torch.randn(16, 30)]
    masks = HardConcreteMasks(model, find_sites(model, "row"))
    config = MaskTrainingConfig(steps=300, target_sparsity=0.5, count="gates")
    record = train_masks(model, lambda m, x: (m(x) - 1).square().mean(), batches, masks, config)
    assert record.final.expected_gates == pytest.approx(0.5, abs=0.03)
    assert record.sparsity[-1] == pytest.approx(record.final.expected_gates, abs=0.02)


class Noisy(nn.Module):
    """BatchNorm, dropout, and one parameter that is frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(ALL, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.last = nn.Linear(6, 1)
        self.last.bias.requires_grad_(False)
        self.seen = []

    def forward(self, x):
        self.seen.append((self.norm.training, self.dropout.training, self.norm.weight.requires_grad))
        return self.last(self.dropout(self.norm(self.first(x))))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_module_is_as_it_was_also_after_an_error(mode):
    model = Noisy()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: part.training for name, part in model.named_modules()}
    masks = HardConcreteMasks(model, find_sites(model, "row"))
    config = MaskTrainingConfig(steps=6, mode=mode)
    trainer = MaskTrainer(model, loss, Planted().batches, masks, config)

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=stop)
    trainer.run()
    assert set(model.seen) == {(mode == "train", mode == "train", False)} and len(model.seen) == 6
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert any((p != 2.5).any() for p in masks.parameters())


def test_stopped_and_resumed_is_as_never_stopped(tmp_path):
    config = MaskTrainingConfig(steps=40, target_sparsity=0.6)
    toy = Planted()
    whole = toy.masks(seed=3)
    record = train_masks(toy.model, loss, toy.batches, whole, config)
    half = toy.masks(seed=3)
    trainer = MaskTrainer(toy.model, loss, toy.batches, half, config)
    assert not trainer.run(17).done and trainer.step == 17
    state = trainer.state_dict()
    trainer.run(5)  # what is saved does not go on
    torch.save(state, tmp_path / "state.pt")
    fresh = toy.masks(seed=99)
    again = MaskTrainer(toy.model, loss, toy.batches, fresh, config)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert again.step == 17
    resumed = again.run()
    assert resumed == record
    assert torch.equal(fresh.log_alpha("weight/columns"), whole.log_alpha("weight/columns"))
    assert fresh.draw.tolist() == whole.draw.tolist() == [3, 40]
    other = train_masks(toy.model, loss, toy.batches, toy.masks(seed=4), config)
    assert other.loss != record.loss


def test_a_state_of_something_else_changes_nothing():
    toy = Planted()
    config = MaskTrainingConfig(steps=10)
    trainer = MaskTrainer(toy.model, loss, toy.batches, toy.masks(), config)
    trainer.run(3)
    state = trainer.state_dict()
    narrow = nn.Linear(3, 1)
    other = MaskTrainer(
        narrow, loss, toy.batches, HardConcreteMasks(narrow, find_sites(narrow, "column")), config
    )
    longer = MaskTrainer(toy.model, loss, toy.batches, toy.masks(), MaskTrainingConfig(steps=11))
    for target, broken, wanted in (
        (
            other,
            state,
            r"has shape \[24\] for 'log_alphas.site:weight/columns' of the masks; expected shape \[3\]",
        ),
        (longer, state, "is of steps 10; expected 11"),
        (trainer, {k: v for k, v in state.items() if k != "price"}, "the state lacks 'price'"),
    ):
        step, values = target.step, [p.clone() for p in target.masks.parameters()]
        with pytest.raises(ValueError, match=wanted):
            target.load_state_dict(broken)
        assert target.step == step
        assert all(torch.equal(a, b) for a, b in zip(values, target.masks.parameters(), strict=True))


def test_batches_by_number_and_progress():
    toy, asked, calls = Planted(), [], []

    def batch(step):
        asked.append(step)
        return toy.batches[step % 8]

    record = train_masks(
        toy.model,
        loss,
        batch,
        toy.masks(),
        MaskTrainingConfig(steps=10),
        progress=lambda *values: calls.append(values),
    )
    assert asked == list(range(10))
    assert [(done, steps) for done, steps, *_ in calls] == [(n, 10) for n in range(1, 11)]
    assert tuple(value for _, _, value, _ in calls) == record.loss
    listed = train_masks(toy.model, loss, toy.batches, toy.masks(), MaskTrainingConfig(steps=10))
    assert listed == record


def test_refusals_are_sentences():
    toy = Planted()
    masks, config = toy.masks(), MaskTrainingConfig(steps=2)
    for field, value, wanted in (
        ("target_sparsity", 1.0, r"target_sparsity must be in \[0, 1\), or None, got 1.0"),
        ("target_sparsity", -0.1, r"target_sparsity must be in \[0, 1\), or None, got -0.1"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("lr", 0.0, "lr must be positive, got 0.0"),
        ("count", "groups", "count must be one of parameters, gates, got 'groups'"),
        ("mode", "test", "mode must be one of eval, train, got 'test'"),
        ("penalty_weight", 1.0, "expected a target_sparsity or a penalty_weight, got both"),
    ):
        with pytest.raises(ValueError, match=wanted):
            MaskTrainingConfig(**{field: value})
    for function, wanted in (
        (lambda m, b: m(b[0]), r"the loss of step 0 must be a scalar tensor, got shape \[64, 1\]"),
        (lambda m, b: 1.0, "must be a scalar tensor, got a float"),
        (lambda m, b: b[1].sum(), "does not depend on the masks"),
        (lambda m, b: loss(m, b) * torch.nan, "the loss of step 0 is nan; expected a finite number"),
    ):
        with pytest.raises(ValueError, match=wanted):
            train_masks(toy.model, function, toy.batches, masks, config)
    with pytest.raises(ValueError, match="batches is empty"):
        train_masks(toy.model, loss, [], masks, config)
    assert torch.equal(masks.log_alpha("weight/columns"), torch.full((ALL,), 2.5))
