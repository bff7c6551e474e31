"""Where a learned reward misleads, and whether what a user can see notices it.

    python benchmarks/mechanism.py [--only six6 gb1] [--seeds 0 1 2]

writes results/mechanism.json: a reward is learned of 1,000 labels, from the lower half of a landscape or from
all of it, and the pretrained distribution is tilted towards it by ever smaller alpha. One row per learned
reward, with lists along alpha: KL in nats, true and modelled mean reward, and three monitors that need no
truth: the standard deviation between members and the distance to the nearest label, both as multiples of what
they are under the pretrained distribution, and the modelled reward less the best label.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from learned import World, ensemble, make_world, measured

from difftilt.rewards.held_out import nearest

RESULTS = Path(__file__).parent / "results" / "mechanism.json"
LABELS, NOISE = 1000, 0.05
ALPHAS = [round(10 ** (-k / 8), 4) for k in range(21)]  # 1 to .003


def curve(world: World, where: str, seed: int) -> dict[str, Any]:
    """One learned reward, from a large alpha to a small one."""
    generator = torch.Generator().manual_seed(seed)
    pool = lower(world) if where == "lower" else torch.arange(len(world.x))
    rows = pool[torch.randperm(len(pool), generator=generator)[:LABELS]]
    labels = measured(world, rows, NOISE, generator)
    guess = world.predict(ensemble(world, seed).fit(labels))
    far = nearest(world.x, labels.sample, world.letters).double()
    pre, mean, std = world.log_pre.exp(), guess.mean.double(), guess.std.double()
    row: dict[str, Any] = {"task": f"{world.name}-{where}", "seed": seed, "labels": LABELS, "noise": NOISE}
    row |= {"alpha": ALPHAS, "best_label": round(labels.score.max().item(), 4)}
    for alpha in ALPHAS:
        law = world.tilt(mean, alpha)
        found = {name: world.judge(law, alpha)[name] for name in ("kl_nats", "reward")}
        found |= {
            "modelled_reward": (law @ mean).item(),
            "spread": (law @ std / (pre @ std)).item(),
            "distance": (law @ far / (pre @ far)).item(),
            "above_best_label": (law @ mean).item() - labels.score.max().item(),
        }
        for name, number in found.items():
            row.setdefault(name, []).append(round(number, 4))
    return row


def lower(world: World) -> torch.Tensor:
    """The lower half by true reward."""
    return world.reward.argsort()[: len(world.x) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["six6", "gb1"], default=["six6", "gb1"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for world in map(make_world, given.only):
        for where in ("lower", "all"):
            for seed in given.seeds:
                rows.append(curve(world, where, seed))
                print(json.dumps(rows[-1]), flush=True)
    given.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
