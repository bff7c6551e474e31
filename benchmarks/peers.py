"""Other libraries beside this one: time, memory, and what is reached.

trl        an epoch of DDPO on one tiny Stable Diffusion pipeline. Both tune a LoRA of rank 4 on the same
           random weights, draw as many samples by DDIM at eta 1 with guidance, pass as many rows at a time,
           and take one gradient step an epoch on all of them. TRL knows no KL; ours is in the reward, which
           costs a pass of the reference.
torchgfn   100 updates of trajectory balance on spins whose target is known, one decided at a time: with a
           learned log Z, and (-vargrad) with the mean of the batch in its place, which is our default.
           Networks, batch and optimizer are the same, and both take the log-probabilities that sampling has
           computed. Theirs learns which spin is decided next too; ours draws it, and passes a reference that
           knows nothing and costs nothing. The distance to the target is exact.

    python benchmarks/peers.py [--only PEER ...] [--micro 8 32 256] [--repeats N] [--trl PYTHON]
                               [--torchgfn PYTHON] [--out FILE.json]

Each run is a process of its own, in turn, in one thread. A peer lives in an environment of its own, which is
made if no other is given. Rows of other runs in FILE.json stay.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WANTED = {
    "trl": ("trl==0.23.1", "diffusers==0.42.1", "peft", "torch==2.13.0"),
    "torchgfn": ("torchgfn==2.4.1", "torch==2.13.0"),
}
SCRIPTS = {  # the first of each kind is what the others are compared with
    "trl": {"trl": "peers_trl.py", "difftilt": "peers_ours.py"},
    "torchgfn": {
        "torchgfn": "peers_torchgfn.py",
        "torchgfn-vargrad": "peers_torchgfn.py",
        "difftilt": "peers_spins_ours.py",
    },
}
DDPO = {"batch": 256, "steps": 5, "epochs": 2}
EPOCHS = 4  # on spins
Row = dict[str, Any]


def main() -> None:
    options = parse()
    out, rows = options.out, []
    if out and out.exists():
        rows = json.loads(out.read_text())["rows"]
    with tempfile.TemporaryDirectory() as scratch:
        for peer in options.only:
            python = getattr(options, peer) or environment(peer, Path(scratch) / peer)
            for asked in questions(peer, options.micro, Path(scratch) / "pipe"):
                new = compared(peer, python, asked, options.repeats)
                mine = [(row["peer"], row.get("micro")) for row in new]
                rows = [row for row in rows if (row["peer"], row.get("micro")) not in mine] + new
                if out:
                    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
                    out.write_text(json.dumps(machine | {"wanted": WANTED, "rows": rows}, indent=1) + "\n")


def questions(peer: str, micro: list[int], pipe: Path) -> list[Row]:
    """What is asked of a peer and of us."""
    if peer == "torchgfn":
        return [{"epochs": EPOCHS}]
    subprocess.run([sys.executable, HERE / "peers_ours.py", "make", pipe], check=True)
    return [DDPO | {"micro": size, "pipe": str(pipe)} for size in micro]


def environment(peer: str, folder: Path) -> Path:
    """A Python with the peer."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *WANTED[peer]], check=True)
    return python


def compared(peer: str, python: Path, asked: Row, repeats: int) -> list[Row]:
    """A row per kind, of runs in turn."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in SCRIPTS[peer]}
    load = os.getloadavg()[0]
    for seed in range(repeats):
        for kind, script in SCRIPTS[peer].items():
            words = [sys.executable if kind == "difftilt" else python, HERE / script, "run"]
            words.append(json.dumps(asked | {"kind": kind, "seed": seed}))
            run = subprocess.run(words, check=True, capture_output=True, text=True, env=one_thread())
            found[kind].append(json.loads(run.stdout.splitlines()[-1]))
    about = {"peer": peer} | {name: value for name, value in asked.items() if name != "pipe"}
    about |= {"load_before": round(load, 2)}
    rows: list[Row] = [about | {"kind": kind} | summary(runs) for kind, runs in found.items()]
    for row in rows:
        row["times_faster"] = rows[0]["cpu_seconds"] / row["cpu_seconds"]
        row["memory_ratio"] = row["peak_mib"] / rows[0]["peak_mib"]
        print(json.dumps(row), flush=True)
    return rows


def summary(runs: list[dict[str, float]]) -> Row:
    """Medians, and all numbers of all runs."""
    every = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: statistics.median(values) for name, values in every.items()} | {"all": every}


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WANTED, default=list(WANTED), metavar="PEER")
    parser.add_argument("--micro", nargs="+", type=int, default=[8, 32, 256], help="rows at a time")
    parser.add_argument("--repeats", type=int, default=3)
    for peer in WANTED:
        parser.add_argument(f"--{peer}", type=Path, help="a Python that has it; one is made otherwise")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
