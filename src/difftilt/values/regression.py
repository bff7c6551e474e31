"""Soft values learned from chains that anybody drew (Uehara et al., 2024; Li et al., 2024)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at
import torch

from difftilt.conditions import shuffled
from difftilt.guidance.hard_wired import hard_wired
from difftilt.networks.average import follow
from difftilt.objective import Algorithm, Experience, Loss, Objective, to_go
from difftilt.policy import Policy
from difftilt.settings import Count, Natural
from difftilt.shapes import Cond, Index, PerSample, Some, State, Step
from difftilt.values.network import ValueNetwork, ready

LARGEST = 30.0  # nats: beyond it an exponential goes on as a straight line
LEAST = 1e-3  # nats: rewards that differ by less tilt nothing


@dataclass(eq=False)
class ValueRegression(Algorithm):
    """Learns f = v / alpha from chains of any policy p, the one that `fit` is given, which stays as it is:

        exp(v(x_t) / alpha) = E_p[exp(y) | x_t],
        y = v(x_s) / alpha - sum_{k in (s, t]} log(p / p_pre)(x_{k-1} | x_k),   v_0 = r.

    The closer p is to p*, the less y varies: chains that are guided by the value itself teach it best, and
    those of p* teach it without any noise. Give its own parameters to the optimizer.

    Args:
        target: Where a chain is cut: `monte_carlo` at its end, s = 0, where v is the reward; `bellman` after
            one step, s = t - 1, where f itself says what is to come.
        loss: Whose minimum is f = log E_p[exp(y) | x_t]. `linex`: exp(d) - d - 1 of d = y - f. `exponential`:
            (exp(y) - exp(f))^2, which counts a state by exp(2 v / alpha). `squared`: (r / alpha - f)^2
            without the log-ratios, whose minimum is another, E_p[r | x_t] / alpha: on chains of the
            reference a lower bound of v / alpha, which is what SVDD's released code learns.
        epochs: Passes over the states of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        target_decay: f(x_s) is that of a moving average of the network with this decay, in [0, 1); 0 takes
            the network as it is. No gradient passes through it.
        width: Units in each of the network's two hidden layers, at least 1.
        octaves: Of sines and cosines of real states that the network sees beside them, at least 0; for
            values that oscillate.

    Source:
        Uehara et al. (2024), Section 6.2. https://arxiv.org/abs/2407.13734
        Li et al. (2024), Algorithms 3 and 4. https://arxiv.org/abs/2408.08252
    """

    target: Literal["monte_carlo", "bellman"] = "monte_carlo"
    loss: Literal["linex", "exponential", "squared"] = "linex"
    epochs: Count = 1
    minibatches: Count = 4
    target_decay: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    width: Count = 128
    octaves: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        self.network: ValueNetwork | None = None
        self.average: ValueNetwork | None = None

    def setup(self, policy: Policy, cond: Cond) -> None:
        self.network = ValueNetwork(policy, cond, width=self.width, octaves=self.octaves)
        if self.target_decay:
            self.average = copy.deepcopy(self.network).requires_grad_(False)

    def value(self, objective: Objective) -> "LearnedValue":
        """What was learned so far, as a soft value; it follows the training."""
        return LearnedValue(objective, ready(self.network))

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        seen = objective.sample(policy, cond)
        network = ready(self.network)
        for net in (network, self._later()):
            net.calibrate(seen.reward / seen.alpha, LEAST)
        states, stats = seen.kl[1:].numel(), seen.stats()  # x_T, ..., x_1: what x_0 is worth is known
        for _ in range(self.epochs):
            for index in shuffled(states, self.minibatches, seen.reward.device):
                rows = seen.path.transitions(index + len(seen.reward))  # their decisions come after x_T's
                y, f = self._targets(seen, index), network(rows.x, rows.t, rows.cond).double()
                yield Loss(self._cost(y, f).mean(), stats | {"error_nats": (y - f.detach()).abs().mean()})
                if self.average is not None:
                    follow(self.average, network, self.target_decay)

    @torch.no_grad()
    def _targets(self, seen: Experience, index: Index) -> Some:
        """y of rows of the flattened table of x_T, ..., x_1."""
        spent = torch.zeros_like(seen.log_ratio) if self.loss == "squared" else seen.log_ratio
        end = seen.reward.double() / seen.alpha
        if self.target == "monte_carlo":
            return (end - to_go(spent)[1:]).flatten()[index]
        rows = seen.path.transitions(index + len(end))
        later = self._later()(rows.x_next, rows.t - 1, rows.cond).double()
        return torch.where(rows.t == 1, end[index % len(end)], later) - spent[1:].flatten()[index]

    def _cost(self, y: Some, f: Some) -> Some:
        if self.loss == "squared":
            return (y - f) ** 2 / 2
        if self.loss == "linex":
            return linex(y, f)
        return exponential(y, f)

    def _later(self) -> ValueNetwork:
        """The network that values x_s."""
        return ready(self.network) if self.average is None else self.average


class LearnedValue:
    """A soft value whose network says v / alpha; v_0 = r whatever it says. It is differentiable in x.

    Args:
        objective: Its reward is v_0, its alpha the unit.
        network: Maps (x_t, t, c) to one number per row.
    """

    def __init__(self, objective: Objective, network: ValueNetwork):
        self._objective, self._network = objective, network

    def __call__(self, x: State, t: Step, cond: Cond) -> PerSample:
        return hard_wired(self._objective, self._above, x, t, cond)

    def _above(self, x: State, t: Step, cond: Cond) -> PerSample:
        return self._objective.alpha * self._network(x, t, cond)


def linex(y: Some, f: Some) -> Some:
    """exp(d) - d - 1 of d = y - f, minimal in f at log E exp(y).

    Where y = -inf, for states that the reference cannot draw, what does not depend on f is left out. Above
    d = 30 the exponential goes on as a straight line: at the minimum E exp(d) = 1, so that by Markov's
    inequality a share of exp(-30) of the targets lie there at most.
    """
    return _exp(y - f) + f - torch.where(y.isfinite(), y, 0) - 1


def exponential(y: Some, f: Some) -> Some:
    """(exp(y - m) - exp(f - m))^2, minimal in f at log E exp(y), m being the log-mean-exp of the targets.

    The loss is divided by exp(2 m): that changes neither the minimum nor how states of a minibatch compare,
    but all minibatches count alike, and nothing overflows. A state of value v has the weight
    exp(2 (v / alpha - m)): states that are worth little are hardly learned.
    """
    m = y.logsumexp(0) - torch.tensor(len(y)).log()
    m = torch.where(m.isfinite(), m, 0)
    return (_exp(y - m) - _exp(f - m)) ** 2


def _exp(x: Some) -> Some:
    """e^x, and above 30 its tangent there."""
    return x.clamp(max=LARGEST).exp() * (1 + (x - LARGEST).clamp(min=0))
