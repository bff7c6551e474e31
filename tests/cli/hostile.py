"""Damaged and hostile run folders, and what commands do with them.

python tests/cli/hostile.py COUNT [SEED] [--all]    as many folders, and a table of what happened
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from difftilt.cli.main import main
from difftilt.training.manifest import MANIFEST, describe

SMALL = ["--rounds", "3", "--batch", "4", "--evaluate", "4", "--steps", "2", "--reward", "ink"]
SECONDS = 60  # after which a command hangs
JSON = ("run.json", "before.json", "summary.json", "samples/contents.json")
FILES = (
    *JSON,
    "metrics.jsonl",
    "report.html",
    "samples/before.csv",
    "samples/after.csv",
    "samples/after.png",
)
FOLDERS = ("checkpoints", "samples", "tensorboard", "checkpoints/round-000002")
UNDAMAGED = (ValueError, OSError, LookupError, TypeError, AttributeError, SafetensorError)
USERS = ("notes.txt", "samples/figure.png", "checkpoints/readme", "checkpoints/old/mine.txt")
DEEP: Any = json.loads("[" * 500 + "]" * 500)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        [],
        {},
        "",
        "x",
        "1e5",
        "../../..",
        "<script>alert(1)</script>",
        0,
        -1,
        1.5,
        10**12,
        10**200,
    ),
    *(float("nan"), float("inf"), float("-inf"), -1e308, [[1]], [None], {"a": [1]}, {"name": []}, DEEP),
    *([1, 2], ["a", 1], {"__tensor__": "nope"}, 2**70, "9" * 400),
)


class Hang(BaseException):
    """A command took too long."""


def base_runs(folder: Path) -> dict[str, Path]:
    """A finished run, one that is not finished, and one that learned a value, with files of their user's."""
    runs = {name: folder / name for name in ("finished", "partial", "value")}
    _quietly(
        [
            "finetune",
            "digits",
            *SMALL,
            "algorithm:ppo",
            "--log-to",
            "tensorboard",
            "--out",
            str(runs["finished"]),
        ]
    )
    _quietly(
        ["value", "fit", "digits", "--reward", "ink", "--rounds", "3", "--batch", "4", "--evaluate", "4"]
        + ["--steps", "2", "--save-every", "1", "--out", str(runs["value"])]
    )
    shutil.copytree(runs["finished"], runs["partial"])
    shutil.rmtree(runs["partial"] / "checkpoints" / "round-000003")
    (runs["partial"] / "summary.json").unlink()
    for run in runs.values():
        for name in USERS:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("mine")
    return runs


def _quietly(words: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(words)


# Each damage gets a source of chance, the folder of a run, and a place outside of it.
Damage = Callable[[random.Random, Path, Path], None]


def json_value(dice: random.Random, run: Path, outside: Path) -> None:
    """One value of a JSON file is something else, or missing."""
    path = run / dice.choice(JSON)
    if path.exists():
        content = json.loads(path.read_text())
        _replace(dice, content)
        path.write_text(json.dumps(content))


def _replace(dice: random.Random, content: Any) -> None:
    while isinstance(content, dict | list) and content:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = dice.choice(keys)
        inner = content[key]
        if isinstance(inner, dict | list) and inner and dice.random() < 0.7:
            content = inner
        elif isinstance(content, dict) and dice.random() < 0.2:
            del content[key]
            return
        else:
            content[key] = dice.choice(VALUES)
            return


def row_value(dice: random.Random, run: Path, outside: Path) -> None:
    """One value in each row of the log is something else."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if rows:
        key, value = dice.choice(list(rows[0])), dice.choice(VALUES)
        path.write_text("".join(json.dumps({**row, key: value}) + "\n" for row in rows))


def bytes_changed(dice: random.Random, run: Path, outside: Path) -> None:
    """A file is cut, emptied, scrambled or replaced."""
    path = run / dice.choice([name for name in FILES if (run / name).exists()])
    data = path.read_bytes()
    at = dice.randrange(max(len(data), 1))
    path.write_bytes(
        dice.choice(
            [
                b"", data[:at], data + data, data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :],
                dice.randbytes(500), b"[" * 100_000, b'{"a":' * 20_000, b"\xef\xbb\xbf" + data, b"null",
                b"[]", b'{"round": 1, "reward": ' + b"9" * 6000 + b"}", b"reward\n\0\n1\n",
                b"reward\n" + b"1" * 200_000,
                b"reward,gold\n1\n1,2,3\n", b"reward\ninf\n-inf\nnan\n1e308\n", b"<svg onload=alert(1)>",
            ]
        )
    )  # fmt: skip


def other_kind(dice: random.Random, run: Path, outside: Path) -> None:
    """A file or a folder is a link to elsewhere, a pipe, a socket, a folder or missing."""
    path = run / dice.choice(
        (*FILES, *FOLDERS, "wandb-id", ".difftilt-lock", "checkpoints/.tmp-x", ".old-run")
    )
    spot = run.parent / f"moved-{dice.randrange(10**9)}"
    if path.exists():
        path.rename(spot)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = dice.choice(["link", "hard link", "dangling", "pipe", "socket", "folder", "missing"])
    if kind == "link":
        path.symlink_to(outside if dice.random() < 0.5 else outside / "precious.txt")
    elif kind == "hard link":
        os.link(outside / "precious.txt", path)
    elif kind == "dangling":
        path.symlink_to(outside / "would-be-made")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:  # a path may be too long
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()


def deep_link(dice: random.Random, run: Path, outside: Path) -> None:
    """A file of a checkpoint, or one beside it, is a link to elsewhere."""
    place = dice.choice([path for path in (run / "checkpoints").iterdir() if path.is_dir()])
    path = dice.choice([*place.iterdir(), place / "new", run / "checkpoints" / ".tmp-round-000009"])
    if path.is_file():
        path.unlink()
    if not path.exists():
        path.symlink_to(dice.choice([outside, outside / "precious.txt"]))


def strange_names(dice: random.Random, run: Path, outside: Path) -> None:
    """Names that lead elsewhere, or that nothing of ours has."""
    up = "../" * dice.randrange(1, 5)
    names = [
        f"{up}outside/precious.txt",
        "notes.txt",
        "..",
        "",
        "/etc/passwd",
        "samples/../notes.txt",
        "a\0b",
    ]
    choice = dice.randrange(5)
    if choice == 0:
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / "contents.json").write_text(json.dumps({"written_by": "difftilt", "files": names}))
    elif choice == 1:
        (run / ".old-run").mkdir(exist_ok=True)
        (run / ".old-run" / "files.json").write_text(json.dumps({"files": dice.sample(names, 2)}))
    elif choice == 2:
        (run / "seeds.json").write_text(json.dumps({"runs": dice.choice([names, 3, [1], {}, []])}))
        if dice.random() < 0.7:
            (run / "run.json").unlink(missing_ok=True)
    elif choice == 3:
        for name in ("round-abc", "round-000009", "round-99999999999999999999", ".tmp-round-000004"):
            (run / "checkpoints" / name).mkdir(exist_ok=True)
            (run / "checkpoints" / name / "theirs").write_text("mine")
    else:
        for place in _checkpoints(run):
            _seal(place, files={dice.choice(names): {"bytes": 1, "sha256": "0"}})


def resealed(dice: random.Random, run: Path, outside: Path) -> None:
    """The content of a checkpoint is another, and its manifest agrees."""
    for place in _checkpoints(run):
        name = dice.choice(["training.json", "process-0.json", MANIFEST, "policy.safetensors"])
        path = place / name
        if name == MANIFEST:
            _seal(
                place, **{dice.choice(["format", "rounds", "versions", "run", "files"]): dice.choice(VALUES)}
            )
            continue
        if name.endswith(".json"):
            content = json.loads(path.read_text())
            _replace(dice, content)
            path.write_text(json.dumps(content))
        elif path.exists():
            _other_tensors(dice, path)
        mine = [file for file in place.iterdir() if file.name == "mine.txt"]
        for file in mine:
            file.unlink()
        (place / MANIFEST).unlink()
        (place / MANIFEST).write_bytes(describe(place, int(place.name[6:]), _run(run)))
        for file in mine:
            file.write_text("mine")


def _other_tensors(dice: random.Random, path: Path) -> None:
    weights = load_file(path)
    choice = dice.randrange(6)
    if choice == 0:
        save_file(
            {name: x * float("nan") if x.is_floating_point() else x for name, x in weights.items()}, path
        )
    elif choice == 1:
        save_file({name: x.to(torch.complex64) for name, x in weights.items()}, path)
    elif choice == 2:
        save_file(dict(list(weights.items())[1:]), path)
    elif choice == 3:
        path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    elif choice == 4:
        header = b'{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,0]}}'
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    else:
        path.write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")


def _checkpoints(run: Path) -> list[Path]:
    found = (run / "checkpoints").glob("round-*/MANIFEST.json") if (run / "checkpoints").is_dir() else ()
    return [path.parent for path in found if (path.parent / "training.json").is_file()]


def _run(run: Path) -> dict[str, Any]:
    for place in _checkpoints(run):
        with contextlib.suppress(ValueError, KeyError):
            return json.loads((place / MANIFEST).read_text())["run"]
    return {}


def _seal(place: Path, **changes: Any) -> None:
    content = {**json.loads((place / MANIFEST).read_text()), **changes}
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    (place / MANIFEST).write_text(json.dumps({**content, "sha256": digest}, indent=1))


DAMAGES: tuple[Damage, ...] = (
    json_value, json_value, json_value, row_value, bytes_changed, bytes_changed, other_kind, other_kind,
    deep_link, strange_names, resealed, resealed,
)  # fmt: skip


def commands(run: Path, value: Path, out: Path) -> dict[str, list[str]]:
    """The commands that read a run folder, or write into it."""
    return {
        "report": ["report", str(run)],
        "compare": ["compare", str(run), "--out", str(out)],
        "resume": ["resume", str(run)],
        "sample": ["sample", str(run), "--count", "2"],
        "value": [
            "sample",
            "digits",
            "--reward",
            "ink",
            "--steps",
            "2",
            "--count",
            "4",
            "--value",
            str(value),
        ]
        + ["--out", str(out / "drawn"), "sampler:value-guidance"],
        "overwrite": ["finetune", "digits", *SMALL, "algorithm:ppo", "--out", str(run), "--overwrite"],
    }


def one_folder(
    dice: random.Random, runs: dict[str, Path], place: Path, command: str | None = None
) -> Iterator[tuple[str, str]]:
    """Damages a copy of a run, lets commands at it, and tells what each did: its name, and what came of it.

    What came of it is `fine`, `one sentence`, or what must not happen.
    """
    place.mkdir()
    outside = place / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious\n" * 3000)
    (outside / "round-000001").mkdir()
    (outside / "round-000001" / "work").write_text("precious")
    whose = {"value": "value", "report": "finished", "compare": "finished"}
    name = command or dice.choice(["report", "compare", "resume", "sample", "value", "overwrite"])
    run = place / "run"
    shutil.copytree(runs[whose.get(name, dice.choice(["finished", "partial"]))], run)
    told = []
    for damage in dice.choices(DAMAGES, k=dice.choice([1, 1, 2, 3])):
        with contextlib.suppress(*UNDAMAGED):
            damage(dice, run, outside)  # what an earlier damage has left may not be open to this one
            told.append(damage.__name__)
    before, mine = state(outside), _theirs(run)
    result, error = outcome(commands(run, run, place / "out")[name])
    if state(outside) != before:
        result = "a file outside was changed"
    elif [path for path in mine if not path.exists() or path.read_text() != "mine"]:
        result = "a file of the user's is gone"
    yield name, f"{result}: {' + '.join(told)}: {error}"


def _theirs(run: Path) -> list[Path]:
    names = {Path(name).name for name in USERS}
    return [
        path for path in run.rglob("*") if path.name in names and path.is_file() and not path.is_symlink()
    ]


def state(folder: Path) -> dict[str, str]:
    """What lies in a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def outcome(words: list[str]) -> tuple[str, str]:
    """What a command came to, and its last words."""

    def late(*_: Any) -> None:
        raise Hang

    out, err = io.StringIO(), io.StringIO()
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(words)
        return "fine", ""
    except SystemExit as stop:
        last = err.getvalue().strip().splitlines()[-1:] or [""]
        good = stop.code in (1, 2) and last[0].startswith("difftilt: ")
        return ("one sentence" if good else f"exit {stop.code}"), last[0]
    except Hang:
        return "hang", traceback.format_exc()[-600:]
    except BaseException:
        return "traceback", traceback.format_exc()[-1200:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


if __name__ == "__main__":
    torch.set_num_threads(1)
    loud = "--all" in sys.argv
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:3] and sys.argv[2].isdigit() else 0
    with tempfile.TemporaryDirectory() as scratch:
        made = base_runs(Path(scratch) / "base")
        tally: Counter[tuple[str, str]] = Counter()
        for number in range(count):
            spot = Path(scratch) / str(number)
            for asked, came in one_folder(random.Random(seed * 10**6 + number), made, spot):
                tally[asked, came.partition(":")[0]] += 1
                if loud or came.partition(":")[0] not in ("fine", "one sentence"):
                    print(number, asked, came.replace(scratch, ""), flush=True)
            shutil.rmtree(spot)
        print(f"{count} folders")
        for (asked, came), times in sorted(tally.items()):
            print(f"{asked:10} {came:20} {times}")
