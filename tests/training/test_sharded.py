"""Weights cut up by FSDP2 train as whole ones do, and go on on any number of processes."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from dealt import Dealt, classes
from safetensors.torch import load_file
from several import in_processes

from difftilt.algorithms.nft import NFT
from difftilt.algorithms.ppo import PPO
from difftilt.experiment.finetune import make_optimizer
from difftilt.experiment.job import Job
from difftilt.experiment.plan import share_of_round
from difftilt.processes import schedule as grid
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.training import checkpoint
from difftilt.training.distributed import finish, make_accelerator, start_alike
from difftilt.training.load import load_totals
from difftilt.training.settings import Parallel, Training
from difftilt.training.sharding import check_shardable, part_of, shard
from difftilt.training.train import train

ROUNDS, BATCH = 5, 16


class Blocks(nn.Module):
    """As transformers are built, with a last bias of which there is not enough for two processes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 7), nn.Linear(7, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.SiLU()) for _ in range(2))

    def forward(self, x, time, cond):
        h = self.first(torch.cat([x, time[:, None].to(x)], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def make_job(process: int, processes: int, parallel: Parallel) -> Job:
    torch.manual_seed(0)
    levels = grid.shifted_flow(3, sigma_min=0.05, train_steps=1)
    policy = GaussianPolicy(Blocks(), levels, (1,), prediction_type="flow_prediction").double()
    reference = copy.deepcopy(policy).requires_grad_(False)
    objective = Dealt(lambda x, cond: x[:, 0] * (1 + cond["class"]), reference, 0.5)
    objective.process, objective.processes = process, processes
    algorithm = PPO(advantage="critic", minibatches=1)
    algorithm.setup(policy, classes(2))
    training = Training(batch=BATCH, rounds=ROUNDS, ema_decay=0.5, parallel=parallel, max_norm=0.5)
    return Job(policy, objective, algorithm, training, cond=lambda n: {"class": torch.arange(n) % 8})


def live(folder: Path, rounds: int, parallel: Parallel, accelerator) -> None:
    """Trains up to a round."""
    process, processes = accelerator.process_index, accelerator.num_processes
    job = make_job(process, processes, parallel)
    if parallel == "fsdp" and processes > 1:
        start_alike([job.policy], accelerator)
        shard(job.policy, job.objective.reference, job.algorithm, accelerator)
        parts = [part_of(p) for p in job.policy.parameters()]
        held = sum(part.numel() for part in parts if part is not None)
        assert held < 0.6 * sum(p.numel() for p in job.policy.parameters())
    optimizer, _ = make_optimizer(job)
    training = Training(**{**vars(job.training), "rounds": rounds})
    for _ in train(
        folder, job.policy, job.objective, job.algorithm,
        lambda number: share_of_round(job, number, process, processes),
        optimizer, training, accelerator, show=False,
    ):  # fmt: skip
        pass


def lives(count: int, *runs: tuple[Path, int, Parallel]) -> None:
    """Does so in several processes, run after run."""

    def work(rank):
        torch.set_num_threads(1)
        accelerator = make_accelerator(timeout_minutes=1)
        for run in runs:
            live(*run, accelerator)
        finish(accelerator)

    in_processes(count, work)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, their average, and moments in the newest checkpoint."""
    path = checkpoint.newest(folder / "checkpoints")
    assert path is not None
    optimizer = checkpoint.read(path, "training")["optimizer"]["state"]
    moments = {f"{n} {name}": x for n, state in optimizer.items() for name, x in state.items()}
    averages = {f"ema {name}": x for name, x in checkpoint.read(path, "ema").items()}
    return {**checkpoint.read(path, "policy"), **averages, **moments}


def assert_alike(first: Path, second: Path) -> None:
    a, b = state_of(first), state_of(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)


def test_sharded_weights_train_as_whole_ones_do_and_go_on_anywhere(ram):
    whole, cut, early = ram / "ddp", ram / "fsdp", ram / "early"
    lives(2, (whole, ROUNDS, "ddp"), (cut, ROUNDS, "fsdp"), (early, 3, "fsdp"))
    assert_alike(whole, cut)
    start = {name: x.clone() for name, x in make_job(0, 1, "ddp").policy.state_dict().items()}
    assert max((state_of(cut)[name] - x).abs().max() for name, x in start.items()) > 1e-3

    saved = cut / "checkpoints" / f"round-{ROUNDS:06d}"
    files = {path.name for path in saved.iterdir()}
    assert {"policy-0.safetensors", "policy-1.safetensors", "ema-1.safetensors"} <= files
    assert all(name.endswith(("json", "safetensors")) for name in files)
    assert not [name for name in load_file(saved / "policy.safetensors") if name.startswith("network.")]

    for name in ("again", "alone", "whole-again"):
        shutil.copytree(early, ram / name)
    lives(2, (ram / "again", ROUNDS, "fsdp"), (ram / "whole-again", ROUNDS, "ddp"))
    live(ram / "alone", ROUNDS, "fsdp", make_accelerator())
    for name in ("again", "alone", "whole-again"):
        assert_alike(cut, ram / name)
        later = BATCH * (ROUNDS - 3) * (1 if name == "alone" else 2)
        assert load_totals(ram / name).reward_calls == BATCH * 3 * 2 + later
        steps = [json.loads(row)["step"] for row in (ram / name / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 2 * ROUNDS + 1))


@pytest.mark.slow
def test_saved_on_four_processes_goes_on_on_one_two_and_four(ram):
    early, cut = ram / "early", ram / "fsdp"
    lives(4, (early, 3, "fsdp"), (cut, ROUNDS, "fsdp"))
    for count in (1, 2, 4):
        shutil.copytree(early, ram / str(count))
        lives(count, (ram / str(count), ROUNDS, "fsdp"))
        assert_alike(cut, ram / str(count))


def test_what_cannot_be_sharded_is_refused():
    job = make_job(0, 1, "fsdp")
    without = copy.deepcopy(job.policy)
    without.network = nn.Identity()  # as that of a chain whose adapters are switched off
    for reference in (without, job.policy):
        with pytest.raises(ValueError, match="the reference shares weights with the model"):
            check_shardable(job.policy, reference, job.algorithm)
    nft = NFT()
    nft.setup(job.policy, classes(2))
    with pytest.raises(ValueError, match="NFT keeps a copy of the model"):
        check_shardable(job.policy, job.objective.reference, nft)
