"""Many samples of a model in shards, drawn by any number of workers that share a disk.

    NAME-shards/manifest.json        what is drawn, of which weights, and which samples with which seed
    NAME-shards/shard-00003/         one shard, whole: it is filled beside its place and then renamed
    NAME-shards/claim-00003/         is locked by the worker that draws it; the kernel lets go if that dies
    NAME.csv, NAME.json              all shards, once they are there

What a shard holds depends on the manifest alone, so whoever draws it again writes the same bytes.
"""

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file

from difftilt.conditions import as_bytes, take
from difftilt.data.lock import BusyError, locked
from difftilt.data.owned import adding, beside, sweep
from difftilt.data.read import read_json, read_tensors
from difftilt.evaluation.evaluate import ScoredSamples, evaluate
from difftilt.experiment.hosts import Hosts
from difftilt.experiment.job import Job
from difftilt.experiment.record import write_json
from difftilt.experiment.sample import keep
from difftilt.policy import Policy
from difftilt.rewards.ray_pool import RayPool
from difftilt.rewards.worker_task import LOSSES
from difftilt.shapes import Cond
from difftilt.training.manifest import versions
from difftilt.training.progress import passing
from difftilt.training.seeds import DEALER, EVALUATION, seed_round

MANIFEST, NUMBERS, SHARD, TABLE = "manifest.json", "numbers.safetensors", "shard.json", "samples.csv"
PATIENCE = 0.5  # seconds between two looks at what other workers do


class Shard(TypedDict):
    """One line of the manifest: the samples `first`, ..., `first + count - 1`, and their seed."""

    first: int
    count: int
    seed: int


class Spent(Shard):
    """`shard.json`: what it is, and the reward calls that it took."""

    reward_calls: int


class Manifest(TypedDict):
    """`manifest.json`.

    Attributes:
        about: What is drawn: the recipe, its settings, alpha, the weights and the versions.
    """

    about: dict[str, Any]
    shards: list[Shard]


def manifest_of(job: Job, count: int, shards: int, seed: int, about: Mapping[str, Any]) -> Manifest:
    """What `count` samples in `shards` shards are, each with a seed of its own."""
    if not 2 <= shards * 2 <= count:
        raise ValueError(
            f"every shard holds two samples or more, but got {count} samples in {shards} shards; take fewer"
        )
    ends = [count * k // shards for k in range(shards + 1)]
    seeds = np.random.SeedSequence([seed, EVALUATION]).spawn(shards)
    lines: list[Shard] = [
        {"first": a, "count": b - a, "seed": int(own.generate_state(1, np.uint64)[0] >> 1)}
        for a, b, own in zip(ends, ends[1:], seeds, strict=False)
    ]
    known = {"alpha": job.objective.alpha, "weights": digest_of(job.policy), "versions": versions()}
    return {"about": {**about, "seed": seed, **known}, "shards": lines}


def digest_of(policy: Policy) -> str:
    """The SHA-256 of a policy's weights."""
    digest = hashlib.sha256()
    for name, x in sorted(policy.state_dict().items()):
        digest.update(name.encode() + as_bytes(x))
    return digest.hexdigest()


def work(job: Job, folder: Path, manifest: Manifest, only: int | None = None) -> bool:
    """Draws shards that are missing and that nobody else draws, until there are none.

    Args:
        folder: Of the shards; made if it is missing.
        only: Draw this shard alone, and wait for no other.

    Returns:
        Whether all shards are there.

    Raises:
        ValueError: If the folder holds the shards of something else.
    """
    draw = drawer(job, folder, manifest)
    numbers = range(len(manifest["shards"])) if only is None else [only]
    while True:
        missing = [k for k in numbers if not shard_at(folder, k).exists()]
        drew = [k for k in missing if draw(k)]
        if only is not None or not missing:
            return all(shard_at(folder, k).exists() for k in range(len(manifest["shards"])))
        if not drew:
            time.sleep(PATIENCE)  # others draw the rest; if one of them dies, its shard is drawn here


def drawer(job: Job, folder: Path, manifest: Manifest) -> Callable[[int], bool]:
    """What draws the shard of a number, and returns False if another worker is at it.

    Raises:
        ValueError: If the folder holds the shards of something else.
    """
    _enter(folder, manifest)
    torch.set_num_threads(job.training.threads or 1)  # not measured: whoever draws, draws the same
    seed_round(manifest["about"]["seed"], EVALUATION, DEALER)
    last = manifest["shards"][-1]
    every = job.judging(last["first"] + last["count"])
    return lambda k: _drew(job, folder, manifest["shards"][k], every, k)


def deal(start: Callable[[], Hosts | RayPool], folder: Path, manifest: Manifest) -> None:
    """Has workers draw the shards that are missing, until there are none.

    Args:
        start: Makes the workers, if a shard is missing.

    Raises:
        ValueError: In the words of a worker that cannot draw, or if workers end again and again.
    """
    _enter(folder, manifest)
    count, lost = len(manifest["shards"]), Counter[int]()
    missing = {k for k in range(count) if not shard_at(folder, k).exists()}
    due = dict.fromkeys(sorted(missing), 0.0)  # when each is to be given out
    if not missing:
        return
    with closing(start()) as workers, _watching(count) as tell:
        while missing:
            tell(count - len(missing))
            for k in [k for k, moment in due.items() if moment <= time.monotonic()]:
                del due[k]
                workers.send(k, b"", 0.0)
            for k, what, *details in workers.receive(PATIENCE):
                if what == "over" and details[0] is not None:
                    raise ValueError(details[0])
                lost[k] += what == "lost"
                if lost[k] == LOSSES:
                    raise ValueError(
                        f"{LOSSES} workers ended while they drew shard {k} of {folder}, as they do if memory"
                        " is short: ask for fewer workers; what is drawn is kept, for the same line again"
                    )
                if what != "began":
                    due[k] = time.monotonic() + PATIENCE
                if shard_at(folder, k).exists():
                    missing.discard(k)
                    due.pop(k, None)


@contextmanager
def _watching(count: int) -> Iterator[Callable[[int], None]]:
    """Shows how many shards there are, if the terminal can."""
    with passing(TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=count)
        yield lambda done: bar.update(task, completed=done)


def shard_at(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}"


def shards_of(place: Path) -> Path:
    """The folder of the shards of samples whose files' paths begin with `place`."""
    return place.with_name(f"{place.name}-shards")


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Waits until no other worker is in this block."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except BusyError:
                time.sleep(PATIENCE)
        yield


def merge(job: Job, manifest: Manifest, place: Path) -> dict[str, Any]:
    """Writes one table of all shards beside a path, and returns their numbers, as those of `sample`."""
    places = [shard_at(shards_of(place), k) for k in range(len(manifest["shards"]))]
    with adding(place.parent) as new, (new / f"{place.name}.csv").open("wb") as table:
        for number, shard in enumerate(places):
            with (shard / TABLE).open("rb") as rows:
                head = rows.readline()
                table.write(b"" if number else head)
                shutil.copyfileobj(rows, table)
    parts = [read_tensors(shard / NUMBERS) for shard in places]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    reward, kl = columns.pop("reward"), columns.pop("kl_nats")
    gold = {name: columns[name] for name in job.gold}
    said = {name[5:]: x for name, x in columns.items() if name.startswith("part ")}
    seen = ScoredSamples(torch.empty(len(reward), 0), reward, kl, gold, job.objective.alpha, said)
    calls = sum(read_json(shard / SHARD, Spent)["reward_calls"] for shard in places)
    return seen.summary() | {"shards": len(places), "reward_calls": calls}


def _enter(folder: Path, manifest: Manifest) -> None:
    """Makes sure that the folder is for these shards."""
    path = folder / MANIFEST
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(manifest))  # the same, whichever worker comes first
    there = read_json(path, Manifest)
    if there["about"] == manifest["about"] and there["shards"] == manifest["shards"]:
        return
    old, new = ({"shards": len(m["shards"]), **m["about"]} for m in (there, manifest))
    other = next((name for name in {**old, **new} if old.get(name) != new.get(name)), "count")
    raise ValueError(
        f"{folder} holds shards of samples with other {other} than asked for now; ask as before, or name"
        " another --out"
    )


def _drew(job: Job, folder: Path, shard: Shard, every: Cond, number: int) -> bool:
    """Draws a shard, unless another worker is at it or has done it.

    Args:
        every: The conditions of all shards.
    """
    target, claim = shard_at(folder, number), folder / f"claim-{number:05d}"
    try:
        with locked(claim):
            if not target.exists():
                sweep(claim)  # what a worker that died has left
                new = beside(claim / "new")
                new.mkdir()
                _fill(job, new, shard, every)
                new.rename(target)
        return True
    except BusyError:
        return False


def _fill(job: Job, new: Path, shard: Shard, every: Cond) -> None:
    """Writes what a shard holds."""
    guard = job.objective.reward
    rows, calls = torch.arange(shard["first"], shard["first"] + shard["count"]), guard.calls
    seen = evaluate(job.policy, job.objective, take(every, rows), job.gold, seed=shard["seed"])
    keep(job, seen, new / TABLE.removesuffix(".csv"), clusters=False)
    columns = {name: x.double().cpu().contiguous() for name, x in seen.scores().items()}
    save_file(columns, new / NUMBERS)
    write_json(new / SHARD, {**shard, "reward_calls": guard.calls - calls})
