"""Peak memory of full fine-tuning of a transformer: one process against FSDP2 on several, per process.

python benchmarks/fsdp_memory.py [--layers N] [--processes N] [--seeds N] [--out FILE.json]

Each run is a whole `train`: two rounds of PPO at equal total batch, with Adam, the snapshot of the last round
and the checkpoint. Peak is the resident set of a process at its largest (ru_maxrss), with Python and torch.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.experiment.finetune import make_optimizer
from difftilt.experiment.job import tune
from difftilt.processes import schedule as grid
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.training.distributed import finish, make_accelerator
from difftilt.training.settings import Training
from difftilt.training.sharding import shard
from difftilt.training.train import train

WIDTH, LENGTH, BATCH, ROUNDS, MIB = 1024, 8, 4, 2, 2**20


class Transformer(nn.Module):
    """Blocks of 12.6 million parameters each, on rows of a state (batch, LENGTH, WIDTH)."""

    def __init__(self, layers: int):
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 16, 4 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )

    def forward(self, x, time, cond):
        h = x + self.time(time[:, None].float())[:, None]
        for block in self.blocks:
            h = block(h)
        return h


def life(layers: int, seed: int, folder: Path) -> None:
    """One process of a run; says its peak."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    accelerator = make_accelerator()
    count, process = accelerator.num_processes, accelerator.process_index
    levels = grid.shifted_flow(2, sigma_min=0.05, train_steps=1)
    network = Transformer(layers)
    policy = GaussianPolicy(network, levels, (LENGTH, WIDTH), prediction_type="flow_prediction")
    training = Training(batch=BATCH, rounds=ROUNDS, save_every=ROUNDS, seed=seed, learning_rate=1e-6)
    job = tune(policy, lambda x, cond: x.flatten(1).mean(1), PPO(epochs=1, minibatches=1), 1.0, training)
    if count > 1:
        shard(job.policy, job.objective.reference, job.algorithm, accelerator)
    optimizer, _ = make_optimizer(job)
    start = time.monotonic()
    for _ in train(
        folder, job.policy, job.objective, job.algorithm, lambda _: unconditional(BATCH // count),
        optimizer, training, accelerator, show=False,
    ):  # fmt: skip
        pass
    row = {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.monotonic() - start, 1),
    }
    (folder / f"peak-{process}.json").write_text(json.dumps(row))
    finish(accelerator)


def measured(layers: int, processes: int, seed: int) -> list[dict[str, float]]:
    """The rows of all processes of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        own = [__file__, "--life", scratch, "--layers", str(layers), "--seed", str(seed)]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        subprocess.run([sys.executable, *(several if processes > 1 else []), *own], check=True)
        return [json.loads((Path(scratch) / f"peak-{k}.json").read_text()) for k in range(processes)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--life", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.life is not None:
        life(asked.layers, asked.seed, asked.life)
        return
    rows = []
    for seed in range(asked.seeds):
        alone = measured(asked.layers, 1, seed)
        several = measured(asked.layers, asked.processes, seed)
        ratio = max(row["peak_mib"] for row in several) / alone[0]["peak_mib"]
        rows.append({"seed": seed, "alone": alone, "fsdp": several, "ratio_of_largest": round(ratio, 3)})
        print(json.dumps(rows[-1]), flush=True)
    about = {"machine": platform.platform(), "torch": torch.__version__, "layers": asked.layers}
    if asked.out is not None:
        asked.out.write_text(
            json.dumps(about | {"processes": asked.processes, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
