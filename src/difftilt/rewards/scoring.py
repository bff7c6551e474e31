"""How a reward is asked: what failures do, what is remembered, what it may cost, in how many processes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftilt.guard import Composite, Guard, OnError, Reward
from difftilt.rewards.combined import Combine, Combined, Part
from difftilt.rewards.fingerprint import fingerprint
from difftilt.rewards.ledger import Ledger, Recorded
from difftilt.rewards.ray_cluster import placed
from difftilt.rewards.workers import Workers
from difftilt.settings import Count, Natural, Positive, Share, check_settings
from difftilt.shapes import Sample

Spell = Callable[[Sample], list[str]] | None


@dataclass(frozen=True)
class Scoring:
    """How to ask a reward.

    Args:
        on_error: What a sample without a valid reward does: `stop` the run, be dropped and counted, or get
            the stated `penalty`.
        penalty: The reward of such a sample, with on-error penalty only.
        max_failures: Share of a batch, in (0, 1], above which such samples stop the run after all.
        combine: How several rewards become one: weighted sum, weighted geometric mean, or minimum.
        unasked: What a reward counts as that a gate (>=) before it kept from being asked; with gates only.
        cache: Answer a repeated sample's reward from memory; right for a deterministic black box only.
        ledger: SQLite file that keeps every answer that was paid for, so that no run and no process pays for
            it again; made if it is missing.
        reward_version: What the ledger tells versions of a reward apart by; the content of its file, and what
            it was made of, by default.
        reward_noisy: Its answers differ from ask to ask: the ledger keeps all of them, and uses an earlier
            one only where the same run goes on after a kill.
        reward_budget: Most samples that a run may ask about, both evaluations included, at least 1; training
            ends when it is spent. No limit by default.
        reward_workers: Processes that compute the reward, each sample by itself; 0 is this process, where a
            batch is scored at once. Or ray://auto, for all that the running cluster of Ray has room for; or
            ray://N, for N workers in a cluster of their own.
        reward_resources: What each worker of Ray needs, such as CPU=1 GPU=0.25; CPU=1 by default.
        reward_timeout: Seconds that a sample may take in a worker, and a batch in a command, above 0.
        reward_retries: Further tries in a worker after a time-out, a death or an exception.
        reward_memory: MiB that a worker may use, at least 1; no limit by default.
        reward_overlap: Parts in which a batch is drawn, at least 1; workers score one as the next is drawn.
    """

    on_error: OnError = "stop"
    penalty: float | None = None
    max_failures: Share = 1.0
    combine: Combine = "sum"
    unasked: float | None = None
    cache: bool = False
    ledger: Path | None = None
    reward_version: str | None = None
    reward_noisy: bool = False
    reward_budget: Count | None = None
    reward_workers: Natural | str = 0
    reward_resources: tuple[str, ...] = ()
    reward_timeout: Positive = 600.0
    reward_retries: Natural = 0
    reward_memory: Count | None = None
    reward_overlap: Count = 1

    def __post_init__(self):
        check_settings(self)
        placed(self.reward_workers, self.reward_resources)
        if self.cache and self.reward_noisy:
            raise ValueError("got a cache for a noisy reward, whose answers differ; leave one of both out")
        if self.reward_overlap > 1 and not self.reward_workers:
            raise ValueError(
                f"got reward_overlap {self.reward_overlap}, but no workers, which alone can score samples"
                " while others are drawn; give some with --reward-workers, or leave it out"
            )


def guarded(
    reward: Reward | list[Part],
    name: str = "",
    scoring: Scoring | None = None,
    spell: Spell = None,
    seed: int = 0,
) -> Guard:
    """A reward, or several, behind guards, with the ledger and the workers that were asked for.

    Args:
        reward: A function of (samples, conditions), or the parts of a combined one.
        name: What messages and the ledger call it; the function's own name by default.
        spell: Writes samples as text, for people who read the ledger.
        seed: Of what a reward draws in workers.
    """
    scoring = scoring or Scoring()
    limits = {"max_failures": scoring.max_failures, "budget": scoring.reward_budget}
    limits["overlap"] = scoring.reward_overlap
    if isinstance(reward, list):
        part_of = "stop" if scoring.on_error == "stop" else "drop"
        guards = [_guard(part.reward, part.name, scoring, spell, seed, on_error=part_of) for part in reward]
        whole = Combined(reward, scoring.combine, guards, scoring.unasked)
        return Guard(whole, name, scoring.on_error, penalty=scoring.penalty, **limits)
    return _guard(
        reward, name, scoring, spell, seed, on_error=scoring.on_error, penalty=scoring.penalty, **limits
    )


def _guard(reward: Reward, name: str, scoring: Scoring, spell: Spell, seed: int, **settings: Any) -> Guard:
    name = name or getattr(reward, "__name__", type(reward).__name__)
    inner = reward
    if scoring.reward_workers:
        limits = scoring.reward_timeout, scoring.reward_retries, scoring.reward_memory
        rank = int(os.environ.get("RANK", "0"))  # what a worker draws depends on the process that asks, too
        count = placed(scoring.reward_workers, scoring.reward_resources)
        inner = Workers(reward, count, *limits, seed=seed * 2**16 + rank)
    if scoring.ledger is not None:
        version = scoring.reward_version or fingerprint(reward, name)
        inner = Recorded(
            inner, Ledger(scoring.ledger), name, version, noisy=scoring.reward_noisy, spell=spell
        )
    remembers = scoring.cache or (scoring.ledger is not None and not scoring.reward_noisy)
    return Guard(inner, name, cache=remembers, **settings)


def begin(guard: Guard, run: str) -> None:
    """Tells the ledgers of noisy rewards which run asks, so that it finds its own answers if it goes on."""
    for each in [guard, *(guard.reward.guards.values() if isinstance(guard.reward, Composite) else ())]:
        if isinstance(each.reward, Recorded):
            each.reward.run = run
