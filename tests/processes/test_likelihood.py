"""The bound of log p(x_0) against log p(x_0) itself, found by listing every state."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
from enumeration import every_state, laws
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.exact.toy import GaussianDenoiser
from difftilt.guidance.start import TunedStart
from difftilt.policy import Diffusion
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.likelihood import elbo, noised_path, path_evidence, start_evidence, step_evidence
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import NoiseSchedule, from_betas
from difftilt.processes.uniform import UniformPolicy
from difftilt.transition import one_hot

CATEGORIES, LENGTH = 2, 3
CLEAN = every_state(CATEGORIES, LENGTH)
LAW = torch.tensor([0.3, 0.02, 0.05, 0.08, 0.05, 0.2, 0.05, 0.25]).double()  # of correlated data
EACH = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]]).double()
PRODUCT = EACH[torch.arange(LENGTH), CLEAN].prod(1)  # of independent positions


class Table(nn.Module):
    """Random logits for every state and time."""

    def __init__(self, categories: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.categories = categories
        self.rows = nn.Parameter(torch.randn(9, categories**LENGTH, LENGTH, CATEGORIES).double())

    def forward(self, x, t, cond):
        digits = self.categories ** torch.arange(LENGTH)
        return self.rows[t, (x.argmax(-1) * digits).sum(1)]


class Exact(nn.Module):
    """log p(x_0^i | the other positions of x_t) under a distribution of the data, by summing over all x_0.

    Args:
        distribution: Probability of every x_0 in `CLEAN`.
        noise: Chance that a token was redrawn by t; for masks, which tell what is noise, nothing.
    """

    def __init__(self, law: Tensor, noise: Tensor | None = None):
        super().__init__()
        self.law, self.noise = law, noise

    def forward(self, x, t, cond):
        clean = one_hot(CLEAN, CATEGORIES).double()
        match = torch.einsum("blk,slk->bsl", x[..., :CATEGORIES].double(), clean)
        if self.noise is None:
            likelihood = match + x[:, None, :, CATEGORIES].double()  # a mask says nothing
            weight = likelihood.prod(2, keepdim=True).expand_as(likelihood)
        else:
            b = self.noise[t][:, None, None].double()
            likelihood = (1 - b) * match + b / CATEGORIES
            weight = likelihood.prod(2, keepdim=True) / likelihood
        return torch.einsum("bsl,slk->blk", weight * self.law[:, None], clean).log()


def masked(network=None, **settings) -> MaskedPolicy:
    return MaskedPolicy(network or Table(CATEGORIES + 1), CATEGORIES, LENGTH, **settings)


def uniform(steps=3, **settings) -> UniformPolicy:
    return UniformPolicy(Table(CATEGORIES), CATEGORIES, LENGTH, steps=steps, **settings).double()


def reversing(law: Tensor, steps: int) -> UniformPolicy:
    policy = uniform(steps)
    policy.network = Exact(law, policy.noise)
    return policy


def states_of(policy: Diffusion) -> Tensor:
    return every_state(CATEGORIES + isinstance(policy, MaskedPolicy), LENGTH)


@torch.no_grad()
def log_law(policy: Diffusion) -> Tensor:
    """log p(x_0) of every x_0 in `CLEAN`, by the distribution of every state of the chain."""
    states = states_of(policy)
    law = laws(policy, states)[0]
    place = (CLEAN[:, None] == states).all(-1).double()
    return (place @ law.double()).log()


@torch.no_grad()
def bound(policy: Diffusion) -> Tensor:
    """The expectation of `elbo` at every x_0 in `CLEAN`, over all t and x_t, but for the part of x_T."""
    states, total = states_of(policy), torch.zeros(len(CLEAN)).double()
    pairs = (CLEAN.repeat_interleave(len(states), 0), states.repeat(len(CLEAN), 1))
    for t in range(1, policy.steps + 1):
        time = torch.full((len(pairs[0]),), t)
        weight = policy.noised(pairs[0], time).log_prob(pairs[1]).exp()
        possible = (weight > 0).nonzero()[:, 0]
        x_0, x = (part[possible] for part in pairs)
        each = step_evidence(policy, x_0, x, time[possible], unconditional(len(x)))
        total.index_add_(0, possible // len(states), weight[possible].double() * each)
    return total


CHAINS = {
    "one-position": masked,
    "two-positions": lambda: masked(steps=2),
    "bernoulli": lambda: masked(unmasking="bernoulli", steps=4),
    "uniform": uniform,
    "one-step": lambda: uniform(1),
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_it_is_a_lower_bound_at_every_x_0(make):
    policy = make()
    log_p, below = log_law(policy), bound(policy)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (below <= log_p + 1e-5).all()
    if policy.steps > 1:
        assert (log_p - below).max() > 0.05  # which a random network does not reach


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_one_draw_has_the_bound_as_its_mean(make):
    torch.manual_seed(0)
    policy, count = make(), 4000
    below = bound(policy)
    x_0 = CLEAN.repeat_interleave(count, 0)
    with torch.no_grad():
        drawn = elbo(policy, x_0, unconditional(len(x_0))).view(len(CLEAN), count).double()
    spread = 4.5 * drawn.std(1) / count**0.5 + 1e-5
    assert ((drawn.mean(1) - below).abs() <= spread).all()
    if policy.steps > 1:  # and not as the mean over steps instead of their sum
        assert ((drawn.mean(1) / policy.steps - below).abs() > spread).all()


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_the_mean_over_noised_chains_is_p_of_x_0(make):
    """Which the bound is below; and with more chains each estimate is nearer to it."""
    torch.manual_seed(0)
    policy, count = make(), 2000
    x_0, cond = CLEAN.repeat_interleave(count, 0), unconditional(count * len(CLEAN))
    one, many = (path_evidence(policy, x_0, cond, paths).view(len(CLEAN), count) for paths in (1, 4))
    mean, log_p = one.exp().mean(1), log_law(policy)
    error = one.exp().std(1) / count**0.5
    assert ((mean - log_p.exp()).abs() <= 4.5 * error + 1e-6).all()
    assert (one.mean(1) < log_p + 1e-6).all()
    assert (many.exp().std(1) < 0.7 * one.exp().std(1) + 1e-6).all()


def test_a_noised_chain_ends_in_its_x_0_and_has_the_density_of_its_noise():
    policy, x_0 = reversing(PRODUCT, 3), CLEAN
    torch.manual_seed(0)
    path, log_q = noised_path(policy, x_0, unconditional(len(x_0)))
    assert torch.equal(path.states[-1], x_0) and len(path.states) == policy.steps + 1
    steps = [
        policy.noising(path.states[-t], torch.full((len(x_0),), t)).log_prob(path.states[-1 - t])
        for t in range(1, policy.steps + 1)
    ]
    torch.testing.assert_close(log_q, torch.stack(steps).sum(0))


TIGHT = {
    "one position at a time, in every order": (lambda: masked(Exact(LAW)), LAW),
    "independent positions, two at a time": (lambda: masked(Exact(PRODUCT), steps=2), PRODUCT),
    "independent positions, bernoulli": (
        lambda: masked(Exact(PRODUCT), steps=4, unmasking="bernoulli"),
        PRODUCT,
    ),
    "independent positions, uniform": (lambda: reversing(PRODUCT, 3), PRODUCT),
}


@pytest.mark.parametrize(("make", "law"), TIGHT.values(), ids=TIGHT)
def test_it_is_an_equality_where_the_chain_reverses_the_noise(make, law):
    policy = make()
    torch.testing.assert_close(log_law(policy), law.log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(bound(policy), law.log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "make",
    [lambda T: reversing(LAW, T), lambda T: masked(Exact(LAW), steps=T, unmasking="bernoulli")],
    ids=["uniform", "bernoulli"],
)
def test_the_gap_of_tokens_drawn_at_once_falls_with_more_steps(make):
    """With the exact network what is missing is only that the tokens of one step are drawn apart."""
    gaps = [(LAW @ (LAW.log() - bound(make(steps)))).item() for steps in (2, 8, 32)]
    assert gaps[0] > 0.02
    assert gaps[0] > 2.5 * gaps[1] > 2.5**2 * gaps[2] > 0


def test_what_the_noise_leaves_of_x_0_counts():
    """KL(q(x_T | x_0) || p(x_T)): of a schedule that ends early, and where x_0 breaks a frozen position."""
    torch.manual_seed(0)
    policy, count = uniform(2, schedule=torch.tensor([0, 0.3, 0.6])), 20_000
    x_0 = CLEAN[3].expand(count, -1)
    kept = 0.4 + 0.6 / CATEGORIES
    each = kept * math.log(kept * CATEGORIES) + (1 - kept) * math.log((1 - kept) * CATEGORIES)
    drawn = start_evidence(policy, x_0, unconditional(count))
    assert drawn.mean().item() == pytest.approx(-LENGTH * each, abs=4 * drawn.std().item() / count**0.5)
    full = start_evidence(uniform(2), x_0, unconditional(count))
    torch.testing.assert_close(full, torch.zeros_like(full), atol=1e-6, rtol=0)
    frozen = masked(start=torch.tensor([1, 2, 2]))
    drawn = elbo(frozen, torch.tensor([[0, 1, 1], [1, 1, 1]]), unconditional(2))
    assert drawn.isneginf().tolist() == [True, False] and drawn[1].isfinite()


def gaussian(mean: float) -> GaussianPolicy:
    """A chain whose network takes the data for N(mean, 1): of N(0, 1), where x_T starts, it is exact."""
    grid = from_betas(torch.tensor([0.3, 0.5, 0.7, 0.9]))
    grid = NoiseSchedule(grid.time, grid.alpha.double(), grid.sigma.double())
    network = GaussianDenoiser(grid, torch.tensor([mean]), torch.eye(1))
    return GaussianPolicy(network, grid, (1,), prediction_type="sample", noise=FixedLarge())


@torch.no_grad()
def gaussian_bound(policy: GaussianPolicy, x_0: float) -> float:
    """The expectation over x_t by Gauss-Hermite quadrature, and the part of x_T in closed form."""
    nodes, weights = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(20))
    clean, cond = torch.full((len(nodes), 1), x_0).double(), unconditional(len(nodes))
    total = -policy.noised(clean[:1], torch.tensor([4])).kl(policy.initial(unconditional(1)))[0]
    for t in range(1, policy.steps + 1):
        time = torch.full((len(nodes),), t)
        x = policy.alpha[t] * clean + policy.sigma[t] * nodes[:, None]
        total = total + weights / weights.sum() @ step_evidence(policy, clean, x, time, cond)
    return total.item()


@pytest.mark.parametrize("x_0", [-1.5, 0.0, 2.0])
def test_of_a_gaussian_chain_it_is_the_log_density(x_0):
    log_density = -(x_0**2) / 2 - math.log(2 * math.pi) / 2
    exact, other = gaussian(0.0), gaussian(1.0)
    assert gaussian_bound(exact, x_0) == pytest.approx(log_density, abs=1e-6)
    moved, spread = terminal(other)
    found = -((x_0 - moved) ** 2) / (2 * spread) - math.log(2 * math.pi * spread) / 2
    assert gaussian_bound(other, x_0) < found - 0.005


def terminal(policy: GaussianPolicy) -> tuple[float, float]:
    """Mean and variance of x_0, from two points of each affine step."""
    mean, variance = 0.0, policy.initial(unconditional(1)).std.item() ** 2
    for t in range(policy.steps, 0, -1):
        step = policy(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([t, t]), unconditional(2))
        offset, slope = step.mean[0].item(), (step.mean[1] - step.mean[0]).item()
        mean, variance = offset + slope * mean, slope**2 * variance + step.std[0].item() ** 2
    return mean, variance


def test_a_gaussian_draw_has_the_bound_as_its_mean_and_sees_a_tuned_start():
    torch.manual_seed(0)
    policy, count = gaussian(0.5), 40_000
    x_0 = torch.full((count, 1), 0.7).double()
    drawn = elbo(policy, x_0, unconditional(count))
    error = drawn.std().item() / count**0.5
    assert drawn.mean().item() == pytest.approx(gaussian_bound(policy, 0.7), abs=4 * error)
    moved = TunedStart(policy)
    nn.init.constant_(moved.get_parameter("offset.value"), 0.8)
    assert elbo(moved, x_0, unconditional(count)).mean().item() < drawn.mean().item() - 20 * error


@pytest.mark.parametrize("make", [masked, lambda: uniform(8)], ids=["masked", "uniform"])
def test_its_ascent_learns_the_law_of_the_data(make):
    torch.manual_seed(0)
    policy = make()
    nn.init.zeros_(policy.network.rows)
    optimizer = torch.optim.Adam(policy.parameters(), 0.15)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 100)
    for _ in range(100):
        x_0 = CLEAN[torch.multinomial(LAW, 512, replacement=True)]
        loss = -elbo(policy, x_0, unconditional(512)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    missed = (log_law(policy).exp() - LAW).abs().sum().item() / 2
    assert missed < 0.08 < (LAW - 1 / 8).abs().sum().item() / 2
