"""Chains that somebody drew, for objectives that hold for any chain: exploration and replay."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from difftilt.conditions import batch_size, take
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Experience, Objective
from difftilt.policy import Policy, Trajectory, side_by_side
from difftilt.shapes import Cond, Index, PerSample, PerStep


@dataclass(frozen=True)
class Scored:
    """Chains with their rewards: what stays true of them once the policy has moved.

    Args:
        reward: r(x_0).
        log_reference: log p of every decision under the reference.
    """

    path: Trajectory
    reward: PerSample
    log_reference: PerStep

    def __len__(self) -> int:
        return len(self.reward)

    def chains(self, index: Index) -> "Scored":
        """Some of the chains."""
        return Scored(self.path.chains(index), self.reward[index], self.log_reference[:, index])

    def newest(self, count: int) -> "Scored":
        """The last `count` chains, or all if there are fewer."""
        return self.chains(torch.arange(max(len(self) - count, 0), len(self), device=self.reward.device))


def draw(
    objective: Objective, policy: Policy, cond: Cond, explore: float, temperature: float
) -> tuple[Experience, Scored]:
    """Samples a share `explore` of the chains from the tempered policy and the rest from the policy.

    Returns:
        What the policy itself drew, whose numbers are the policy's; and all of the chains.
    """
    rows = torch.arange(batch_size(cond))
    own, tempered = rows.tensor_split([len(rows) - round(explore * len(rows))])
    seen = objective.sample(policy, take(cond, own))
    parts = [_scored(seen)]
    if len(tempered):
        parts.append(_scored(objective.sample(Tempered(policy, temperature), take(cond, tempered))))
    return seen, join(parts)


def join(parts: Sequence[Scored]) -> Scored:
    """All chains of all parts, in their order."""
    path = side_by_side([part.path for part in parts])
    reward = torch.cat([part.reward for part in parts])
    return Scored(path, reward, torch.cat([part.log_reference for part in parts], 1))


def deal_numbers(count: int, parts: int, device: torch.device) -> Iterator[Index]:
    """Shuffled numbers below `count` in `parts`; where there are fewer than parts, some come again."""
    order = torch.randperm(count, device=device)
    if count < parts:  # samples may have been dropped, but every process takes as many steps
        order = order.repeat(-(-parts // count))[:parts]
    yield from order.tensor_split(parts)


def to_state(chains: Scored) -> dict[str, Any]:
    """Plain tensors and lists, for a checkpoint."""
    path = {field.name: getattr(chains.path, field.name) for field in fields(Trajectory)}
    return {"path": path, "reward": chains.reward, "log_reference": chains.log_reference}


def from_state(state: Mapping[str, Any]) -> Scored:
    """What `to_state` took apart."""
    return Scored(Trajectory(**state["path"]), state["reward"], state["log_reference"])


def _scored(seen: Experience) -> Scored:
    return Scored(seen.path, seen.reward, seen.log_reference)
