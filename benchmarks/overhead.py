"""What the library costs on top of the network: one PPO round on digits against its bare network passes.

Every call that a round makes of a network is recorded with its inputs. The bare side repeats exactly these
calls, with a backward pass where the round had one. Both sides run in turn in one process, and the ratio is
taken pair by pair.

    python benchmarks/overhead.py [--pairs N] [--batch N] [--threads N] [--out FILE.json]
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from difftilt import PPO, Objective, fit
from difftilt.domains.digits.model import asked, digits_policy, load_classifier
from difftilt.rewards.image import class_log_prob

Call = tuple[nn.Module, tuple[Any, ...], bool]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    policy = digits_policy()
    reference = copy.deepcopy(policy).requires_grad_(False)
    objective = Objective(class_log_prob(load_classifier("proxy"), 3), reference, alpha=0.1)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-5)
    algorithm = PPO()

    def tilt() -> None:
        list(fit(policy, objective, algorithm, [asked(options.batch)], optimizer))

    calls = record([policy.network, reference.network], tilt)

    def bare() -> None:
        replay(calls)
        optimizer.zero_grad()

    tilt()
    bare()
    pairs = [(seconds(tilt), seconds(bare)) for _ in range(options.pairs)]
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    row = {
        "task": "digits",
        "algorithm": "ppo",
        "batch": options.batch,
        "steps": policy.steps,
        "threads": options.threads,
        "round_seconds": statistics.median(ours for ours, _ in pairs),
        "network_seconds": statistics.median(theirs for _, theirs in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "pairs": options.pairs,
        "rows_forward": sum(len(inputs[0]) for _, inputs, _ in calls),
        "rows_backward": sum(len(inputs[0]) for _, inputs, gradient in calls if gradient),
    }
    print(json.dumps(row, indent=1))
    if options.out:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.out.write_text(json.dumps(machine | {"rows": [row]}, indent=1) + "\n")


def record(networks: list[nn.Module], work: Callable[[], object]) -> list[Call]:
    """The calls of these networks while some work is done: network, inputs, and whether gradients flowed."""
    calls: list[Call] = []

    def keep(network: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        calls.append((network, leaves(inputs), output.requires_grad))

    handles = [network.register_forward_hook(keep) for network in networks]
    work()
    for handle in handles:
        handle.remove()
    return calls


def replay(calls: Iterable[Call]) -> None:
    """The same calls again, without anything else; gradients flow to whatever they did."""
    for network, inputs, gradient in calls:
        with torch.set_grad_enabled(gradient):
            output = network(*leaves(inputs))
        if gradient:
            output.backward(torch.ones_like(output))


def leaves(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs without what led to them, but with a gradient of their own where they had one."""
    return tuple(
        x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in inputs
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
