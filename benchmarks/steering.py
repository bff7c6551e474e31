"""Steering against what it should draw: classifier guidance, distilled samplers, the cost of a guided step.

scale          p(y | x) = sigmoid(2 x) on the two-component mixture: exact total variation and KL, from
               p(x) p(y | x)^w, of classifier guidance with the exact log p(y | x_t) at two numbers of steps,
               and of steps that are tilted by w log p(y | x_t) exactly (`candidates`)
scale-tuned    the same of PPO at alpha = 1 / w
distill-x      SMC distilled into the weights of the 50-step mixture chain, reward x at alpha 1: exact J of
distill-sin    the student beside alpha E[log_z], SMC's own J from below; or sin 3x at alpha 0.5
overhead       a draw on digits against the bare passes that it needs through the denoiser and the reward's
               classifier; a pass that repeats an earlier one of the same input is not needed

Rows of other runs in FILE.json stay.

    python benchmarks/steering.py [--only TASK ...] [--seeds N] [--out FILE.json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from exact import Entry, mixture, sin, train, x

from difftilt import (
    PPO,
    SMC,
    SVDD,
    Distill,
    GaussianPolicy,
    Objective,
    PosteriorMean,
    ValueGuidance,
    classifier_guided,
    unconditional,
)
from difftilt.domains.digits.model import asked, digits_policy, load_classifier
from difftilt.exact import grid
from difftilt.exact.result import TableEvaluation
from difftilt.exact.toy import gmm
from difftilt.experiment.record import write_json
from difftilt.networks.network_calls import NetworkCalls
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas
from difftilt.rewards.image import class_log_prob
from difftilt.samplers.base import Sampler
from difftilt.training.fit import denoisers

Row = dict[str, Any]
SCALES = (1.0, 2.0, 4.0)
AXES = {50: grid.Axis(-6, 6, 301), 200: grid.Axis(-6, 6, 601)}
AXIS = grid.Axis(-8, 8, 801)
TUNED = Entry(PPO, batch=512, rounds=80)
STUDENT = {"batch": 512, "rounds": 80, "learning_rate": 2e-2}
JUDGED = 4096  # populations whose log_z tells the sampler's J
PAIRS, BATCH = 21, 128


def sigmoid(sample, cond):
    """log p(y | x_0)."""
    return nn.functional.logsigmoid(2 * sample[:, 0])


def noise(steps: int) -> GaussianPolicy:
    """The mixture's chain with the same noise in any number of steps."""
    levels = from_betas(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps)
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
    return GaussianPolicy(gmm(levels), levels, (1,), **settings).double().requires_grad_(False)


class Noisy(nn.Module):
    """The best classifier of noised samples, from exact soft values of log p(y | x_0)."""

    def __init__(self, solved: grid.Solution):
        super().__init__()
        self.solved = solved

    def forward(self, x, t, cond):
        log_p = self.solved.value(x, t, cond).clamp(max=-1e-12)
        return torch.stack([torch.log(-torch.expm1(log_p)), log_p], 1)


def scale(seeds: int) -> Iterator[Row]:
    for steps, axis in AXES.items():
        reference = noise(steps)
        one = Objective(sigmoid, reference, 1.0)
        solved = grid.solve(one, axis)
        for w in SCALES:
            law = tilted(solved.law, axis, w)
            sharpened = Objective(sigmoid, reference, 1 / w)
            found = {
                "classifier-guidance": grid.evaluate(
                    sharpened, classifier_guided(reference, one, Noisy(solved), 1, w), axis
                )
            }
            found["candidates"] = grid.twist(sharpened, solved.value, axis)
            for method, seen in found.items():
                yield {"method": method, "seed": 0, "steps": steps, "scale": w} | exactly(seen, law)


def tuned(seeds: int) -> Iterator[Row]:
    solved = grid.solve(Objective(sigmoid, noise(50), 1.0), AXIS)
    for w in SCALES:
        for seed in range(seeds):
            torch.manual_seed(seed)
            reference, policy = mixture(False)(False).requires_grad_(False), mixture(True)(True)
            objective = Objective(sigmoid, reference, 1 / w)
            costs = trained(policy, objective, TUNED, seed)
            seen = grid.evaluate(objective, policy, AXIS)
            head = {"method": "ppo", "seed": seed, "steps": 50, "scale": w}
            yield head | exactly(seen, tilted(solved.law, AXIS, w)) | costs


def tilted(law: torch.Tensor, axis: grid.Axis, w: float) -> torch.Tensor:
    """p(x) p(y | x)^w at the points, from p(x | y)."""
    weight = law * ((w - 1) * sigmoid(axis.x[:, None], unconditional(1))).exp()
    return weight / weight.sum()


def exactly(seen: TableEvaluation, law: torch.Tensor) -> Row:
    """Distances of an exact distribution to another, and what it earns and costs."""
    there = seen.law > 0
    p, q = seen.law[there], law[there].clamp(min=1e-300)
    return {
        "alpha": seen.alpha,
        "total_variation": (seen.law - law).abs().sum().item() / 2,
        "kl_to_tilted": (p * (p / q).log()).sum().item(),
        "reward": seen.reward.item(),
        "kl_nats": seen.kl.item(),
        "objective": seen.objective.item(),
    }


def distill(reward, alpha: float, seeds: int) -> Iterator[Row]:
    reference = mixture(False)(False).requires_grad_(False)
    objective = Objective(reward, reference, alpha)
    solved = grid.solve(objective, AXIS)
    values = {"exact": solved.value, "posterior-mean": PosteriorMean(objective)}
    for name, value in values.items():
        sampler = SMC(particles=16)
        torch.manual_seed(1000)
        drawn = sampler.draw(objective, value, unconditional(JUDGED // 4)).log_z * alpha
        level = {
            "sampler_objective": drawn.mean().item(),
            "sampler_se": drawn.std().item() / len(drawn) ** 0.5,
        }
        for seed in range(seeds):
            torch.manual_seed(seed)
            algorithm = Distill(sampler, value=value, epochs=2, minibatches=8, judged=32)
            student, own = mixture(True)(True), Objective(reward, reference, alpha)
            costs = trained(student, own, Entry(lambda made=algorithm: made, **STUDENT), seed)
            seen = grid.evaluate(own, student, AXIS)
            head = {"method": f"smc-{name}", "seed": seed, "optimum": solved.optimum.item()}
            row = head | exactly(seen, solved.law) | level | costs
            yield row | {"behind": (level["sampler_objective"] - row["objective"]) / alpha}


def trained(policy: GaussianPolicy, objective: Objective, entry: Entry, seed: int) -> Row:
    """Trains, and counts what it took."""
    algorithm, counter, start = entry.algorithm(), NetworkCalls(), time.process_time()
    with counter.watching(denoisers(policy, objective.reference, algorithm)):
        train(policy, objective, algorithm, entry, seed)
    policy.requires_grad_(False)
    return {
        "reward_calls": objective.reward.calls,
        "network_calls": {"forward": counter.forward, "backward": counter.backward},
        "cpu_seconds": time.process_time() - start,
    }


def overhead(seeds: int) -> Iterator[Row]:
    """Both sides in turn, ratio pair by pair."""
    policy, classifier = digits_policy().requires_grad_(False), load_classifier("proxy")
    objective = Objective(class_log_prob(classifier, 3), policy, 1.0)
    value, cond = PosteriorMean(objective), asked(BATCH)
    samplers: dict[str, tuple[Sampler, int]] = {
        "value-guidance": (ValueGuidance(), BATCH),
        "smc": (SMC(particles=16), BATCH // 16),
        "svdd": (SVDD(candidates=4), BATCH // 4),
    }
    for name, (sampler, count) in samplers.items():
        few = {"label": cond["label"][:count]}

        def steer(sampler: Sampler = sampler, few=few) -> None:
            torch.manual_seed(0)
            sampler.draw(objective, value, few)

        with Passes([policy.network, classifier]) as passes:
            steer()
        passes.replay()
        pairs = [(seconds(steer), seconds(passes.replay)) for _ in range(PAIRS)]
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        yield {
            "method": name,
            "seed": 0,
            "alpha": 1.0,
            "batch": BATCH,
            "steps": policy.steps,
            "cpu_seconds": statistics.median(ours for ours, _ in pairs),
            "bare_cpu_seconds": statistics.median(theirs for _, theirs in pairs),
            "ratio_of_fastest": min(ours for ours, _ in pairs) / min(theirs for _, theirs in pairs),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "passes": len(passes.calls),
        }


def seconds(work: Callable[[], None]) -> float:
    """Of the processor, which others' work does not lengthen as much."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Passes:
    """The passes through some networks while a block runs, and the same again without anything else.

    Gradients flow back to the input where they did, as guidance needs them.
    """

    def __init__(self, networks: list[nn.Module]):
        self.networks, self.calls = networks, []

    def __enter__(self) -> "Passes":
        self._handles = [network.register_forward_hook(self._keep) for network in self.networks]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, network: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        state, *others = inputs[0].detach().clone(), *inputs[1:]
        for before, (known, *_), gradient in self.calls[-3:]:
            if before is network and gradient == output.requires_grad and torch.equal(known, state):
                return
        self.calls.append((network, (state, *others), output.requires_grad))

    def replay(self) -> None:
        for network, (state, *others), gradient in self.calls:
            with torch.set_grad_enabled(gradient):
                state = state.requires_grad_(gradient)
                output = network(state, *others)
                if gradient:
                    torch.autograd.grad(output.sum(), state)


TASKS = {
    "scale": scale,
    "scale-tuned": tuned,
    "distill-x": lambda seeds: distill(x, 1.0, seeds),
    "distill-sin": lambda seeds: distill(sin, 0.5, seeds),
    "overhead": overhead,
}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    for task in options.only:
        rows = [row for row in rows if row["task"] != task]
        for row in TASKS[task](options.seeds):
            rows.append({"task": task} | row)
            numbers = {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}
            print(*(f"{k} {v}" for k, v in numbers.items() if not isinstance(v, dict)), flush=True)
            if options.out:
                write_json(options.out, machine | {"rows": rows})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
