"""Time and memory of an epoch of DDPO, by difftilt and by TRL, on one tiny Stable Diffusion pipeline.

    python benchmarks/peers.py [--micro 8 32 256] [--repeats N] [--trl PYTHON] [--out FILE.json]

Both tune a LoRA of rank 4 on the same random weights, draw the same number of samples by DDIM at eta 1 with
guidance, pass as many rows at a time, and take one gradient step an epoch on all of them, in one thread. Each
run is a process of its own, in turn. TRL knows no KL; ours is in the reward, which costs a pass of the
reference. TRL lives in an environment of its own, which is made if no other is given.
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
TRL = ("trl==0.23.1", "diffusers==0.42.1", "peft", "torch==2.13.0")
BATCH, STEPS, EPOCHS = 256, 5, 2
SCRIPTS = {"trl": "peers_trl.py", "difftilt": "peers_ours.py"}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--micro", nargs="+", type=int, default=[8, 32, 256], help="rows at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl", type=Path, help="a Python that has TRL; one is made otherwise")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pipe = Path(scratch) / "pipe"
        subprocess.run([sys.executable, HERE / "peers_ours.py", "make", pipe], check=True)
        trl = options.trl or environment(Path(scratch) / "trl")
        rows = [row for micro in options.micro for row in compared(pipe, trl, micro, options.repeats)]
    result = {
        "batch": BATCH, "steps": STEPS, "repeats": options.repeats, "peer": TRL[0], "rows": rows,
        "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def environment(folder: Path) -> Path:
    """A Python with TRL."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TRL], check=True)
    return python


def compared(pipe: Path, trl: Path, micro: int, repeats: int) -> list[dict[str, Any]]:
    """A row per kind, of runs in turn."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SCRIPTS}
    load = os.getloadavg()[0]
    for _ in range(repeats):
        for kind, script in SCRIPTS.items():
            asked = {"micro": micro, "batch": BATCH, "steps": STEPS, "epochs": EPOCHS}
            words = [trl if kind == "trl" else sys.executable, HERE / script, "run", pipe, json.dumps(asked)]
            run = subprocess.run(words, check=True, capture_output=True, text=True, env=one_thread())
            found[kind].append(json.loads(run.stdout.splitlines()[-1]))
    rows = [summary(kind, micro, runs) | {"load_before": round(load, 2)} for kind, runs in found.items()]
    for row in rows:
        row["times_faster"] = rows[0]["cpu_seconds"] / row["cpu_seconds"]
        row["memory_ratio"] = row["peak_mib"] / rows[0]["peak_mib"]
        print(json.dumps(row), flush=True)
    return rows


def summary(kind: str, micro: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "kind": kind,
        "micro_batch": micro,
        **medians,
        "all_cpu_seconds": [r["cpu_seconds"] for r in runs],
    }


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
