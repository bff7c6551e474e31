"""5' UTRs tuned at several alphas: what the proxy says, what the gold oracle says, and what it costs.

    python benchmarks/utr.py [--weights FOLDER] [--algorithms NAME ...] [--alphas ALPHA ...] [--seeds N]
        [--out FILE.json] [--picture FILE.png]

`difftilt pretrain utr` makes the weights. Where the KL should count for nothing, alpha is 1e-6: alpha = 0 has
no tilted distribution, and at 1e-6 a thousand nats cost a thousandth of a ribosome. `quantiles` are of 5, 25,
50, 75 and 95 %; `said` is what the run's report says in words. `optimum` is alpha log E[exp(r / alpha)] over
samples of the pretrained model, null where fewer than ten of them carry the mean. Rows of other runs in
FILE.json stay.
"""

import argparse
import csv
import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from fixed_rate import FIXED
from matplotlib.axes import Axes

from difftilt import PPO, Algorithm, Backprop
from difftilt.conditions import unconditional
from difftilt.domains.utr.model import user_folder
from difftilt.domains.utr.recipe import TRAINING, utr
from difftilt.evaluation.evaluate import evaluate
from difftilt.evaluation.optimum import ceiling
from difftilt.evaluation.report import outcome
from difftilt.evaluation.run_folder import read_run
from difftilt.evaluation.verdict import findings, headline
from difftilt.experiment.finetune import finetune
from difftilt.experiment.record import to_json, write_json
from difftilt.training.distributed import make_accelerator

NOTHING = 1e-6
ALPHAS = (NOTHING, 0.03, 0.1, 0.3, 1.0)
QUANTILES = (5, 25, 50, 75, 95)
BOX = ("whislo", "q1", "med", "q3", "whishi")  # as matplotlib calls them
PRETRAINED = 20_000  # samples of the pretrained model behind `optimum`
ALGORITHMS: dict[str, tuple[Callable[[], Algorithm], float]] = {  # and their learning rates
    "ppo": (lambda: PPO(epochs=1, minibatches=8), 8e-3),
    "backprop": (lambda: Backprop(minibatches=8, recompute=False), 4e-3),
}
# Quartiles before and after the review's own runs at alpha = 0, by the reward model that was the reward;
# read off the pictures in its notebooks, +-0.02. Uehara et al. (2024), https://arxiv.org/abs/2407.13734,
# https://github.com/masa-ue/RLfinetuning_Diffusion_Bioseq
COMPANION = {"before": (-0.66, 0.28, 0.69), "backprop": (1.06, 1.08, 1.10), "PPO": (1.04, 1.05, 1.07)}


def main() -> None:
    options = parse()
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    if options.algorithms:
        rows = measure(options, options.weights or user_folder("utr"), rows)
    if options.picture:
        draw(rows, options.picture)


def measure(options: argparse.Namespace, weights: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tunes as often as was asked for, and writes each row as it comes."""
    head = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    head |= {"oracles": json.loads((weights / "quality.json").read_text()), "quantiles_at": QUANTILES}
    rewards = pretrained_rewards(weights)
    for name in options.algorithms:
        for alpha in options.alphas:
            found = ceiling(rewards, alpha)
            best = found and found.objective
            for seed in range(options.first, options.first + options.seeds):
                row = run(name, alpha, seed, weights)
                row["optimum"] = best and best.value
                row["gap_nats"] = best and (best.value - row["objective"]) / alpha
                rows = [other for other in rows if key(other) != key(row)] + [row]
                if options.out:
                    write_json(options.out, head | {"rows": rows})
    return rows


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["algorithm"], row["alpha"], row["seed"]


def pretrained_rewards(weights: Path) -> list[float]:
    job = utr(weights=weights)
    torch.set_num_threads(1)
    seen = evaluate(job.policy, job.objective, unconditional(PRETRAINED), {}, seed=1)
    return seen.reward.tolist()


def run(name: str, alpha: float, seed: int, weights: Path) -> dict[str, Any]:
    """Tunes once. The time includes both evaluations and the report."""
    algorithm, learning_rate = ALGORITHMS[name]
    training = dataclasses.replace(TRAINING, seed=seed, learning_rate=learning_rate, **FIXED)
    settings: dict[str, Any] = {"algorithm": algorithm(), "alpha": alpha, "training": training}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        start = time.monotonic(), time.process_time()
        summary = finetune(utr(**settings, weights=weights), folder, make_accelerator())
        spent = time.monotonic() - start[0], time.process_time() - start[1]
        result = outcome(read_run(folder))
        row = {"task": "utr", "algorithm": name, "seed": seed, **summary, "headline": headline(result)}
        row["said"] = [finding.text for finding in findings(result)]
        row["quantiles"] = {
            when: quantiles(folder / "samples" / f"{when}.csv") for when in ("before", "after")
        }
    row |= {"wall_seconds": spent[0], "cpu_seconds": spent[1]}
    row["settings"] = {name: to_json(value) for name, value in settings.items()}
    print(
        f"{name:9} alpha {alpha:<6g} seed {seed}  proxy {row['reward']:.3f} ± {row['reward_se']:.3f}  gold"
        f" {row['gold']['gold load']:.3f}  KL {row['kl_nats']:6.3f} nats  J {row['objective']:.3f}  diversity"
        f" {row['diversity']:.3f}  {spent[1]:.0f} CPU s",
        flush=True,
    )
    return row


def quantiles(path: Path) -> dict[str, list[float]]:
    """Of the proxy's and the gold oracle's scores of the samples in a table."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = {"proxy": "reward", "gold": "gold load"}
    return {
        name: np.percentile([float(row[column]) for row in table], QUANTILES).tolist()
        for name, column in columns.items()
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Boxes of proxy and gold before and after, the companion's beside them; costs and diversity below."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    rows = sorted(rows, key=lambda row: (row["alpha"], row["seed"]))
    axes[0, 1].sharey(axes[0, 0])
    for axis, name in zip(axes[0], ALGORITHMS, strict=False):
        boxes(axis, [row for row in rows if row["algorithm"] == name and row["seed"] == 0], name)
    companion(axes[0, 2])
    words = "3-mers of random UTRs"
    costs: dict[str, Callable[[dict[str, Any]], float]] = {
        "KL to the pretrained model, nats": lambda row: row["kl_nats"],
        "correlation of 3-mers with random UTRs": lambda row: row["distances"][words][0],
        "diversity (share of positions that differ)": lambda row: row["diversity"],
    }
    for axis, (label, of) in zip(axes[1], costs.items(), strict=True):
        lines(axis, rows, label, of)
    if rows:
        before, style = rows[0]["before"], {"color": "0.6", "lw": 1, "ls": "--"}
        axes[1, 1].axhline(before["distances"][words][0], **style)
        axes[1, 2].axhline(before["diversity"], **style, label="pretrained")
    axes[1, 2].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def boxes(axis: Axes, rows: list[dict[str, Any]], name: str) -> None:
    """Quantiles of the proxy's and the gold oracle's load, before and after each alpha."""
    laws = [("before", row["quantiles"]["before"]) for row in rows[:1]]
    laws += [(label_of(row["alpha"]), row["quantiles"]["after"]) for row in rows]
    for shift, score, colour in ((-0.19, "proxy", "#b34a00"), (0.19, "gold", "#c9a200")):
        stats: list[dict[str, Any]] = [dict(zip(BOX, found[score], strict=True)) for _, found in laws]
        style = {"color": colour}
        axis.bxp(
            stats, positions=[k + shift for k in range(len(laws))], widths=0.33, showfliers=False,
            boxprops=style, medianprops=style, whiskerprops=style, capprops=style, manage_ticks=False,
        )  # fmt: skip
        axis.plot([], [], color=colour, label=score)
    axis.set_xticks(range(len(laws)), [label for label, _ in laws])
    axis.set(title=name, ylabel="load, ribosomes", xlabel="alpha, ribosomes per nat")
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def companion(axis: Axes) -> None:
    """The quartiles of the review's own runs."""
    quartiles = COMPANION.values()
    stats: list[dict[str, Any]] = [
        dict(zip(BOX, (low, low, middle, high, high), strict=True)) for low, middle, high in quartiles
    ]
    axis.bxp(stats, showfliers=False, showcaps=False, manage_ticks=False, positions=range(len(stats)))
    axis.set_xticks(range(len(stats)), list(COMPANION))
    axis.set(title="the review's companion, alpha = 0", ylabel="its reward, in its units (quartiles)")


def lines(axis: Axes, rows: list[dict[str, Any]], label: str, of: Callable[[dict[str, Any]], float]) -> None:
    """One number against alpha: every seed a point, and their mean a line."""
    places = {alpha: k for k, alpha in enumerate(sorted({row["alpha"] for row in rows}))}
    for k, name in enumerate(ALGORITHMS):
        group = [row for row in rows if row["algorithm"] == name]
        alphas = sorted({row["alpha"] for row in group})
        means = [float(np.mean([of(row) for row in group if row["alpha"] == alpha])) for alpha in alphas]
        axis.plot([places[row["alpha"]] for row in group], [of(row) for row in group], f"C{k}o", ms=3)
        axis.plot([places[alpha] for alpha in alphas], means, f"C{k}", label=name)
    axis.set_xticks(list(places.values()), [label_of(alpha) for alpha in places])
    axis.set(xlabel="alpha, ribosomes per nat", ylabel=label)


def label_of(alpha: float) -> str:
    return "~ 0" if alpha == NOTHING else f"{alpha:g}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", type=Path, help="by default where difftilt pretrain utr puts them")
    parser.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--alphas", nargs="+", type=float, default=ALPHAS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
