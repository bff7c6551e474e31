"""How far samplers are from the tilted distribution, at what cost: total variation against network passes per
sample.

grid     the 50-step chain of a two-component mixture, reward sin 3x at alpha 0.5
six6     DNA 8-mers, pretrained on the lower half of SIX6, alpha 0.1: all 65,536 probabilities
log-z    SMC's estimates of Z on both, for every potential, with and without resampling

A pass is one row through the denoiser or through the value, a gradient included; rewards are not counted. A
sample of SMC costs all of its population, so that samples are independent. Guidance, SVDD and best-of-N are
computed; SMC is sampled, from `samples` particles: its total variation lies between `tv_at_least` and `tv`,
and as many exact draws of p_r have `floor`. Values: the exact one, or the posterior mean r(E[x_0 | x_t]), of
sequences that of the likeliest one.

    python benchmarks/samplers.py [--only TASK ...] [--out FILE.json] [--figure FILE.png]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

from difftilt import SMC, GaussianPolicy, MaskedPolicy, Objective, load_landscape, unconditional
from difftilt.data.vocabulary import all_sequences, place_values
from difftilt.domains.landscape.model import landscape_policy
from difftilt.exact import grid, landscape
from difftilt.exact.sampler_laws import evaluate_flips, evaluate_svdd, one_of, tabulate
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.guidance.flip_guided import FlipGuided
from difftilt.guidance.value_guided import ValueGuided
from difftilt.objective import Value
from difftilt.policy import level
from difftilt.processes.noise import FixedLarge
from difftilt.samplers.best_of import best_of, kl_of_best
from difftilt.shapes import Points
from difftilt.transition import Gaussian, relative_entropy
from difftilt.values.tweedie import PosteriorMean

RESULTS = Path(__file__).parent / "results" / "samplers.json"
FIGURE = Path(__file__).parents[1] / "docs" / "samplers.png"
AXIS, BIN = grid.Axis(-6, 6, 301), 3  # points per bin of a histogram, of which there are 100
FINE = grid.Axis(-6, 6, 1201)  # a tabulated value has a slope to the first order in the spacing
CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
PARTICLES = (2, 4, 16, 64, 256)
BEST = tuple(2**k for k in range(7))
SAMPLES = {"grid": 100_000, "six6": 150_000}  # particles per seed
SEEDS, POPULATIONS = 3, 3000
LEAST = 5e-4  # what is below is drawn here
LOOKS = {
    "best-of-n": ("best-of-N", "#8a8f98", "s"),
    "guidance": ("guidance (value gradient, one-flip)", "#009e73", "D"),
    "svdd": ("SVDD, M = 1 to 64", "#0072b2", "o"),
    "smc": ("SMC, N = 2 to 256", "#d55e00", "^"),
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS), help="none redraws")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in rows if row["task"] not in options.only]
    head = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
    for task in options.only:
        for row in TASKS[task]():
            rows.append({"task": task, **row})
            print(
                *(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                flush=True,
            )
            options.out.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    draw(rows, options.figure)


class Timer:
    """Processor seconds since the last question."""

    def __init__(self):
        self.last = time.process_time()

    def __call__(self) -> float:
        now = time.process_time()
        spent, self.last = now - self.last, now
        return spent


def mixture() -> tuple[Objective, dict[str, Value]]:
    reference = GaussianPolicy(
        gmm(gmm_schedule()), gmm_schedule(), (1,), prediction_type="sample", noise=FixedLarge()
    )
    reference = reference.double().requires_grad_(False)
    objective = Objective(lambda x, c: torch.sin(3 * x[:, 0]), reference, 0.5)
    return objective, {"exact": grid.solve(objective, FINE).value, "posterior mean": PosteriorMean(objective)}


def on_the_grid() -> Iterator[Row]:
    objective, values = mixture()
    solved, reference, timer = grid.solve(objective, AXIS), objective.reference, Timer()
    base, score, steps = grid.evaluate(objective, reference, AXIS), torch.sin(3 * AXIS.x), reference.steps

    def row(method: str, passes: int, law: Points, kl: float, **more: Any) -> Row:
        reward = (law @ score).item()
        far = distance(binned(law), binned(solved.law))
        return record(objective, method, passes, far, reward, kl, timer()) | more

    best = {"tv": 0.0, "reward": solved.reward.item(), "kl_nats": solved.kl.item()}
    yield {"method": "optimum", "alpha": objective.alpha, "J": solved.optimum.item(), **best}
    for n in BEST:
        yield row("best-of-n", n * steps, best_of(base.law, score, n), kl_of_best(n), n=n)
    for name, value in values.items():
        found = grid.evaluate(objective, ValueGuided(reference, objective, value), AXIS)
        yield row("guidance", 2 * steps, found.law, found.kl.item(), value=name)
        for m in CANDIDATES:
            law, kl = svdd_on_the_grid(objective, value, m)
            yield row("svdd", steps * (1 + m), law, kl, value=name, candidates=m)
        for n in PARTICLES:
            yield smc(objective, value, n, "grid", binned(solved.law), histogram) | {"value": name}


def svdd_on_the_grid(objective: Objective, value: Value, candidates: int) -> tuple[Points, float]:
    """The distribution of x_0 and the KL of paths, each step by quadrature over candidates."""
    reference, x = objective.reference, AXIS.x[:, None]
    law, kl = torch.ones(1, dtype=torch.float64), 0.0
    for t in range(reference.steps, -1, -1):
        last = t == reference.steps
        cond = unconditional(1 if last else len(x))
        step = reference.initial(cond) if last else reference(x, level(x, t + 1), cond)
        if not isinstance(step, Gaussian):
            raise ValueError(f"the grid needs Gaussian steps, but got {type(step).__name__}")
        base = AXIS.log_kernel(step.mean[:, 0].double(), step.std[:, 0].double()).exp()
        v = value(x, level(x, t), unconditional(len(x))) if t else torch.sin(3 * AXIS.x)
        with torch.no_grad():
            chosen = one_of(base, (v / objective.alpha).expand_as(base), candidates)
        kl += (law @ relative_entropy(chosen, base).sum(1)).item()
        law = law @ chosen
    return law, kl


class Lookup(nn.Module):
    """A network whose answers for all states were written down."""

    def __init__(self, answers: torch.Tensor):
        super().__init__()
        self.answers = answers

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return self.answers[number(x.argmax(-1))]


def number(x: torch.Tensor) -> torch.Tensor:
    """Where a state of 8 letters or masks stands among all."""
    return (x * place_values(5, 8)).sum(1)


def sequences() -> tuple[Objective, Points, dict[str, Value]]:
    """The problem, with the network and the values as tables."""
    table = load_landscape("six6")
    network = landscape_policy(table).requires_grad_(False)
    every = all_sequences(5, 8)
    with torch.no_grad():
        guesses = [
            network.network(nn.functional.one_hot(x, 5).float(), (x == 4).sum(1), unconditional(len(x)))
            for x in every.split(2**13)
        ]
    reference = MaskedPolicy(Lookup(torch.cat(guesses)), 4, 8)
    objective = Objective(table.lookup, reference, 0.1)
    values = {
        "exact": landscape.solve(objective, table.score).value,
        "posterior mean": PosteriorMean(objective),
    }
    tables = {name: tabulate(objective, value, table.score) for name, value in values.items()}
    return objective, table.score, {name: known(table) for name, table in tables.items()}


def known(table: Points) -> Value:
    return lambda x, t, c: table[number(x)]


def on_six6() -> Iterator[Row]:
    timer = Timer()
    objective, score, values = sequences()
    reference, steps = objective.reference, objective.reference.steps
    solved = landscape.solve(objective, score)
    base = landscape.evaluate(objective, reference, score)

    def row(method: str, passes: int, law: Points, kl: float, **more: Any) -> Row:
        return (
            record(objective, method, passes, distance(law, solved.law), (law @ score).item(), kl, timer())
            | more
        )

    best = {"tv": 0.0, "reward": solved.reward.item(), "kl_nats": solved.kl.item()}
    yield {"method": "optimum", "alpha": objective.alpha, "J": solved.optimum.item(), **best}
    for n in BEST:
        law = best_of(base.law, score, n)
        yield row("best-of-n", n * steps, law, landscape.kl(law, base.law).item(), n=n)
    for name, value in values.items():
        found = evaluate_flips(objective, FlipGuided(reference, objective, value), score)
        asked = sum(4 * t for t in range(2, steps + 1))  # at t = 1 rewards are asked
        yield row("guidance", steps + asked, found.law, found.kl.item(), value=name)
        for m in CANDIDATES:
            found = evaluate_svdd(objective, value, m, score)
            yield row("svdd", steps * (1 + m), found.law, found.kl.item(), value=name, candidates=m)
        for n in PARTICLES:
            yield smc(objective, value, n, "six6", solved.law, frequencies) | {"value": name}


def record(
    objective: Objective, method: str, passes: int, tv: float, reward: float, kl: float, seconds: float
) -> Row:
    j = reward - objective.alpha * kl
    exact = {"tv": tv, "reward": reward, "kl_nats": kl, "J": j}
    return {"method": method, "alpha": objective.alpha, "passes": passes, **exact, "seconds": seconds}


def smc(
    objective: Objective,
    value: Value,
    particles: int,
    task: str,
    target: Points,
    law_of: Callable[[torch.Tensor], Points],
) -> Row:
    """The distribution of a particle from many populations, and what exact draws would look like."""
    timer, populations = Timer(), SAMPLES[task] // particles
    laws, rewards, bounds, floors, z = [], [], [], [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        drawn = SMC(particles=particles, memory=256).draw(objective, value, unconditional(populations))
        laws.append(law_of(drawn.x_0))
        rewards.append(drawn.reward.mean().item())
        bounds.append(objective.alpha * drawn.log_z.mean().item())
        z.append(drawn.log_z)
        exact = target.multinomial(len(drawn.x_0), replacement=True)
        floors.append(torch.bincount(exact, minlength=len(target)) / len(exact))
    count, steps = SEEDS * populations * particles, objective.reference.steps
    return {
        "method": "smc",
        "alpha": objective.alpha,
        "particles": particles,
        "passes": 2 * steps * particles,
        "samples": count,
        "seeds": SEEDS,
        "tv": distance(torch.stack(laws).mean(0), target),
        "tv_at_least": max(surely(laws, target, groups) for groups in groupings(target)),
        "floor": distance(torch.stack(floors).mean(0), target),
        "reward": sum(rewards) / SEEDS,
        "reward_se": torch.tensor(rewards).std().item() / SEEDS**0.5,
        "J_at_least": sum(bounds) / SEEDS,
        "seconds": timer(),
    }


def surely(laws: list[Points], target: Points, groups: torch.Tensor) -> float:
    """A lower bound of the total variation without sampling bias: max_A P(A) - p_r(A), where A is chosen on
    two thirds of the samples, by groups of states, and P(A) is measured on the others.
    """
    gains = []
    for k, law in enumerate(laws):
        others = torch.stack([other for i, other in enumerate(laws) if i != k]).mean(0)
        excess = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add(0, groups, others - target)
        chosen = (excess > 0)[groups]
        gains.append((law - target)[chosen].sum().item())
    return sum(gains) / len(gains)


def groupings(target: Points) -> list[torch.Tensor]:
    """Every state by itself, and 100 groups of equal mass by how likely p_r draws each."""
    order = target.argsort()
    groups = torch.zeros_like(order)
    groups[order] = (target[order].cumsum(0) * 100).long().clamp(max=99)
    return [torch.arange(len(target)), groups]


def distance(law: Points, other: Points) -> float:
    return (law - other).abs().sum().item() / 2


def binned(law: Points) -> Points:
    """Of the points of the axis, the first alone, in bins as wide as BIN points."""
    return torch.cat([law[:1], law[1:].view(-1, BIN).sum(1)])


def histogram(x: torch.Tensor) -> Points:
    point = ((x[:, 0] - AXIS.low) / AXIS.width).round().long().clamp(0, AXIS.count - 1)
    return binned(torch.bincount(point, minlength=AXIS.count).double() / len(x))


def frequencies(x: torch.Tensor) -> Points:
    index = (x * place_values(4, 8)).sum(1)
    return torch.bincount(index, minlength=4**8).double() / len(x)


def estimates_of_z() -> Iterator[Row]:
    """The mean of exp(log Z) / Z, which is 1 whatever the sampler's settings."""
    problems = {
        "grid": (*mixture(), grid.solve(mixture()[0], AXIS).optimum),
        "six6": ((found := sequences())[0], found[2], landscape.solve(found[0], found[1]).optimum),
    }
    for problem, (objective, values, optimum) in problems.items():
        steps = objective.reference.steps
        for name, value in values.items():
            for potential in ("difference", "max", "sum"):
                # smaller where a product of many terms has heavy tails; a sum is one of sums
                size = {"difference": 1.0, "max": 0.3, "sum": 2 / (steps * (steps + 1))}[potential]
                for threshold in (0.0, 0.5, 1.0):
                    torch.manual_seed(0)
                    timer, sampler = Timer(), SMC(particles=16, threshold=threshold, potential=potential)
                    drawn = sampler.draw(objective, scaled(value, size), unconditional(POPULATIONS))
                    ratio = (drawn.log_z - optimum / objective.alpha).exp()
                    yield {
                        "problem": problem,
                        "method": "smc",
                        "alpha": objective.alpha,
                        "value": name,
                        "potential": potential,
                        "size": size,
                        "threshold": threshold,
                        "particles": 16,
                        "populations": POPULATIONS,
                        "z_over_exact": ratio.mean().item(),
                        "z_over_exact_se": ratio.std().item() / len(ratio) ** 0.5,
                        "effective_populations": (ratio.sum() ** 2 / (ratio**2).sum()).item(),
                        "mean_log_z_minus_exact": (drawn.log_z - optimum / objective.alpha).mean().item(),
                        "reward_calls": drawn.reward_calls,
                        "network_calls": drawn.network_calls["forward"],
                        "seconds": timer(),
                    }


def scaled(value: Value, size: float) -> Value:
    return lambda x, t, c: size * value(x, t, c)


TASKS = {"grid": on_the_grid, "six6": on_six6, "log-z": estimates_of_z}


def draw(rows: list[Row], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    titles = {
        "grid": "two-component mixture, r = sin 3x, alpha = 0.5",
        "six6": "SIX6, DNA 8-mers, pretrained on the lower half, alpha = 0.1",
    }
    for axes, (task, title) in zip(panels, titles.items(), strict=True):
        mine = [row for row in rows if row["task"] == task]
        for method, (label, colour, marker) in LOOKS.items():
            for value, line in (("exact", "-"), ("posterior mean", "--"), (None, "-")):
                points = [r for r in mine if r["method"] == method and r.get("value") == value]
                if not points:
                    continue
                name = label if value in ("exact", None) else None
                x, y = [r["passes"] for r in points], [max(r["tv"], LEAST) for r in points]
                filled = "white" if value == "posterior mean" else colour
                axes.plot(x, y, line, color=colour, marker=marker, mfc=filled, ms=5, lw=1.5, label=name)
                least = [max(r.get("tv_at_least", r["tv"]), LEAST) for r in points]
                band = f"{label}: bounds" if min(least) < min(y) and value == "exact" else None
                axes.fill_between(x, least, y, color=colour, alpha=0.15, lw=0, label=band)
                floors = [(r["passes"], r["floor"]) for r in points if "floor" in r]
                if floors and value == "exact":
                    axes.plot(
                        *zip(*floors, strict=True),
                        ":",
                        color=colour,
                        lw=1.2,
                        label=f"{label}: sampling noise",
                    )
        axes.plot([], [], "-", color="0.4", label="with the exact value")
        axes.plot([], [], "--", color="0.4", marker="o", mfc="white", label="with the posterior mean")
        if task == "six6":
            exact = next(r for r in mine if r["method"] == "guidance" and r["value"] == "exact")
            axes.annotate(
                f"exactly p_r ({exact['tv']:.0e})",
                (exact["passes"], LEAST),
                (10, -3),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(LEAST / 1.5, 1),
            title=title,
            xlabel="network passes per independent sample",
        )
        axes.grid(alpha=0.3, lw=0.6)
    panels[0].set_ylabel("total variation to p_r")
    figure.legend(
        *panels[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
