"""How a run trains: declared here once, for the command line, `train` and `fit`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at

from difftilt.rewards.scoring import Scoring
from difftilt.settings import Count, Natural, NonNegative, Positive, Rate, Threads

Schedule = Literal["constant", "linear", "cosine"]
TrackerName = Literal["tensorboard", "wandb"]
Precision = Literal["no", "bf16"]
Parallel = Literal["ddp", "fsdp"]
MonitorName = Literal["collapse", "exploration", "generalisation", "updates", "kl"]


@dataclass(frozen=True)
class Training(Scoring):
    """How long and how fast to train, and how to ask the reward; the same for every recipe and algorithm.

    Args:
        rounds: Rounds of sampling and learning over all lives of a run, at least 1.
        batch: Conditions per round over all processes, at least 1.
        learning_rate: Adam's step size for the policy, in (0, 10]; with a trust region, where the search for
            the right one starts, which then is logged with every step.
        trust_region: Share that a round may move the policy by, at least 0, of the KL that the rewards ask
            for, Var(r / alpha) / 2: the step size follows, up to 0.03. 0 leaves it as it is.
        own_learning_rate: The same for an algorithm's own networks, such as a critic, in (0, 10].
        schedule: How the learning rate falls to zero over the run.
        accumulate: Losses per gradient step, at least 1; their mean is descended. A round ends on a step.
        max_norm: Length that the gradient is clipped to, above 0; by default twice the median length of the
            64 steps before.
        ema_decay: Average the weights over steps with this decay, in [0, 1), for samples; 0 is off.
        diversity_filter: What makes samples alike, of which many earn less while training: `same`, samples
            that are equal, `similar` ones, and of molecules `scaffold`; off by default. What is reported is
            the reward itself.
        diversity_bucket: Samples that are alike and lose nothing, at least 1, in each process.
        diversity_strength: After n of them, the next loses alpha times this times log(n / bucket); above 0.
        save_every: Rounds between checkpoints, at least 1; there is always one at the end.
        evaluate: Samples to judge the model by, before and after, at least 2.
        check_start: Starts x_T, at least 3, from which to measure before training what a frozen
            distribution of x_T costs, by 16 samples each; 0 is off.
        mixed_precision: Precision of the network's passes; densities stay in float32 or better.
        parallel: What several processes hold. `ddp`: all weights each, which suits adapters and small models.
            `fsdp`: a part of the weights, gradients and moments each, for full fine-tuning of large ones.
        process_timeout: Minutes that a process waits for the others, above 0; the first one judges the model
            while they wait.
        threads: CPU threads of torch, 1 to 256; by default the fewest that the model is quickest with, which
            is measured before a run begins and kept in run.json. Their number changes last digits.
        stop_on: Monitors that end the run with the round in which they speak; docs/monitors.md says what each
            watches. None by default.
        log_to: Trackers that are told every gradient step beside metrics.jsonl; none by default.
        seed: Random seed, at least 0; what round k of process p draws depends on (seed, k, p) alone.
    """

    rounds: Count = 40
    batch: Count = 256
    learning_rate: Rate = 1e-3
    trust_region: NonNegative = 0.1
    own_learning_rate: Rate = 3e-3
    schedule: Schedule = "cosine"
    accumulate: Count = 1
    max_norm: Positive | None = None
    ema_decay: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    diversity_filter: str | None = None
    diversity_bucket: Count = 25
    diversity_strength: Positive = 1.0
    save_every: Count = 1
    evaluate: Annotated[int, at.Ge(2)] = 512
    check_start: Natural = 0
    mixed_precision: Precision = "no"
    parallel: Parallel = "ddp"
    process_timeout: Positive = 60.0
    threads: Threads | None = None
    stop_on: tuple[MonitorName, ...] = ()
    log_to: tuple[TrackerName, ...] = ()
    seed: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        least = 2 * self.evaluate
        if self.reward_budget is not None and self.reward_budget <= least:
            raise ValueError(
                f"both evaluations ask about {least} samples, so a reward budget must be above {least}, but"
                f" got {self.reward_budget}; raise it, or evaluate fewer"
            )
