"""The commands `difftilt finetune` and `difftilt resume`."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import annotated_types as at
import tyro
from accelerate import Accelerator
from rich.console import Console

from difftilt.cli.interruption import watch
from difftilt.cli.options import parse
from difftilt.cli.report import show_comparison
from difftilt.cli.runs import (
    CodeOptions,
    accepted,
    build,
    check_writable,
    going_on,
    load,
    recipe_of,
    subject,
    taken,
    taking,
)
from difftilt.cli.submit import REQUEUED
from difftilt.cli.tables import show_json, show_numbers
from difftilt.cli.value import resume_value
from difftilt.data.owned import RUN
from difftilt.data.read import read_json
from difftilt.evaluation.run_folder import estimate
from difftilt.evaluation.schema import Summary
from difftilt.experiment.finetune import finetune, make_run, threads_of
from difftilt.experiment.job import Job
from difftilt.experiment.plan import plan
from difftilt.experiment.record import VALUE, read_run, to_json, write_json
from difftilt.settings import Count, UsageError
from difftilt.training.distributed import accelerator_of, finish

# how often a launcher has started this line anew
AGAIN = ("TORCHELASTIC_RESTART_COUNT", REQUEUED)
SEEDS = "seeds.json"  # names the folders of one run over several seeds


class Seeds(TypedDict):
    """`seeds.json`."""

    runs: list[str]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run goes.

    Args:
        out: The run folder; runs/RECIPE-ALGORITHM by default.
        overwrite: Delete what the folder holds of an earlier run, once this one has its first checkpoint.
        dry_run: Print the resolved settings, sizes and expected calls, and stop.
        seeds: Repeat the run with so many seeds, 1 to 1000, from the given one on, each in a folder of its
            own below, and compare them.
    """

    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    seeds: Annotated[int, at.Interval(ge=1, le=1000)] = 1


def finetune_command(words: list[str]) -> None:
    """Tunes a recipe's model towards a reward, in a run folder."""
    recipe, rest = subject("finetune", words)
    settings = parse(recipe_of(recipe), rest, f"difftilt finetune {recipe}", RunOptions)
    options: RunOptions = taken(RunOptions, settings)
    job = build(recipe, settings)
    name = to_json(job.algorithm)["name"].rpartition(":")[2]
    folder = options.out or Path("runs") / f"{recipe.rpartition(':')[2]}-{name}"
    check_writable(folder)
    started_again = (
        not options.dry_run and _started_again() and any((folder / name).exists() for name in (RUN, SEEDS))
    )
    accelerator = accelerator_of(job.training)
    first = accelerator.is_main_process
    if started_again:
        jobs = {folder: job} if options.seeds == 1 else _seeded(folder, recipe, settings, options.seeds)
        with watch.resumable(folder), going_on(list(jobs), first):
            for place, each in jobs.items():
                conclude(finetune(each, place, accelerator), place)
            _end(jobs, folder, accelerator)
        return
    sizes = plan(job, accelerator.num_processes, process=accelerator.process_index)
    if options.dry_run:
        if first:
            show_json({"settings": {k: to_json(v) for k, v in settings.items()}, "plan": sizes})
        finish(accelerator)
        return
    jobs = {folder: job} if options.seeds == 1 else _seeded(folder, recipe, settings, options.seeds)
    threads = threads_of(job, accelerator)
    jobs = {place: each.taking(threads) for place, each in jobs.items()}
    if options.seeds > 1 and first and (folder / SEEDS).exists():
        seeds_of(folder)  # somebody else's would be replaced
    with watch.resumable(folder), taking(list(jobs), options.overwrite, first):
        for place, each in jobs.items() if first else ():
            make_run(each, place, accelerator)
        if options.seeds > 1 and first:
            write_json(folder / SEEDS, {"runs": [place.name for place in jobs]})
        accelerator.wait_for_everyone()
        for place, each in jobs.items():
            conclude(finetune(each, place, accelerator), place)
        _end(jobs, folder, accelerator)


def _started_again() -> bool:
    """Whether a launcher gives this line again: a process has died, or the job was preempted."""
    return any(int(os.environ.get(name) or 0) > 0 for name in AGAIN)


def _end(jobs: Mapping[Path, Job], folder: Path, accelerator: Accelerator) -> None:
    """Compares jobs that are done, if there are several."""
    if len(jobs) > 1 and accelerator.is_main_process:
        show_comparison(list(jobs), folder)
    finish(accelerator)


def _seeded(folder: Path, recipe: str, settings: dict[str, Any], count: int) -> dict[Path, Job]:
    """One job per seed, by its folder."""
    if "training" not in settings:
        raise UsageError(f"--seeds needs a recipe with an argument 'training', which {recipe} has not")
    jobs = {}
    for seed in range(settings["training"].seed, settings["training"].seed + count):
        training = dataclasses.replace(settings["training"], seed=seed)
        jobs[folder / f"seed-{seed}"] = build(recipe, settings | {"training": training})
    return jobs


def resume_command(words: list[str]) -> None:
    """Goes on with a run from its newest good checkpoint."""
    settings = parse(resume_options, words, "difftilt resume", CodeOptions)
    options: CodeOptions = taken(CodeOptions, settings)
    folder: Path = settings["run"]
    several = (folder / SEEDS).exists() and not (folder / RUN).exists()
    places = seeds_of(folder) if several else [folder]
    may = accepted(options, everything=settings["accept_changes"])
    past_alarms: bool = settings["past_alarms"]
    with watch.resumable(folder), going_on(places, first=os.environ.get("RANK", "0") == "0"):
        _resume(folder, places, options, may, settings["reward_budget"], past_alarms)


def _resume(
    folder: Path,
    places: list[Path],
    options: CodeOptions,
    accept_changes: Collection[str],
    budget: int | None,
    past_alarms: bool,
) -> None:
    if len(places) == 1 and read_run(places[0]).get("task") == VALUE:
        resume_value(places[0], options, accept_changes)
        return
    jobs = {place: _with_budget(load(place, options), budget) for place in places}
    for place in places:
        if finished := _finished(place, jobs[place], goes_on=budget is not None or past_alarms):
            jobs.pop(place)
            print(f"{place} is finished: {finished}; its report is {place / 'report.html'}")
    if not jobs:
        return
    accelerator = accelerator_of(next(iter(jobs.values())).training)
    if (options.named or budget) and accelerator.is_main_process:
        for place, job in jobs.items():
            make_run(job, place, accelerator, {"changes": read_run(place).get("changes", [])})
    for place, job in jobs.items():
        conclude(finetune(job, place, accelerator, accept_changes), place)
    if len(places) > 1 and accelerator.is_main_process:
        show_comparison(places, folder)
    finish(accelerator)


def _with_budget(job: Job, budget: int | None) -> Job:
    """The job, made again with another budget of its reward if one is given."""
    if budget is None or job.maker is None:
        return job
    training = dataclasses.replace(job.training, reward_budget=budget)
    return build(job.maker.recipe, {**job.maker.settings, "training": training})


def _finished(folder: Path, job: Job, goes_on: bool) -> str:
    """Why a run is finished; empty if it is not.

    Args:
        goes_on: Whether one that ended early is to go on.
    """
    if not all((folder / name).exists() for name in ("summary.json", "report.html")):
        return ""
    summary = read_json(folder / "summary.json", Summary)
    if (summary.get("rounds") or 0) >= job.training.rounds:
        return f"all {job.training.rounds} rounds are done"
    return "" if goes_on else summary.get("ended") or ""


def seeds_of(folder: Path) -> list[Path]:
    """The run folders of one run over several seeds."""
    names: list[str] = read_json(folder / SEEDS, Seeds)["runs"]
    if wrong := [name for name in names if not re.fullmatch(r"seed-\d+", name)] or not names:
        raise ValueError(
            f"{folder / SEEDS} must name folders of seeds, such as seed-0, but got {wrong}; was it written by"
            " difftilt?"
        )
    return [folder / name for name in names]


def resume_options(
    run: tyro.conf.Positional[Path],
    accept_changes: bool = False,
    reward_budget: Count | None = None,
    past_alarms: bool = False,
) -> None:
    """Goes on with a run from its newest good checkpoint.

    Args:
        run: The run folder, for instance runs/demo.
        accept_changes: Go on although its settings, its reward or its before.json have changed since, and
            write into run.json what has.
        reward_budget: Most samples that the run may ask about from now on in all, in the place of what it was
            started with, at least 1.
        past_alarms: Go on although a monitor (--stop-on) has ended the run.
    """


def deployed_line(summary: Mapping[str, Any]) -> str:
    """What the deployed sampler earns beside the chain, whose reward and KL are in the table."""
    now, gap = estimate(summary, "deployed_reward"), estimate(summary, "deployed_gap")
    before = estimate(summary["before"], "deployed_reward")
    return (
        f"as deployed, from the same noise: reward {before} before, {now} after, which is the chain's"
        f" {gap and gap.signed}, of {summary['deployed_samples']} samples"
    )


def conclude(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints what a run achieved: never the reward without its KL, error bars and number of calls."""
    if not summary:
        return
    show_numbers({"before": summary["before"], "after": summary})
    calls, console = summary["network_calls"], Console()
    target = f" (for a KL of {summary['target_kl']:g} nats)" if "target_kl" in summary else ""
    console.print(
        f"alpha {summary['alpha']:.4g}{target}, {summary['reward_calls']} reward calls,"
        f" {calls['forward']} forward and {calls['backward']} backward network calls,"
        f" {summary['seconds']:.0f} s",
        soft_wrap=True,
    )
    if "deployed_reward" in summary:
        console.print(deployed_line(summary), soft_wrap=True)
    for what in ("dropped", "penalised"):
        if summary.get(what):
            why = f", the last as the reward {summary['last_failure']}" if summary.get("last_failure") else ""
            line = f"{summary[what]} samples had no valid reward and were {what}{why}"
            console.print(line, markup=False, soft_wrap=True)
    for sentence in summary["warnings"]:
        console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
