"""Linear-Gaussian chains with quadratic rewards: values are quadratic, and everything is linear algebra.

x_T ~ N(m, C),   x_{t-1} | x_t ~ N(A_t x_t + b_t, Q_t),   r(x) = c + l'x - x'Px / 2
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.exact import result
from difftilt.policy import Policy, level
from difftilt.shapes import Cond, Matrices, Matrix, PerSample, Real, Scalar, State, Step, Vector, Vectors
from difftilt.transition import Gaussian, Transition, gaussian


@dataclass(frozen=True)
class Quadratic:
    """c + l'x - x'Px / 2: a reward, and every soft value that follows from it.

    Args:
        constant: c.
        linear: l.
        curvature: P, symmetric; positive where the function is concave.
    """

    constant: Scalar
    linear: Vector
    curvature: Matrix

    def __call__(self, x: Real, cond: Cond | None = None) -> PerSample:
        x = x.flatten(1)
        linear, curvature = self.linear.to(x.dtype), self.curvature.to(x.dtype)
        return self.constant + x @ linear - ((x @ curvature) * x).sum(1) / 2

    def mean(self, mean: Vector, cov: Matrix) -> Scalar:
        """Its expectation under N(mean, cov)."""
        centre = self.constant + self.linear @ mean - mean @ self.curvature @ mean / 2
        return centre - (self.curvature * cov).sum() / 2


def linear(slope: Vector) -> Quadratic:
    """The reward slope'x."""
    return Quadratic(slope.new_zeros(()), slope, torch.zeros(len(slope), len(slope)).to(slope))


def bowl(centre: Vector, curvature: Matrix) -> Quadratic:
    """The reward -(x - centre)'P(x - centre) / 2, maximal at the centre."""
    return Quadratic(-centre @ curvature @ centre / 2, curvature @ centre, curvature)


@dataclass(frozen=True)
class AffineChain:
    """A chain whose steps are affine with constant covariances. States are flattened.

    Args:
        mean: m of x_T.
        cov: C of x_T.
        weight: A_t for t = 1, ..., T.
        bias: b_t for t = 1, ..., T.
        noise: Q_t for t = 1, ..., T.
    """

    mean: Vector
    cov: Matrix
    weight: Matrices
    bias: Vectors
    noise: Matrices

    @property
    def steps(self) -> int:
        return len(self.weight)


class AffinePolicy(Policy):
    """The chain as a policy whose network is a table: the optimum to sample from, or a start to tune.

    Args:
        chain: Its covariances must be diagonal.
        tune_std: Make the standard deviations of the steps trainable.
        tune_initial: Make the distribution of x_T trainable.
    """

    def __init__(self, chain: AffineChain, *, tune_std: bool = False, tune_initial: bool = False):
        super().__init__()
        self.steps = chain.steps
        tables = {"mean": chain.mean, "weight": chain.weight, "bias": chain.bias}
        tables |= {"log_start": _log_std(chain.cov), "log_std": _log_std(chain.noise)}
        self.network = nn.ParameterDict({name: table.detach().clone() for name, table in tables.items()})
        for name, free in {"log_std": tune_std, "mean": tune_initial, "log_start": tune_initial}.items():
            self._table(name).requires_grad_(free)

    def initial(self, cond: Cond) -> Gaussian:
        mean = self._table("mean").expand(batch_size(cond), -1)
        return Gaussian(mean, self._table("log_start").exp().expand_as(mean))

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        weight, bias, log_std = (self._table(name)[t - 1] for name in ("weight", "bias", "log_std"))
        return Gaussian((weight @ x[..., None])[..., 0] + bias, log_std.exp())

    def decode(self, x: State, cond: Cond) -> State:
        return x

    def _table(self, name: str) -> Tensor:
        return self.get_parameter(f"network.{name}")


@dataclass(frozen=True)
class GaussianEvaluation(result.Evaluation):
    """What a policy earns and costs, exactly.

    Args:
        mean: Of x_0.
        cov: Of x_0.
    """

    mean: Vector
    cov: Matrix


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Args:
        values: v_t for t = 0, ..., T.
        optimum: max J, the distribution of x_T tuned too; alpha log Z unless covariances are held fixed.
        frozen: max J where the distribution of x_T stays the reference's: E[v_T].
        policy: The optimal policy.
        frozen_policy: The optimal policy that keeps the distribution of x_T.
    """

    values: Sequence[Quadratic]
    optimum: Scalar
    frozen: Scalar
    policy: AffineChain
    frozen_policy: AffineChain


def solve(reference: AffineChain, reward: Quadratic, alpha: float, *, fixed_cov: bool = False) -> Solution:
    """Soft values and the optimal policy, by a Riccati recursion from t = 0 to T. p_r is its distribution of
    x_0.

    Args:
        alpha: Weight of the KL, above 0.
        fixed_cov: Find the best policy that keeps all of the reference's covariances instead. Its means
            are the same functions of x_t; its values are lower by constants.
    """
    values, tilts = [reward], []
    for weight, bias, noise in zip(reference.weight, reference.bias, reference.noise, strict=True):
        value, gain, cov = _backup(values[-1], noise, alpha, fixed_cov)
        tilts.append((gain @ weight, gain @ (bias + noise @ values[-1].linear / alpha), cov))
        values.append(_compose(value, weight, bias))
    value, gain, cov = _backup(values[-1], reference.cov, alpha, fixed_cov)
    optimum = value(reference.mean[None])[0]
    mean = gain @ (reference.mean + reference.cov @ values[-1].linear / alpha)
    steps = [torch.stack(part) for part in zip(*tilts, strict=True)]
    return Solution(
        values=values,
        optimum=optimum,
        frozen=values[-1].mean(reference.mean, reference.cov),
        policy=AffineChain(mean, cov, *steps),
        frozen_policy=AffineChain(reference.mean, reference.cov, *steps),
    )


def evaluate(
    policy: AffineChain, reference: AffineChain, reward: Quadratic, alpha: float
) -> GaussianEvaluation:
    """Exact reward, KL and distribution of x_0, differentiable in the policy."""
    mean, cov = policy.mean, policy.cov
    kl = _kl(cov, reference.cov, mean - reference.mean, torch.zeros_like(cov))
    for t in range(policy.steps - 1, -1, -1):
        turn, shift = policy.weight[t] - reference.weight[t], policy.bias[t] - reference.bias[t]
        kl = kl + _kl(policy.noise[t], reference.noise[t], turn @ mean + shift, turn @ cov @ turn.T)
        mean = policy.weight[t] @ mean + policy.bias[t]
        cov = policy.weight[t] @ cov @ policy.weight[t].T + policy.noise[t]
    earned = reward.mean(mean, cov)
    return GaussianEvaluation(earned, kl, alpha, mean, cov)


def affine(policy: Policy, cond: Cond | None = None) -> AffineChain:
    """Reads the affine form, in float64 and with gradients, out of a policy whose steps are affine in x_t.

    Args:
        cond: One condition, if the policy asks for one.

    Raises:
        ValueError: If a step's mean is not affine in x_t, or its standard deviation depends on it.
    """
    start = _gaussian(policy.initial(result.given(cond, 1)))
    size, shape = start.mean[0].numel(), start.mean.shape[1:]
    probes = torch.cat([torch.zeros(1, size), torch.eye(size), 2 + torch.arange(size)[None]])
    steps = []
    for t in range(1, policy.steps + 1):
        x = probes.to(start.mean).view(-1, *shape)
        step = _gaussian(policy(x, level(x, t), result.given(cond, len(x))))
        mean, var = step.mean.double().flatten(1), step.std.double().flatten(1) ** 2
        weight, bias = (mean[1:-1] - mean[0]).T, mean[0]
        guess = weight @ probes[-1].double() + bias
        tolerance = 100 * torch.finfo(start.mean.dtype).eps * (1 + mean.abs().sum())
        if bool((mean[-1] - guess).abs().max() > tolerance) or not torch.allclose(var, var[:1]):
            raise ValueError(f"step {t} of the policy is not affine in x_t with a constant variance")
        steps.append((weight, bias, var[0].diag()))
    weight, bias, noise = (torch.stack(part) for part in zip(*steps, strict=True))
    mean, cov = start.mean.double().flatten(), (start.std.double().flatten() ** 2).diag()
    return AffineChain(mean, cov, weight, bias, noise)


def _backup(
    value: Quadratic, noise: Matrix, alpha: float, fixed_cov: bool
) -> tuple[Quadratic, Matrix, Matrix]:
    """One step of the recursion, for y ~ N(m, Q) under the reference and v the value of y.

    Returns:
        The value as a function of m: alpha log E exp(v(y) / alpha), or the best E v - alpha KL with
        Q kept; the gain K = (I + QP / alpha)^-1 of the optimal mean K (m + Q l / alpha); and the
        covariance of the optimal distribution of y, KQ or Q.
    """
    inverse = torch.eye(len(noise)).to(noise) + noise @ value.curvature / alpha
    sign, log_det = torch.linalg.slogdet(inverse)
    if not bool(sign > 0) or not bool(torch.linalg.eigvals(inverse).real.min() > 0):
        raise ValueError(
            f"the optimum is infinite: alpha = {alpha} is too small for the reward's convex directions"
        )
    gain = torch.linalg.inv(inverse)
    spread = (noise * value.curvature).sum() if fixed_cov else alpha * log_det
    constant = value.constant + (value.linear @ gain @ noise @ value.linear / alpha - spread) / 2
    curvature = value.curvature @ gain
    after = Quadratic(constant, gain.T @ value.linear, (curvature + curvature.T) / 2)
    return after, gain, noise if fixed_cov else gain @ noise


def _compose(value: Quadratic, weight: Matrix, bias: Vector) -> Quadratic:
    """The value of weight x + bias, as a function of x."""
    pull = value.linear - value.curvature @ bias
    return Quadratic(value(bias[None])[0], weight.T @ pull, weight.T @ value.curvature @ weight)


def _kl(cov: Matrix, base_cov: Matrix, shift: Vector, spread: Matrix) -> Scalar:
    """Expected KL in nats where the means differ by a random vector of mean `shift`, covariance `spread`."""
    ratio = torch.linalg.solve(base_cov, cov)
    cost = torch.linalg.solve(base_cov, torch.outer(shift, shift) + spread).diagonal().sum()
    return (ratio.diagonal().sum() - len(shift) - torch.linalg.slogdet(ratio)[1] + cost) / 2


def _log_std(cov: Tensor) -> Tensor:
    diagonal = cov.diagonal(dim1=-2, dim2=-1)
    if not torch.allclose(cov, diagonal.diag_embed(), atol=1e-12):
        raise ValueError("an AffinePolicy needs diagonal covariances; turn the coordinates first")
    return diagonal.log() / 2


def _gaussian(step: Transition) -> Gaussian:
    return gaussian(step, "exact.gaussian needs Gaussian steps", "use exact.tabular for a finite chain")
