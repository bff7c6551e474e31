"""Kills a command at random file-system calls, resumes it, and compares what it leaves with an unbroken run.

python tests/cli/killed.py KIND KILLS [SEED]     # KIND: one of KINDS, all, or one of them with -torchrun
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import invented
import torch
from commands import Command, environment
from faults import at_operation

from difftilt.cli import main
from difftilt.domains.molecules import pretrain as molecules

SMALL = ["--batch", "16", "--evaluate", "8", "--rounds", "3"]
DIGITS = ["finetune", "digits", *SMALL, "--steps", "2"]
INK = [*DIGITS, "--reward", "ink"]
PAID = ["--reward", "{home}/paid.py:score", "--reward-version", "1"]
LEDGER, WORKERS = ["--ledger", "{folder}.db"], ["--reward-workers", "2", "--reward-overlap", "2"]
FILTERED = ["--diversity-filter", "similar", "--diversity-bucket", "1"]
OWN = Path(__file__).with_name("own_reward.py")
KINDS: dict[str, list[str]] = {
    "digits": [*INK, "--ema-decay", "0.5"],
    "dna": ["finetune", "dna", *SMALL, "--save-every", "2"],
    "molecules": ["finetune", "molecules", *SMALL, *FILTERED, "--model", "{home}/models/molecules"],
    "protein": ["finetune", "protein", *SMALL],
    "sequences": ["finetune", "sequences", *SMALL, "--reward", f"{OWN}:lengths"],
    "utr": ["finetune", "utr", *SMALL],
    "cache": [*DIGITS, "--reward", "png", "--cache"],
    "target": [*INK, "--target-kl", "2", "algorithm:grpo", "--algorithm.group-size", "4"],
    "ledger": [*DIGITS, *PAID, *LEDGER],
    "workers": [*DIGITS, *PAID, *WORKERS],
    "workers-ledger": [*DIGITS, *PAID, *LEDGER, *WORKERS],
    "value": ["value", "fit", "digits", *SMALL, "--reward", "ink", "--steps", "2", "--save-every", "3"],
}
REWARD = """
import os

def score(sample, cond):
    \"\"\"Costs something: a line per sample in a file.\"\"\"
    with open(os.environ["DIFFTILT_TEST_PAID"], "ab", buffering=0) as file:
        for row in sample:
            file.write(f"{row.double().sum().item()!r}\\n".encode())
    return sample.mean((1, 2, 3))
"""


def make_home(home: Path) -> dict[str, str]:
    """A user's folders, with invented data and barely trained models. Returns what leads commands there."""
    invented.gb1(home / "data")
    invented.utrs(home / "data")
    (home / "paid.py").write_text(REWARD)
    variables = {"DIFFTILT_DATA": str(home / "data"), "DIFFTILT_HOME": str(home)}
    with environment(**variables), contextlib.redirect_stdout(sys.stderr):
        main.main(["pretrain", "protein", "--steps", "2", "--batch", "32"])
        assay = str(invented.assay(home / "assay.csv"))
        main.main(["pretrain", "sequences", "--data", assay, "--steps", "20", "--batch", "32"])
        (home / "own.smi").write_text("\n".join(invented.MOLECULES))
        own = ["--data", str(home / "own.smi"), "--merges", "12", "--steps", "20", "--batch", "4"]
        with mock.patch.object(molecules, "NETWORK", {"width": 16, "depth": 1, "heads": 2}):
            out = str(home / "models" / "molecules")
            main.main(["pretrain", "molecules", *own, "--drawn", "100", "--out", out])
        main.main(["pretrain", "utr", "--steps", "2", "--oracle-steps", "2", "--batch", "32"])
    return variables


def words_of(kind: Sequence[str], home: Path, folder: Path) -> list[str]:
    """A command line of KINDS, for one folder."""
    places = {"home": home, "folder": folder}
    return [*(word.format(**places) for word in kind), "--out", str(folder)]


def fingerprint(folder: Path) -> dict[str, str]:
    """The SHA-256 of everything that a run leaves behind, but for the time it took."""
    found = {}
    last = max((folder / "checkpoints").glob("round-*"))
    for path in [*last.iterdir(), *(folder / "samples").glob("*"), *folder.glob("*.json*")]:
        if path.name in ("MANIFEST.json", "run.json"):
            continue
        content = path.read_bytes()
        if path.name in ("training.json", "summary.json", "before.json"):
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _timeless(value) for name, value in content.items() if name != "seconds"}
    return content


Life = Callable[[list[str], Path, int], tuple[int, str]]


def unbroken(words: list[str], folder: Path) -> tuple[dict[str, str], int]:
    """What a run leaves that nothing breaks, and how many file-system calls it makes on its folder."""
    with at_operation(0, lambda name: None, [str(folder)]) as seen, contextlib.redirect_stdout(io.StringIO()):
        main.main(words)
    return fingerprint(folder), len(seen)


def dying(folder: Path, operation: int) -> Callable[[], object]:
    """What makes a command die at the n-th file-system call on its folder."""
    kill = at_operation(operation, lambda name: os.kill(os.getpid(), signal.SIGKILL), [str(folder)])
    return kill.__enter__  # for good


def alone(words: list[str], folder: Path, operation: int) -> tuple[int, str]:
    """One life of a command, as a child of this process: its exit code and its error output.

    Args:
        operation: The file-system call at which it dies, from 1; 0 for none.
    """
    ended = Command(words, folder.parent, dying(folder, operation) if operation else None).wait()
    return ended.code, ended.err


def as_twins(words: list[str], folder: Path, operation: int) -> tuple[int, str]:
    """The same under torchrun, as two processes; the first that comes to the call dies."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, __file__, "life", str(folder), str(operation), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return (-signal.SIGKILL if "SIGKILL" in ended.stderr else ended.returncode), ended.stderr


def broken(words: list[str], folder: Path, operation: int, live: Life) -> Counter[str]:
    """Kills a run once, and lets it go on; what came of it, by name."""
    seen = Counter[str]()
    seen["killed" if live(words, folder, operation)[0] == -signal.SIGKILL else "ended first"] += 1
    seen["in a write"] += any((folder / "checkpoints").glob(".tmp-round-*"))
    again = ["resume", str(folder)] if (folder / "run.json").exists() else words
    seen["resumed" if again[0] == "resume" else "begun again"] += 1
    code, said = live(again, folder, 0)
    if code:
        seen[f"not resumed: {said.strip().splitlines()[-1]}"] += 1
    return seen


def differences(folder: Path, whole: dict[str, str]) -> list[str]:
    """What is not as in an unbroken run, by name; rows lost or doubled, and files that are left over."""
    if not any((folder / "checkpoints").glob("round-*")):
        return ["everything"]
    found = fingerprint(folder)
    names = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
    steps = [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    if steps != list(range(1, len(steps) + 1)):
        names.append(f"rows {steps}")
    return names + [str(path) for path in folder.rglob("*") if path.name.startswith((".tmp", ".old"))]


def campaign(kind: str, kills: int, seed: int, home: Path, live: Life = alone) -> Counter[str]:
    """Kills so many runs of a kind, each once; what came of them, by name."""
    paid = home / "paid.txt"
    with environment(DIFFTILT_TEST_PAID=str(paid)):
        whole, operations = unbroken(words_of(KINDS[kind], home, home / "whole"), home / "whole")
        if live is as_twins:  # each process draws numbers of its own
            assert live(words_of(KINDS[kind], home, home / "twins"), home / "twins", 0)[0] == 0
            whole = fingerprint(home / "twins")
        dice, seen = random.Random(seed), Counter[str]()
        seen["file-system calls of a run"] = operations
        for number in range(kills):
            paid.unlink(missing_ok=True)
            folder = home / f"run{number}"
            words = words_of(KINDS[kind], home, folder)
            seen += broken(words, folder, dice.randint(1, operations), live)
            for name in differences(folder, whole):
                seen[f"differs: {name}"] += 1
            if "ledger" in kind:
                lines = paid.read_text().split()
                seen["paid twice"] += len(lines) - len(set(lines))
            shutil.rmtree(folder)
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "life":
        die = dying(Path(sys.argv[2]), int(sys.argv[3]))  # undone when it is let go
        die()
        main.main(sys.argv[4:])
        sys.exit()
    chosen = list(KINDS) if sys.argv[1] == "all" else [sys.argv[1].removesuffix("-torchrun")]
    live = as_twins if sys.argv[1].endswith("-torchrun") else alone
    for kind in chosen:
        with tempfile.TemporaryDirectory() as scratch, environment(**make_home(Path(scratch))):
            found = campaign(kind, int(sys.argv[2]), int([*sys.argv, "0"][3]), Path(scratch), live)
            print(kind, json.dumps(found, indent=1), flush=True)
