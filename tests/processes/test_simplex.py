"""Diffusion on the simplex: its steps and their KL against quadrature, its chain against the distribution of
the data, and two errors of a public code, which must not pass."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.nft import NFT
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.objective import Objective
from difftilt.policy import chain, rollout
from difftilt.processes.jacobi import angles, jacobi, kernels
from difftilt.processes.likelihood import elbo, step_evidence
from difftilt.processes.simplex import SimplexPolicy, schedule
from difftilt.training.fit import fit
from difftilt.training.pretrain import explain
from difftilt.transition import Gaussian

F64 = torch.float64


class Prior(nn.Module):
    """Independent positions of one distribution: with it the chain's guess of x_0 is exact."""

    def __init__(self, law: Tensor):
        super().__init__()
        self.logits = nn.Parameter(law.log())

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        return self.logits.expand(*x.shape[:2], -1)


def simple(law: Tensor, steps: int = 8, length: int = 1, kind: type = SimplexPolicy, **settings):
    return kind(Prior(law), len(law), length, time=schedule(steps, **settings)).double()


def law(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def beta_density(b: int, v: Tensor) -> Tensor:
    return b * (1 - v) ** (b - 1)


def test_noise_at_once_has_the_mean_of_the_diffusion_for_every_token():
    """v_i of token k starts at 0 if i < k, at 1 if i = k, and from Beta(1, b_i) if i > k, where it stays."""
    policy = simple(law(0.1, 0.2, 0.3, 0.4))
    torch.manual_seed(0)
    draws, b = 4000, law(3, 2, 1)
    for t in (2, 6):
        for token in range(4):
            x_0 = policy.state(torch.full((draws, 1), token))
            v = policy.corrupt(x_0, torch.full((draws,), t))[:, 0]
            start = torch.where(torch.arange(3) > token, 1 / (1 + b), (torch.arange(3) == token).double())
            exact = 1 / (1 + b) + (start - 1 / (1 + b)) * (-policy.time[t]).exp()
            assert ((v.mean(0) - exact).abs() < 4 * v.std(0) / draws**0.5 + 1e-4).all()
            assert policy.signal(torch.tensor([t])).item() == pytest.approx((-policy.time[t]).exp().item())


def test_the_corners_are_the_tokens():
    policy = simple(law(0.1, 0.2, 0.3, 0.4), length=4)
    v = torch.tensor([[[1.0, 0.3, 0.3], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]], dtype=F64)
    assert policy.tokens(v).tolist() == [[0, 1, 2, 3]]
    assert policy.decode(v, unconditional(1)).equal(torch.eye(4, dtype=F64)[None])
    torch.testing.assert_close(policy.point(v)[0], torch.eye(4, dtype=F64), rtol=0, atol=1e-4)
    assert policy.decode(policy.clean(v, torch.tensor([1]), unconditional(1)), unconditional(1)).equal(
        torch.eye(4)[None].double()
    )
    torch.manual_seed(0)
    token = torch.randint(4, (500, 4))
    noised = policy.corrupt(policy.state(token), torch.ones(500).long())
    assert policy.tokens(policy.state(token)).equal(token)
    assert policy.tokens(noised).eq(token).double().mean() > 0.95


def test_rewards_see_corners_and_their_gradient_reaches_the_point():
    policy, f = simple(law(0.2, 0.3, 0.5)), torch.randn(3, dtype=F64)
    x = law(0.3, 0.6).view(1, 1, 2).requires_grad_()
    sample = policy.decode(x, unconditional(len(x)))
    assert sample.detach().tolist() == [[[0.0, 1.0, 0.0]]]
    (found,) = torch.autograd.grad((sample * f).sum(), x)
    (exact,) = torch.autograd.grad((policy.point(x) * f).sum(), x)
    assert found.equal(exact) and found.abs().min() > 0


def scores(policy: SimplexPolicy, x: Tensor, t: Tensor) -> Tensor:
    """d log q(x_t) / d v of independent positions, by differentiating the density of the noised data."""
    v = x.clone().requires_grad_()
    b = policy.rest
    log_q = (policy.evidence(v, t) + policy.network(v, t, None).log_softmax(-1)).logsumexp(-1)
    log_q = log_q.sum() + ((b - 1) * (1 - v).log()).sum()
    return torch.autograd.grad(log_q, v)[0]


def states(categories: int, count: int = 64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = 0.02 + 0.96 * torch.rand(count, 1, categories - 1, dtype=F64)
    return x, torch.randint(1, 9, (count,))


@pytest.mark.parametrize("p", [law(0.3, 0.7), law(0.1, 0.2, 0.3, 0.4)], ids=len)
def test_a_step_is_eulers_of_the_reverse_diffusion(p):
    """DDSM: dv = -s ((1 - v - b v) / 2 - (1 - 2 v) - v (1 - v) score) dt + sqrt(s v (1 - v) dt) z."""
    policy = simple(p)
    x, t = states(len(p))
    b, s = policy.rest, 2 / (1 + policy.rest)
    dt = (policy.time[t] - policy.time[t - 1])[:, None, None]
    drift = s * ((1 - x - b * x) / 2 - (1 - 2 * x) - x * (1 - x) * scores(policy, x, t))
    step = policy(x, t, unconditional(len(x)))
    torch.testing.assert_close(step.mean, x - drift * dt, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(step.std, (s * x * (1 - x) * dt).sqrt())


def tabulated(p: Tensor, q: Tensor, width: float) -> Tensor:
    return (p.exp() * (p - q)).sum() * width


def kl_rate(power: int):
    """The KL of two Euler steps, 1 / 2 g^2 |score - score'|^2 dt, were it g^power."""

    def formula(policy, other, x, t):
        s = 2 / (1 + policy.rest)
        dt = (policy.time[t] - policy.time[t - 1])[:, None, None]
        g = (s * x * (1 - x)).sqrt()
        shift = scores(policy, x, t) - scores(other, x, t)
        return (dt * g**power * shift.square() / 2).sum((1, 2))

    return formula


def check_kl(formula) -> None:
    policy, other = simple(law(0.3, 0.2, 0.5)), simple(law(0.5, 0.3, 0.2))
    x, t = states(3)
    step, base = policy(x, t, unconditional(len(x))), other(x, t, unconditional(len(x)))
    torch.testing.assert_close(formula(policy, other, x, t), step.kl(base), rtol=1e-5, atol=1e-10)


def test_the_kl_of_a_step_has_the_square_of_g_and_not_the_cube():
    check_kl(kl_rate(2))
    with pytest.raises(AssertionError):
        check_kl(kl_rate(3))


def test_the_kl_of_a_step_is_its_integral():
    policy, other = simple(law(0.3, 0.7)), simple(law(0.8, 0.2))
    x, t = torch.tensor([[[0.35]]], dtype=F64), torch.tensor([3])
    step, base = (p(x, t, unconditional(1)) for p in (policy, other))
    assert (step.std == base.std).all()
    line = torch.linspace(-3, 4, 20_001, dtype=F64)
    log_p, log_q = (
        Gaussian(law.mean.expand(len(line), 1, 1), law.std.expand(len(line), 1, 1)).log_prob(
            line.view(-1, 1, 1)
        )
        for law in (step, base)
    )
    exact = tabulated(log_p, log_q, 7 / 20_000)
    assert step.kl(base).item() == pytest.approx(exact.item(), rel=1e-6)
    assert exact > 1e-3


def weighed(path, policy, power: int) -> Tensor:
    """What a KL would be of which each step had g^power instead of g^2; for one number per state."""
    v = path.states[:-1].flatten(2)[..., 0].clamp(1e-5, 1 - 1e-5)
    return (2 / (1 + policy.rest) * v * (1 - v)).sqrt() ** (power - 2)


def check_path_kl(power: int) -> None:
    """E log p / p_pre over paths is the sum of the steps' KLs at their states."""
    torch.manual_seed(0)
    policy, reference = simple(law(0.3, 0.7)), simple(law(0.8, 0.2))
    seen = Objective(lambda x, c: x[..., 0].sum(1), reference, 1.0).sample(policy, unconditional(4000))
    kl = seen.kl[1:] * weighed(seen.path, policy, power)
    difference = seen.log_ratio.sum(0) - kl.sum(0)
    assert difference.mean().abs() < 4 * difference.std() / 4000**0.5
    assert kl.sum(0).mean() > 0.1


def test_the_kl_of_a_path_is_its_expected_log_ratio():
    check_path_kl(2)
    with pytest.raises(AssertionError):
        check_path_kl(3)


class Joint(nn.Module):
    """Two positions of any distribution: each one's token given what the other position says alone."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        seen, table = x[..., :-1], torch.as_tensor(self.table)
        return torch.stack([seen[:, 1] @ table.T, seen[:, 0] @ table], 1).log()


def test_the_chain_ends_in_the_law_of_the_data_as_its_steps_become_small():
    torch.manual_seed(0)
    table = torch.randn(3, 3, dtype=F64).mul(1.5).flatten().softmax(0).view(3, 3)
    chains, error = 10_000, {}
    for steps in (6, 30):
        policy = SimplexPolicy(Joint(table), 3, 2, time=schedule(steps)).double()
        *_, last = chain(policy, unconditional(chains))
        first, second = policy.tokens(last.x_next).T
        found = torch.bincount(3 * first + second, minlength=9).double() / chains
        error[steps] = (found - table.flatten()).abs().sum().item() / 2
    noise = (table.flatten() / chains).sqrt().sum().item() / 2
    assert error[6] > 0.06
    assert error[30] < 0.3 * error[6] + noise


def test_the_kl_of_two_chains_tends_to_that_of_their_data_as_its_steps_become_small():
    """Both reverse one noise, so that all of their KL is in x_0, and no more is lost on the way."""
    torch.manual_seed(0)
    first, second = (torch.randn(3, 3, dtype=F64).flatten().softmax(0).view(3, 3) for _ in range(2))
    exact, excess = (first * (first / second).log()).sum().item(), {}
    for steps in (8, 40):
        policy, reference = (
            SimplexPolicy(Joint(table), 3, 2, time=schedule(steps)).double() for table in (first, second)
        )
        stats = Objective(reward_nothing, reference, 1.0).sample(policy, unconditional(2000)).stats()
        excess[steps] = stats["kl_nats"].item() / exact - 1
        error = stats["kl_nats_se"].item() / exact
    assert excess[8] > 5 * error
    assert abs(excess[40]) < 0.3 * excess[8] + 2 * error
    assert error < 0.05


def reward_nothing(x: Tensor, cond) -> Tensor:
    return 0 * x.sum((1, 2))


def between(b: int, u: Tensor, v: Tensor, time: float) -> Tensor:
    """q(v at time | u at 0) relative to Beta(1, b), for all pairs."""
    p, q = (jacobi(0, b - 1, 1 - 2 * x, 150) for x in (u, v))
    n = torch.arange(150, dtype=F64)
    return (p * ((2 * n + b) / b * (-n * (n + b) * time / (1 + b)).exp())[:, None]).T @ q


def test_noise_and_posterior_are_right_to_first_order():
    """Mean and variance of the exact distributions, of which a step of half the size misses a quarter."""
    v, b, line = law(0.4), 2, angles(2000)
    u = (line / 2).sin().square()
    missed = {}
    for dt in (0.04, 0.02):
        time = law(0.5 - dt, 0.5)
        policy = SimplexPolicy(Prior(torch.ones(3)), 3, 1, time=time).double()
        weight = beta_density(b, u) * line.sin() / 2
        start = kernels(b, time).log_ratio[0, :, 0]
        prior = torch.from_numpy(np.interp(line, angles(), start)).exp()
        forth = weight * between(b, v, u, dt)[0]
        back = prior * forth
        x, t = torch.full((1, 1, 2), v.item(), dtype=F64), torch.tensor([1])
        for name, exact, step in (
            ("noising", forth, policy.noising(x, t)),
            ("posterior", back, policy.posterior(policy.state(torch.tensor([[2]])), x, t)),
        ):
            exact = exact / exact.sum()
            mean = exact @ u
            spread = exact @ (u - mean).square()
            missed[name, dt] = (step.mean[0, 0, 0] - mean).abs(), (step.std[0, 0, 0] ** 2 / spread - 1).abs()
            assert (mean - v).abs().item() > 5 * missed[name, dt][0]
    for name in ("noising", "posterior"):
        assert missed[name, 0.02][0] < 0.35 * missed[name, 0.04][0]
        assert missed[name, 0.02][1] < 0.65 * missed[name, 0.04][1] < 0.15


def test_a_step_goes_to_the_mean_of_the_posteriors():
    policy = simple(law(0.1, 0.2, 0.3, 0.4))
    x, t = states(4)
    step, clean = policy(x, t, unconditional(len(x))), policy.clean(x, t, unconditional(len(x)))
    every = [policy.posterior(policy.state(torch.full((len(x), 1), k)), x, t) for k in range(4)]
    mean = torch.stack([law.mean for law in every], -1)
    torch.testing.assert_close(step.mean, (mean * clean[:, :, None]).sum(-1))
    assert all(law.std.equal(step.std) for law in every)
    assert (mean.std(-1) > 0.01).any()


def test_at_the_clamp_densities_are_those_of_the_draw_and_gradients_are_finite():
    policy, other = simple(law(0.3, 0.7)), simple(law(0.6, 0.4))
    x = torch.tensor([-0.2, 0.0, 1e-7, 1e-5, 1 - 1e-5, 1.0, 1.3], dtype=F64).view(-1, 1, 1).requires_grad_()
    for number in range(1, 9):
        t = torch.full((7,), number)
        step, base = policy(x, t, unconditional(7)), other(x, t, unconditional(7))
        x_next = step.rsample()
        z = (x_next - step.mean) / step.std
        density = torch.distributions.Normal(0.0, 1.0).log_prob(z) - step.std.log()
        torch.testing.assert_close(step.log_prob(x_next), density.flatten())
        gain = policy.decode(x_next, unconditional(7)).sin().sum()
        total = step.log_prob(x_next.detach()).sum() + step.kl(base).sum() + gain
        gradients = torch.autograd.grad(total, [x, policy.network.get_parameter("logits")])
        assert all(g.isfinite().all() for g in gradients)
        assert ((x - step.mean).sign()[[0, 6]].flatten() == law(-1, 1)).all()  # what left comes back
        v = x.detach().clamp(1e-5, 1 - 1e-5)  # and is not put back
        torch.testing.assert_close(step.mean - x, policy(v, t, unconditional(7)).mean - v)


def test_cross_entropy_is_least_at_the_law_of_the_data():
    torch.manual_seed(0)
    p = law(0.6, 0.3, 0.1)
    x_0 = torch.multinomial(p, 8000, replacement=True)[:, None]

    def slope(policy) -> Tensor:
        torch.manual_seed(1)
        t = torch.randint(1, policy.steps + 1, (8000,))
        loss = policy.loss(x_0, t, unconditional(8000)).mean()
        return torch.autograd.grad(loss, policy.network.get_parameter("logits"))[0]

    assert slope(simple(p)).abs().max() < 4 * 0.5 / 8000**0.5
    assert slope(simple(law(1 / 3, 1 / 3, 1 / 3))).abs().max() > 8 * 0.5 / 8000**0.5


def test_pretraining_finds_the_law_of_the_data():
    torch.manual_seed(0)
    policy, p = simple(law(0.25, 0.25, 0.25, 0.25), length=2), law(0.5, 0.3, 0.15, 0.05)
    optimizer = torch.optim.Adam(policy.parameters(), 0.05)
    x_0 = torch.multinomial(p, 2 * 128 * 150, replacement=True).view(-1, 2)
    list(explain(policy, x_0, unconditional(len(x_0)), optimizer, steps=150, batch=128))
    found = policy.network.get_parameter("logits").detach().softmax(-1)
    assert (found - p).abs().max() < 0.06


class Companion(Gaussian):
    """log p with (eps + (mean_new - mean_old) / std)^2, as a public PPO of this chain has it."""

    def log_prob(self, x):
        old = self.mean.detach()
        return Gaussian(old + (old - self.mean), self.std).log_prob(x)


class CompanionPolicy(SimplexPolicy):
    def forward(self, x, t, cond):
        step = super().forward(x, t, cond)
        return Companion(step.mean, step.std)


def first(x: Tensor, cond) -> Tensor:
    return x[..., 0].sum(1)


def check_ascent(kind: type) -> None:
    """A policy gradient raises the logit of the token that is rewarded, and lowers the others."""
    torch.manual_seed(0)
    p = law(1 / 3, 1 / 3, 1 / 3)
    policy, reference = simple(p, kind=kind), simple(p)
    objective = Objective(first, reference.requires_grad_(False), 1e-6)
    algorithm = PPO(epochs=1, minibatches=1, normalize=False)
    losses = [loss.share * loss.value for loss in algorithm.losses(policy, objective, unconditional(3000))]
    (slope,) = torch.autograd.grad(torch.stack(losses).sum(), policy.network.get_parameter("logits"))
    assert slope[0] < -0.1 and slope[1] > 0.02 and slope[2] > 0.02


def test_a_policy_gradient_of_reversed_sign_is_caught():
    check_ascent(SimplexPolicy)
    with pytest.raises(AssertionError):
        check_ascent(CompanionPolicy)


class Network(nn.Module):
    """Starts from the uniform distribution."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 6))
        for p in self.mlp[2].parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        return self.mlp(x.flatten(1)).view(-1, 2, 3)


@pytest.mark.parametrize(
    ("algorithm", "rounds"),
    [(PPO(), 5), (Backprop(minibatches=4, recompute=False), 10)],
    ids=["ppo", "backprop"],
)
def test_the_same_algorithms_raise_the_objective(algorithm, rounds):
    """Towards alpha log E exp(r / alpha) of a reward that couples two positions, with 40 gradient steps.

    With 10 equal steps the chain is coarse, and 0.6 of the way is what its best policies reach.
    """
    torch.manual_seed(0)
    table = torch.randn(3, 3)

    def reward(x, cond):
        return ((x[:, 0] @ table.to(x)) * x[:, 1]).sum(1)

    alpha, cond = 0.5, unconditional(2000)
    policy, reference = (SimplexPolicy(Network(), 3, 2, time=schedule(10, power=1.0)) for _ in range(2))
    objective = Objective(reward, reference.requires_grad_(False), alpha)
    optimum = alpha * (table / alpha).exp().mean().log().item()
    before = objective.sample(policy, cond).stats()["objective"].item()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    list(fit(policy, objective, algorithm, [unconditional(256)] * rounds, optimizer))
    stats = objective.sample(policy, cond).stats()
    after, error = stats["objective"].item(), stats["objective_se"].item()
    assert optimum - before > 0.2
    assert before + 0.35 * (optimum - before) < after < optimum + 4 * error


@pytest.mark.parametrize(
    ("categories", "time", "message"),
    [
        (1, schedule(4), "2 to 64 categories"),
        (65, schedule(4), "2 to 64 categories"),
        (3, schedule(4).flip(0), "numbers that rise from 0.001"),
        (3, law(0.0, 1.0), "numbers that rise from 0.001"),
        (3, law(1.0), "2 or more numbers"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(categories, time, message):
    with pytest.raises(ValueError, match=message):
        SimplexPolicy(Prior(torch.ones(categories)), categories, 1, time=time)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (AdjointMatching, "adjoint matching needs Gaussian steps"),
        (NFT, r"guesses probabilities of shape \(\d+, 1, 2\) where x_0 has \(\d+, 1, 1\); use ppo"),
    ],
)
def test_what_needs_one_noise_for_all_states_or_their_mean_says_so(make, message):
    policy, algorithm = simple(law(0.5, 0.5)), make()
    algorithm.setup(policy, unconditional(8))
    with pytest.raises(ValueError, match=message):
        list(algorithm.losses(policy, Objective(first, policy, 1.0), unconditional(8)))


def test_a_path_stays_near_the_simplex_and_ends_in_corners():
    torch.manual_seed(0)
    policy = simple(law(0.2, 0.3, 0.5), steps=24, length=3)
    path = rollout(policy, unconditional(500))
    assert path.log_prob.isfinite().all()
    assert path.states.min() > -1.5 and path.states.max() < 2.5
    assert path.sample.sum(-1).eq(1).all() and set(path.sample.unique().tolist()) == {0.0, 1.0}
    decided = policy.point(path.states[-1]).amax(-1) > 0.95
    assert decided.double().mean() > 0.99


@pytest.mark.parametrize("bound", ["elbo", "step_evidence"])
def test_a_density_at_a_corner_is_not_taken_for_a_probability(bound):
    """From some x_1 a chain would seem to draw the token with more than probability 1."""
    policy, count = simple(law(0.7, 0.3)), 50
    x = torch.linspace(0, 1, count, dtype=F64).view(-1, 1, 1)
    x_0, t, cond = torch.ones_like(x), torch.ones(count, dtype=torch.long), unconditional(count)
    assert policy(x, t, cond).log_prob(x_0).max() > 1
    call = {
        "elbo": lambda: elbo(policy, x_0, cond),
        "step_evidence": lambda: step_evidence(policy, x_0, x, t, cond),
    }[bound]
    with pytest.raises(ValueError, match=r"SimplexPolicy has no bound.*descend its loss instead"):
        call()
