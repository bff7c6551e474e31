"""What can be done with a job: tune it, sample from it, or only say what it would cost."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from difftilt.answers import BudgetSpent
from difftilt.data.lock import locked
from difftilt.data.owned import ADAPTER, RUN, adding, check_inside, contents
from difftilt.data.read import read_json
from difftilt.evaluation.report import write_report
from difftilt.evaluation.schema import Info
from difftilt.experiment import code
from difftilt.experiment.before import measured_before
from difftilt.experiment.identity import check_changes, identity
from difftilt.experiment.job import Job, Maker
from difftilt.experiment.plan import plan, share_of_round
from difftilt.experiment.record import describe, describe_settings, to_json, write_json
from difftilt.experiment.sample import attend, judge
from difftilt.experiment.watching import Watching
from difftilt.rewards.scoring import begin
from difftilt.training.adam import Adam
from difftilt.training.distributed import accelerator_of, largest, start_alike
from difftilt.training.load import load_policy, load_totals
from difftilt.training.seeds import SETUP, seed_round
from difftilt.training.sharding import shard
from difftilt.training.threads import using
from difftilt.training.train import Totals, train
from difftilt.training.trust_region import TrustRegion


def finetune(
    job: Job,
    folder: Path | str,
    accelerator: Accelerator | None = None,
    accept_changes: Collection[str] = (),
) -> dict[str, Any]:
    """Trains the job in a run folder, from its newest checkpoint if it has one, and writes the report.

    Args:
        folder: Made if it is missing. `difftilt report`, and if the job can be made again also `resume` and
            `sample`, understand it.
        accelerator: By default one that suits the job.
        accept_changes: Names of settings, or beginnings of names, that may differ from those of the
            checkpoint that is resumed; `[""]` stands for all.

    Returns:
        The content of summary.json; empty in all processes but the first.

    Raises:
        ValueError: If the folder holds the run of another job, or another process is at it.
        Preempted: After SIGINT, SIGTERM or SIGUSR1, once the round is done and saved.
    """
    folder, accelerator = Path(folder), accelerator or accelerator_of(job.training)
    process, processes = accelerator.process_index, accelerator.num_processes
    job = settled(job, folder, accelerator)
    locks = locked(folder) if accelerator.is_main_process else nullcontext()
    with locks, using(job.training.threads):
        _begin(job, folder, accelerator, accept_changes)
        before = measured_before(job, folder, accelerator)
        sharded = job.training.parallel == "fsdp" and processes > 1
        if sharded:
            start_alike([job.policy, job.objective.reference], accelerator)
            shard(job.policy, job.objective.reference, job.algorithm, accelerator)
        optimizer, scheduler = make_optimizer(job)
        watching = Watching(job, folder, before, accelerator.is_main_process)
        with within_budget(job, accelerator) as ended:
            for _ in train(
                folder, job.policy, job.objective, job.algorithm,
                lambda number: share_of_round(job, number, process, processes), optimizer, job.training,
                accelerator, scheduler=scheduler, target_kl=job.target_kl,
                region=make_trust_region(job, optimizer, accelerator),
                run=identity(made_of(job), folder), until=watching,
            ):  # fmt: skip
                pass
        ended += watching.ended
        said = [str(alarm) for alarm in watching.monitors.alarms]
        if accelerator.is_main_process:
            return _ended(job, folder, before, ended, said)
        if sharded:
            attend(job, folder)
        return {}


def settled(job: Job, folder: Path, accelerator: Accelerator) -> Job:
    """The job with its number of threads: the run's that a folder holds, unless it asks for another."""
    if job.training.threads is not None:
        return job
    known = read_json(folder / RUN, Info).get("threads") if (folder / RUN).exists() else None
    return job.taking(known or threads_of(job, accelerator))


def threads_of(job: Job, accelerator: Accelerator) -> int:
    """The number of threads of all processes of a job: what the first one finds, while the others wait."""
    return largest(job.threads() if accelerator.is_main_process else 1, accelerator)


def _begin(job: Job, folder: Path, accelerator: Accelerator, accept_changes: Collection[str]) -> None:
    """Makes sure that the folder is this job's, and sets the process up for it."""
    fresh = accelerator.is_main_process and _is_fresh(folder)
    if largest(int(fresh), accelerator):
        plan(job, accelerator.num_processes, process=accelerator.process_index)
    if accelerator.is_main_process:
        _claim(job, folder, accelerator)
        check_changes(folder, identity(made_of(job), folder), accept_changes, cached=job.training.cache)
    accelerator.wait_for_everyone()
    set_up(job, folder, accelerator)


def _ended(
    job: Job, folder: Path, before: Mapping[str, Any], ended: list[str], alarms: list[str]
) -> dict[str, Any]:
    """Judges what was trained, and writes the summary and the report.

    Args:
        before: The pretrained model's numbers.
        ended: Why training ended early, if it did.
        alarms: What the monitors said.
    """
    load_policy(folder, job.policy)
    row = judge(job, folder, "after")[1]
    summary = row | costs(job, load_totals(folder), row["reward_calls"]) | {"before": before}
    summary |= {"warnings": [*before["warnings"], *ended], "ended": " ".join(ended), "alarms": alarms}
    if job.target_kl is not None:
        summary["target_kl"] = job.target_kl
        write_json(folder / RUN, read_json(folder / RUN) | {"final_alpha": summary["alpha"]})
    if job.export is not None:
        with adding(folder / ADAPTER) as place:
            job.export(place, summary)
    write_json(folder / "summary.json", summary)
    write_report(folder)
    return summary


def _is_fresh(folder: Path) -> bool:
    """Whether a folder, which may be missing, waits for a run."""
    check_inside(folder)
    if (folder / RUN).exists():
        return False
    if contents(folder):
        raise ValueError(f"{folder} is not empty and holds no run; name another folder")
    return True


def _claim(job: Job, folder: Path, accelerator: Accelerator) -> None:
    """Makes the folder this job's own."""
    if not (folder / RUN).exists():
        make_run(job, folder, accelerator)
        return
    record = read_json(folder / RUN, Info)
    if job.maker is not None and not record.get("cannot_be_made_again"):
        asked = job.maker.settings
        mine = json.loads(json.dumps({name: to_json(value) for name, value in asked.items()}))
        theirs = record.get("settings", {})
        other = sorted(name for name in mine if name in theirs and mine[name] != theirs[name])
        if other:
            what, was, now = _innermost(other[0], theirs[other[0]], mine[other[0]])
            raise ValueError(
                f"{folder} holds a run with {what} {was}, but this job has {now}; name another folder, or"
                " make the job as it was"
            )


def _innermost(what: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The dotted name of what differs within a setting, and its values; of groups, their kinds."""
    if isinstance(was, dict) and isinstance(now, dict) and was.get("name") == now.get("name"):
        inner = next(key for key in {**was, **now} if was.get(key, was) != now.get(key, now))
        return _innermost(f"{what}.{inner}", was.get(inner), now.get(inner))
    was, now = (value.get("name", value) if isinstance(value, dict) else value for value in (was, now))
    return what, was, now


def make_run(
    job: Job,
    folder: Path,
    accelerator: Accelerator,
    also: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes run.json: how the job was made, and can be made again.

    Args:
        also: What else it says.
        settings: In the place of those of the job's maker.
    """
    where = (job.training.seed, accelerator.num_processes, str(accelerator.device))
    record = made_of(job, settings) | describe(*where) | {"threads": job.training.threads} | dict(also or {})
    if "code" in record or job.training.ledger is not None:
        record.setdefault("code", {})
        record["signature"] = code.sign({name: record[name] for name in ("recipe", "settings", "code")})
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RUN).exists():  # of the same run, made of code that is named anew
        record["id"] = read_json(folder / RUN, Info).get("id", record["id"])
    write_json(folder / RUN, record)


def made_of(job: Job, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a job was made: what run.json says of it, wherever it runs.

    Args:
        settings: In the place of those of the job's maker.
    """
    maker = job.maker or Maker("Python", why_not="nobody knows what made it")
    known, why_not = dict(maker.settings if settings is None else settings), maker.why_not
    try:
        record = describe_settings(maker.recipe, known)
    except TypeError as error:  # a function among the arguments
        why_not = why_not or str(error)
        known = {"algorithm": job.algorithm, "alpha": job.objective.alpha, "training": job.training}
        record = describe_settings(maker.recipe, known)
    record["reward"] = job.objective.reward.name
    return record | ({"cannot_be_made_again": why_not} if why_not else {})


def make_optimizer(job: Job) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam over the policy's trainable weights and the algorithm's own, with a rate set per round."""
    training = job.training
    tuned = [p for p in job.policy.parameters() if p.requires_grad]
    groups = [{"params": tuned, "lr": training.learning_rate}]
    own = [p for p in job.algorithm.parameters() if p.requires_grad]
    if own:
        groups.append({"params": own, "lr": training.own_learning_rate})
    optimizer = Adam(groups)

    def factor(round: int) -> float:
        left = max(1 - round / training.rounds, 0)
        falls = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return falls[training.schedule]

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_trust_region(
    job: Job, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> TrustRegion | None:
    """What moves the policy's learning rate, if it is asked for and the policy has weights to train."""
    share, tuned = job.training.trust_region, any(p.requires_grad for p in job.policy.parameters())
    return TrustRegion(optimizer, accelerator, share) if share and tuned else None


@contextmanager
def within_budget(job: Job, accelerator: Accelerator) -> Iterator[list[str]]:
    """Ends a block when the budget of the reward is spent, but for what the last evaluation needs.

    Yields:
        Why it was ended, in a sentence, if it was.
    """
    guard, budget, ended = job.objective.reward, job.training.reward_budget, []
    if budget is not None:
        guard.budget = (budget - job.judged) // accelerator.num_processes
    try:
        yield ended
    except BudgetSpent as spent:
        ended.append(
            f"training ended early: {spent}, with {job.judged} kept for the evaluation; go on with"
            " --reward-budget and a larger number"
        )
    guard.budget = budget


def set_up(job: Job, folder: Path, accelerator: Accelerator) -> None:
    """Sets the process up for a run: the name by which it asks the reward, and its networks."""
    run = read_json(folder / RUN, Info).get("id", str(folder))
    begin(job.objective.reward, f"{run}/{accelerator.process_index}")
    place(job, accelerator)


def place(job: Job, accelerator: Accelerator) -> None:
    """Moves networks to the device, after the algorithm has built its own from the run's seed."""
    seed_round(job.training.seed, SETUP)
    job.algorithm.setup(job.policy, job.cond(2))
    for module in (job.policy, job.objective.reference, job.algorithm):
        module.to(accelerator.device)


def costs(job: Job, totals: Totals, judged: int) -> dict[str, Any]:
    """What the run has spent, with `judged` reward calls in its last evaluation."""
    return {
        "reward_calls": totals.reward_calls + judged,
        "network_calls": {"forward": totals.network_calls, "backward": totals.network_calls_backward},
        "rounds": totals.rounds,
        "gradient_steps": totals.steps,
        "seconds": totals.seconds,
        **job.objective.reward.failures,
        "last_failure": job.objective.reward.last_failure,
    }
