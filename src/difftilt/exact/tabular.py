"""Finite chains: tables of probabilities, where every expectation is a finite sum."""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size, unconditional
from difftilt.exact import result
from difftilt.objective import Objective
from difftilt.policy import Policy, level
from difftilt.shapes import Cond, Kernels, Points, Scalar, State, Step, Values
from difftilt.transition import Categorical


class TabularPolicy(Policy):
    """A chain on the states 0, ..., S - 1, each step a table of softmax probabilities. Events are (1,).

    Args:
        initial: Probability of every state under x_T.
        kernels: Probability of x_{t-1} (last index) given x_t (second), for t = 1, ..., T (first).
        tune_initial: Make the distribution of x_T trainable too.
    """

    log_initial: Tensor

    def __init__(self, initial: Points, kernels: Kernels, *, tune_initial: bool = True):
        super().__init__()
        self.steps, self.symbols, _ = kernels.shape
        self.network = nn.Embedding.from_pretrained(kernels.log().flatten(0, 1), freeze=False)
        log_initial = initial.log().clone()
        if tune_initial:
            self.log_initial = nn.Parameter(log_initial)
        else:
            self.register_buffer("log_initial", log_initial)

    def initial(self, cond: Cond) -> Categorical:
        return Categorical(self.log_initial.softmax(0).expand(batch_size(cond), 1, -1))

    def forward(self, x: State, t: Step, cond: Cond) -> Categorical:
        row = (t - 1)[:, None] * self.symbols + x
        return Categorical(self.network(row).softmax(-1))

    def decode(self, x: State, cond: Cond) -> State:
        return x

    def tables(self) -> tuple[Points, Kernels]:
        """The probabilities, with gradients: of x_T, and of every step as in the constructor."""
        kernels = self.get_parameter("network.weight").view(self.steps, self.symbols, self.symbols)
        return self.log_initial.softmax(0), kernels.softmax(-1)


@dataclass(frozen=True)
class TabularEvaluation(result.Evaluation):
    """What a policy earns and costs, exactly.

    Args:
        laws: Probability of every state under x_t, for t = 0, ..., T.
    """

    laws: Values


@dataclass(frozen=True)
class Solution:
    """The optimum over all policies.

    Args:
        values: v_t of every state, for t = 0, ..., T.
        optimum: max J = alpha log Z.
        frozen: max J where the distribution of x_T stays the reference's: E[v_T].
        policy: The optimal policy; its distribution of x_T is tuned too.
        frozen_policy: The optimal policy that keeps the distribution of x_T.
    """

    values: Values
    optimum: Scalar
    frozen: Scalar
    policy: TabularPolicy
    frozen_policy: TabularPolicy


def evaluate(objective: Objective, policy: TabularPolicy) -> TabularEvaluation:
    """Exact reward, KL and distributions of all x_t, differentiable in the policy's tables."""
    reference = _reference(objective)
    x, cond = torch.arange(policy.symbols)[:, None], unconditional(policy.symbols)
    start = policy.initial(unconditional(1))
    kl, laws = start.kl(reference.initial(unconditional(1)))[0], [start.probs[0, 0]]
    for t in range(policy.steps, 0, -1):
        time = level(x, t)
        step = policy(x, time, cond)
        kl = kl + laws[-1] @ step.kl(reference(x, time, cond))
        laws.append(laws[-1] @ step.probs[:, 0])
    reward = laws[-1] @ _score(objective)
    return TabularEvaluation(reward, kl, objective.alpha, torch.stack(laws[::-1]))


@torch.no_grad()
def solve(objective: Objective) -> Solution:
    """Soft values, optimum and optimal policy, by the soft Bellman equation

    v_0 = r,   v_t(x) = alpha log sum_y p_pre(y | x) exp(v_{t-1}(y) / alpha),
    p*(y | x) = p_pre(y | x) exp((v_{t-1}(y) - v_t(x)) / alpha).
    """
    initial, kernels = _reference(objective).tables()
    alpha, v, tilted = objective.alpha, [_score(objective)], []
    for kernel in kernels:
        score = kernel.log() + v[-1] / alpha
        tilted.append(score.softmax(1))
        v.append(alpha * score.logsumexp(1))
    start = initial.log() + v[-1] / alpha
    best = torch.stack(tilted)
    return Solution(
        values=torch.stack(v),
        optimum=alpha * start.logsumexp(0),
        frozen=initial @ v[-1],
        policy=TabularPolicy(start.softmax(0), best),
        frozen_policy=TabularPolicy(initial, best, tune_initial=False),
    )


def sticky(states: int, steps: int, stay: float) -> TabularPolicy:
    """Starts uniformly; a step stays with probability `stay` in [0, 1] and else draws any state."""
    uniform = torch.full((states, states), 1 / states, dtype=torch.float64)
    kernel = stay * torch.eye(states, dtype=torch.float64) + (1 - stay) * uniform
    return TabularPolicy(uniform[0], kernel.expand(steps, -1, -1).contiguous())


def random_chain(states: int, steps: int, *, tune_initial: bool = True) -> TabularPolicy:
    """Tables of random probabilities, drawn from the global generator."""
    initial = torch.randn(states, dtype=torch.float64).softmax(0)
    kernels = torch.randn(steps, states, states, dtype=torch.float64).softmax(-1)
    return TabularPolicy(initial, kernels, tune_initial=tune_initial)


def _reference(objective: Objective) -> TabularPolicy:
    if not isinstance(objective.reference, TabularPolicy):
        kind = type(objective.reference).__name__
        raise ValueError(f"exact.tabular needs a reference that is a TabularPolicy, but got {kind}")
    return objective.reference


def _score(objective: Objective) -> Points:
    """The reward of every state."""
    reference = _reference(objective)
    return result.score(objective, reference, torch.arange(reference.symbols)[:, None])
