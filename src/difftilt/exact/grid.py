"""One-dimensional Gaussian chains with any reward: every integral is a sum over equally spaced points.

Such sums converge faster than any power of the spacing once it is below the smallest standard
deviation, because Gaussians are smooth and vanish at both ends. What comes out is exact to about ten
digits, and is differentiable in the policy's parameters.
"""

from dataclasses import dataclass

import torch

from difftilt.exact import result
from difftilt.objective import Objective, Value
from difftilt.policy import Policy, level
from difftilt.shapes import Cond, Kernel, PerSample, Points, Scalar, State, Step, Values
from difftilt.transition import Gaussian, Transition, gaussian

EDGE_MASS = 1e-8  # probability that may gather at an end of the axis
NEWTON_STEPS = 4


@dataclass(frozen=True)
class Axis:
    """Equally spaced points of the line.

    Args:
        low: The first point; next to no mass may lie below it.
        high: The last point; likewise.
        count: How many points, so that they lie closer than the smallest standard deviation.
    """

    low: float = -8.0
    high: float = 8.0
    count: int = 801

    @property
    def x(self) -> Points:
        return torch.linspace(self.low, self.high, self.count, dtype=torch.float64)

    @property
    def width(self) -> float:
        return (self.high - self.low) / (self.count - 1)

    def log_kernel(self, mean: PerSample, std: PerSample) -> Kernel:
        """Log-probability of every point (columns) under N(mean, std^2) (rows)."""
        if not bool(std.min() >= self.width):
            raise ValueError(
                f"the axis has a spacing of {self.width:.3g}, too wide for a standard deviation of"
                f" {std.min().item():.3g}; give it more points"
            )
        return (-(((self.x - mean[:, None]) / std[:, None]) ** 2) / 2).log_softmax(1)


@dataclass(frozen=True)
class Solution(result.Tilted):
    """The optimum over all policies.

    Args:
        values: v_t at every point, for t = 0, ..., T.
        frozen: max J where the distribution of x_T stays the reference's: E[v_T].
    """

    axis: Axis
    values: Values
    frozen: Scalar

    def value(self, x: State, t: Step, cond: Cond) -> PerSample:
        """v_t(x), linear between the points: a soft value that samplers and algorithms can be given."""
        place = ((x[:, 0] - self.axis.low) / self.axis.width).clamp(0, self.axis.count - 1)
        left = place.long().clamp(max=self.axis.count - 2)
        table = self.values.to(x.dtype)
        return table[t, left] + (place - left) * (table[t, left + 1] - table[t, left])


def evaluate(
    objective: Objective, policy: Policy, axis: Axis | None = None, cond: Cond | None = None
) -> result.TableEvaluation:
    """Exact reward, KL and distribution of x_0 of a policy whose steps are Gaussian, given one condition."""
    axis = axis or Axis()
    law, kl = _start(policy, objective.reference, axis, cond)
    for t in range(policy.steps, 0, -1):
        step, base = (_step(chain, t, axis, cond) for chain in (policy, objective.reference))
        kl = kl + law @ step.kl(base)
        law = law @ axis.log_kernel(step.mean[:, 0], step.std[:, 0]).exp()
    _check_ends(axis, law)
    reward = law @ _score(objective, policy, axis, cond)
    return result.TableEvaluation(reward, kl, objective.alpha, law)


@torch.no_grad()
def solve(objective: Objective, axis: Axis | None = None, cond: Cond | None = None) -> Solution:
    """Soft values, optimum and tilted distribution, by the soft Bellman equation

    v_0 = r,   v_t(x) = alpha log E_{y ~ p_pre(. | x)} exp(v_{t-1}(y) / alpha).
    """
    axis, alpha, reference = axis or Axis(), objective.alpha, objective.reference
    v = [_score(objective, reference, axis, cond)]
    for t in range(1, reference.steps + 1):
        step = _step(reference, t, axis, cond)
        log_kernel = axis.log_kernel(step.mean[:, 0], step.std[:, 0])
        v.append(alpha * (log_kernel + v[-1] / alpha).logsumexp(1))
    start, _ = _start(reference, reference, axis, cond)
    optimum = alpha * (start.log() + v[-1] / alpha).logsumexp(0)
    law = evaluate(objective, reference, axis, cond).law * ((v[0] - optimum) / alpha).exp()
    reward = law @ v[0]
    return Solution(optimum, reward, (reward - optimum) / alpha, law, axis, torch.stack(v), start @ v[-1])


@torch.no_grad()
def twist(
    objective: Objective, value: Value, axis: Axis | None = None, cond: Cond | None = None
) -> result.TableEvaluation:
    """Exact reward, KL and distribution of x_0 of the reference, every decision tilted by an estimate of the
    value,

    p(x_{t-1} | x_t) ~ p_pre(x_{t-1} | x_t) exp(v_{t-1}(x_{t-1}) / alpha),   v_0 = r:

    what samplers tend to that weigh more and more candidates per step. It is p* if the value is right.
    """
    axis, reference = axis or Axis(), objective.reference

    def tilted(log_kernel: Kernel, t: int) -> tuple[Kernel, PerSample]:
        """The distributions of x_t, and their KL."""
        v = _score(objective, reference, axis, cond) if t == 0 else _ask(value, reference, axis, t, cond)
        log_law = (log_kernel + v / objective.alpha).log_softmax(1)
        law = log_law.exp()
        return law, torch.where(law > 0, law * (log_law - log_kernel), 0).sum(1)

    start, _ = _start(reference, reference, axis, cond)
    law, kl = tilted(start.log()[None], reference.steps)
    for t in range(reference.steps, 0, -1):
        step = _step(reference, t, axis, cond)
        kernel, cost = tilted(axis.log_kernel(step.mean[:, 0], step.std[:, 0]), t - 1)
        kl, law = kl + law @ cost, law @ kernel
    _check_ends(axis, law[0])
    reward = law[0] @ _score(objective, reference, axis, cond)
    return result.TableEvaluation(reward, kl[0], objective.alpha, law[0])


@torch.no_grad()
def solve_fixed_std(
    objective: Objective, axis: Axis | None = None, cond: Cond | None = None
) -> tuple[Scalar, Values]:
    """The best J of a policy that keeps the reference's distribution of x_T and its standard deviations,
    and that policy's mean at every point, for t = 1, ..., T: by dynamic programming over the mean,

    V_0 = r,   V_t(x) = max_m  E_{y ~ N(m, std_t^2)} V_{t-1}(y) - alpha (m - m_pre)^2 / (2 std_t^2).
    """
    axis, alpha, reference = axis or Axis(), objective.alpha, objective.reference
    value, means = _score(objective, reference, axis, cond), []
    for t in range(1, reference.steps + 1):
        step = _step(reference, t, axis, cond)
        base, std = step.mean[:, 0], step.std[:, 0]
        if not bool((std == std[0]).all()):
            raise ValueError(f"the standard deviation of step {t} depends on x; it must be one number")
        smooth = axis.log_kernel(axis.x, std).exp() @ value
        gain = smooth - alpha * (axis.x - base[:, None]) ** 2 / (2 * std**2)
        mean = axis.x[gain.argmax(1)]  # right to within a spacing: where Newton's method starts
        for _ in range(NEWTON_STEPS):
            kernel, z = axis.log_kernel(mean, std).exp(), (axis.x - mean[:, None]) / std[0]
            slope = (kernel * z) @ value / std - alpha * (mean - base) / std**2
            curvature = (kernel * (z**2 - 1)) @ value / std**2 - alpha / std**2
            newton = torch.where(curvature < 0, -slope / curvature, 0)
            mean = mean + newton.clamp(-axis.width, axis.width)
        value = axis.log_kernel(mean, std).exp() @ value - alpha * (mean - base) ** 2 / (2 * std**2)
        means.append(mean)
    start, _ = _start(reference, reference, axis, cond)
    return start @ value, torch.stack(means)


def _start(policy: Policy, reference: Policy, axis: Axis, cond: Cond | None) -> tuple[Points, Scalar]:
    """The distribution of x_T at the points, and its KL."""
    one = result.given(cond, 1)
    start, base = _double(policy.initial(one)), _double(reference.initial(one))
    return axis.log_kernel(start.mean[:, 0], start.std[:, 0]).exp()[0], start.kl(base)[0]


def _step(policy: Policy, t: int, axis: Axis, cond: Cond | None) -> Gaussian:
    """The distributions of x_{t-1} given x_t at every point."""
    dtype = policy.initial(result.given(cond, 1)).sample().dtype  # what the policy computes in
    x = axis.x[:, None].to(dtype)
    return _double(policy(x, level(x, t), result.given(cond, axis.count)))


def _ask(value: Value, policy: Policy, axis: Axis, t: int, cond: Cond | None) -> Points:
    """The value of every point at t."""
    one = result.given(cond, 1)
    x = axis.x[:, None].to(policy.initial(one).sample().dtype)
    return value(x, level(x, t), result.given(cond, axis.count)).double()


def _check_ends(axis: Axis, law: Points) -> None:
    if not bool(law[[0, -1]].max() < EDGE_MASS):
        raise ValueError(
            f"the chain leaves the axis from {axis.low} to {axis.high}: an end holds a probability of"
            f" {law[[0, -1]].max().item():.1e}; widen the axis"
        )


def _double(step: Transition) -> Gaussian:
    step = gaussian(step, "exact.grid needs Gaussian steps", "use exact.tabular for a finite chain")
    if step.mean.shape[1:] != (1,):
        raise ValueError(
            f"exact.grid needs states of one number, but got the shape {tuple(step.mean.shape[1:])}; use"
            " exact.gaussian where everything is affine"
        )
    return Gaussian(step.mean.double(), step.std.double())


def _score(objective: Objective, policy: Policy, axis: Axis, cond: Cond | None) -> Points:
    """The reward at every point."""
    return result.score(objective, policy, axis.x[:, None], cond)
