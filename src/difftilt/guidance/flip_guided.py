"""Guidance of tokens (Nisonoff et al., 2024): each change of one is reweighed by what it gains in value."""

from typing import Literal

import torch
from torch import Tensor

from difftilt.conditions import take
from difftilt.guidance.flip import Flip, as_flip
from difftilt.guidance.hard_wired import hard_wired
from difftilt.objective import Objective, Value
from difftilt.policy import Policy, Wrapped
from difftilt.settings import check_value
from difftilt.shapes import Cond, OneHot, Options, Probs, Some, State, Step, Where
from difftilt.transition import Categorical, Resampling, Transition, event_sum, join, one_hot, tokens

How = Literal["exact", "taylor"]


class FlipGuided(Wrapped):
    """A chain of tokens, guided by the value of the states that one change leads to.

    Where steps change one position, as masked chains do by default, position and token are drawn together,

    p(i, y | x) ~ p_pre(i, y | x) exp(v_{t-1}(x with y at i) / alpha):

    the optimal step if the value is right. Where positions change on their own, or several at a time,

    p_i(y | x) ~ p_pre,i(y | x) exp((v(x with y at i) - v(x)) / alpha),

    the optimal jump rates, to first order in the length of a step. v is v_{t-1} where the state can be
    x_{t-1}, and v_t elsewhere: a sequence that still has masks is no x_0.

    Args:
        policy: The chain that is guided, whose weights it uses.
        objective: Its reward is v_0, its alpha the temperature.
        value: An estimate of the soft value at t > 0, of states that are partly masked, too.
        how: `exact` asks the value of every change, up to length times categories of them per step. `taylor`
            asks the gradient of v_t in one-hot x_t, one pass; the value must take one-hot vectors as floats
            and be differentiable in them, as a `ValueNetwork` is.
        rows: How many states the value sees at a time; all by default.

    Source:
        Nisonoff et al. (2024), Eqs. 2 and 8. https://arxiv.org/abs/2406.01572
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        value: Value,
        *,
        how: How = "exact",
        rows: int | None = None,
    ):
        super().__init__(policy)
        check_value("how", how, How)
        self.objective, self.value, self.how, self.rows = objective, value, how, rows

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        step = self.base(x, t, cond)
        if isinstance(step, Categorical):
            stuck = step.probs.gather(-1, tokens(x)[..., None])[..., 0] == 0
            others_stay = event_sum(stuck.float()).view(-1, *(1,) * (stuck.ndim - 1)) == stuck.float()
            return Categorical(self._each(step.probs, x, t, others_stay, cond))
        if not isinstance(step, Resampling):
            raise ValueError(
                f"one-flip guidance needs steps that draw tokens, but got {type(step).__name__}; use"
                " guidance by the gradient of a value, svdd or smc"
            )
        one = step.count == 1
        if one.all():
            joint = as_flip(step).joint
            gain = self._gain(joint > 0, x, t, step.eligible > 0, cond)
            return Flip(x, _tilted(joint.flatten(1), gain.flatten(1)).view_as(joint))
        if one.any():
            parts = [rows.nonzero()[:, 0] for rows in (one, ~one)]
            return join([(rows, self(x[rows], t[rows], take(cond, rows))) for rows in parts])
        never = torch.zeros_like(step.eligible, dtype=torch.bool)
        return Resampling(x, step.eligible, self._each(step.probs, x, t, never, cond), step.count)

    def _each(self, probs: Probs, x: State, t: Step, possible: Where, cond: Cond) -> Probs:
        """Every position's distribution by itself."""
        options = probs > 0
        gain = self._gain(options & (options.sum(-1, keepdim=True) > 1), x, t, possible, cond)
        return _tilted(probs, gain)

    @torch.no_grad()
    def _gain(self, ask: Options, x: State, t: Step, possible: Where, cond: Cond) -> Tensor:
        """v / alpha of each change, up to a constant per row; NaN where it is not asked or a reward failed.

        Args:
            possible: Whether the state with a new token there can be x_{t-1}.
        """
        x = tokens(x)
        if self.how == "taylor":
            slope = self._slope(one_hot(x, self.symbols).float(), t, cond)
            return (slope - slope.gather(-1, x[..., None])).where(ask, torch.nan)
        same = ask & (one_hot(x, self.symbols) > 0)
        changes, stays = (ask & ~same).nonzero(), same.flatten(1).any(1).nonzero()[:, 0]
        rows, places, new = changes[:, 0], tuple(changes[:, 1:-1].T), changes[:, -1]
        changed = x[rows]
        changed[torch.arange(len(rows), device=x.device), *places] = new
        level = t - possible.flatten(1).all(1).int()  # of x itself
        v = self._ask(
            torch.cat([changed, x[stays]]),
            torch.cat([t[rows] - possible[rows, *places].int(), level[stays]]),
            take(cond, torch.cat([rows, stays])),
        )
        gain = torch.full(ask.shape, torch.nan, dtype=torch.float64, device=x.device)
        gain[ask & ~same] = v[: len(rows)]
        own = gain.new_zeros(len(x)).index_put((stays,), v[len(rows) :])
        return gain.where(~same, own.view(-1, *(1,) * x.ndim))

    def _ask(self, x: State, t: Step, cond: Cond) -> Some:
        """v / alpha in nats, in parts that fit into memory."""
        if len(x) == 0:
            return torch.zeros(0, dtype=torch.float64, device=x.device)
        parts = torch.arange(len(x), device=x.device).split(self.rows or len(x))
        v = [hard_wired(self.objective, self.value, x[part], t[part], take(cond, part)) for part in parts]
        v = torch.cat(v).double() / self.objective.alpha
        return v.where(v < torch.inf, torch.nan)

    def _slope(self, x: OneHot, t: Step, cond: Cond) -> OneHot:
        """grad v_t / alpha at one-hot vectors."""
        with torch.enable_grad():
            v = self.value(x.requires_grad_(), t, cond)
            if not v.requires_grad:
                raise ValueError(
                    "taylor guidance needs a value with a gradient in one-hot vectors, but this one has none;"
                    " give a value network, or take how='exact'"
                )
            return torch.autograd.grad(v.sum(), x)[0].double() / self.objective.alpha


def _tilted(p: Probs, gain: Tensor) -> Probs:
    """The distribution p exp(gain) / Z of the last axis; p where no gain is known."""
    p = p.double()
    known = (p > 0) & ~gain.isnan()
    if (known.any(-1) & (gain.where(known, -torch.inf) == -torch.inf).all(-1)).any():
        raise ValueError(
            "the value is -inf at every state that one change leads to, as tables of exact values are where"
            " a chain never is; draw one position per step, or give a value that knows such states"
        )
    top = gain.where(known, -torch.inf).amax(-1, keepdim=True)
    weight = (gain - top).exp().where(known, 0)
    total = (p * weight).sum(-1, keepdim=True)
    return torch.where(total > 0, p * weight / total.where(total > 0, 1), p)
