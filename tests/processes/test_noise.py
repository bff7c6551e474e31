"""Steps keep the marginals of a flow, whatever their noise; their limits are chains that are known."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.exact import gaussian as exact
from difftilt.exact.toy import GaussianDenoiser, Velocity
from difftilt.policy import path_log_prob, rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM, MEMORYLESS, Euler, FlowSDE, Noise
from difftilt.processes.schedule import NoiseSchedule, karras, linear, shifted_flow
from difftilt.shapes import Cond

INTEGRATORS = [FlowSDE, Euler]
NOISE_LEVELS = [0.1, 0.7, MEMORYLESS, 2.5]


pytestmark = pytest.mark.usefixtures("double")


class Wavy(nn.Module):
    """Any smooth function of (x, time)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return (self.weight * x + time.double()[(...,) + (None,) * (x.ndim - 1)] / 300).sin().to(x.dtype)


def gaussian_flow(grid: NoiseSchedule, mean: Tensor, cov: Tensor) -> Velocity:
    """The flow of Gaussian data."""
    return Velocity(GaussianDenoiser(grid, mean, cov), grid)


def even_schedule(steps: int, low: float = 0.01, high: float = 1.0) -> NoiseSchedule:
    s = torch.linspace(low, high, steps + 1)
    return NoiseSchedule(torch.arange(steps + 1), 1 - s, s)


def flow(
    network: nn.Module,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    noise: Noise | None = None,
    **settings,
) -> GaussianPolicy:
    return GaussianPolicy(
        network,
        schedule,
        shape,
        noise=noise or FlowSDE(),
        prediction_type="flow_prediction",
        **settings,
    )


def every_step(policy: GaussianPolicy, x: Tensor):
    """All transitions of the chain at the same states: rows are (t, state)."""
    t = torch.arange(1, policy.steps + 1).repeat_interleave(len(x))
    return policy(x.repeat(policy.steps, *[1] * (x.ndim - 1)), t, unconditional(len(t)))


MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COV = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)


def terminal_error(steps: int, high: float, noise_level: float, integrator: type[FlowSDE | Euler]) -> Tensor:
    """Distance of x_0's covariance from alpha_0^2 COV + sigma_0^2, where x_T has its exact marginal."""
    grid, eye = even_schedule(steps, high=high), torch.eye(2)
    network = gaussian_flow(grid, MEAN, COV)
    chain = exact.affine(flow(network, grid, (2,), integrator(noise_level)))
    (a, s), (a_0, s_0) = ((grid.alpha[i], grid.sigma[i]) for i in (-1, 0))
    right = exact.AffineChain(a * MEAN, a**2 * COV + s**2 * eye, chain.weight, chain.bias, chain.noise)
    end = exact.evaluate(right, right, exact.linear(0 * MEAN), 1.0)
    torch.testing.assert_close(end.mean, a_0 * MEAN)
    return (end.cov - a_0**2 * COV - s_0**2 * eye).abs().max()


@pytest.mark.parametrize("noise_level", NOISE_LEVELS)
def test_exponential_steps_keep_the_marginals_to_first_order(noise_level):
    errors = [terminal_error(steps, 1.0, noise_level, FlowSDE) for steps in (50, 100, 200)]
    assert errors[2] < 0.08
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("noise_level", NOISE_LEVELS)
def test_euler_steps_keep_the_marginals_in_the_limit(noise_level):
    """Away from s = 1, where g is infinite."""
    coarse, fine = (terminal_error(steps, 0.95, noise_level, Euler) for steps in (100, 400))
    assert fine < 0.01
    assert fine < max(coarse / 3, 5e-4)  # at sqrt 2 the errors of first order cancel


@pytest.mark.parametrize("noise_level", [0.3, 0.7, MEMORYLESS])
def test_memory_of_the_start_fades_with_the_noise_level(noise_level):
    """Data of variance c: corr(x_T, x_0) = ((c + l_0^2) / (c + l_T^2))^(a^2 / 4), l = sigma / alpha."""
    variance, grid = torch.tensor([[2.0]]), even_schedule(300, high=0.9)
    chain = exact.affine(
        flow(gaussian_flow(grid, torch.zeros(1), variance), grid, (1,), FlowSDE(noise_level))
    )
    marginal = grid.alpha**2 * 2 + grid.sigma**2
    found = chain.weight.prod() * (marginal[-1] / marginal[0]).sqrt()
    ratio = (grid.sigma / grid.alpha) ** 2 + 2
    assert found.item() == pytest.approx(((ratio[0] / ratio[-1]) ** (noise_level**2 / 4)).item(), rel=5e-3)


@pytest.mark.parametrize("noise_level", NOISE_LEVELS)
def test_exponential_steps_forget_pure_noise_at_once_and_euler_steps_do_not(noise_level):
    grid = even_schedule(10)
    network = gaussian_flow(grid, MEAN, COV)
    first = [exact.affine(flow(network, grid, (2,), kind(noise_level))).weight[-1] for kind in INTEGRATORS]
    assert first[0].abs().max() < 1e-15
    if noise_level != MEMORYLESS:
        assert first[1].abs().max() > 0.1


def test_the_memoryless_chain_is_the_posterior_step():
    grid, x = shifted_flow(7, 3.0), torch.randn(4, 2, 3)
    memoryless = flow(Wavy(), grid, (2, 3))
    ancestral = GaussianPolicy(Wavy(), grid, (2, 3), prediction_type="flow_prediction")
    t, cond = torch.tensor([7, 4, 2, 1]), unconditional(4)
    for a, b in (
        (memoryless(x, t, cond), ancestral(x, t, cond)),
        (memoryless.initial(cond), ancestral.initial(cond)),
        (memoryless.posterior(2 * x, x, t), ancestral.posterior(2 * x, x, t)),
    ):
        torch.testing.assert_close(a.mean, b.mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(a.std, b.std, atol=1e-12, rtol=0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_little_noise_is_the_euler_step_of_the_flow(integrator):
    """The distance from x + (s_next - s) u falls as a^2, the noise as a; at s < 1."""
    grid, x = even_schedule(8, high=0.98), torch.randn(5, 2)
    errors, noises = [], []
    for noise_level in (0.05, 0.005):
        policy = flow(Wavy(), grid, (2,), integrator(noise_level))
        step = every_step(policy, x)
        t = torch.arange(1, 9).repeat_interleave(5)
        many = x.repeat(8, 1)
        u = policy.network(many, grid.time[t], {})
        ode = many + (grid.sigma[t - 1] - grid.sigma[t])[:, None] * u
        errors.append((step.mean - ode).abs().max().item())
        noises.append(step.std.max().item())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.03)
    assert noises[0] / noises[1] == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("noise_level", NOISE_LEVELS)
def test_both_integrators_are_one_sde(noise_level):
    """In small steps: variance g^2 |ds| and drift u ds + g^2 (x + (1 - s) u) / (2 s) ds."""
    x, gaps = torch.randn(3, 2), []
    for width in (1e-3, 1e-4):
        s = torch.tensor([0.6 - width, 0.6])
        grid, gap = NoiseSchedule(s, 1 - s, s), 0.0
        for kind in INTEGRATORS:
            step = every_step(flow(Wavy(), grid, (2,), kind(noise_level)), x)
            g2 = noise_level**2 * 0.6 / 0.4
            u = Wavy()(x, s[1:].expand(3), {})
            drift = u + g2 * (x + 0.4 * u) / 1.2
            gap = max(
                gap,
                (step.std**2 / (g2 * width) - 1).abs().max().item(),
                ((x - step.mean) / width - drift).abs().max().item(),
            )
        gaps.append(gap)
    assert gaps[1] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_step_of_flow_grpo(shift):
    """sde_step_with_logprob of Flow-GRPO written out, with sigmas from noise to data as it has them."""
    grid, x, a = shifted_flow(10, shift), torch.randn(4, 2), 0.7
    policy = flow(Wavy(), grid, (2,), Euler(a))
    sigmas = grid.sigma.flip(0)
    sigma_max = sigmas[1]
    for i in range(10):
        sigma, dt, t = sigmas[i], sigmas[i + 1] - sigmas[i], 10 - i
        output = policy.network(x, grid.time[t].expand(4), {})
        std_dev_t = torch.sqrt(sigma / (1 - torch.where(sigma == 1, sigma_max, sigma))) * a
        mean = (
            x * (1 + std_dev_t**2 / (2 * sigma) * dt)
            + output * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
        )
        step = policy(x, torch.full((4,), t), unconditional(4))
        torch.testing.assert_close(step.mean, mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            step.std, (std_dev_t * torch.sqrt(-dt)).expand_as(mean), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("noise_level", NOISE_LEVELS)
def test_noise_never_exceeds_that_of_the_next_level(noise_level):
    policy = flow(Wavy(), shifted_flow(9, 3.0), (2,), FlowSDE(noise_level))
    std = every_step(policy, torch.randn(1, 2)).std[:, 0]
    assert (std > 0).all() and (std <= policy.sigma[:-1]).all()
    assert std[-1] == policy.sigma[-2]  # from pure noise all of it is fresh


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("steps", [4, 1000])
def test_densities_and_kl_are_finite_in_float32(integrator, steps):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    base, tuned = (
        flow(Wavy(), shifted_flow(steps), (3,), integrator(level), tune_std=tune)
        for level, tune in ((0.7, False), (0.5, True))
    )
    path = rollout(base, unconditional(5))
    log_prob = path_log_prob(tuned, path).sum()
    kl = every_step(tuned, path.states[0]).kl(every_step(base, path.states[0]))
    (log_prob + kl.sum()).backward()
    numbers = [path.log_prob, log_prob, kl, *(p.grad for p in tuned.parameters())]
    assert all(number is not None and number.isfinite().all() for number in numbers)
    assert kl[:-5].min() > 0  # at t = T both may have forgotten x_T
    wide = flow(Wavy(), shifted_flow(steps), (3,), integrator(0.7)).double()
    narrow, exactly = every_step(base, path.states[0]), every_step(wide, path.states[0].double())
    torch.testing.assert_close(narrow.std.double(), exactly.std, rtol=1e-3, atol=0)


def test_tuned_noise_scales_the_step():
    policy = flow(Wavy(), even_schedule(4), (2,), tune_std=True)
    before = every_step(policy, torch.ones(1, 2))
    with torch.no_grad():
        policy.log_std[3] += math.log(2)
    after = every_step(policy, torch.ones(1, 2))
    torch.testing.assert_close(after.std, before.std * torch.tensor([1, 1, 2, 1])[:, None])
    torch.testing.assert_close(after.mean, before.mean)
    assert "log_std" in dict(policy.named_parameters())
    assert "log_std" not in flow(Wavy(), even_schedule(4), (2,)).state_dict()


def test_noising_and_posterior_are_two_sides_of_one_joint_law():
    """q(x_{t-1} | x_0) q(x_t | x_{t-1}) = q(x_t | x_0) q(x_{t-1} | x_t, x_0)."""
    policy = flow(Wavy(), even_schedule(6), (2,), FlowSDE(0.7))
    t = torch.arange(1, 7)
    x_0, x_next, x = torch.randn(3, 6, 2)

    def marginal(t: Tensor) -> Any:
        a, s = policy.alpha[t][:, None], policy.sigma[t][:, None]
        return exact.Gaussian(a * x_0, s.expand_as(x_0))

    down = marginal(t - 1).log_prob(x_next) + policy.noising(x_next, t).log_prob(x)
    up = marginal(t).log_prob(x) + policy.posterior(x_0, x, t).log_prob(x_next)
    torch.testing.assert_close(down, up)
    drawn = policy.corrupt(torch.full((20_000, 2), 3.0), torch.full((20_000,), 4))
    a, s = policy.alpha[4].item(), policy.sigma[4].item()
    assert drawn.mean().item() == pytest.approx(3 * a, abs=4 * s / 200)
    assert drawn.std().item() == pytest.approx(s, rel=0.02)


def test_clean_undoes_a_perfect_velocity():
    policy = flow(Wavy(), even_schedule(6), (2,))
    x_0, z, t = torch.randn(6, 2), torch.randn(6, 2), torch.arange(1, 7)
    policy.network.forward = lambda x, time, cond: z - x_0
    x = policy.alpha[t][:, None] * x_0 + policy.sigma[t][:, None] * z
    torch.testing.assert_close(policy.clean(x, t, unconditional(6)), x_0)
    torch.testing.assert_close(
        policy(x, t, unconditional(6)).mean, policy.posterior(x_0, x, t).mean
    )  # memoryless


@pytest.mark.parametrize("noise_level", [0.3, 0.7, MEMORYLESS, 2.5])
@pytest.mark.parametrize("schedule", [linear(7), shifted_flow(7, 3.0), karras(7)], ids=["vp", "flow", "ve"])
def test_exact_sde_steps_are_those_of_any_schedule(schedule, noise_level):
    """std^2 = s_next^2 (1 - rho^(a^2 / 2)), and what is kept makes up the level's noise; sqrt 2 is DDPM."""
    levels = [(schedule.alpha[k], schedule.sigma[k]) for k in range(8)]
    for (a, s), (a_next, s_next) in zip(levels[1:], levels, strict=False):
        kept, std = FlowSDE(noise_level).split(a, s, a_next, s_next)
        rho = (a * s_next / (a_next * s)) ** 2
        torch.testing.assert_close(std**2, s_next**2 * (1 - rho ** (noise_level**2 / 2)), rtol=1e-6, atol=0)
        torch.testing.assert_close(kept**2 + std**2, s_next**2)
        for own, other in zip(
            FlowSDE().split(a, s, a_next, s_next), DDIM().split(a, s, a_next, s_next), strict=True
        ):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("noise", "schedule", "message"),
    [
        (lambda: FlowSDE(0.0), shifted_flow(5), "noise_level must be > 0, but got 0.0"),
        (
            lambda: Euler(float("nan")),
            shifted_flow(5),
            "noise_level must be a finite number > 0, but got nan",
        ),
        (lambda: DDIM(0.0), shifted_flow(5), "eta must be in (0, 1], but got 0.0; without noise a step has"),
        (lambda: DDIM(1.5), shifted_flow(5), "eta must be in (0, 1], but got 1.5; without noise a step has"),
        (Euler, linear(5), "Euler noise needs a flow's schedule, alpha = 1 - sigma"),
        *(
            (kind, shifted_flow(5, sigma_min=0.0), "sigma[0] = 0.0, which makes the last step deterministic")
            for kind in (DDIM, FlowSDE, Euler)
        ),
    ],
    ids=["zero", "nan", "eta-zero", "eta-large", "schedule", "clean-ddim", "clean-sde", "clean-euler"],
)
def test_settings_without_a_density_are_refused(noise, schedule, message):
    with pytest.raises(ValueError) as caught:
        flow(Wavy(), schedule, (2,), noise())
    assert message in str(caught.value) and "\n" not in str(caught.value)
