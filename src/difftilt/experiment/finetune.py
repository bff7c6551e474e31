"""What can be done with a job: tune it, sample from it, or only say what it would cost."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from difftilt.evaluation.diagnostics import frozen_start_warning
from difftilt.evaluation.evaluate import ScoredSamples, evaluate, write_table
from difftilt.evaluation.report import write_report
from difftilt.experiment.job import Job, Training
from difftilt.experiment.record import read_json, write_json
from difftilt.guard import Guard
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Objective
from difftilt.training.seeds import SETUP, seed_round
from difftilt.training.train import Totals, denoisers, load_alpha, load_policy, train

PLAYED = 64  # samples in the round that a plan plays


def finetune(job: Job, folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Trains the job in a run folder, from its newest checkpoint if it has one, and writes the report.

    Returns:
        The content of summary.json.
    """
    training = job.training
    share = per_process(training, accelerator)
    torch.set_num_threads(training.threads)
    place(job, accelerator)
    before = _before(job, folder, accelerator)
    optimizer, scheduler = make_optimizer(job)
    totals = train(
        folder, job.policy, job.objective, job.algorithm, lambda _: job.cond(share), optimizer, accelerator,
        rounds=training.rounds, seed=training.seed, scheduler=scheduler, ema_decay=training.ema_decay or None,
        accumulate=training.accumulate, max_norm=training.max_norm, target_kl=job.target_kl,
        save_every=training.save_every,
    )  # fmt: skip
    if not accelerator.is_main_process:
        return {}
    load_policy(folder, job.policy)
    summary = judge(job, folder, "after") | _costs(job, totals) | {"before": before}
    summary["warnings"] = before["warnings"]
    if job.target_kl is not None:
        summary["target_kl"] = job.target_kl
        write_json(folder / "run.json", read_json(folder / "run.json") | {"final_alpha": summary["alpha"]})
    write_json(folder / "summary.json", summary)
    write_report(folder)
    return summary


def trained(job: Job, folder: Path) -> Job:
    """The job with the weights, and the alpha, of a run's newest good checkpoint."""
    load_policy(folder, job.policy)
    job.objective.alpha = load_alpha(folder) or job.objective.alpha
    return job


def sample(job: Job, place: Path, count: int, seed: int) -> dict[str, Any]:
    """Draws samples from the job's policy, judges them, and leaves them beside a path.

    Returns:
        Reward, KL and J of the samples, as in summary.json.
    """
    torch.set_num_threads(job.training.threads)
    drawn = _look(job, place, count, seed)
    return drawn.summary() | {"reward_calls": job.objective.reward.calls}


def plan(job: Job) -> dict[str, Any]:
    """Sizes, and the calls that a whole run would make, found by playing a small round without the reward."""
    training, small = job.training, min(job.training.batch, PLAYED)
    algorithm = copy.deepcopy(job.algorithm)
    algorithm.setup(job.policy, job.cond(2))
    reward = Guard(lambda sample, _: sample.flatten(1).sum(1).float(), "plan")
    objective = Objective(reward, job.objective.reference, job.objective.alpha)
    counter, yields = NetworkCalls(), 0
    with counter.watching(denoisers(job.policy, objective.reference, algorithm)):
        for loss in algorithm.losses(job.policy, objective, job.cond(small)):
            loss.value.backward()
            yields += 1
    job.policy.zero_grad()
    scale = training.batch / small
    with torch.no_grad():
        state = job.policy.initial(job.cond(1)).sample()
    trainable = sum(p.numel() for p in job.policy.parameters() if p.requires_grad)
    return {
        "trainable_parameters": trainable,
        "all_parameters": sum(p.numel() for p in job.policy.parameters()),
        "state_shape": list(state.shape[1:]),
        "decisions_per_sample": job.policy.steps + 1,
        "stored_states_mib": round((job.policy.steps + 1) * training.batch * state.nbytes / 2**20, 1),
        "gradient_steps": training.rounds * math.ceil(yields / training.accumulate),
        "reward_calls": round(training.rounds * reward.calls * scale)
        + 2 * training.evaluate
        + 16 * training.check_start,
        "network_calls": {
            "forward": round(training.rounds * counter.forward * scale),
            "backward": round(training.rounds * counter.backward * scale),
        },
    }


def per_process(training: Training, accelerator: Accelerator) -> int:
    """The conditions of a round that fall to each process."""
    share = training.batch // accelerator.num_processes
    if not share:
        raise ValueError(
            f"a batch of {training.batch} cannot be shared by {accelerator.num_processes} processes; raise it"
        )
    return share


def make_optimizer(job: Job) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam over the policy's trainable weights and the algorithm's own, with a rate set per round."""
    training = job.training
    tuned = [p for p in job.policy.parameters() if p.requires_grad]
    groups = [{"params": tuned, "lr": training.learning_rate}]
    own = [p for p in job.algorithm.parameters() if p.requires_grad]
    if own:
        groups.append({"params": own, "lr": training.own_learning_rate})
    optimizer = torch.optim.Adam(groups)

    def factor(round: int) -> float:
        left = max(1 - round / training.rounds, 0)
        falls = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return falls[training.schedule]

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def judge(job: Job, folder: Path, name: str) -> dict[str, Any]:
    """Evaluates the policy, writes its samples under a name, and returns its numbers.

    The same seed serves every name, so that pictures before and after start from the same noise.
    """
    seen = _look(job, folder / "samples" / name, job.training.evaluate, job.training.seed)
    row = seen.summary()
    if job.proxy_for:
        row["proxy_for"] = list(job.proxy_for)
    if job.diversity is not None:
        row["diversity"] = job.diversity(seen.sample)
    if job.distances is not None:
        row |= {"distances": job.distances(seen.sample), "distances_note": job.distances_note}
    if job.exact is not None:
        row |= {"exact": dict(job.exact(job.policy)), "exact_note": job.exact_note}
    if job.optimum is not None:
        row["optimum"] = dict(job.optimum())
    return row


def keep(job: Job, seen: ScoredSamples, place: Path) -> None:
    """Writes pictures and numbers of samples into files whose paths begin with `place`."""
    job.draw(seen, place)
    write_table(place.with_name(f"{place.name}.csv"), seen, job.spell(seen.sample) if job.spell else None)


def _look(job: Job, place: Path, count: int, seed: int) -> ScoredSamples:
    """Evaluates the policy, and keeps its samples."""
    seen = evaluate(job.policy, job.objective, job.cond(count), job.gold, seed=seed)
    keep(job, seen, place)
    return seen


def _before(job: Job, folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The pretrained model's numbers: measured once, before the first round."""
    path = folder / "before.json"
    if accelerator.is_main_process and not path.exists():
        row = judge(job, folder, "before") | {"warnings": _warnings(job)}
        write_json(path, row | {"reward_calls": job.objective.reward.calls})
    accelerator.wait_for_everyone()
    before = read_json(path)
    if accelerator.is_main_process:
        job.objective.reward.calls = before["reward_calls"]
    return before


def _warnings(job: Job) -> list[str]:
    """What is wrong with the problem itself, in sentences, as far as it was asked to be measured."""
    starts = job.training.check_start
    if not starts:
        return []
    warning = frozen_start_warning(job.policy, job.objective, job.cond(1), starts)
    return [warning] if warning else []


def place(job: Job, accelerator: Accelerator) -> None:
    """Moves networks to the device, after the algorithm has built its own from the run's seed."""
    seed_round(job.training.seed, SETUP)
    job.algorithm.setup(job.policy, job.cond(2))
    for module in (job.policy, job.objective.reference, job.algorithm):
        module.to(accelerator.device)


def _costs(job: Job, totals: Totals) -> dict[str, Any]:
    """What the run has spent; the reward calls include those of both evaluations."""
    return {
        "reward_calls": totals.reward_calls + job.training.evaluate,
        "network_calls": {"forward": totals.network_calls, "backward": totals.network_calls_backward},
        "rounds": totals.rounds,
        "gradient_steps": totals.steps,
        "seconds": totals.seconds,
        "dropped": job.objective.reward.dropped,
    }
