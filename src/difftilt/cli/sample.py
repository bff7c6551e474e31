"""The command `difftilt sample`."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import annotated_types as at
import torch
import tyro
from rich.console import Console

from difftilt.cli.interruption import watch
from difftilt.cli.options import parse
from difftilt.cli.runs import (
    RECIPES,
    CodeOptions,
    bring_back,
    build,
    for_sampling,
    load,
    recipe_of,
    score_options,
    taken,
)
from difftilt.cli.tables import plain, show_json, show_numbers
from difftilt.data.owned import adding, check_free
from difftilt.evaluation.estimate import Estimate
from difftilt.evaluation.groups import METHOD
from difftilt.experiment import code
from difftilt.experiment.fit_value import load_value
from difftilt.experiment.fleet import Manifest, deal, drawer, manifest_of, merge, shards_of, turn, work
from difftilt.experiment.hosts import Hosts
from difftilt.experiment.job import Job
from difftilt.experiment.record import read_run, to_json, write_json
from difftilt.experiment.sample import sample, steer, trained
from difftilt.objective import Value
from difftilt.policy import Policy
from difftilt.rewards.ray_cluster import Placement, placed
from difftilt.rewards.ray_pool import Hosted, RayPool
from difftilt.rewards.worker_pool import PoolLost
from difftilt.samplers.choices import CORRECTING, VALUES, AnySampler
from difftilt.settings import Count, Natural, Positive, UsageError, choose, kebab

HOST = "difftilt.cli.shard_host"  # the program of a worker that draws shards
Subject = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUBJECT")]


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How to sample.

    Args:
        sampler: How to steer the samples towards the reward as they are drawn; by default not at all.
            smc, svdd and best-of-n propose with a run's own model and correct for it; all others steer the
            pretrained one.
        value: What steers: `posterior-mean`, the reward of the sample that is expected at each step;
            `second-order`, the same with a correction for its spread, of real numbers; `nested`, 16 chains
            from each state, which is slow; or the folder of a run of difftilt value fit.
        temperature: Of each step of a chain of tokens, above 0, without a sampler. Below 1 likely tokens
            become likelier: more samples obey what the model knows, and fewer kinds of them are drawn. The KL
            and J shown are those of the tempered chain; what it costs, its KL to the untempered one, is told.
        count: How many samples, at least 2; with a sampler, as many as whole populations give, of which
            there are at least 4.
        seed: Random seed, at least 0.
        shards: Draw them in so many shards, which lie beside the table and are shared by all workers: each
            process that is given this same line draws shards that are missing, and redoes those of the dead.
        shard: Draw this one alone, from 0, and wait for no other.
        workers: Processes that draw the shards, at least 1: this one, or several of this machine; ray://auto,
            for all that the running cluster of Ray has room for; or ray://N, for N in a cluster of their own.
        resources: What each worker of Ray needs, such as CPU=4 GPU=1; CPU=1 by default.
        out: Where samples go; the run folder's samples by default, or runs/RECIPE-samples.
        json: Print the numbers as JSON.
    """

    sampler: AnySampler | None = None
    value: str = "posterior-mean"
    temperature: Positive = 1.0
    count: Annotated[int, at.Ge(2)] = 64
    seed: Natural = 1
    shards: Count | None = None
    shard: Natural | None = None
    workers: Count | str = 1
    resources: tuple[str, ...] = ()
    out: Path | None = None
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a line asks for.

    Args:
        tuned: The run's own model, if there is one.
        out: Where samples go.
        written: What the numbers say of whose samples they are.
    """

    job: Job
    tuned: Policy | None
    options: SampleOptions
    out: Path
    written: dict[str, Any]

    @property
    def place(self) -> Path:
        """What the files' paths begin with."""
        options, sampler = self.options, self.options.sampler
        name = f"{'sample' if sampler is None else kebab(type(sampler).__name__)}-seed{options.seed}"
        if options.temperature != 1:
            name += f"-temperature{options.temperature:g}".replace(".", "_")  # a dot would begin an ending
        return self.out / name


def sample_command(words: list[str]) -> None:
    """Draws samples from a run's or a recipe's model, steered if asked, and judges them."""
    if words and words[0] in RECIPES and (Path(words[0]) / "run.json").exists():
        name = words[0]
        print(f"{name} is the recipe; for the run in the folder {name} say ./{name}", file=sys.stderr)
    _draw(_asked(words), words)


def drawer_of(words: list[str]) -> Callable[[int], bool]:
    """What draws the shards that a line asks for, by their numbers."""
    asked = _asked(words)
    manifest = _manifest(asked)
    if manifest is None:
        raise UsageError("a worker draws shards, but none are asked for")
    return drawer(asked.job, shards_of(asked.place), manifest)


def _asked(words: list[str]) -> Asked:
    """What a line asks for."""
    if not words:
        raise UsageError(
            f"difftilt sample needs a run folder, such as runs/demo, or a recipe: {', '.join(RECIPES)}, or"
            " FILE.py:NAME"
        )
    if words[0] in RECIPES or words[0] in code.registered("recipe") or code.outside(words[0]):
        return _of_recipe(words[0], words[1:])
    return _of_run(words)


def _of_recipe(recipe: str, words: list[str]) -> Asked:
    """Samples of the pretrained model of a recipe."""
    title = f"Samples the pretrained model of {recipe}, steered towards a reward without training."
    asked = score_options(recipe)
    program, groups = f"difftilt sample {recipe}", (asked, SampleOptions)
    settings = parse(recipe_of(recipe), words, program, *groups, without=METHOD, title=title)
    options, score = (taken(group, settings) for group in (SampleOptions, asked))
    job = build(recipe, settings | for_sampling(recipe, score))
    written = {"recipe": recipe, "settings": {name: to_json(value) for name, value in settings.items()}}
    out = options.out or Path("runs") / f"{recipe.rpartition(':')[2]}-samples"
    return Asked(job, None, options, out, written)


def _of_run(words: list[str]) -> Asked:
    """Samples of the model of a run folder."""
    settings = parse(sample_options, words, "difftilt sample", SampleOptions, CodeOptions)
    options, folder = taken(SampleOptions, settings), Path(settings["subject"])
    bring_back(folder)
    if not (folder / "run.json").exists():
        seeds = [path.parent for path in sorted(folder.glob("seed-*/run.json"))]
        raise UsageError(
            f"{folder / 'run.json'} does not exist, and no recipe is called {folder}: name a run's folder,"
            f" such as {[*seeds, 'runs/demo'][0]}, or one of {', '.join(RECIPES)}, or FILE.py:NAME"
        )
    job, record = trained(load(folder, taken(CodeOptions, settings)), folder), read_run(folder)
    written = {"run": str(folder), "recipe": record["recipe"], "settings": record["settings"]}
    return Asked(job, job.policy, options, options.out or folder / "samples", written)


def sample_options(subject: Subject) -> None:
    """Draws samples from a run's or a recipe's model, steered if asked, and judges them.

    difftilt sample RECIPE --help tells the options of a recipe, such as its reward and alpha.

    Args:
        subject: A run folder, for instance runs/demo, or a recipe, for instance digits or my_file.py:recipe.
    """


def _draw(asked: Asked, words: list[str]) -> None:
    """Draws the samples, and leaves them with their numbers in a folder."""
    job, options, out, place = asked.job, asked.options, asked.out, asked.place
    sampler, written = options.sampler, asked.written
    if options.temperature != 1 and sampler is not None:
        raise UsageError("a temperature is for plain samples, but got a sampler; leave one of both out")
    check_free(out, place.name)
    manifest = _manifest(asked)
    if manifest is not None and not _drew(asked, manifest, words):
        print(f"shard {options.shard} of {options.shards} is in {shards_of(place)}; others are missing yet")
        return
    if manifest is None:
        with torch.no_grad():  # nothing learns here
            job = job.taking(job.threads())
        written |= {"threads": job.training.threads}
    with nullcontext() if manifest is None else turn(shards_of(place)):
        if manifest is not None:
            row = merge(job, manifest, place)
        elif sampler is None:
            row = sample(job, place, options.count, options.seed, options.temperature)
        else:
            policy = asked.tuned if isinstance(sampler, CORRECTING) else None
            value = make_value(options.value, job, written)
            row = steer(job, sampler, value, place, count=options.count, seed=options.seed, policy=policy)
            written |= {"sampler": to_json(sampler), "value": options.value}
        with adding(out) as new:
            write_json(new / f"{place.name}.json", plain(written | {"seed": options.seed} | row))
    _show(row, place, options)


def _drew(asked: Asked, manifest: Manifest, words: list[str]) -> bool:
    """Draws shards, here or by workers, and returns whether all are there."""
    options, folder = asked.options, shards_of(asked.place)
    count = placed(options.workers, options.resources, prefix="", alone=True)
    if count == 1:
        with watch.repeatable():
            return work(asked.job, folder, manifest, options.shard)
    content = (words, str(Path.cwd()))
    if isinstance(count, Placement):
        start = partial(RayPool, Hosted("the model", HOST, lambda: content, queued=1), count)
    else:
        start = partial(Hosts, HOST, content, count)
    try:
        with watch.repeatable():
            deal(start, folder, manifest)
    except PoolLost as lost:
        raise ValueError(
            f"what watches the workers of {count} {lost}; what is drawn is kept, for the same line again"
        ) from None
    return True


def _show(row: dict[str, Any], place: Path, options: SampleOptions) -> None:
    """Prints the numbers of samples, and where they are."""
    if options.json:
        show_json(row)
        return
    show_numbers({f"{row['samples']} samples": row})
    if "tempering_kl_nats" in row:
        kl = Estimate(row["tempering_kl_nats"], row["tempering_kl_nats_se"])
        print(f"the temperature costs {kl} nats, to the chain as it is at 1")
    calls = row.get("network_calls", {}).get("forward")
    spent = "" if calls is None else f", {calls} forward network calls"
    Console().print(f"alpha {row['alpha']:.4g}, {row['reward_calls']} reward calls{spent}", soft_wrap=True)
    print(f"samples: {place}.*")


def _manifest(asked: Asked) -> Manifest | None:
    """What is drawn in shards, if it is."""
    options = asked.options
    count, only, alone = options.shards, options.shard, options.workers == 1 and not options.resources
    if count is None and only is None and alone:
        return None
    if count is None or options.sampler is not None or options.temperature != 1:
        raise UsageError(
            "shards are of plain samples, so --shard and --workers need --shards, and neither goes with a"
            " sampler or a temperature"
        )
    if only is not None and not alone:
        raise UsageError("one shard is drawn by one process; leave out --shard, or --workers")
    if only is not None and only >= count:
        raise UsageError(f"there are shards 0 to {count - 1}, but got --shard {only}")
    about = {name: value for name, value in asked.written.items() if name != "run"}
    return manifest_of(asked.job, options.count, count, options.seed, about)


def make_value(name: str, job: Job, about: Mapping[str, Any]) -> Value:
    """The soft value of that name, or in the run folder of that name.

    Args:
        about: The recipe of the job, and its settings.
    """
    if name not in VALUES and Path(name).is_dir():
        return load_value(Path(name), job, about["recipe"], about["settings"])
    choices = {**VALUES, "the folder of a run of difftilt value fit": None}
    return choose("value", name, choices)(job.objective)
