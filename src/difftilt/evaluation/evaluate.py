"""What a policy earns and what it costs, measured on fresh samples."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from difftilt.conditions import batch_size, concat, on_device_of, take
from difftilt.data.atomic import atomic_file
from difftilt.guard import Reward
from difftilt.objective import Experience, Objective, outcome, standard_error
from difftilt.policy import Policy
from difftilt.shapes import Cond, PerSample, Sample, State
from difftilt.training.seeds import EVALUATION, seed_round


@dataclass(frozen=True)
class ScoredSamples:
    """Samples of one policy with everything that was measured on them.

    Args:
        kl: Path KL to the reference, nats, closed form.
        gold: Rewards that training never sees.
        parts: What each reward said, where the reward is made of several; NaN where one was not asked.
        cond: What each was asked to be.
        start: x_T of each, where a chain drew them.
    """

    sample: Sample
    reward: PerSample
    kl: PerSample
    gold: Mapping[str, PerSample]
    alpha: float
    parts: Mapping[str, PerSample] = field(default_factory=dict)
    cond: Cond = field(default_factory=dict)
    start: State | None = None

    def scores(self) -> dict[str, PerSample]:
        """Reward, KL in nats, gold rewards and parts of the reward of every sample."""
        parts = {f"part {name}": answers for name, answers in self.parts.items()}
        return {"reward": self.reward, "kl_nats": self.kl, **self.gold, **parts}

    def summary(self) -> dict[str, Any]:
        """Reward, KL in nats, J and gold rewards, each with its standard error."""
        row: dict[str, Any] = {"alpha": self.alpha, "samples": len(self.reward)}
        row |= {name: x.item() for name, x in outcome(self.reward, self.kl, self.alpha).items()}
        row["gold"] = {name: x.mean().item() for name, x in self.gold.items()}
        row["gold_se"] = {name: standard_error(x).item() for name, x in self.gold.items()}
        asked = {name: x[x.isfinite()] for name, x in self.parts.items() if x.isfinite().any()}
        if asked:
            row["parts"] = {name: x.mean().item() for name, x in asked.items()}
            row["parts_se"] = {name: standard_error(x).item() for name, x in asked.items()}
            row["parts_asked"] = {name: len(x) for name, x in asked.items()}
        return row


@torch.no_grad()
def evaluate(
    policy: Policy,
    objective: Objective,
    cond: Cond,
    gold: Mapping[str, Reward],
    *,
    seed: int,
    chunk: int = 256,
) -> ScoredSamples:
    """Samples one chain per condition. Two policies evaluated with one seed start from the same noise.

    A diversity filter neither sees the samples nor takes of their rewards.

    Args:
        gold: Rewards that training never sees, by name.
        chunk: Chains sampled at a time.
    """
    seed_round(seed, EVALUATION)
    objective, cond = objective.unfiltered, on_device_of(policy, cond)
    rows = torch.arange(batch_size(cond)).split(chunk)
    seen: list[Experience] = []
    parts: dict[str, list[PerSample]] = {}
    for part in rows:
        seen.append(objective.sample(policy, take(cond, part)))
        for name, answers in objective.reward.parts.items():
            parts.setdefault(name, []).append(answers.double())
    sample = torch.cat([s.path.sample for s in seen])
    scores = {
        name: torch.cat([judge(s.path.sample, s.path.cond) for s in seen]).double()
        for name, judge in gold.items()
    }
    return ScoredSamples(
        sample,
        torch.cat([s.reward for s in seen]).double(),
        torch.cat([s.kl.sum(0) for s in seen]),
        scores,
        objective.alpha,
        {name: torch.cat(answers) for name, answers in parts.items()},
        concat([s.path.cond for s in seen]),
        torch.cat([s.path.states[0] for s in seen]),
    )


def write_table(
    path: Path,
    evaluation: ScoredSamples,
    text: Sequence[str] | None = None,
    clusters: Sequence[str | None] | None = None,
) -> None:
    """Writes one CSV row per sample: its text, its conditions if listed, its scores, and its cluster."""
    scores = evaluation.scores()
    texts = {name: x for name, x in evaluation.cond.items() if isinstance(x, list)}
    columns = texts | {name: x.tolist() for name, x in scores.items()}
    if text is not None:
        columns = {"sample": list(text), **columns}
    if clusters is not None:
        columns["cluster"] = list(clusters)
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
