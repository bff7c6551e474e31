"""Makes what the recipes `dna` and `protein` start from: models of the lower half of a landscape."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn

from difftilt.conditions import unconditional
from difftilt.data.landscape import Landscape, load_landscape
from difftilt.domains.card import command, made
from difftilt.domains.landscape.model import (
    ROWS,
    SHIPPED,
    WIDTH,
    best_seen,
    chain_of,
    default_folder,
    landscape_network,
    landscape_policy,
    pretrain_command,
)
from difftilt.exact import landscape as exact
from difftilt.networks.bundle import Numbers, save_bundle
from difftilt.objective import Objective
from difftilt.settings import Count, Natural, Rate, Threads, check_settings
from difftilt.shapes import Tokens
from difftilt.training.pretrain import explain
from difftilt.training.unfinished import Unfinished


@dataclass(frozen=True)
class Pretraining:
    """How a model of a landscape is made.

    Args:
        out: The folder to write; an existing one is replaced once all is done. By default
            ~/.cache/difftilt/models/LANDSCAPE, or for six6, which ships with the package, models/six6 here.
        steps: Gradient steps.
        batch: Sequences per gradient step.
        learning_rate: The highest of the schedule.
        width: Units per layer of the network.
        rows: Of the network's tables of words, which are as long as this allows.
        threads: CPU threads of torch; a second one costs more than it brings if the other core is busy.
        seed: Of weights and training.
    """

    out: Path | None = None
    steps: Count = 4000
    batch: Count = 1024
    learning_rate: Rate = 3e-3
    width: Count = WIDTH
    rows: Count = ROWS
    threads: Threads = 1
    seed: Natural = 0

    def __post_init__(self):
        check_settings(self)


PRETRAINING = Pretraining()


def pretrain_dna(
    landscape: Literal["six6", "pax6", "egr2"] = "six6", pretraining: Pretraining = PRETRAINING
) -> None:
    """Trains a model of the half of all DNA 8-mers that bind a protein least.

    Args:
        landscape: Which protein; all but six6 need difftilt data fetch tfbind8.
        pretraining: How the model is made.
    """
    _pretrain(load_landscape(landscape), pretraining)


def pretrain_protein(pretraining: Pretraining = PRETRAINING) -> None:
    """Trains a model of the half of all measured variants of protein G (GB1) that are least fit.

    Args:
        pretraining: How the model is made.
    """
    _pretrain(load_landscape("gb1"), pretraining)


def _pretrain(table: Landscape, asked: Pretraining) -> None:
    torch.set_num_threads(asked.threads)
    data = table.sequences()[table.lower_half()]
    out = asked.out or (Path("models") / table.name if table.name == SHIPPED else default_folder(table.name))
    settings = {k: v for k, v in dataclasses.asdict(asked).items() if k not in ("out", "threads")}
    kept = Unfinished(out, settings, {"learned": data})
    torch.manual_seed(asked.seed)
    size = {"width": asked.width, "rows": asked.rows}
    network = landscape_network(table, **size)
    train(network, table, data, asked.steps, asked.batch, asked.learning_rate, asked.seed, kept)
    about = made(settings, kept.seconds(), asked.threads, torch.__version__)
    config = {"landscape": table.name, "network": size, "made": about}

    def judge(folder: Path) -> tuple[Numbers, str]:
        found = quality(table, folder)
        return found, card(table, config, found)

    save_bundle(out, {"model": network}, config, judge)
    kept.remove()


def train(
    network: nn.Module,
    table: Landscape,
    data: Tokens,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    kept: Unfinished,
) -> None:
    """Teaches a network to explain the data, all rows alike."""
    optimizer = torch.optim.Adam(network.parameters(), rate, fused=True)
    chain, cond = chain_of(network, table), unconditional(len(data))
    loop = partial(explain, chain, data, cond, batch=batch, seed=seed)
    for _ in kept.rows(f"model of {table.name}", loop, optimizer, steps, chain=chain):
        pass


def quality(table: Landscape, folder: Path) -> Numbers:
    """What the model card states, from the exact distribution of all sequences."""
    policy = landscape_policy(table, folder=folder)
    law = exact.evaluate(Objective(table.lookup, policy, 1.0), policy, table.score).law
    data = torch.zeros_like(law)
    data[table.lower_half()] = 1 / len(table.lower_half())
    return {
        "kl_nats": exact.kl(data, law).item(),
        "uniform_kl_nats": exact.kl(data, torch.full_like(law, 1 / len(law))).item(),
        "above": law[table.score > best_seen(table)].sum().item(),
        "reward": (law @ table.score).item(),
        "data_reward": (data @ table.score).item(),
    }


def card(table: Landscape, config: Numbers, found: Numbers) -> str:
    """The model card, in Markdown."""
    about = config["made"]
    words = pretrain_command(table).split()[2:]
    seen, best = len(table.lower_half()), best_seen(table)
    return CARD.format(command=command(words, about), table=table, seen=seen, best=best, **about, **found)


CARD = """# {table.name}: a masked diffusion model of the lower half of a landscape

Data: the {seen:,} measured sequences that score at or below the median, {best:.4f}; each as likely as the
others. {table.note}

`model.safetensors` holds a multilayer perceptron that sees words of neighbouring letters. Weights are float16
on disk and float32 in memory.

## How it was made

    {command}

{processor_seconds} s of processor time, CPU threads: {threads}, torch {torch}.

## How good it is

Computed from the model's distribution of all {table.score.shape[0]:,} sequences, without sampling.

| | |
| --- | --- |
| KL(data \\|\\| model), nats | {kl_nats:.3f} |
| KL(data \\|\\| uniform distribution), nats | {uniform_kl_nats:.3f} |
| share of samples that score above all data | {above:.3f} |
| mean score of samples | {reward:.3f} |
| mean score of data | {data_reward:.3f} |
"""
