"""Small problems with a known optimum and a known gradient of J, on which algorithms are examined."""

from dataclasses import dataclass
from typing import Any

import torch

from difftilt.exact import gaussian, tabular
from difftilt.exact.toy import AffineResidual, GaussianDenoiser
from difftilt.objective import Objective
from difftilt.policy import Policy
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import NoiseSchedule, from_betas
from difftilt.transition import Categorical

ALPHA = 0.5
F64 = torch.float64


@dataclass
class Problem:
    """The reference's J, an off-optimum policy, and the optimum of their family."""

    objective: Objective
    start: Policy
    elsewhere: Policy
    best: Policy
    optimum: float

    def exact(self, policy):
        """J with its gradient."""
        objective = self.objective
        if isinstance(policy, tabular.TabularPolicy):
            return tabular.evaluate(objective, policy).objective
        pair = (gaussian.affine(policy), gaussian.affine(objective.reference))
        return gaussian.evaluate(*pair, self.bowl, objective.alpha).objective

    @property
    def bowl(self) -> gaussian.Quadratic:
        reward = self.objective.reward.reward
        assert isinstance(reward, gaussian.Quadratic)
        return reward


def finite(states=3, steps=3):
    torch.manual_seed(0)
    score = torch.randn(states, dtype=F64)
    reference = tabular.random_chain(states, steps)
    objective = Objective(lambda x, c: score[x[:, 0]], reference.requires_grad_(False), ALPHA)
    solved = tabular.solve(objective)
    start = tabular.TabularPolicy(*(table.detach() for table in reference.tables()))
    return Problem(
        objective, start, tabular.random_chain(states, steps), solved.policy, solved.optimum.item()
    )


def affine(dimension=1, steps=3):
    torch.manual_seed(0)
    eye = torch.eye(dimension, dtype=F64)
    mean = torch.zeros(dimension, dtype=F64)
    bias = 0.3 * torch.randn(steps, dimension, dtype=F64)
    turn = 0.2 * torch.randn(steps, dimension, dimension, dtype=F64) / dimension
    chain = gaussian.AffineChain(mean, eye, 0.8 * eye + turn, bias, 0.5 * eye.expand(steps, -1, -1))
    moved = gaussian.AffineChain(mean + 0.3, 1.2 * eye, 0.9 * chain.weight, bias - 0.2, 0.8 * chain.noise)
    reward = gaussian.bowl(torch.linspace(1, 1.5, dimension, dtype=F64), 0.4 * eye)
    solved = gaussian.solve(chain, reward, ALPHA)

    def policy(chain):
        return gaussian.AffinePolicy(chain, tune_std=True, tune_initial=True)

    objective = Objective(reward, policy(chain).requires_grad_(False), ALPHA)
    best = policy(solved.policy) if dimension == 1 else policy(chain)
    return Problem(objective, policy(chain), policy(moved), best, solved.optimum.item())


def reversal():
    """A chain that reverses its noising process exactly, forgets x_T, and has its optimum in the family:
    data N(0, 1), a linear reward, and a denoiser to tune for each step."""
    torch.manual_seed(0)
    grid = from_betas(torch.tensor([0.3, 0.5, 0.7, 0.999]))
    grid = NoiseSchedule(grid.time, grid.alpha.double(), grid.sigma.double())
    reward = gaussian.linear(torch.ones(1, dtype=F64))

    def policy(tuned=True) -> Any:
        network = GaussianDenoiser(grid, torch.zeros(1), torch.eye(1))
        if tuned:
            network = AffineResidual(network, grid.sigma**2, 1, terms=grid.steps).double()
        chain = GaussianPolicy(network, grid, (1,), prediction_type="sample", noise=FixedLarge())
        return chain.requires_grad_(tuned)

    objective, elsewhere, best = Objective(reward, policy(False), ALPHA), policy(), policy()
    for p in elsewhere.network.linear.parameters():
        torch.nn.init.normal_(p, std=0.3)
    problem = Problem(objective, policy(), elsewhere, best, 0.0)
    if not BEST_REVERSAL:
        BEST_REVERSAL.update(_climbed(problem).state_dict())
    best.network.linear.load_state_dict(BEST_REVERSAL)
    problem.optimum = problem.exact(best).item()
    return problem


BEST_REVERSAL = {}  # found once, by a search that takes half a second


def _climbed(problem) -> Any:
    """The weights of the largest J."""
    linear = problem.best.network.linear
    search = torch.optim.LBFGS(linear.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=0)

    def loss():
        search.zero_grad()
        cost = -problem.exact(problem.best)
        cost.backward()
        return cost

    search.step(loss)
    return linear


PROBLEMS = {"tabular": finite, "gaussian": affine, "reversal": reversal}


class EveryPath(tabular.TabularPolicy):
    """The uniform chain, which draws every path exactly once: batch means are expectations."""

    def __init__(self, states, steps):
        uniform = torch.full((steps, states, states), 1 / states, dtype=F64)
        super().__init__(uniform[0, 0], uniform)
        self.paths = torch.cartesian_prod(*[torch.arange(states)] * (steps + 1))

    def initial(self, cond):
        return self._scripted(super().initial(cond), 0)

    def forward(self, x, t, cond):
        return self._scripted(super().forward(x, t, cond), self.steps + 1 - int(t[0]))

    def _scripted(self, step, decision):
        return Scripted(step.probs, self.paths[:, decision, None])


class Scripted(Categorical):
    def __init__(self, probs, script):
        super().__init__(probs)
        object.__setattr__(self, "script", script)

    def sample(self):
        return self.script  # type: ignore[attr-defined]


def flat(loss, policy):
    """The gradient of a loss in all trainable parameters of a policy, as one vector."""
    tuned = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, tuned, allow_unused=True)
    pairs = zip(gradients, tuned, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()
