"""One batch, drawn alike by all processes of a run and dealt to them: what they train must be the same."""

import dataclasses

import torch

from difftilt.conditions import batch_size, concat
from difftilt.data.across import gathered
from difftilt.objective import Experience, Objective


class Dealt(Objective):
    """Draws the chains of the whole batch as one process would, and hands on its own part of them."""

    process, processes = 0, 1

    def sample(self, policy, cond, **options):
        whole = concat([{"class": part} for part in gathered(cond["class"]).chunk(self.processes)])
        torch.manual_seed(1000 + self.reward.round)
        seen = super().sample(policy, whole, **options)
        width = batch_size(whole) // self.processes
        own = torch.arange(width) + width * self.process
        return part_of(seen, own)


def part_of(seen: Experience, own: torch.Tensor) -> Experience:
    decisions, batch = seen.kl.shape
    rows = (torch.arange(decisions)[:, None] * batch + own).flatten()
    kept = None if seen.reference is None else seen.reference.rows(rows)
    return dataclasses.replace(
        seen,
        path=seen.path.chains(own),
        reward=seen.reward[own],
        log_ratio=seen.log_ratio[:, own],
        kl=seen.kl[:, own],
        reference=kept,
        valid=own if seen.valid is None else seen.valid[own],
    )


def classes(count: int) -> dict[str, torch.Tensor]:
    """Which of 8 classes, as many of each as may be, in random order."""
    return {"class": (torch.arange(count) % 8)[torch.randperm(count)]}
