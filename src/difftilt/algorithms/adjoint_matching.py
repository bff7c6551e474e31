"""Adjoint matching (Domingo-Enrich et al., 2025), https://arxiv.org/abs/2409.08861."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from difftilt.algorithms.graphs import Graphed
from difftilt.algorithms.minibatches import minibatches
from difftilt.conditions import batch_size
from difftilt.objective import Algorithm, Experience, Loss, Objective
from difftilt.policy import Policy, Wrapped, decide, law, level
from difftilt.settings import Count, Share
from difftilt.shapes import Cond, State, States, Step
from difftilt.transition import Gaussian, Transition, gaussian


@dataclass(eq=False)
class AdjointMatching(Graphed, Algorithm):
    """Samples chains, carries the reward's gradient back through the *reference*'s means, and regresses
    the shift of each mean on it:

        a_0 = grad r(x_0),   a_t = (d mean_pre(x_t) / d x_t)' a_{t-1},
        L   = E sum_t alpha || (mean(x_t) - mean_pre(x_t)) / std_t - std_t a_{t-1} / alpha ||^2 / 2.

    At its fixed point E[a_t | x_t] is the gradient of the value, so this is the best policy that keeps the
    reference's standard deviations, on any Gaussian chain whose standard deviations do not depend on x_t:
    at the discrete steps as they are, and without a gradient through more than one step at a time. The
    paper's memoryless noise (DDPM, or a flow SDE of that level) makes it p_r; a distribution of x_T that is
    tuned is drawn to its own optimum like every other step.

    Args:
        share: Of the steps of each chain that are regressed on, in (0, 1]; they are drawn at random.
        epochs: Passes over the chosen rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        recompute: Hold the graph of one step of the reference at a time, and compute each again for its
            gradient; by default where the graphs of all steps would take more than a GiB.
    """

    filtered: ClassVar[bool] = False
    share: Share = 1.0
    epochs: Count = 1
    minibatches: Count = 4
    recompute: bool | None = None

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        self.graphs.measure(policy, cond)
        traced = _Traced(objective.reference)
        hold = not self.graphs.recompute(batch_size(cond) * policy.steps)
        kept = Objective(objective.reward, traced, objective.alpha) if hold else objective
        seen = kept.sample(policy, cond, gradient=True, keep=True)
        whole = len(seen.reward) == batch_size(cond)  # all samples have a reward
        adjoint = self._adjoint(seen, objective.reference, traced.means if whole else []).flatten(0, 1)
        for _ in range(self.epochs):
            for index, share in minibatches(policy, seen.path, self.minibatches, self.share):
                base = _gaussian(seen.base(index))
                step = _gaussian(decide(policy, seen.path.transitions(index)))
                shift = (step.mean - base.mean) / base.std - base.std * adjoint[index] / objective.alpha
                loss = objective.alpha * shift.square().flatten(1).sum(1).mean() / 2
                yield Loss(loss * len(seen.kl), seen.stats(), share)

    def _adjoint(self, seen: Experience, reference: Policy, traced: list[tuple[State, State]]) -> States:
        """The lean adjoint at every state, x_T to x_0: what the decision that drew the state is told.

        Args:
            traced: The states and the reference's means of their steps, if the graphs between them were held.
        """
        states, adjoint, again = seen.path.states, [cast(State, seen.slope)], _Traced(reference)
        for t in range(1, reference.steps + 1):
            if not traced:
                again(states[-1 - t], level(states[-1], t), seen.path.cond)
            x, mean = (traced or again.means).pop()
            adjoint.append(torch.autograd.grad(mean, x, adjoint[-1])[0])
        return torch.stack(adjoint[::-1])


class _Traced(Wrapped):
    """A reference that remembers the graph from each state to the mean of its step."""

    def __init__(self, reference: Policy):
        super().__init__(reference)
        self.means: list[tuple[State, State]] = []

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        if not x.is_floating_point():
            return self.base(x, t, cond)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            step = _gaussian(law(self.base, x, t, cond))
        self.means.append((x, step.mean))
        return Gaussian(step.mean.detach(), step.std.detach())


def _gaussian(step: Transition) -> Gaussian:
    need = "adjoint matching needs Gaussian steps"
    return gaussian(step, need, "use ppo or trajectory-balance for such a chain")
