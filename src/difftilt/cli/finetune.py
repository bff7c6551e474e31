"""The commands `difftilt finetune` and `difftilt resume`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from difftilt.cli.interruption import watch
from difftilt.cli.options import parse
from difftilt.cli.report import show_comparison
from difftilt.cli.runs import (
    CodeOptions,
    build,
    check_writable,
    load,
    prepare,
    recipe_of,
    subject,
    taken,
)
from difftilt.cli.tables import show_json, show_numbers
from difftilt.cli.value import resume_value
from difftilt.experiment.finetune import finetune, make_run
from difftilt.experiment.job import Job
from difftilt.experiment.plan import plan
from difftilt.experiment.record import VALUE, read_json, read_run, to_json, write_json
from difftilt.settings import Count, UsageError
from difftilt.training.distributed import finish, make_accelerator

SEEDS = "seeds.json"  # names the folders of one run over several seeds


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run goes.

    Args:
        out: The run folder; runs/RECIPE-ALGORITHM by default.
        overwrite: Delete what the folder holds of an earlier run.
        dry_run: Print the resolved settings, sizes and expected calls, and stop.
        seeds: Repeat the run with so many seeds, at least 1, from the given one on, each in a folder of its
            own below, and compare them.
    """

    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    seeds: Count = 1


def finetune_command(words: list[str]) -> None:
    """Tunes a recipe's model towards a reward, in a run folder."""
    recipe, rest = subject("finetune", words)
    settings = parse(recipe_of(recipe), rest, f"difftilt finetune {recipe}", RunOptions)
    options: RunOptions = taken(RunOptions, settings)
    job = build(recipe, settings)
    name = to_json(job.algorithm)["name"].rpartition(":")[2]
    folder = options.out or Path("runs") / f"{recipe.rpartition(':')[2]}-{name}"
    check_writable(folder)
    accelerator = make_accelerator(job.training.mixed_precision)
    first = accelerator.is_main_process
    sizes = plan(job, accelerator.num_processes) if first else {}
    if options.dry_run:
        show_json({"settings": {k: to_json(v) for k, v in settings.items()}, "plan": sizes})
        return
    jobs = {folder: job} if options.seeds == 1 else _seeded(folder, recipe, settings, options.seeds)
    with watch.resumable(folder):
        if first:
            if options.seeds > 1:
                folder.mkdir(parents=True, exist_ok=True)
            for place, each in jobs.items():
                prepare(place, options.overwrite)
                make_run(each, place, accelerator)
            if options.seeds > 1:
                write_json(folder / SEEDS, {"runs": [place.name for place in jobs]})
        accelerator.wait_for_everyone()
        for place, each in jobs.items():
            conclude(finetune(each, place, accelerator), place)
        if options.seeds > 1 and first:
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
    with watch.resumable(folder):
        _resume(folder, options)


def _resume(folder: Path, options: CodeOptions) -> None:
    if (folder / SEEDS).exists() and not (folder / "run.json").exists():
        places = [folder / Path(str(name)).name for name in read_json(folder / SEEDS).get("runs", [])]
    else:
        places = [folder]
    if len(places) == 1 and read_run(folder).get("task") == VALUE:
        resume_value(folder, options)
        return
    jobs = {place: load(place, options) for place in places}
    finished = [place for place, job in jobs.items() if _finished(place, job)]
    for place in finished:
        rounds = jobs.pop(place).training.rounds
        print(f"{place} is finished: all {rounds} rounds are done; its report is {place / 'report.html'}")
    if not jobs:
        return
    accelerator = make_accelerator(next(iter(jobs.values())).training.mixed_precision)
    if options.named and accelerator.is_main_process:
        for place, job in jobs.items():
            make_run(job, place, accelerator)
    for place, job in jobs.items():
        conclude(finetune(job, place, accelerator), place)
    if len(places) > 1 and accelerator.is_main_process:
        show_comparison(places, folder)
    finish(accelerator)


def _finished(folder: Path, job: Job) -> bool:
    if not all((folder / name).exists() for name in ("summary.json", "report.html")):
        return False
    return read_json(folder / "summary.json").get("rounds", 0) >= job.training.rounds


def resume_options(run: tyro.conf.Positional[Path]) -> None:
    """Goes on with a run from its newest good checkpoint.

    Args:
        run: The run folder, for instance runs/demo.
    """


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
    for what in ("dropped", "penalised"):
        if summary.get(what):
            console.print(f"{summary[what]} samples had no valid reward and were {what}", soft_wrap=True)
    for sentence in summary["warnings"]:
        console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
