"""How exact `exact.landscape` is, what it costs, and what drawing tokens at once costs.

speed     evaluate and solve on SIX6 (4^8 sequences) and on random scores of GB1's size (20^4), each in a
          process of its own: CPU seconds of one thread in all and in the networks, and the process's peak
          memory before and after; with Bernoulli unmasking, evaluate alone
sampling  J of the recursion against a million sampled chains
parity    the best policy that draws each masked token with probability 1 / T per step: how far it stays
          below the optimum where the reward is 1 if 2 to 4 bits sum to an odd number

Rows of other parts in FILE.json stay.

    python benchmarks/exactness.py [--only PART ...] [--out FILE.json]
"""

import argparse
import itertools
import json
import math
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.data.landscape import Landscape, load_landscape
from difftilt.data.vocabulary import PROTEIN
from difftilt.domains.landscape.model import landscape_network
from difftilt.exact import landscape as exact
from difftilt.experiment.record import write_json
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy, Unmasking

ALPHA, SAMPLES, BATCH = 0.1, 1_000_000, 25_000
BITS, STEPS, BIT_ALPHA = (2, 3, 4), (1, 2, 4, 8, 16, 32), 0.25
SWEEPS = 2000  # of coordinate ascent, at most
Row = dict[str, Any]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows: list[Row] = []
    if options.out and options.out.exists():
        rows = [row for row in json.loads(options.out.read_text())["rows"] if row["part"] not in options.only]
    for part in options.only:
        for row in PARTS[part]():
            rows.append({"part": part, **row})
            print(
                *(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                flush=True,
            )
            if options.out:
                write_json(options.out, machine | {"rows": rows})


class Timed(nn.Module):
    """A network, and the CPU seconds that it took."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        start = time.process_time()
        out = self.network(x, t, cond)
        self.seconds += time.process_time() - start
        return out


@dataclass(frozen=True)
class Case:
    """What is measured on what."""

    landscape: str
    unmasking: Unmasking
    steps: int
    call: str


CASES = [
    Case("six6", "positions", 8, "evaluate"),
    Case("six6", "positions", 8, "solve"),
    Case("six6", "bernoulli", 16, "evaluate"),
    Case("random 20^4", "positions", 4, "evaluate"),
    Case("random 20^4", "positions", 4, "solve"),
]


def speed() -> Iterator[Row]:
    spawn = multiprocessing.get_context("spawn")
    for case in CASES:
        with ProcessPoolExecutor(1, spawn) as pool:
            yield pool.submit(measure, case).result()


def measure(case: Case) -> Row:
    torch.set_num_threads(1)
    scores, objective, policy, networks = problem(case)
    before, start = peak(), time.process_time()
    if case.call == "evaluate":
        law = exact.evaluate(objective, policy, scores).law
    else:
        law = exact.solve(objective, scores).law
    seconds = time.process_time() - start
    inside = sum(network.seconds for network in networks)
    return {
        **asdict(case),
        "states": (policy.categories + 1) ** len(policy.start),
        "cpu_seconds": seconds,
        "network_cpu_seconds": inside,
        "beyond_network_cpu_seconds": seconds - inside,
        "peak_mib": peak(),
        "peak_mib_before": before,
        "sum_minus_1": law.sum().item() - 1,
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def problem(case: Case) -> tuple[Tensor, Objective, MaskedPolicy, list[Timed]]:
    """Two chains of random networks."""
    torch.manual_seed(0)
    landscape = load_landscape("six6") if case.landscape == "six6" else random_landscape()
    networks = [Timed(random_network(landscape)) for _ in range(2)]
    chains = [
        MaskedPolicy(
            network, len(landscape.alphabet), landscape.length, steps=case.steps, unmasking=case.unmasking
        ).requires_grad_(False)
        for network in networks
    ]
    return landscape.score, Objective(landscape.lookup, chains[0], ALPHA), chains[1], networks


def random_landscape() -> Landscape:
    scores = torch.rand(20**4, dtype=torch.float64)
    return Landscape("random", PROTEIN, 4, scores, torch.ones(20**4, dtype=torch.bool), "random scores")


def random_network(landscape: Landscape) -> nn.Module:
    network = landscape_network(landscape)
    for name, weight in network.named_parameters():
        if "logits" in name:
            nn.init.normal_(weight, std=0.3)
    return network


def sampling() -> Iterator[Row]:
    """`kl` sums the closed-form KL of each step; `log_ratio` knows only the densities of what was drawn."""
    scores, objective, policy, _ = problem(CASES[0])
    found = exact.evaluate(objective, policy, scores)
    drawn: dict[str, list[Tensor]] = {"reward": [], "kl": [], "log_ratio": [], "objective": []}
    for _ in range(SAMPLES // BATCH):
        seen = objective.sample(policy, unconditional(BATCH))
        kl = seen.kl.double().sum(0)
        drawn["reward"].append(seen.reward.double())
        drawn["kl"].append(kl)
        drawn["log_ratio"].append(seen.log_ratio.double().sum(0))
        drawn["objective"].append(seen.reward.double() - ALPHA * kl)
    for name, parts in drawn.items():
        sample = torch.cat(parts)
        by_recursion = getattr(found, "kl" if name == "log_ratio" else name).item()
        error = (sample.std() / len(sample) ** 0.5).item()
        difference = sample.mean().item() - by_recursion
        yield {
            "quantity": name,
            "samples": len(sample),
            "alpha": ALPHA,
            "recursion": by_recursion,
            "sampled": sample.mean().item(),
            "standard_error": error,
            "difference_in_errors": difference / error,
        }


def parity() -> Iterator[Row]:
    for bits, steps in itertools.product(BITS, STEPS):
        odd = torch.tensor([sum(x) % 2 for x in itertools.product((0, 1), repeat=bits)]).double()
        value, guesses = best_guesses(odd.view((2,) * bits), steps)
        reference, policy = (Bits(table).chain() for table in (torch.zeros_like(guesses), guesses.log()))
        objective = Objective(lambda x, c: (x.sum(1) % 2).double(), reference, BIT_ALPHA)
        found, solved = exact.evaluate(objective, policy, odd), exact.solve(objective, odd)
        yield {
            "bits": bits,
            "steps": steps,
            "alpha": BIT_ALPHA,
            "gap_nats": ((solved.optimum - found.objective) / BIT_ALPHA).item(),
            "total_variation": (found.law - solved.law).abs().sum().item() / 2,
            "bellman_minus_recursion": value - found.objective.item(),
        }


class Bits(nn.Module):
    """Logits per t and state: a table (T + 1, 3, ..., 3, bits, 2), in which 2 is the mask."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = table

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        return self.table[(t, *x.argmax(-1).unbind(1))]

    def chain(self) -> MaskedPolicy:
        steps, bits = len(self.table) - 1, self.table.shape[-2]
        return MaskedPolicy(self, 2, bits, steps=steps, unmasking="bernoulli")


def best_guesses(reward: Tensor, steps: int) -> tuple[float, Tensor]:
    """max J over all guesses from uniform bits, and the guesses, by Bellman's recursion over t."""
    bits = reward.ndim
    value = F.pad(reward, (0, 1) * bits)
    guesses = torch.full((steps + 1, *(3,) * bits, bits, 2), 0.5, dtype=torch.float64)
    for t in range(1, steps + 1):
        after = value.clone()
        for masks in range(1, bits + 1):
            states = [x for x in itertools.product(range(3), repeat=bits) if x.count(2) == masks]
            cuts = [tuple(slice(None) if token == 2 else token for token in x) for x in states]
            best, one = climb(torch.stack([value[cut] for cut in cuts]), t)
            for x, height, p in zip(states, best, one, strict=True):
                after[x] = height
                guesses[(t, *x)][[token == 2 for token in x]] = torch.stack([1 - p, p], -1)
        value = after
    return value[(2,) * bits].item(), guesses


def climb(value: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Over independent bits, max E[v(x_{t-1})] - alpha KL of each state, from every corner and centre.

    Given the others, the best distribution of a bit is p exp(E[v | bit] / alpha): each ascent ends in a local
    maximum.

    Args:
        value: (states, 3, ..., 3), of what each masked bit becomes: 0, 1, or masked still.
    """
    masks = value.ndim - 1
    starts = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=masks)), dtype=torch.float64)
    one = starts.expand(len(value), -1, -1).clone()
    for _ in range(SWEEPS):
        before = one.clone()
        for i in range(masks):
            of_bit = mean(value, one, t, i)
            one[..., i] = ((of_bit[..., 1] - of_bit[..., 0]) / BIT_ALPHA).sigmoid()
        if (one - before).abs().max() < 1e-13:
            break
    entropy = torch.special.entr(one) + torch.special.entr(1 - one)
    height = mean(value, one, t) - BIT_ALPHA / t * (math.log(2) - entropy).sum(-1)
    best, start = height.max(1)
    return best, one[torch.arange(len(one)), start]


def mean(value: Tensor, one: Tensor, t: int, kept: int | None = None) -> Tensor:
    """E[v], each bit drawn with probability 1 / t; of each outcome of one bit, if one is kept."""
    axes = "abcdefgh"[: one.shape[-1]]
    weight = torch.stack([(1 - one) / t, one / t, torch.full_like(one, 1 - 1 / t)], -1).unbind(2)
    others = [i for i in range(len(axes)) if i != kept]
    left = ",".join(["sz" + axes] + ["sz" + axes[i] for i in others])
    right = "sz" if kept is None else "sz" + axes[kept]
    of_start = value[:, None].expand(-1, one.shape[1], *value.shape[1:])
    return torch.einsum(f"{left}->{right}", of_start, *[weight[i] for i in others])


PARTS: dict[str, Callable[[], Iterator[Row]]] = {"speed": speed, "sampling": sampling, "parity": parity}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
