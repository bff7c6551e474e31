"""Steering against fine-tuning at equal cost: reward and KL at several alphas, on digits and on SIX6.

network   all methods may pass as many samples through the denoiser as PPO does while it trains and draws
reward    all methods may score as many samples as PPO does while it trains

Both count what it takes to deliver a number of samples: PPO pays for training once, samplers for each
sample. `ppo-more` delivers several times as many samples and trains as many times longer, for the same cost
per sample. Values are r(E[x_0 | x_t]) where passes count, learned from half of the calls where calls count.
Methods that cannot spend what they may (guidance) spend less. The KL is that of paths for PPO and for
guidance, that of x_0 for the best of n, and r / alpha - log Z, an upper bound, for SMC and SVDD.

    python benchmarks/frontier.py [--only TASK ...] [--methods NAME ...] [--seeds N] [--out FILE.json]
        [--picture FILE.png]

`--picture` draws what FILE.json holds. Rows of other runs in FILE.json stay.
"""

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from fixed_rate import FIXED

from difftilt import PPO, Objective, Policy, fit
from difftilt.conditions import unconditional
from difftilt.data.landscape import load_landscape
from difftilt.domains.digits.model import asked, digits_policy, load_classifier
from difftilt.domains.digits.recipe import gold
from difftilt.domains.landscape.model import landscape_policy, tunable
from difftilt.evaluation.evaluate import evaluate
from difftilt.exact import landscape as exact
from difftilt.experiment.record import write_json
from difftilt.guard import Reward
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Algorithm, Value
from difftilt.rewards.image import class_log_prob
from difftilt.samplers.base import Sampler
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.result import Steered
from difftilt.samplers.smc import SMC
from difftilt.samplers.svdd import SVDD
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.shapes import Cond
from difftilt.training.fit import denoisers
from difftilt.training.seeds import seed_round
from difftilt.training.settings import Training
from difftilt.values.regression import ValueRegression
from difftilt.values.tweedie import PosteriorMean

STEPS = 16  # of the digits
TARGET = 3


@dataclass(frozen=True)
class Task:
    """What is sampled, and what PPO is given for it.

    Args:
        chain: The pretrained chain, and a copy to tune.
        delivered: Samples that the costs are shared by.
        rounds: Of PPO, and how many samples each draws.
        draws: Of x_0 that the posterior mean of tokens is taken of, where calls do not count.
        more: How many times more samples `ppo-more` delivers, and how many times longer it trains.
    """

    chain: Callable[[], tuple[Policy, Policy]]
    reward: Callable[[], Reward]
    cond: Callable[[int], Cond]
    alphas: tuple[float, ...]
    delivered: int
    rounds: int
    batch: int
    learning_rate: float
    ppo: Callable[[], Algorithm]
    more: int
    draws: int
    gold: Callable[[], Mapping[str, Reward]] = dict


def digits() -> tuple[Policy, Policy]:
    reference = digits_policy(STEPS).requires_grad_(False)
    return reference, copy.deepcopy(reference).requires_grad_(True)


def six6() -> tuple[Policy, Policy]:
    table = load_landscape("six6")
    reference = landscape_policy(table).requires_grad_(False)
    return reference, tunable(reference, table)


TASKS = {
    "digits": Task(
        digits, lambda: class_log_prob(load_classifier("proxy"), TARGET),
        asked, (0.03, 0.1, 0.3, 1.0), 256, 10, 256, 3e-4,
        lambda: PPO(advantage="critic", minibatches=8), 3, 0, lambda: gold("class", TARGET),
    ),
    "six6": Task(
        six6, lambda: load_landscape("six6").lookup, unconditional, (0.05, 0.1, 0.2), 1000, 30, 1024, 2e-2,
        lambda: PPO(advantage="path", epochs=1, kl="reward"), 5, 16,
    ),
}  # fmt: skip
SAMPLERS = ("guidance", "smc", "svdd", "svdd-r", "best-of-n")
METHODS = ("ppo", "ppo-more", *SAMPLERS, "p_r")  # the last is what all aim at, where it is known
CANDIDATES = 8  # of svdd-r


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for name in options.only:
        for seed in range(options.first, options.first + options.seeds):
            for alpha in TASKS[name].alphas:
                for row in runs(name, alpha, seed, options.methods, rows):
                    rows = [other for other in rows if key(other) != key(row)] + [row]
                    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                    if options.out:
                        write_json(options.out, machine | {"rows": rows})
    if options.picture:
        draw(rows, options.picture)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["budget"], row["method"], row["seed"], row["alpha"]


def runs(name: str, alpha: float, seed: int, methods: list[str], known: list[dict[str, Any]]) -> Any:
    """PPO, then all others on what it has spent."""
    found = [row for row in known if key(row) == (name, "both", "ppo", seed, alpha)]
    tuned = found[0] if found and "ppo" not in methods else tune(name, alpha, seed)
    yield tuned
    if "ppo-more" in methods:
        yield tune(name, alpha, seed, TASKS[name].more) | {"method": "ppo-more"}
    task, head = TASKS[name], {"task": name, "seed": seed, "alpha": alpha}
    if "p_r" in methods and name == "six6":
        solved = exact.solve(problem(task, alpha)[0])
        ideal = {"reward": solved.reward, "kl_nats": solved.kl, "objective": solved.optimum}
        yield head | {"budget": "both", "method": "p_r"} | {k: x.item() for k, x in ideal.items()}
    passes = sum(tuned["network_calls"].values()) / task.delivered
    calls = tuned["reward_calls"] / task.delivered
    for method in methods:
        if method in SAMPLERS:
            row = head | {"budget": "network", "method": method}
            yield row | by_passes(task, row, passes)
            row = head | {"budget": "reward", "method": method}
            yield row | by_calls(task, row, calls)


def problem(task: Task, alpha: float) -> tuple[Objective, Policy]:
    reference, policy = task.chain()
    return Objective(task.reward(), reference, alpha), policy


def tune(name: str, alpha: float, seed: int, times: int = 1) -> dict[str, Any]:
    """PPO, with the passes that its samples take after training."""
    task, start = TASKS[name], time.process_time()
    objective, policy = problem(task, alpha)
    algorithm, counter = task.ppo(), NetworkCalls()
    seed_round(seed, 0)
    algorithm.setup(policy, task.cond(2))
    tuned = [p for p in policy.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": tuned, "full": task.learning_rate}]
    if own := list(algorithm.parameters()):
        groups.append({"params": own, "full": 3e-3})
    optimizer = torch.optim.Adam([{**group, "lr": group["full"]} for group in groups])
    rounds, delivered = times * task.rounds, times * task.delivered
    conds = [task.cond(task.batch)] * rounds
    with counter.watching(denoisers(policy, objective.reference, algorithm)):
        for row in fit(policy, objective, algorithm, conds, optimizer, Training(seed=seed, **FIXED)):
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * (1 - (row["round"] + 1) / rounds)
    calls = objective.reward.calls
    seen = evaluate(policy, objective, task.cond(2000), task.gold(), seed=seed)
    row = seen.summary()
    if name == "six6":
        truth = exact.evaluate(objective, policy)
        row |= {
            "reward": truth.reward.item(),
            "kl_nats": truth.kl.item(),
            "reward_se": 0.0,
            "kl_nats_se": 0.0,
        }
        row["objective"], row["objective_se"] = truth.objective.item(), 0.0
    forward = counter.forward + task.delivered * policy.steps
    return {
        "task": name, "budget": "both", "method": "ppo", "seed": seed, "alpha": alpha, **numbers(row),
        "gold": row["gold"], "delivered": delivered, "reward_calls": calls,
        "network_calls": {"forward": forward, "backward": counter.backward},
        "seconds": time.process_time() - start,
    }  # fmt: skip


def by_passes(task: Task, row: dict[str, Any], passes: float) -> dict[str, Any]:
    """A sampler that passes as many samples through the denoiser; its values are posterior means."""
    objective, policy = problem(task, row["alpha"])
    steps = policy.steps
    samplers: dict[str, Sampler] = {
        "guidance": guidance(policy),
        "smc": SMC(particles=int(passes / (2 * steps)), keep="one"),
        "svdd": SVDD(candidates=int(passes / steps - 1)),
        "svdd-r": SVDD(candidates=CANDIDATES, particles=int(passes / steps / (CANDIDATES + 1)), keep="one"),
        "best-of-n": BestOfN(n=int(passes / steps)),
    }
    return steer(
        task, objective, PosteriorMean(objective, draws=task.draws), samplers[row["method"]], row["seed"]
    )


def by_calls(task: Task, row: dict[str, Any], calls: float) -> dict[str, Any]:
    """A sampler that scores as many samples; half of them teach a value, except for the best of n."""
    objective, policy = problem(task, row["alpha"])
    if row["method"] == "best-of-n":
        return steer(task, objective, PosteriorMean(objective), BestOfN(n=int(calls)), row["seed"])
    value = learn(task, objective, int(calls / 2 * task.delivered), row["seed"])
    spent, left = objective.reward.calls, int(calls / 2)
    samplers: dict[str, Sampler] = {
        "guidance": guidance(policy),
        "smc": SMC(particles=left, keep="one"),
        "svdd": SVDD(candidates=left),
        "svdd-r": SVDD(candidates=min(CANDIDATES, left), particles=max(1, left // CANDIDATES), keep="one"),
    }
    found = steer(task, objective, value, samplers[row["method"]], row["seed"])
    return found | {"reward_calls": found["reward_calls"] + spent, "learned_from": spent}


def guidance(policy: Policy) -> Sampler:
    return DiscreteGuidance() if policy.symbols else ValueGuidance()


def learn(task: Task, objective: Objective, count: int, seed: int) -> Value:
    """A value learned from that many chains of the reference, each looked at several times."""
    algorithm = ValueRegression(target="monte_carlo", epochs=20, minibatches=8)
    seed_round(seed, 1)
    algorithm.setup(objective.reference, task.cond(2))
    optimizer = torch.optim.Adam(algorithm.parameters(), 1e-3)
    rounds = 4
    for row in fit(
        objective.reference,
        objective,
        algorithm,
        [task.cond(count // rounds)] * rounds,
        optimizer,
        Training(seed=seed, **FIXED),
    ):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - row["round"] / rounds)
    return algorithm.value(objective)


def steer(task: Task, objective: Objective, value: Value, sampler: Sampler, seed: int) -> dict[str, Any]:
    """What a sampler delivers."""
    start = time.process_time()
    seed_round(seed, 2)
    drawn = sampler.draw(objective, value, task.cond(task.delivered))
    row = drawn.summary()
    return {
        **numbers(row), "gold": judged(task, drawn), "settings": {k: v for k, v in vars(sampler).items()},
        "log_z": row["log_z"], "ess": row["ess"], "delivered": task.delivered,
        "reward_calls": drawn.reward_calls, "network_calls": drawn.network_calls,
        "seconds": time.process_time() - start,
    }  # fmt: skip


def judged(task: Task, drawn: Steered) -> dict[str, float]:
    return {name: judge(drawn.sample, drawn.cond).mean().item() for name, judge in task.gold().items()}


def numbers(row: dict[str, Any]) -> dict[str, float]:
    names = ("reward", "kl_nats", "objective")
    return {key: row[key] for name in names for key in (name, f"{name}_se")}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per task and budget: reward against KL, one line per method and one point per alpha."""
    figure, axes = plt.subplots(len(TASKS), 2, figsize=(10, 8), layout="constrained")
    for (name, task), line in zip(TASKS.items(), axes, strict=True):
        for budget, panel in zip(("network", "reward"), line, strict=True):
            for k, method in enumerate(METHODS[:-1]):
                mine = [r for r in rows if (r["task"], r["method"]) == (name, method)]
                mine = [r for r in mine if r["budget"] in (budget, "both")]
                points = [average([r for r in mine if r["alpha"] == alpha]) for alpha in task.alphas]
                points = sorted(p for p in points if p)
                if points:
                    kl, reward = zip(*points, strict=True)
                    panel.plot(kl, reward, "o-", color=f"C{k}", label=method, markersize=4)
            if name == "six6":
                panel.plot(*ideal(task), "k:", label="p_r")
            panel.set(title=f"{name}, equal {budget} calls", xlabel="KL, nats", ylabel="reward")
            panel.set_xscale("log" if name == "digits" else "linear")
            panel.grid(alpha=0.3)
    axes[1, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def average(rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    found = [(row["kl_nats"], row["reward"]) for row in rows if math.isfinite(row["kl_nats"])]
    return (sum(k for k, _ in found) / len(found), sum(r for _, r in found) / len(found)) if found else None


def ideal(task: Task) -> tuple[list[float], list[float]]:
    """KL and reward of p_r at many alphas."""
    reference, _ = task.chain()
    found = []
    for alpha in (0.4, 0.3, 0.2, 0.15, 0.1, 0.075, 0.05, 0.04):
        objective = Objective(task.reward(), reference, alpha)
        solved = exact.solve(objective)
        found.append((solved.kl.item(), solved.reward.item()))
    return [kl for kl, _ in found], [reward for _, reward in found]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
