"""Makes what the recipe `utr` starts from: a model of random 5' UTRs, the proxy and the gold oracle."""

from functools import partial
from pathlib import Path

import torch
import torch.nn as nn

from difftilt.conditions import unconditional
from difftilt.domains.card import command, made, shown
from difftilt.domains.sequences.view import diversity, entropy, kmer_correlation
from difftilt.domains.split import Split
from difftilt.domains.utr.model import (
    LETTERS,
    ORACLES,
    STEPS,
    Measured,
    Oracle,
    chain_of,
    denoiser,
    load_oracle,
    load_split,
    utr_policy,
)
from difftilt.evaluation.estimate import Estimate, mean
from difftilt.networks.bundle import Numbers, save_bundle, user_folder
from difftilt.policy import rollout
from difftilt.processes.likelihood import elbo
from difftilt.rewards.held_out import correlation_error
from difftilt.settings import Count, Natural, Rate, Threads
from difftilt.shapes import PerSample, Sequences
from difftilt.training.pretrain import explain, regress
from difftilt.training.unfinished import Unfinished

NETWORK = {"width": 32, "kernel": 7, "depth": 3}
ORACLE = {"width": 32, "kernel": 7, "depth": 3, "features": 64}
RATE = 2e-3
COMPARED = 2_000  # UTRs of each kind that are kept for comparison, and drawn for the model card
BEST = 0.01  # share of all UTRs that are called the best


def pretrain_utr(
    out: Path | None = None,
    steps: Count = 2000,
    oracle_steps: Count = 2200,
    batch: Count = 256,
    oracle_rate: Rate = 3e-3,
    threads: Threads = 1,
    seed: Natural = 0,
) -> None:
    """Trains a model of random 5' UTRs and two oracles, measures them and writes weights and model card.

    The data come from difftilt data fetch utr, or from difftilt data import utr PATH.

    Args:
        out: The folder to write; an existing one is replaced once all is done. By default the one that
            the recipe reads, ~/.cache/difftilt/models/utr.
        steps: Gradient steps of the diffusion model.
        oracle_steps: Gradient steps of each oracle.
        batch: UTRs per gradient step.
        oracle_rate: The highest learning rate of the oracles' schedule.
        threads: CPU threads of torch; a second one costs more than it brings if the other core is busy.
        seed: Of weights and training; the split of the data is always the same.
    """
    torch.set_num_threads(threads)
    parts = load_split()
    out = out or user_folder("utr")
    settings = {"steps": steps, "oracle_steps": oracle_steps, "batch": batch, "oracle_rate": oracle_rate}
    settings |= {"seed": seed}
    kept = Unfinished(out, settings, {"learned": parts.train.sequence, "proxy": parts.proxy.load})
    networks = {
        "model": _train_model(parts.train.sequence, steps, batch, seed, kept),
        "proxy": _train_oracle("proxy", parts.proxy, oracle_steps, batch, oracle_rate, seed + 1, kept),
        "gold": _train_oracle("gold", parts.gold, oracle_steps, batch, oracle_rate, seed + 2, kept),
    }
    about = made(settings, kept.seconds(), threads, torch.__version__)
    measured = {"all": parts.held_out.sequence[:COMPARED], "best": best(parts)[:COMPARED]}
    tensors = {"measured": {name: x.to(torch.uint8) for name, x in measured.items()}}

    def judge(folder: Path) -> tuple[Numbers, str]:
        found = quality(folder, parts.held_out)
        return found, card(about, found)

    config = {"network": NETWORK, "oracle": ORACLE, "made": about}
    save_bundle(out, networks, config, judge, tensors)
    kept.remove()


def _train_model(data: Sequences, steps: int, batch: int, seed: int, kept: Unfinished) -> nn.Module:
    """One letter at a time, so that the network meets every number of masks."""
    torch.manual_seed(seed)
    network = denoiser(**NETWORK)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    policy, cond = chain_of(network, data.shape[1]), unconditional(len(data))
    loop = partial(explain, policy, data, cond, batch=batch, seed=seed)
    for _ in kept.rows("diffusion model", loop, optimizer, steps, chain=policy):
        pass
    return network


def _train_oracle(
    name: str, data: Measured, steps: int, batch: int, rate: float, seed: int, kept: Unfinished
) -> nn.Module:
    torch.manual_seed(seed)
    oracle = Oracle(**ORACLE)
    oracle.mean.copy_(data.load.mean())
    oracle.spread.copy_(data.load.std())
    optimizer = torch.optim.AdamW(oracle.parameters(), rate, weight_decay=0.02)
    loop = partial(regress, oracle, data.sequence, data.load, batch=batch, seed=seed)
    for _ in kept.rows(f"{name} oracle", loop, optimizer, steps, oracle=oracle):
        pass
    return oracle


def best(parts: Split) -> Sequences:
    """The UTRs of all parts with the highest measured loads, highest first."""
    every = [parts.proxy, parts.gold, parts.held_out]
    load = torch.cat([part.load for part in every])
    rows = load.argsort(descending=True)[: max(round(BEST * len(load)), 3)]
    return torch.cat([part.sequence for part in every])[rows]


@torch.no_grad()
def quality(folder: Path, held_out: Measured, seed: int = 0) -> Numbers:
    """What the model card states, measured on UTRs that no network has seen. Each with its standard error."""
    torch.manual_seed(seed)
    x = held_out.sequence
    loads = {name: _in_parts(load_oracle(name, folder), x) for name in ORACLES}
    drawn = rollout(utr_policy(folder=folder), unconditional(min(COMPARED, len(x) // 2))).sample
    chain = utr_policy(x.shape[1], folder=folder)
    bound = torch.cat([elbo(chain, part, unconditional(len(part))) for part in x.split(1000)])
    sets = {"measured": x[: len(drawn)], "drawn": drawn}
    return {
        "held_out": len(x),
        "drawn": len(drawn),
        "pearson": {name: pearson(load, held_out.load) for name, load in loads.items()},
        "error": {name: (load - held_out.load).square().mean().sqrt().item() for name, load in loads.items()},
        "agreement": pearson(loads["proxy"], loads["gold"]),
        "bound": mean(bound),
        "entropy": entropy(x, LETTERS).sum().item() * torch.tensor(2.0).log().item(),
        "load": {name: mean(_in_parts(load_oracle("gold", folder), y)) for name, y in sets.items()},
        "diversity": {name: diversity(y) for name, y in sets.items()},
        "words": {name: kmer_correlation(y, x[len(drawn) :], LETTERS) for name, y in sets.items()},
    }


def pearson(a: PerSample, b: PerSample) -> Estimate:
    """Pearson's correlation, with its standard error."""
    r = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    return Estimate(r, correlation_error(r, len(a)))


def _in_parts(oracle: Oracle, x: Sequences) -> PerSample:
    return torch.cat([oracle(part) for part in x.split(1000)])


def card(about: Numbers, found: Numbers) -> str:
    """The model card, in Markdown."""
    value, se = found["bound"]
    found = shown(found | {"bound": (-value, se)})
    rows = (f"| {label} | {found[key]['measured']} | {found[key]['drawn']} |" for label, key in TABLE)
    return CARD.format(command=command(["utr"], about), **about, **found, rows="\n".join(rows), steps=STEPS)


TABLE = (
    ("load by the gold oracle", "load"),
    ("share of positions at which two UTRs differ", "diversity"),
    ("correlation of 3-mers with the other held-out UTRs", "words"),
)
CARD = """# 5' UTRs: a masked diffusion model of random ones, and two oracles of their ribosome load

Data: 280,000 random 5' UTRs of 50 letters before a reporter gene, with the mean number of ribosomes on their
transcripts (Sample et al., Nature Biotechnology 2019, GEO GSE114002). They are split once and for all: one
part is held out, the rest is halved into *proxy* and *gold*.

| file | what | learned from |
| --- | --- | --- |
| `model.safetensors` | masked diffusion model, a convolutional network | proxy + gold |
| `proxy.safetensors` | oracle of the load, for rewards | proxy |
| `gold.safetensors` | oracle of the load that only judges | gold |
| `measured.safetensors` | UTRs to compare with: `all`, held-out ones; `best`, the 1 % of highest load | |

Weights are float16 on disk and float32 in memory.

## How it was made

    {command}

{processor_seconds} s of processor time, CPU threads: {threads}, torch {torch}.

## How good it is

Measured on the {held_out} held-out UTRs, which no network has seen. Errors are standard errors.

| | proxy | gold |
| --- | --- | --- |
| Pearson's correlation with the measured load | {pearson[proxy]} | {pearson[gold]} |
| root mean square error, ribosomes | {error[proxy]:.3f} | {error[gold]:.3f} |

The two oracles correlate by {agreement} with each other.
The model's evidence lower bound says at most {bound} nats per UTR; letters that do not know of each other
have an entropy of {entropy:.3f} nats.

{drawn} UTRs were drawn in {steps} steps, and are compared with as many measured ones:

| | measured | drawn |
| --- | --- | --- |
{rows}
"""
