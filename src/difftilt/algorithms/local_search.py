"""Local search: samples that are good are changed a little and scored again, so that rare modes are found.

Local Search GFlowNets (Kim et al., 2024), https://arxiv.org/abs/2310.02710, and Genetic-guided GFlowNets
(Kim et al., 2024), https://arxiv.org/abs/2402.05961, on the chain of a diffusion model.
"""

import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch

from difftilt.algorithms import advantages
from difftilt.algorithms.finds import Finds, log_mass
from difftilt.algorithms.graphs import Graphs
from difftilt.algorithms.minibatches import parts
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import some_rows, take
from difftilt.data.across import context, gathered
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Algorithm, Experience, Loss, Objective
from difftilt.policy import Diffusion, Policy, advance, path_log_prob, reversing, tunes_start
from difftilt.processes.likelihood import noised_path, path_evidence
from difftilt.settings import Count, NonNegative, Share
from difftilt.shapes import Cond, Index, PerSample, State

FEWEST = 8  # samples of the policy per round
REHEARSED = {"objective": 0.2, "coverage": 1.0}  # chains of finds per chain of the policy
SPREAD = 1.5  # temperature of the weights that these finds are drawn by
JUDGED = 64  # finds per round that tell how far the policy is from them


@dataclass(eq=False)
class LocalSearch(Algorithm):
    """Remembers what was scored, by weights w ~ p_pre(x_0) exp(r(x_0) / alpha): these finds stand for p_r.
    Each round first searches: some x_0 are drawn by the policy, others are neighbours of finds, which
    are chosen by w^(1 / temperature), noised by some steps and drawn again from there. Then it learns. At
    first it imitates what was found,

        L = -E_w log p(x_0)   by its bound, from x_0 noised again: KL(p_r || p), which covers modes,

    until KL(p_r || p) on the finds is below `near` and their mass hardly grows. From then on PPO learns from
    the policy's own chains, which needs no memory to be complete, and a step of trajectory balance from
    chains that the noise makes of finds, so that none is forgotten:

        L = E(delta - E_p delta)^2 / 2,   delta = log p(x_T, ..., x_0) / p_pre(x_T, ..., x_0) - r / alpha.

    If after `trial` rounds the finds lack more of p_r than the policy does, and more than `near`, the search
    ends and only PPO remains: where p_r is broad or sequences are long, own chains know more than a memory
    could hold.

    A find of tokens is held once. Its log p_pre(x_0) is estimated from chains that the noise makes of it.
    Neighbours are asked for once; what the policy draws is asked for each time, unless the reward has a
    cache. Real numbers never come twice: finds of them are weighed by how they were drawn, and neighbours are
    accepted as by Metropolis and Hastings, which is right where the chain reverses the noise. Each process
    remembers what it has found itself, and all decide together.

    Args:
        finish: How many chains of finds there are in the end: for the `objective` J a fifth of the policy's
            own, for `coverage`, which is KL(p_r || p), as many.
        proposals: Share of a round's conditions that are searched for, in (0, 1].
        own: Share of these that the policy draws, in (0, 1]; the others are neighbours of finds.
        reach: Most steps that a find is noised by, at least 1.
        heat: Tokens of neighbours are drawn from the reference's probabilities^(1 / heat), at least 1: at the
            default any that is possible is about as likely.
        temperature: Of the weights by which finds are chosen to be changed, at least 1.
        paths: Chains per estimate of p_pre(x_0), at least 1.
        trial: Rounds that are judged together, at least 1, and the least that are searched.
        near: KL in nats, at least 0, that is small: KL(p_r || p) on finds that are learned, and KL(p_r ||
            finds).
        slow: What the mass of the finds may then still grow by in `trial` rounds, in nats.
        memory: Finds that are remembered, at least 1: of tokens those of most weight, else the newest.
        minibatches: Gradient steps per round, at least 2.
    """

    filtered: ClassVar[bool] = False
    finish: Literal["objective", "coverage"] = "objective"
    proposals: Share = 0.5
    own: Share = 0.125
    reach: Count = 2
    heat: Annotated[float, at.Ge(1)] = 1000.0
    temperature: Annotated[float, at.Ge(1)] = 2.0
    paths: Count = 1
    trial: Count = 10
    near: NonNegative = 1.0
    slow: float = 0.005
    memory: Count = 100_000
    minibatches: Annotated[int, at.Ge(2)] = 8

    def __post_init__(self):
        super().__post_init__()
        self.finds: Finds | None = None
        self.history: deque[list[float]] = deque(maxlen=self.trial)
        self.searches, self.imitates = True, True
        self.on_policy = PPO(advantage="path", epochs=1, kl="reward", minibatches=self.minibatches)
        self.graphs = Graphs(None)

    def setup(self, policy: Policy, cond: Cond) -> None:
        self.graphs.measure(policy, cond)
        self.finds = Finds(policy.initial(cond).sample())

    def known(self) -> Finds:
        """What was found."""
        if self.finds is None:
            raise ValueError("local search cannot remember yet; call setup(policy, cond) before training")
        return self.finds

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        model, reference = (
            reversing(p, "local search needs", "use ppo") for p in (policy, objective.reference)
        )
        now = _Round(model, reference, objective.unfiltered, cond, self.known())
        self.graphs.measure(now.policy, cond)
        seen = self._search(now) if self.searches else None
        self.on_policy.minibatches = self.minibatches - (seen is not None)
        if seen is None:
            yield from self.on_policy.losses(policy, now.objective, cond)
            return
        judged = {"away_nats": torch.tensor(self._away), "lack_nats": torch.tensor(self._lack)}
        learn = self._imitate if self.imitates and self._away > self._lack else self._balance
        for loss in learn(now, seen):
            yield Loss(loss.value, loss.stats | judged, loss.share)

    def _search(self, now: "_Round") -> Experience:
        """Adds to what was found; returns what the policy drew for that."""
        batch, finds = len(now.context), now.finds
        rows = some_rows(batch, max(round(self.proposals * batch), FEWEST))
        own, others = rows.tensor_split([max(round(self.own * len(rows)), FEWEST)])
        new = torch.ones(batch, dtype=torch.bool)
        new[finds.has(now.context).cpu()] = False  # contexts of which nothing is known are drawn whole
        own, others = torch.cat([own, new.nonzero()[:, 0]]).unique(), others[~new[others]]
        seen = now.objective.sample(now.policy, take(now.cond, own))
        if len(others):
            (self._change if finds.counted else self._walk)(now, others)
        x_0, cond = seen.path.states[-1], seen.path.cond
        if finds.counted:
            self._count(now, x_0, cond, seen.reward)
        else:
            finds.add(x_0, finds.contexts(cond), seen.reward, -seen.log_ratio.sum(0))
        finds.forget(self.memory, now.objective.alpha)
        self.history.append(self._judge(now, seen))
        self._decide()
        return seen

    @property
    def _away(self) -> float:
        """KL(p_r || p) on the finds: the median of the last rounds."""
        return statistics.median(away for away, _, _ in self.history)

    @property
    def _lack(self) -> float:
        """KL(p_r || finds): the median of the last rounds."""
        return statistics.median(lack for _, lack, _ in self.history)

    def _decide(self) -> None:
        """Whether to go on searching, and imitating."""
        if len(self.history) < self.trial or not self.imitates:
            return
        grown = self.history[-1][2] - self.history[0][2]
        self.searches = self._lack < max(self._away, self.near)
        learned = self._away < self.near and grown < self.slow
        self.imitates = self.searches and not learned

    def _neighbours(self, now: "_Round", parent: Index, cond: Cond) -> State:
        """Finds, noised by up to `reach` steps and drawn again."""
        finds = now.finds
        drawn_by = Tempered(now.reference, self.heat) if finds.counted else now.reference
        x = finds.x_0[parent]
        t = torch.arange(len(x), device=x.device) % min(self.reach, now.policy.steps) + 1
        x = now.reference.corrupt(x, t)
        for k in range(int(t.max()), 0, -1):
            left = (t >= k).nonzero()[:, 0]
            x[left] = advance(drawn_by, x[left], k, take(cond, left)).x_next
        return x

    def _change(self, now: "_Round", rows: Index) -> None:
        """Scores neighbours that are new."""
        finds, context = now.finds, now.context[rows]
        parent = finds.draw(context, now.objective.alpha, self.temperature)
        x = self._neighbours(now, parent, take(now.cond, rows))
        new = finds.fresh(x, context)
        x, cond = x[new], take(now.cond, rows[new])
        reward = now.objective.reward(now.reference.decode(x, cond), cond) if len(x) else finds.reward[:0]
        self._count(now, x, cond, reward)

    def _count(self, now: "_Round", x_0: State, cond: Cond, reward: PerSample) -> None:
        """Adds tokens that are new and have a reward."""
        context = now.finds.contexts(cond) if len(x_0) else now.context[:0]
        rows = now.finds.fresh(x_0, context)
        rows = rows[reward[rows].isfinite()]
        if len(rows):
            base = path_evidence(now.reference, x_0[rows], take(cond, rows), self.paths)
            now.finds.add(x_0[rows], context[rows], reward[rows], base)

    def _walk(self, now: "_Round", rows: Index) -> None:
        """Adds neighbours that are accepted, or else what they came from, by the weight that is left."""
        finds, alpha, cond, context = now.finds, now.objective.alpha, take(now.cond, rows), now.context[rows]
        parent = finds.draw(context, alpha, self.temperature)
        x, before = self._neighbours(now, parent, cond), finds.reward[parent]
        reward = now.objective.reward(now.reference.decode(x, cond), cond).double()
        taken = torch.rand_like(before).log() < (reward - before) / alpha  # which of NaN is false
        x = torch.where(taken[(...,) + (None,) * (x.ndim - 1)], x, finds.x_0[parent])
        reward = torch.where(taken, reward, before)
        left = (1 - 1 / self.temperature) * finds.log_weight(alpha)[parent]
        weight = left + finds.log_mass(context, alpha, self.temperature)
        finds.add(x, context, reward, weight - reward / alpha)

    def _judge(self, now: "_Round", seen: Experience) -> list[float]:
        """KL(p_r || p) and KL(p_r || finds) by the larger of two estimates of log Z; that of the finds."""
        finds, alpha = now.finds, now.objective.alpha
        log_w = seen.reward.double() / alpha - seen.log_ratio.sum(0)
        if finds.counted:
            rows = finds.has(now.context)
            rows = rows[some_rows(len(rows), JUDGED, rows.device)]
            held = finds.log_mass(now.context[rows], alpha)
            drawn = log_mass(log_w, finds.contexts(seen.path.cond), now.context[rows], mean=True)
            log_z, find = held.maximum(drawn), finds.draw(now.context[rows], alpha)
            log_p = path_evidence(now.policy, finds.x_0[find], take(now.cond, rows), self.paths)
            away, lack = finds.log_weight(alpha)[find] - log_z - log_p, log_z - held
        else:
            weight = advantages.group_softmax(log_w, context(seen.path.cond).to(log_w.device))
            away, lack = torch.xlogy(weight, weight), torch.zeros_like(weight)
        mass = finds.log_mass(now.context[finds.has(now.context)], alpha)
        return [gathered(x).mean().item() for x in (away, lack, mass)]

    def _imitate(self, now: "_Round", seen: Experience) -> Iterator[Loss]:
        """Maximum likelihood on what was found."""
        finds, last = now.finds, now.policy.steps + tunes_start(now.policy, now.cond)
        known = finds.has(now.context)
        asked = known[torch.arange(len(now.context), device=known.device) % len(known)]
        stats = seen.stats()
        for _ in range(self.minibatches):
            find = finds.draw(now.context[asked], now.objective.alpha)
            x_0, number = finds.x_0[find], torch.arange(len(find), device=find.device)
            t = torch.randperm(len(find), device=find.device) % last + 1
            for rows, share in parts(now.policy, t * len(find) + number, x_0):
                index = rows % len(find)
                cost = now.policy.loss(x_0[index], t[index], take(now.cond, asked[index]))
                yield Loss(cost.mean() * last, stats, share)

    def _balance(self, now: "_Round", seen: Experience) -> Iterator[Loss]:
        """PPO on the policy's own chains, and a step of trajectory balance on chains of finds."""
        yield from self.on_policy.losses(now.policy, now.objective, now.cond)
        known = now.finds.has(now.context)
        count = max(round(REHEARSED[self.finish] * len(now.context)), 1)
        rows = known[some_rows(len(known), count, known.device)]
        find = now.finds.draw(now.context[rows], now.objective.alpha, SPREAD)
        path, _ = noised_path(now.reference, now.finds.x_0[find], take(now.cond, rows))
        with torch.no_grad():
            log_reference = path_log_prob(now.reference, path)
        recompute = self.graphs.recompute(log_reference.numel())
        log_p = path_log_prob(now.policy, path, recompute=recompute)
        delta = (log_p - log_reference).sum(0) - now.finds.reward[find] / now.objective.alpha
        yield Loss((delta - self._own_delta(now, seen, rows)).square().mean() / 2, seen.stats())

    def _own_delta(self, now: "_Round", seen: Experience, rows: Index) -> PerSample:
        """The mean delta of what the policy drew, for some conditions: of their context, if it drew any."""
        delta = seen.log_ratio.sum(0) - seen.reward.double() / now.objective.alpha
        same = (now.context[rows, None] == now.finds.contexts(seen.path.cond)).double()
        mean = gathered(delta).mean()
        return torch.where(same.any(1), same @ delta / same.sum(1).clamp(min=1), mean)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "finds": None if self.finds is None else self.finds.state_dict(),
            "history": list(self.history),
            "searches": self.searches,
            "imitates": self.imitates,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if state["finds"] is not None:
            self.known().load_state_dict(state["finds"])
        self.history = deque(state["history"], maxlen=self.trial)
        self.searches, self.imitates = state["searches"], state["imitates"]


@dataclass(frozen=True)
class _Round:
    """What a round is about."""

    policy: Diffusion
    reference: Diffusion
    objective: Objective
    cond: Cond
    finds: Finds

    @cached_property
    def context(self) -> Index:
        """Of each condition, as the finds number it."""
        return self.finds.contexts(self.cond)
