"""A soft value is learned from chains of the pretrained model, and checked on fresh ones."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from difftilt.conditions import batch_size, on_device_of, take
from difftilt.data.lock import locked
from difftilt.experiment.finetune import costs, make_optimizer, set_up, settled, within_budget
from difftilt.experiment.identity import check_changes, identity
from difftilt.experiment.job import Job
from difftilt.experiment.plan import share_of_round
from difftilt.experiment.record import VALUE, read_run, restored, write_json
from difftilt.guidance.value_guided import ValueGuided
from difftilt.objective import Objective, Value, standard_error
from difftilt.policy import Policy, level
from difftilt.samplers.particles import effective_share, log_mean_exp
from difftilt.shapes import Cond, PerSample, Some, State, Step
from difftilt.training.load import load_algorithm, load_totals
from difftilt.training.seeds import EVALUATION, seed_round
from difftilt.training.threads import using
from difftilt.training.train import train
from difftilt.values.regression import ValueRegression, linex

RollIn = Literal["reference", "guided"]
OWN = ("value", "roll_in", "training")  # settings of the regression, and not of the problem
CHECKED = 4  # levels of noise
CHUNK = 256  # chains at a time


def fit_value(
    job: Job,
    regression: ValueRegression,
    policy: Policy,
    folder: Path,
    accelerator: Accelerator,
    accept_changes: Collection[str] = (),
) -> dict[str, Any]:
    """Learns the value of a job's pretrained model in a run folder, from its newest checkpoint if it has one.

    Args:
        policy: From whose chains; see `roll_in`.
        folder: Of the run, with its run.json.
        accept_changes: As for `finetune`.

    Returns:
        The content of summary.json.
    """
    job = settled(job, folder, accelerator)
    locks = locked(folder) if accelerator.is_main_process else nullcontext()
    with locks, using(job.training.threads):
        return _fit(job, regression, policy, folder, accelerator, accept_changes)


def _fit(
    job: Job,
    regression: ValueRegression,
    policy: Policy,
    folder: Path,
    accelerator: Accelerator,
    accept_changes: Collection[str],
) -> dict[str, Any]:
    training, objective = job.training, job.objective.unfiltered
    run = identity(read_run(folder), folder)
    if accelerator.is_main_process:
        check_changes(folder, run, accept_changes, cached=training.cache)
    accelerator.wait_for_everyone()
    process, processes = accelerator.process_index, accelerator.num_processes
    job = dataclasses.replace(job, policy=objective.reference, algorithm=regression)
    set_up(job, folder, accelerator)
    optimizer, scheduler = make_optimizer(job)
    with within_budget(job, accelerator) as ended:
        for _ in train(
            folder, policy, objective, regression,
            lambda number: share_of_round(job, number, process, processes), optimizer, training, accelerator,
            scheduler=scheduler, run=run,
        ):  # fmt: skip
            pass
    if not accelerator.is_main_process:
        return {}
    totals = load_totals(folder)
    load_algorithm(folder, regression)
    summary = check(regression.value(objective), objective, job.cond(training.evaluate), training.seed)
    summary |= costs(job, totals, training.evaluate) | {"warnings": ended}
    write_json(folder / "summary.json", summary)
    return summary


def roll_in(name: RollIn, objective: Objective, regression: ValueRegression) -> Policy:
    """The chain from which a value is learned: the reference, or the one that the value itself guides."""
    reference = objective.reference
    if name == "reference":
        return reference
    if reference.symbols:
        raise ValueError(
            "chains that a value guides by its gradient are of real numbers, but this model draws tokens;"
            " take roll-in 'reference'"
        )

    def learned(x: State, t: Step, cond: Cond) -> PerSample:
        return regression.value(objective)(x, t, cond)

    return ValueGuided(reference, objective, learned)


@torch.no_grad()
def check(value: Value, objective: Objective, cond: Cond, seed: int) -> dict[str, Any]:
    """What fresh chains of the reference say about a soft value.

    At every t, E[exp((r - v_t) / alpha)] is 1 for the soft value v_t, and log E[exp(v_T / alpha)] is log Z.
    """
    seed_round(seed, EVALUATION)
    cond = on_device_of(objective.reference, cond)
    steps, alpha = objective.reference.steps, objective.alpha
    levels = sorted({math.ceil(steps * k / CHECKED) for k in range(1, CHECKED + 1)})
    score, found = [], {t: [] for t in levels}
    for rows in torch.arange(batch_size(cond)).split(CHUNK):
        seen = objective.sample(objective.reference, take(cond, rows))
        score.append(seen.reward.double() / alpha)
        for t, values in found.items():
            x = seen.path.states[steps - t]
            values.append(value(x, level(x, t), seen.path.cond).double() / alpha)
    y, f = torch.cat(score), {t: torch.cat(values) for t, values in found.items()}
    table = [{"t": t, **_calibration(y, v)} for t, v in f.items()]
    log_z, log_z_se, _ = _log_mean(f[steps])
    importance, importance_se, ess = _log_mean(y)
    return {
        "alpha": alpha,
        "chains": len(y),
        "calibration": table,
        "log_z": log_z,
        "log_z_se": log_z_se,
        "importance_log_z": importance,
        "importance_log_z_se": importance_se,
        "importance_ess": ess,
    }


def load_value(folder: Path, job: Job, recipe: str, settings: Mapping[str, Any]) -> Value:
    """What a run of `fit_value` learned, as the soft value of a job.

    Args:
        recipe: Of the job.
        settings: That the job was made with, as in run.json.

    Raises:
        ValueError: If the value is that of another problem.
    """
    record = read_run(folder)
    if record.get("task") != VALUE:
        raise ValueError(f"{folder} holds no soft value; make one with difftilt value fit {recipe}")
    learned: Mapping[str, Any] = record["settings"]
    asked = json.loads(json.dumps(settings)) | {"recipe": recipe, "alpha": job.objective.alpha}
    for name, value in {"recipe": record["recipe"], **learned}.items():
        if name not in OWN and asked.get(name) != value:
            raise ValueError(
                f"the value in {folder} was learned for {name} {value}, but {asked.get(name)} is asked for;"
                " learn one for this, or ask for the same"
            )
    regression = restored("value", learned.get("value"), ValueRegression)
    regression.setup(job.objective.reference, job.cond(2))
    load_algorithm(folder, regression)
    return regression.value(job.objective)


def _calibration(y: Some, f: Some) -> dict[str, float]:
    """The mean of exp((r - v) / alpha), which is to be 1, and the LINEX loss, each with its error."""
    ratio, loss = (y - f).exp(), linex(y, f)
    numbers = {"mean": ratio, "linex": loss}
    means = {name: x.mean().item() for name, x in numbers.items()}
    return means | {f"{name}_se": standard_error(x).item() for name, x in numbers.items()}


def _log_mean(log_w: Some) -> tuple[float, float, float]:
    """log of the mean weight, its standard error, and the share of the weights that count."""
    mean = log_mean_exp(log_w[None])[0]
    error = standard_error((log_w - mean).exp()).item()
    return mean.item(), error, effective_share(log_w[None])[0].item()
