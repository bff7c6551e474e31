"""Whose a checkpoint is: a run goes on as it was started, or with changes that its user accepts by name."""

import hashlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

from difftilt.data.owned import RUN, delete
from difftilt.data.read import read_bytes, read_json
from difftilt.data.typed import misfit
from difftilt.evaluation.words import flat
from difftilt.experiment.record import write_json
from difftilt.training.checkpoint import run_of_newest
from difftilt.training.manifest import versions

BEFORE = "before.json"
ASKED = "before.safetensors"  # what the reward learned from the evaluation before training, if it learns
EVERYTHING = ""  # as a name of what may change
# settings that may change at any time, and those whose change has a sentence of its own
FREE = tuple(
    f"training.{name}"
    for name in (
        *("rounds", "save_every", "stop_on", "log_to", "max_failures", "ledger", "reward_budget"),
        *("process_timeout", "reward_workers", "reward_resources"),
        *("reward_timeout", "reward_retries", "reward_memory"),
    )
)
STRICT = ("training.seed", "target_kl")
NOTED = ("training.threads", "training.parallel")  # it changes the last digits of numbers


class Identity(TypedDict):
    """What tells a run from others.

    Attributes:
        settings: By dotted name, with the recipe.
        reward: Its name.
        code: Of what lies outside of difftilt, SHA-256 by name.
        before: SHA-256 of before.json, empty if there is none.
    """

    settings: dict[str, str]
    reward: str
    code: dict[str, str]
    before: str


def identity(record: Mapping[str, Any], folder: Path) -> Identity:
    """What tells a run from others.

    Args:
        record: What its run.json says.
        folder: Of the run.
    """
    code = record.get("code") or {}
    settings = {name: text for name, text in flat(record["settings"]) if name not in (*FREE, *STRICT)}
    before = folder / BEFORE
    return {
        "settings": {"recipe": record["recipe"], **settings},
        "reward": str(record.get("reward")),
        "code": {text: about.get("sha256", "") for text, about in code.items()},
        "before": hashlib.sha256(read_bytes(before)).hexdigest() if before.exists() else "",
    }


def check_changes(
    folder: Path, now: Identity, accepted: Collection[str] = (), *, cached: bool = False
) -> None:
    """Makes sure that the newest checkpoint of a folder, if there is one, belongs to a run.

    What was accepted, and what need not be, is written into run.json; where the problem itself has changed,
    the pretrained model is judged anew.

    Args:
        now: The identity of the run.
        accepted: Names, or beginnings of names, of what may have changed.
        cached: Whether the run keeps answers of its reward.

    Raises:
        ValueError: In one sentence that names what has changed.
    """
    found = run_of_newest(folder / "checkpoints")
    if found is None or "settings" not in found[1]:
        return
    rounds, saved = found
    if wrong := misfit(saved, Identity):
        raise ValueError(f"the newest checkpoint in {folder} does not say whose it is: {wrong}; remove it")
    if not now["before"]:  # it will be made anew
        now = {**now, "before": saved["before"]}
    changed, noted = _changes(saved, now)
    refused = [row for row in changed if not any(row["what"].startswith(name) for name in accepted)]
    if refused:
        first, others = refused[0], len(refused) - 1
        more = f", and {others} more changed" if others else ""
        raise ValueError(
            f"{folder} was trained with {first['what']} {_short(first['was'])}, but it is"
            f" {_short(first['is'])} now{more}; put it back, or go on regardless with difftilt resume"
            f" {folder} --accept-changes"
        )
    if not changed and not noted:
        return
    problem = [row["what"] for row in changed if not row["what"].startswith(("training.", "algorithm."))]
    if problem and cached:
        raise ValueError(
            f"{problem[0]} of {folder} has changed, but the run keeps answers of its former reward (cache);"
            " start a new run in another folder"
        )
    if problem:
        delete(folder, [BEFORE, ASKED])
    record = read_json(folder / RUN)
    told = [{"round": rounds, **row} for row in (*changed, *noted)]
    write_json(folder / RUN, record | {"changes": [*record.get("changes", []), *told]})
    words = ", ".join(f"{row['what']} was {_short(row['was'])} and is {_short(row['is'])}" for row in told)
    print(f"warning: {folder} goes on after round {rounds}, but {words}", file=sys.stderr, flush=True)


def _changes(saved: Mapping[str, Any], now: Identity) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What has changed since, and what has changed but only matters for the last digits of numbers."""
    old = {**_named(saved), **{f"version of {name}": text for name, text in saved["versions"].items()}}
    new = {**_named(now), **{f"version of {name}": text for name, text in versions().items()}}
    rows = [
        {"what": name, "was": str(old.get(name, "nothing")), "is": str(new.get(name, "nothing"))}
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    light = {name for name in (*old, *new) if name.startswith("version of ") or name in NOTED}
    light |= {name for name in (*old, *new) if (name in old) != (name in new)}  # another version's settings
    return [row for row in rows if row["what"] not in light], [row for row in rows if row["what"] in light]


def _named(about: Mapping[str, Any]) -> dict[str, Any]:
    code = {f"code of {text}": digest for text, digest in about["code"].items()}
    return {**about["settings"], "reward": about["reward"], **code, BEFORE: about["before"]}


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…"
