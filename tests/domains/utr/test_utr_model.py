import os

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.data.libraries import load_utr
from difftilt.domains.utr.model import (
    LETTERS,
    STEPS,
    Oracle,
    chain_of,
    denoiser,
    load_measured,
    load_oracle,
    load_split,
    split,
    utr_policy,
)
from difftilt.domains.utr.pretrain import best, pearson
from difftilt.networks.sequence import Convolutional
from difftilt.policy import rollout
from difftilt.processes.likelihood import elbo
from difftilt.training.pretrain import explain, regress
from difftilt.transition import one_hot


def small_oracle() -> Oracle:
    torch.manual_seed(0)
    return Oracle(width=8, kernel=5, depth=2, features=8)


def small_denoiser() -> Convolutional:
    torch.manual_seed(0)
    network = denoiser(width=8, kernel=5, depth=2)
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return network


def random_utrs(count: int) -> torch.Tensor:
    return torch.randint(LETTERS, (count, 50), generator=torch.Generator().manual_seed(1))


def test_the_parts_are_disjoint_and_always_the_same():
    load = torch.arange(101.0)  # which names each row
    parts = split(random_utrs(101), load)
    assert [len(p.load) for p in (parts.held_out, parts.proxy, parts.gold)] == [7, 47, 47]
    together = torch.cat([parts.held_out.load, parts.proxy.load, parts.gold.load])
    assert torch.equal(together.sort().values, load)
    assert not torch.equal(together, load)
    for part in (parts.proxy, parts.gold, parts.held_out, parts.train):
        assert torch.equal(part.sequence, random_utrs(101)[part.load.long()])
    assert torch.equal(split(random_utrs(101), load).gold.load, parts.gold.load)
    assert len(parts.train.load) == 94


def test_the_best_are_the_highest_loads_of_all_parts():
    load = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()
    x = random_utrs(1000)
    found = best(split(x, load))
    assert torch.equal(found, x[load.argsort(descending=True)[:10]])


def test_an_oracle_reads_tokens_and_one_hot_vectors_alike():
    oracle, x = small_oracle(), random_utrs(5)
    oracle.mean.fill_(6.0)
    oracle.spread.fill_(2.0)
    load = oracle(x)
    assert load.shape == (5,)
    assert load.std() > 1e-3
    torch.testing.assert_close(oracle(one_hot(x, LETTERS).float()), load)
    torch.testing.assert_close(oracle(x.flip(0)).flip(0), load)


def test_an_oracles_slope_tells_what_a_letter_is_worth():
    """Between two letters the load changes by the slope, integrated along the way from one to the other."""
    oracle, x = small_oracle(), one_hot(random_utrs(1), LETTERS).float()
    other = x.clone()
    other[0, 20] = x[0, 20].roll(1)
    along = torch.linspace(0, 1, 201)[:, None, None]
    way = torch.lerp(x, other, along).requires_grad_()
    slope = torch.autograd.grad(oracle(way).sum(), way)[0][:, 20]
    rise = torch.trapezoid(slope @ (other - x)[0, 20], along[:, 0, 0])
    change = oracle(other) - oracle(x)
    assert change.abs() > 1e-4
    torch.testing.assert_close(rise, change[0], rtol=1e-3, atol=1e-6)


def test_the_denoiser_hears_both_sides_and_where_a_letter_stands():
    network, x = small_denoiser(), torch.full((1, 50), LETTERS)
    t, cond = torch.ones(1).long(), unconditional(1)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return network(one_hot(tokens, LETTERS + 1).float(), t, cond)

    base, changed = logits(x), x.clone()
    changed[0, 25] = 2
    moved = (logits(changed) - base)[0].abs().amax(1) > 1e-7
    assert moved.nonzero()[:, 0].tolist() == list(range(19, 32))  # two letters, and twice as far, each way
    assert (base[0, 20] - base[0, 30]).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, STEPS, 50])
def test_the_chain_draws_whole_utrs(steps):
    torch.manual_seed(0)
    path = rollout(chain_of(small_denoiser(), steps), unconditional(3))
    assert path.sample.shape == (3, 50)
    assert path.sample.min() >= 0 and path.sample.max() < LETTERS
    assert (path.states[-2] == LETTERS).sum(1).tolist() == [50 // steps] * 3


def test_a_chain_learns_letters_and_their_neighbours():
    """Of pairs TG and CA after each other, each letter is known from its neighbour: 25 ln 2 nats remain."""
    pairs = torch.tensor([[3, 2], [1, 0]])[random_utrs(2000)[:, :25] % 2].flatten(1)
    network = denoiser(width=16, kernel=3, depth=2)
    policy, optimizer = chain_of(network, 50), torch.optim.Adam(network.parameters(), 2e-2)
    rows = explain(policy, pairs, unconditional(2000), optimizer, steps=70, batch=32)
    losses = [row["loss"] for row in rows]
    assert losses[0] > 60
    torch.manual_seed(0)
    bound = elbo(policy, pairs, unconditional(2000)).mean().item()
    assert -bound == pytest.approx(25 * torch.tensor(2.0).log().item(), abs=1.5)
    assert -bound > 25 * torch.tensor(2.0).log().item() - 0.5  # nothing can know more


def test_regression_finds_a_rule_and_repeats_itself():
    x = random_utrs(1000)
    load = (x == 2).float().mean(1) * 8

    def train() -> tuple[list[float], Oracle]:
        oracle = small_oracle()
        optimizer = torch.optim.Adam(oracle.parameters(), 2e-2)
        rows = regress(oracle, x[:800], load[:800], optimizer, steps=40, batch=64)
        return [row["loss"] for row in rows], oracle

    (losses, oracle), (again, _) = train(), train()
    assert losses == again
    with torch.no_grad():
        found = pearson(oracle(x[800:]), load[800:])
    assert found.value > 0.9


def test_correlations_have_the_error_of_many_repetitions():
    torch.manual_seed(0)
    a, noise = torch.randn(400, 200, dtype=torch.float64), torch.randn(400, 200, dtype=torch.float64)
    found = [pearson(x, 0.6 * x + 0.8 * z) for x, z in zip(a, noise, strict=True)]
    values = torch.tensor([f.value for f in found])
    assert values.mean().item() == pytest.approx(0.6, abs=0.01)
    assert found[0].se == pytest.approx(values.std().item(), rel=0.2)


@pytest.mark.parametrize(
    "load", [utr_policy, load_measured, lambda folder: load_oracle("proxy", folder)],
    ids=["model", "measured", "oracle"],
)  # fmt: skip
def test_without_weights_one_sentence_says_how_to_get_them(tmp_path, load):
    with pytest.raises(ValueError, match=r"data import utr PATH, and make them with difftilt pretrain utr"):
        load(folder=tmp_path)


def test_an_unknown_oracle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'proxy' and 'gold'"):
        load_oracle("silver", tmp_path)


@pytest.mark.data
def test_the_real_utrs_are_split_without_a_repeat():
    if "DIFFTILT_DATA" not in os.environ:
        pytest.skip("set DIFFTILT_DATA to the folder of the data sets")
    parts = load_split()
    assert [len(p.load) for p in (parts.proxy, parts.gold, parts.held_out)] == [130_000, 130_000, 20_000]
    x, _ = load_utr()
    assert len(x.unique(dim=0)) == 280_000
    assert all(6.3 < p.load.mean() < 6.6 for p in (parts.proxy, parts.gold, parts.held_out))
