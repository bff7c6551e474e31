"""Rewards that are learned from measurements, judged where the true reward of every sequence is known.

    python benchmarks/learned.py [--only six6 gb1] [--learners ensemble process] [--seeds 0 1 2]

adds rows to results/learned.json. No model is tuned: what each rule asks for is the exact tilt of the
pretrained distribution, so a gap is due to what was learned and to the rule alone. The data sets are found as
everywhere (DIFFTILT_DATA); SIX6 ships.

Labels come from the lower half of SIX6, or at random from GB1, with noise; a tilt for every rule, learner
and alpha: true and modelled reward, gap to the optimum in nats, coverage of 90 % intervals on held-out labels
and under the tilt.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftilt.data.landscape import load_landscape
from difftilt.domains.landscape.model import best_seen, landscape_policy
from difftilt.exact import landscape as exact
from difftilt.objective import Objective
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.held_out import cross_validated, nearest
from difftilt.rewards.learned import Belief, Labels, Learner, Prediction, belief_of
from difftilt.transition import one_hot

RESULTS = Path(__file__).parent / "results" / "learned.json"
OFFLINE = {"six6": ((0.1, 0.03), (1000, 4000), 0.05), "gb1": ((0.05, 0.03), (100, 1000), 0.03)}
LEARNERS = ("ensemble", "process")
HELD_OUT = 2000
CHUNK = 4096


@dataclass(frozen=True)
class World:
    """Everything there is: sequences, true rewards, the pretrained distribution, and which may be measured.

    An 8-mer of DNA and its reverse complement are one.
    """

    name: str
    x: Tensor
    reward: Tensor
    log_pre: Tensor
    pool: Tensor
    best_seen: float
    letters: int

    def tilt(self, reward: Tensor, alpha: float) -> Tensor:
        return (self.log_pre + reward.double() / alpha).softmax(0)

    def judge(self, law: Tensor, alpha: float) -> dict[str, float]:
        kl = exact.kl(law, self.log_pre.exp()).item()
        optimum = alpha * (self.log_pre + self.reward / alpha).logsumexp(0).item()
        true = (law @ self.reward).item()
        better = law[self.reward > self.best_seen].sum().item()
        gap = (optimum - true) / alpha + kl
        return {"gap_nats": gap, "reward": true, "kl_nats": kl, "better_than_seen": better}

    def predict(self, belief: Belief) -> Prediction:
        """What is believed of everything."""
        with torch.no_grad():
            parts = [vars(belief(x)) for x in self.x.split(CHUNK)]
        return Prediction(**{name: torch.cat([part[name] for part in parts], -1) for name in parts[0]})


def make_world(name: str) -> World:
    """SIX6 with the model of the lower half; of GB1 all measured variants alike."""
    table = load_landscape(name)
    x, letters = table.sequences(), len(table.alphabet)
    low = torch.zeros(len(x), dtype=torch.bool)
    low[table.lower_half()] = True
    if letters == 4:
        policy = landscape_policy(table).requires_grad_(False)
        law = exact.evaluate(Objective(table.lookup, policy, 1.0), policy, table.score).law.double()
        twin = table.index(3 - x.flip(1))
        own = torch.arange(len(x))
        rows = (own <= twin).nonzero()[:, 0]
        law = torch.where(own == twin, law, law + law[twin])[rows]
        pool = low[rows].nonzero()[:, 0]
    else:
        rows = table.measured.nonzero()[:, 0]
        law, pool = torch.ones(len(rows), dtype=torch.float64), torch.arange(len(rows))
    return World(
        name, x[rows], table.score[rows], (law / law.sum()).log(), pool, best_seen(table), letters
    )  # fmt: skip


@dataclass(frozen=True)
class Process:
    """A Gaussian process with the kernel exp(-differing letters / scale), both strands alike for DNA."""

    letters: int

    def kernel(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        def near(x: Tensor, y: Tensor) -> Tensor:
            same = one_hot(x, self.letters).float().flatten(1) @ one_hot(y, self.letters).float().flatten(1).T
            return ((same - x.shape[1]) / scale).exp()

        if self.letters != 4:
            return near(a, b)
        twin = lambda x: 3 - x.flip(1)  # noqa: E731
        norm = [(1 + (-(x != twin(x)).sum(1) / scale).exp()).sqrt() for x in (a, b)]
        return (near(a, b) + near(a, twin(b))) / norm[0][:, None] / norm[1]

    def fit(self, labels: Labels) -> Belief:
        centre, unit = labels.score.mean(), labels.score.std()
        y, best = ((labels.score - centre) / unit).float(), None
        for scale in (0.5, 1.0, 2.0, 3.0):
            gram = self.kernel(labels.sample, labels.sample, scale)
            for noise in (0.02, 0.1, 0.3, 1.0):
                root = torch.linalg.cholesky(gram + noise * torch.eye(len(y)))
                weight = torch.cholesky_solve(y[:, None], root)[:, 0]
                size = y @ weight / len(y)
                evidence = -len(y) / 2 * size.log() - root.diag().log().sum()
                if best is None or evidence > best[0]:
                    best = evidence, scale, noise, root, weight, size
        assert best is not None
        _, scale, noise, root, weight, size = best

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            k = self.kernel(x, labels.sample, scale)
            spread = 1 - torch.linalg.solve_triangular(root, k.T, upper=False).square().sum(0)
            return k @ weight * unit + centre, ((spread.clamp(min=1e-6) + noise) * size).sqrt() * unit

        return belief_of(predict)


def measured(world: World, rows: Tensor, noise: float, generator: torch.Generator) -> Labels:
    scatter = noise * torch.randn(len(rows), generator=generator, dtype=torch.float64)
    return Labels(world.x[rows], (world.reward[rows] + scatter).float())


def ensemble(world: World, seed: int, members: int = 8) -> Ensemble:
    """With filters and both strands for DNA."""
    dna = world.letters == 4
    return Ensemble(world.letters, members=members, window=6 * dna, both_strands=dna, seed=seed)


def offline(world: World, asked: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    alphas, sizes, noise = OFFLINE[world.name]
    for count in sizes:
        generator = torch.Generator().manual_seed(seed)
        rows = world.pool[torch.randperm(len(world.pool), generator=generator)]
        labels = measured(world, rows[:count], noise, generator)
        everything = measured(world, torch.arange(len(world.x)), noise, generator)
        far = nearest(world.x, labels.sample, world.letters)
        learners: dict[str, Learner] = {"ensemble": ensemble(world, seed)}
        if count <= 1000:
            learners["process"] = Process(world.letters)
        for name, learner in ((name, learners[name]) for name in asked if name in learners):
            start = time.process_time()
            scale, found = cross_validated(learner, labels, seed)
            guess = world.predict(dataclasses.replace(learner.fit(labels), scale=scale))
            covered = guess.covers(everything.score).double()
            about = {
                "task": f"offline-{world.name}",
                "learner": name,
                "labels": count,
                "seed": seed,
                "correlation": found.correlation,
                "coverage": covered[rows[count : count + HELD_OUT]].mean().item(),
                "seconds": time.process_time() - start,
            }
            for alpha in alphas:
                for rule, law in tilts(world, guess, far, alpha):
                    yield about | {
                        "alpha": alpha,
                        "rule": rule,
                        **world.judge(law, alpha),
                        "modelled_reward": (law @ guess.mean.double()).item(),
                        "coverage_under_policy": (law @ covered).item(),
                    }


def tilts(world: World, guess: Prediction, far: Tensor, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """What every rule asks for."""
    for beta in (0, 1, 2):
        yield f"mean - {beta} std" if beta else "mean", world.tilt(guess.mean - beta * guess.std, alpha)
    wide = guess.mean.std()
    yield "mean - distance", world.tilt(guess.mean - wide * far / far.std().clamp(min=1e-6), alpha)
    for factor in (0.67, 1.5, 2):
        yield f"mean, alpha x {factor}", world.tilt(guess.mean, factor * alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*OFFLINE], default=[*OFFLINE])
    parser.add_argument("--learners", nargs="+", choices=[*LEARNERS], default=[*LEARNERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        world = make_world(name)
        for seed in given.seeds:
            add(given.out, list(offline(world, given.learners, seed)))


def add(path: Path, new: list[dict[str, Any]]) -> None:
    """Puts rows in the place of those of the same setting, and prints them."""
    keys = ("task", "learner", "labels", "seed", "alpha", "rule")
    for row in new:
        print(*(row.get(key, "") for key in keys), f"gap {row['gap_nats']:.3f} nats", flush=True)
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    made = [tuple(row.get(key) for key in keys) for row in new]
    known = [row for row in known if tuple(row.get(key) for key in keys) not in made]
    path.write_text(json.dumps({"torch": torch.__version__, "rows": known + new}, indent=1) + "\n")


if __name__ == "__main__":
    main()
