"""The command `difftilt value`."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import annotated_types as at
import tyro
from rich.console import Console

from difftilt.cli.actions import choose_action
from difftilt.cli.interruption import watch
from difftilt.cli.options import parse
from difftilt.cli.runs import (
    CodeOptions,
    ScoreOptions,
    build,
    check_writable,
    recipe_of,
    score_options,
    settings_of,
    subject,
    taken,
    taking,
)
from difftilt.cli.tables import folded
from difftilt.evaluation.groups import METHOD
from difftilt.experiment.finetune import make_run, threads_of
from difftilt.experiment.fit_value import RollIn, fit_value, roll_in
from difftilt.experiment.job import Job
from difftilt.experiment.plan import plan
from difftilt.experiment.record import VALUE, read_run, restored, trust
from difftilt.settings import Count, Natural, Rate
from difftilt.training.distributed import finish, make_accelerator
from difftilt.training.settings import Schedule, Training
from difftilt.values.regression import ValueRegression

REGRESSION = ValueRegression()


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How to learn a value.

    Args:
        value: What is regressed on what.
        roll_in: Whose chains it learns from: the `reference`, or the chain `guided` by the value itself, for
            real numbers and differentiable rewards.
        rounds: Rounds of sampling and learning, at least 1.
        batch: Chains per round over all processes, at least 1.
        learning_rate: Adam's step size, in (0, 10].
        schedule: How the learning rate falls to zero over the run.
        save_every: Rounds between checkpoints, at least 1.
        evaluate: Fresh chains that the value is checked on at the end, at least 2.
        seed: Random seed, at least 0.
        out: The run folder; runs/RECIPE-value by default.
        overwrite: Delete what the folder holds of an earlier run, once this one has its first checkpoint.
    """

    value: Annotated[ValueRegression, tyro.conf.arg(name="value")] = REGRESSION
    roll_in: RollIn = "reference"
    rounds: Count = 100
    batch: Count = 256
    learning_rate: Rate = 3e-3
    schedule: Schedule = "linear"
    save_every: Count = 10
    evaluate: Annotated[int, at.Ge(2)] = 1024
    seed: Natural = 0
    out: Path | None = None
    overwrite: bool = False


def value_command(words: list[str]) -> None:
    """Learns the soft value of a recipe's pretrained model, for difftilt sample --value."""
    lines = {"fit RECIPE": (inspect.getdoc(fit_command) or "").splitlines()[0]}
    if action := choose_action("value", words, ACTIONS, "fit RECIPE [OPTIONS]", lines):
        action(words[1:])


def fit_command(words: list[str]) -> None:
    """Learns v_t = alpha log E[exp(r / alpha) | x_t] from chains, in a run folder, and checks it."""
    recipe, rest = subject("value fit", words)
    title = f"Learns the soft value of {recipe}'s pretrained model from its chains, and checks it."
    groups, program = (FitOptions, score_options(recipe)), f"difftilt value fit {recipe}"
    settings = parse(recipe_of(recipe), rest, program, *groups, without=METHOD, title=title)
    options, score = (taken(group, settings) for group in groups)
    job, regression = _job(recipe, settings, _training(options, score)), copy.deepcopy(options.value)
    policy = roll_in(options.roll_in, job.objective, regression)
    folder = options.out or Path("runs") / f"{recipe.rpartition(':')[2]}-value"
    check_writable(folder)
    accelerator = make_accelerator()
    trial = dataclasses.replace(job, policy=job.objective.reference, algorithm=options.value)
    chain = functools.partial(roll_in, options.roll_in)
    plan(trial, accelerator.num_processes, chain, process=accelerator.process_index)
    job = job.taking(threads_of(job, accelerator))
    with watch.resumable(folder), taking([folder], options.overwrite, accelerator.is_main_process):
        if accelerator.is_main_process:
            own = {"training": job.training, "value": options.value, "roll_in": options.roll_in}
            make_run(job, folder, accelerator, {"task": VALUE}, settings | own)
        accelerator.wait_for_everyone()
        _conclude(fit_value(job, regression, policy, folder, accelerator), folder)
    finish(accelerator)


def resume_value(folder: Path, options: CodeOptions, accept_changes: Collection[str]) -> None:
    """Learns on from the newest good checkpoint of a run folder."""
    made_of = trust(folder, read_run(folder), options.named)
    settings = dict(made_of["settings"])
    hints = {"value": ValueRegression, "roll_in": RollIn, "training": Training}
    regression, chain, training = (restored(name, settings.pop(name, None), hints[name]) for name in hints)
    job = _job(made_of["recipe"], settings_of(made_of["recipe"], settings), training)
    policy = roll_in(chain, job.objective, regression)
    accelerator = make_accelerator()
    _conclude(fit_value(job, regression, policy, folder, accelerator, accept_changes), folder)
    finish(accelerator)


def _job(recipe: str, settings: Mapping[str, Any], training: Training) -> Job:
    """The job of a recipe, to be trained as a value is."""
    known = inspect.signature(recipe_of(recipe)).parameters
    job = build(recipe, {**settings, "training": training} if "training" in known else settings)
    return dataclasses.replace(job, training=training)


ACTIONS = {"fit": fit_command}


def _training(options: FitOptions, score: ScoreOptions) -> Training:
    return Training(
        rounds=options.rounds,
        batch=options.batch,
        own_learning_rate=options.learning_rate,
        schedule=options.schedule,
        max_norm=1.0,  # a regression has no heavy tails to clip
        save_every=options.save_every,
        evaluate=options.evaluate,
        seed=options.seed,
        **dataclasses.asdict(score),
    )


def _conclude(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints what fresh chains say about the value, in the first process."""
    if not summary:
        return
    table = folded("t", "mean of exp((r - v) / alpha): 1 if v is right", "LINEX loss")
    for row in summary["calibration"]:
        numbers = (f"{row[name]:.3f} ± {row[f'{name}_se']:.3f}" for name in ("mean", "linex"))
        table.add_row(str(row["t"]), *numbers)
    console = Console()
    console.print(table)
    share = 100 * summary["importance_ess"]
    console.print(
        f"log Z {summary['log_z']:.3f} ± {summary['log_z_se']:.3f} by the value,"
        f" {summary['importance_log_z']:.3f} ± {summary['importance_log_z_se']:.3f} by {summary['chains']}"
        f" chains, of whose weights {share:.1f} % count",
        soft_wrap=True,
    )
    print(f"value: {folder}")
