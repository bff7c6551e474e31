"""Uniform-state chains against enumeration, and against the continuous-time chain that they approach."""

import copy
import inspect
import itertools
import math

import pytest
import torch
from enumeration import evaluate, every_state, kernels, laws, table
from paths import path_kl
from torch import Tensor, nn

from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.objective import Objective
from difftilt.policy import Trajectory, check_ratio, path_log_prob, rollout
from difftilt.processes.uniform import UniformPolicy
from difftilt.training.fit import fit
from difftilt.transition import event_sum, one_hot

CATEGORIES, LENGTH = 3, 2
STATES = every_state(CATEGORIES, LENGTH)
SCHEDULES = ["linear", "cosine", torch.tensor([0, 0.1, 0.5, 0.8])]


class Network(nn.Module):
    """A random smooth function of the state and of time t / T."""

    def __init__(self, steps: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.steps = steps
        self.mlp = nn.Sequential(nn.Linear(CATEGORIES * LENGTH + 1, 16), nn.Tanh(), nn.Linear(16, 6)).double()
        nn.init.normal_(self.mlp[2].weight, std=0.6)  # pyright: ignore[reportArgumentType]

    def forward(self, x, t, cond):
        told = torch.cat([x.double().flatten(1), t[:, None] / self.steps], 1)
        return self.mlp(told).view(-1, LENGTH, CATEGORIES)


class Exact(nn.Module):
    """log p(x_0^i | the other positions of x_t), summed over all x_0: the network that makes no error."""

    def __init__(self, law: Tensor, states: Tensor, noise: Tensor):
        super().__init__()
        self.law, self.states, self.noise = law, states, noise

    def forward(self, x, t, cond):
        categories = x.shape[2]
        b = self.noise[t][:, None, None].double()
        match = torch.einsum("blk,slk->bsl", x.double(), one_hot(self.states, categories).double())
        likelihood = (1 - b) * match + b / categories
        others = likelihood.prod(2, keepdim=True) / likelihood * self.law[:, None]
        return torch.einsum("bsl,slk->blk", others, one_hot(self.states, categories).double()).log()


def chain(steps=3, seed=0, **settings) -> UniformPolicy:
    return UniformPolicy(Network(steps, seed), CATEGORIES, LENGTH, steps=steps, **settings).double()


def times(count: int, t: int) -> Tensor:
    return torch.full((count,), t)


@torch.no_grad()
def solved(reference: UniformPolicy, score: Tensor, alpha: float) -> tabular.Solution:
    """The optimum over all chains on the list of states."""
    chain = tabular.TabularPolicy(laws(reference, STATES)[-1], kernels(reference, STATES))
    return tabular.solve(Objective(lambda x, c: score[x[:, 0]], chain, alpha))


@torch.no_grad()
def exact_kl(policy: UniformPolicy, reference: UniformPolicy) -> float:
    return evaluate(policy, reference, STATES, torch.zeros(9).double())[1].item()


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "numbers"])
def test_noise_at_once_is_the_product_of_its_steps(schedule):
    policy, product = chain(schedule=schedule), torch.eye(len(STATES)).double()
    for t in range(1, 4):
        step = table(lambda x, t=t: policy.noising(x, times(len(x), t)), STATES)
        at_once = table(lambda x, t=t: policy.noised(x, times(len(x), t)), STATES)
        product = product @ step
        close(product, at_once)
        stays = policy.signal(torch.tensor([t])).item()
        share = stays + (1 - stays) / CATEGORIES
        close(at_once.diagonal(), torch.full((9,), share**2).double())
    if isinstance(schedule, str):
        close(product, torch.full((9, 9), 1 / 9).double())


def test_the_schedules_are_what_they_say():
    t = torch.arange(5)
    torch.testing.assert_close(chain(4).signal(t), 1 - t.double() / 4)
    torch.testing.assert_close(chain(4, schedule="cosine").signal(t), torch.cos(math.pi * t.double() / 8))
    fine = UniformPolicy(Network(20000), CATEGORIES, LENGTH, steps=20_000, schedule="cosine")
    first = 1 - fine.noise[1]  # 3e-9 of noise is below float32's resolution at 1
    assert first == 1 and fine.noise[1].item() == pytest.approx((math.pi / 40000) ** 2 / 2, rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "numbers"])
@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_posterior_is_bayes_rule(schedule, t):
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0), over all states x_{t-1}."""
    policy, x_0, x = chain(schedule=schedule), torch.tensor([[0, 1]]), torch.tensor([[2, 1]])
    count, every = len(STATES), times(len(STATES), t)
    prior = policy.noised(x_0.expand(count, -1), every - 1).log_prob(STATES)
    likelihood = policy.noising(STATES, every).log_prob(x.expand(count, -1))
    law = policy.posterior(x_0.expand(count, -1), x.expand(count, -1), every)
    close(law.log_prob(STATES).exp(), (prior + likelihood).softmax(0))


@pytest.mark.parametrize("t", [1, 2, 3])
def test_a_step_averages_the_posterior_over_the_clean_token(t):
    """p(x_{t-1} | x_t) = sum over x_0 of q(x_{t-1} | x_t, x_0) p(x_0 | x_t) at each position (D3PM)."""
    policy, cond, every = chain(), unconditional(len(STATES)), times(len(STATES), t)
    clean = policy.clean(STATES, every, cond)
    close(clean.sum(-1), torch.ones(9, LENGTH).double())
    mixed = torch.zeros_like(clean)
    for token in range(CATEGORIES):
        x_0 = torch.full_like(STATES, token)
        mixed += clean[..., token, None] * policy.posterior(x_0, STATES, every).probs
    close(policy(STATES, every, cond).probs, mixed)


def test_what_a_token_says_of_itself_counts():
    """clean is Bayes' rule: with uniform logits the odds that a token was kept are 1 + K (1 - b) / b."""
    policy = chain(4)
    nn.init.zeros_(policy.get_parameter("network.mlp.2.weight"))
    nn.init.zeros_(policy.get_parameter("network.mlp.2.bias"))
    for t in (1, 2, 3):
        clean = policy.clean(torch.tensor([[2, 0]]), torch.tensor([t]), unconditional(1))[0, 0]
        assert (clean[2] / clean[0]).item() == pytest.approx(1 + CATEGORIES * (4 - t) / t, rel=1e-6)


def test_one_token_with_its_own_law_is_reversed_exactly_in_any_number_of_steps():
    law, states = torch.tensor([0.5, 0.1, 0.4]).double(), every_state(3, 1)
    for steps in (1, 2, 5):
        policy = UniformPolicy(nn.Identity(), 3, 1, steps=steps).double()
        policy.network = Exact(law, states, policy.noise)
        found = laws(policy, states)
        close(found[0], law)
        for t in range(steps + 1):  # and every marginal is that of the noise
            close(found[t], (1 - t / steps) * law + t / steps / 3)
        logits = policy.network(one_hot(states, 3), times(3, 1), {})
        close(logits.softmax(-1), law.expand(3, 1, 3))  # which is the same at every t and x


def test_the_exact_network_reaches_the_law_of_the_data_as_steps_shrink():
    """Tokens of one step are drawn without knowing of each other: the only error, of order 1 / T."""
    law = torch.tensor([0.4, 0.02, 0.02, 0.02, 0.3, 0.02, 0.02, 0.02, 0.18]).double()
    missed = []
    for steps in (4, 16, 64):
        policy = chain(steps)
        policy.network = Exact(law, STATES, policy.noise)
        missed.append((laws(policy, STATES)[0] - law).abs().sum().item() / 2)
    assert missed[0] > 0.03
    assert missed[1] < missed[0] / 3 and missed[2] < missed[1] / 3


def test_path_kl_is_the_sum_over_all_paths():
    policy, other, count = chain(2, seed=0), chain(2, seed=1), len(STATES)
    index = torch.cartesian_prod(*[torch.arange(count)] * 3)
    states = STATES[index.T]
    log_prob = torch.zeros(3, len(index)).double()
    path = Trajectory(states, states[-1], log_prob, unconditional(len(index)))
    own, base = (path_log_prob(p, path).sum(0) for p in (policy, other))
    assert own.exp().sum().item() == pytest.approx(1, abs=1e-6)
    by_paths = (own.exp() * (own - base)).sum().item()
    by_steps = (own.exp() * path_kl(policy, other, path).sum(0)).sum().item()
    assert by_paths > 0.05
    assert by_steps == pytest.approx(by_paths, rel=1e-6)
    assert exact_kl(policy, other) == pytest.approx(by_paths, rel=1e-6)


def rates_at(network: Network, time: Tensor) -> Tensor:
    """R(x -> y) of the continuous-time chain at some times, written out: b = time, beta = 1 / (1 - b)."""
    x, t = one_hot(STATES, CATEGORIES).double().repeat(len(time), 1, 1), time.repeat_interleave(9)
    w = network(x, t * network.steps, {}).softmax(-1)
    m = ((1 - t)[:, None, None] * w + t[:, None, None] / CATEGORIES).view(-1, 9, LENGTH, CATEGORIES)
    rate = torch.zeros(len(time), 9, 9).double()
    for i, j in itertools.product(range(9), range(9)):
        places = (STATES[i] != STATES[j]).nonzero()[:, 0]
        if len(places) == 1:
            at, old, new = places[0], STATES[i, places[0]], STATES[j, places[0]]
            rate[:, i, j] = 1 / (1 - time) / CATEGORIES * m[:, i, at, new] / m[:, i, at, old]
    return rate


@torch.no_grad()
def continuous_kl(cells=400) -> float:
    """E Int sum_y [R log(R / R_pre) - R + R_pre] dt: midpoint rule, and matrix exponentials for p_t."""
    time = (torch.arange(cells, 0, -1).double() - 0.5) / cells
    rates, base = (rates_at(Network(1, seed), time) for seed in (0, 1))
    halves = torch.matrix_exp((rates - rates.sum(2).diag_embed()) / (2 * cells))
    costs = torch.where(rates > 0, rates * (rates / base).log() - rates + base, 0).nan_to_num().sum(2)
    law, total = torch.full((9,), 1 / 9).double(), 0.0
    for half, cost in zip(halves, costs, strict=True):
        law = law @ half
        total, law = total + (law @ cost).item() / cells, law @ half
    return total


@pytest.fixture(scope="module")
def limit() -> float:
    return continuous_kl()


def rates_of(policy: UniformPolicy, x: Tensor, t: Tensor) -> Tensor:
    """R(x -> y), how often each position jumps to y, in a time in which the whole chain takes 1 (SEDD).

    R_t(x -> y) = beta_t / K m_t(y) / m_t(x),   beta_t = T (b_t - b_{t-1}) / (1 - b_{t-1}),   0 at y = x,
    where m_t is the noised distribution of a token that is drawn from the network's guess.
    """
    guess = policy.guess(x, t, unconditional(len(x)))
    seen, b = one_hot(x, policy.categories).to(policy.noise.dtype), policy.noise
    law = torch.lerp(guess, torch.full_like(guess, 1 / policy.categories), b[t][:, None, None])
    ratio = law * (seen / law).sum(-1, keepdim=True)
    beta = policy.steps * (b[t] - b[t - 1]) / (1 - b[t - 1])
    return beta[:, None, None] / policy.categories * ratio * (1 - seen)


def rate_kl(policy: UniformPolicy, reference: UniformPolicy, x: Tensor, t: Tensor) -> Tensor:
    """How fast the KL of paths grows in nats: sum_i sum_{y != x_i} R log(R / R_pre) - R + R_pre."""
    rates, base = rates_of(policy, x, t), rates_of(reference, x, t)
    ratio = torch.where(base > 0, rates / base, 1)
    return event_sum(base * (ratio * ratio.log() - ratio + 1))


@torch.no_grad()
def by_rates(steps: int, cost=rate_kl) -> float:
    """The path's KL from rates: sum over t of E rate_kl / T, under the exact distributions of the chain."""
    policy, other = chain(steps, seed=0), chain(steps, seed=1)
    x, t = STATES.repeat(steps, 1), torch.arange(1, steps + 1).repeat_interleave(9)
    each = cost(policy, other, x, t)
    return (laws(policy, STATES)[1:].flatten() @ each).item() / steps


def test_the_kl_of_the_chain_approaches_that_of_the_continuous_chain(limit):
    assert limit > 0.05
    assert limit == pytest.approx(continuous_kl(200), rel=1e-3)
    off = [abs(exact_kl(chain(steps, seed=0), chain(steps, seed=1)) / limit - 1) for steps in (8, 32, 128)]
    assert off[1] < off[0] / 3 and off[2] < off[1] / 3 and off[2] < 0.02


def test_the_kl_of_the_rates_approaches_it_too(limit):
    off = [abs(by_rates(steps) / limit - 1) for steps in (8, 32, 128)]
    assert off[1] < off[0] / 3 and off[2] < off[1] / 3 and off[2] < 0.03


def test_a_kl_of_rates_without_all_its_terms_is_seen(limit):
    """What a tolerance of 3 % catches: no -R + R_pre, and a time step forgotten."""

    def without(policy, other, x, t):
        rates, base = rates_of(policy, x, t), rates_of(other, x, t)
        return torch.where(base > 0, rates * (rates / base).log(), 0).nan_to_num().sum((1, 2))

    assert abs(by_rates(128, without) / limit - 1) > 0.1
    assert abs(128 * by_rates(128) / limit - 1) > 0.1


def test_rates_are_those_of_single_jumps_of_the_chain():
    """T p(y | x) for neighbours y; and R = beta / K times the ratio of the noised q_t at y and x."""
    worst = []
    for steps in (32, 128):
        policy, t = chain(steps), steps // 2
        rates = rates_of(policy, STATES, times(9, t))
        assert (rates.gather(-1, STATES[..., None]) == 0).all()
        jumps = (
            policy(STATES, times(9, t), unconditional(9)).probs * steps * (1 - one_hot(STATES, CATEGORIES))
        )
        worst.append((rates - jumps).abs().max().item())
        written = rates_at(policy.network, torch.tensor([0.5]).double())  # pyright: ignore[reportArgumentType]
        assert rates.sum().item() == pytest.approx(written.sum().item(), rel=2 / steps)
    assert worst[1] < worst[0] / 3


def test_the_best_rates_are_tilted_by_differences_of_the_value():
    """R*(x -> y) = R_pre(x -> y) exp((v(y) - v(x)) / alpha), against the chain solved exactly."""
    alpha, score = 0.4, torch.tensor([0.0, 1, 0, 0, 0, 1, 1, 0, 0.5]).double()
    away = (STATES[:, None] != STATES).sum(-1)
    off, untilted = [], []
    for steps in (16, 64, 256):
        policy, t = chain(steps), steps // 2
        optimum = solved(policy, score, alpha)
        best = steps * optimum.policy.tables()[1][t - 1].detach()
        each = rates_of(policy, STATES, times(9, t))
        base = torch.stack([each.gather(2, y.expand(9, -1)[..., None])[..., 0].sum(1) for y in STATES], 1)
        v = optimum.values[t]
        tilted = base * ((v[None] - v[:, None]) / alpha).exp()
        off.append(((tilted / best)[away == 1] - 1).abs().max().item())
        untilted.append(((base / best)[away == 1] - 1).abs().max().item())
    assert off[1] < off[0] / 3 and off[2] < off[1] / 3 and off[2] < 0.05
    assert min(untilted) > 0.5


def test_bounded_logits_make_bounded_rates():
    """However small the steps, also of the last one: no logit has to grow as t goes to 0."""
    for steps in (10, 1000):
        rates = rates_of(chain(steps), STATES, times(9, 1))
        assert rates.max() < 20


def test_ratios_start_at_one():
    torch.manual_seed(0)
    policy = chain()
    path = rollout(policy, unconditional(100))
    check_ratio(policy, path)
    close(path_log_prob(policy, path), path.log_prob, 1e-9)


def test_one_hot_states_are_the_same_states():
    policy, t, cond = chain(), torch.full((9,), 2), unconditional(9)
    soft = one_hot(STATES, CATEGORIES).double()
    assert torch.equal(policy(STATES, t, cond).probs, policy(soft, t, cond).probs)
    assert torch.equal(policy.clean(STATES, t, cond), policy.clean(soft, t, cond))
    assert torch.equal(rates_of(policy, STATES, t), rates_of(policy, soft, t))
    assert torch.equal(policy.posterior(STATES, STATES, t).probs, policy.posterior(soft, soft, t).probs)
    assert torch.equal(policy.noised(STATES, t).probs, policy.noised(soft, t).probs)


def test_relaxed_draws_are_one_hot_and_carry_the_gradient_of_every_step():
    torch.manual_seed(0)
    policy = chain()
    x = policy.initial(unconditional(64)).rsample().requires_grad_()
    first = x
    for t in range(policy.steps, 0, -1):
        x = policy(x, times(64, t), unconditional(64)).rsample()
    assert set(x.detach().unique().tolist()) == {0.0, 1.0}
    policy.decode(x, unconditional(64))[..., 0].sum().backward()
    for gradient in (first.grad, policy.get_parameter("network.mlp.0.weight").grad):
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0


def problem() -> tuple[Objective, UniformPolicy]:
    reference = chain(4)
    score = torch.randn(LENGTH, CATEGORIES).double()
    objective = Objective(lambda x, c: (one_hot(x, CATEGORIES) * score).sum((1, 2)), reference, 0.3)
    policy = copy.deepcopy(reference)
    reference.requires_grad_(False)
    return objective, policy


def exact(objective: Objective, policy: UniformPolicy) -> tuple[Tensor, float]:
    """J, and the most that a chain with this distribution of x_T can have."""
    score, reference = objective.reward(STATES, unconditional(9)), objective.reference
    reward, kl = evaluate(policy, reference, STATES, score)
    return reward - objective.alpha * kl, solved(reference, score, objective.alpha).frozen.item()  # pyright: ignore[reportArgumentType]


def test_straight_through_draws_point_along_the_exact_gradient():
    """Of a reward that is linear in the one-hot x_0, and of the KL, which is not linear and so is biased."""
    objective, _ = problem()
    policy, cond = chain(4, seed=3), unconditional(4000)
    x, kl = one_hot(policy.initial(cond).sample(), CATEGORIES).double(), torch.zeros(()).double()
    for t in range(policy.steps, 0, -1):
        law = policy(x, times(4000, t), cond)
        x, kl = law.rsample(), kl + law.kl(objective.reference(x, times(4000, t), cond)).mean()
    drawn = (objective.reward(x, cond).mean(), kl)
    parts = evaluate(policy, objective.reference, STATES, objective.reward(STATES, unconditional(9)))
    for relaxed, true, least in zip(drawn, parts, (0.995, 0.97), strict=True):
        a, b = (torch.autograd.grad(y, [*policy.parameters()], retain_graph=True) for y in (relaxed, true))
        a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (a, b))
        assert torch.cosine_similarity(a, b, 0) > least
        assert 0.85 < (a.norm() / b.norm()).item() < 1.15


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPO(minibatches=4),
        lambda: TrajectoryBalance(recompute=False),
        lambda: Backprop(minibatches=1, recompute=False),
    ],
    ids=["ppo", "trajectory-balance", "backprop"],
)
def test_the_gap_to_the_optimum_closes(make):
    objective, policy = problem()
    before, best = exact(objective, policy)
    algorithm = make()
    assert best - before.item() > 0.1
    algorithm.setup(policy, unconditional(2))
    optimizer = torch.optim.Adam([*policy.parameters(), *algorithm.parameters()], 4e-2)
    list(fit(policy, objective, algorithm, [unconditional(128)] * 15, optimizer))
    after, _ = exact(objective, policy)
    assert 0 <= best - after.item() < 0.3 * (best - before.item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "1 or more steps, but got .* steps = 0"),
        ({"steps": 2, "schedule": "sine"}, "schedule must be one of 'linear', 'cosine', but got 'sine'"),
        ({"steps": 2, "schedule": torch.tensor([0, 0.5])}, "needs 3 numbers that rise from 0"),
        ({"steps": 1, "schedule": torch.tensor([0.1, 0.5])}, "rise from 0 to at most 1, but"),
        ({"steps": 2, "schedule": torch.tensor([0, 0.5, 0.4])}, "rise from 0 to at most 1, but"),
        ({"steps": 1, "schedule": torch.tensor([0, 1.5])}, "rise from 0 to at most 1, but"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(settings, message):
    build = inspect.unwrap(UniformPolicy.__init__)  # without the types that these tests check
    with pytest.raises(ValueError, match=message):
        build(UniformPolicy.__new__(UniformPolicy), nn.Identity(), CATEGORIES, LENGTH, **settings)
