"""What the monitors of a run are worth: runs of known outcome, whose policies are computed, not sampled.

    python benchmarks/monitors.py [--seeds 0 1 2 3 12 13 14 15 16 17] [--rows FILE]

writes results/monitors.json. Every seed makes a landscape of all 1,024 words of five letters and
a masked chain over them, tunes it well (three algorithms at three alphas), and badly: steps far too large, no
clipping, alpha far too small for few samples, a reward of one word, hardly any steps, failing rewards, a
reward that was learned of 50 labels, a KL that counts half, a target KL that large steps overrun. What became
of each run is told from the exact distribution of its policy. Seeds below 12 are there to choose `Limits` by;
those from 12 on judge them.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from fixed_rate import FIXED

from difftilt.algorithms.choices import make_algorithm
from difftilt.algorithms.ppo import PPO
from difftilt.data.vocabulary import DNA, all_sequences, place_values, spell
from difftilt.evaluation.evaluate import evaluate
from difftilt.evaluation.expected import expectations
from difftilt.evaluation.monitors import Monitors
from difftilt.exact import landscape as exact
from difftilt.experiment.finetune import make_optimizer, place
from difftilt.experiment.job import Job, tune
from difftilt.networks.sequence import MLP, corrected
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.held_out import cross_validated
from difftilt.rewards.learned import Labels
from difftilt.rewards.saved import LearnedReward
from difftilt.training.distributed import make_accelerator
from difftilt.training.fit import fit
from difftilt.training.kl_controller import KLController
from difftilt.training.settings import MonitorName, Training
from difftilt.training.train import part_means

RESULTS = Path(__file__).parent / "results" / "monitors.json"
HELD_OUT = 12  # seeds from here on choose nothing
LENGTH = 5
EVERY = all_sequences(len(DNA), LENGTH)
# nothing holds runs that shall go wrong
TRAINING: dict[str, Any] = {"rounds": 30, "batch": 256, "learning_rate": 3e-2, "schedule": "linear", **FIXED}
ALPHAS = (0.3, 0.1, 0.05)
PLAIN = PPO(advantage="path", epochs=1, kl="reward")


@dataclass(frozen=True)
class Case:
    """A way of tuning.

    Args:
        kind: `healthy`, or what is wrong.
        reward: `smooth`, `single` (one rare word), `failing` (for 40 % of the samples) or one of `LEARNED`.
    """

    kind: str
    algorithm: Callable[[], Any] = lambda: PLAIN
    alpha: float = 0.1
    reward: str = "smooth"
    training: Mapping[str, Any] = field(default_factory=dict)
    target_kl: float | None = None


HEALTHY = [
    Case("healthy", lambda name=name: make_algorithm(name) if name else PLAIN, alpha)
    for name in ("", "grpo", "reward-weighted")
    for alpha in ALPHAS
]
LOOSE = PPO(clip=0.99, epochs=8, minibatches=8, kl="reward")
PROVOKED = [
    Case("rate", training={"learning_rate": 3.0}),
    Case("rate", lambda: make_algorithm("grpo"), training={"learning_rate": 1.0}),
    Case("rate", lambda: make_algorithm("ppo"), training={"learning_rate": 0.6, "batch": 64}),
    Case("clip", lambda: LOOSE, 0.05, training={"learning_rate": 0.3}),
    Case("alpha", lambda: make_algorithm("ppo"), 0.003, training={"batch": 32, "learning_rate": 0.1}),
    Case("alpha", lambda: make_algorithm("grpo"), 0.01, training={"batch": 32, "learning_rate": 0.1}),
    Case("single", reward="single", alpha=0.05),
    Case("single", lambda: make_algorithm("grpo"), reward="single", alpha=0.03),
    Case("still", training={"learning_rate": 1e-5}),
    Case("still", lambda: make_algorithm("grpo"), 0.05, training={"learning_rate": 3e-5}),
    Case("failing", reward="failing"),
    Case("failing", lambda: make_algorithm("grpo"), reward="failing"),
    Case("learned", reward="learned", alpha=0.05),
    Case("learned", reward="learned", alpha=0.02, training={"learning_rate": 0.1}),
    Case("learned", lambda: make_algorithm("grpo"), reward="learned", alpha=0.1),
    *(
        Case("learned", lambda name=name: make_algorithm(name) if name else PLAIN, alpha, labels)
        for labels in ("few", "low", "noisy")
        for name, alpha in (("", 0.1), ("grpo", 0.03))
    ),
    Case("half", alpha=0.1),
    Case("half", lambda: make_algorithm("grpo"), alpha=0.05),
    Case("overrun", lambda: make_algorithm("ppo"), training={"learning_rate": 0.3}, target_kl=0.3),
]


class HalfKL(Objective):
    """Counts half of the KL in closed form, as a step with a wrong formula would."""

    def sample(self, *args: Any, **options: Any) -> Any:
        seen = super().sample(*args, **options)
        return dataclasses.replace(seen, kl=seen.kl / 2)


@dataclass(frozen=True)
class Learned:
    """What a reward is learned of.

    Args:
        labels: Their number.
        share: Of all words, from the worst on, that they are drawn from.
        noise: Standard deviation of a measurement.
    """

    labels: int = 50
    share: float = 1.0
    noise: float = 0.05


LEARNED = {
    "learned": Learned(),
    "few": Learned(labels=20),
    "low": Learned(share=0.5),
    "noisy": Learned(noise=0.3),
}


class World:
    """A landscape and a chain, by seed."""

    def __init__(self, seed: int):
        draw = torch.Generator().manual_seed(seed)
        pairs = torch.randn(LENGTH, len(DNA), LENGTH, len(DNA), generator=draw)
        one = torch.nn.functional.one_hot(EVERY, len(DNA)).float()
        raw = torch.einsum("nia,iajb,njb->n", one, pairs, one).double()
        self.score = (raw - raw.min()) / (raw.max() - raw.min())
        torch.manual_seed(seed)
        network = MLP(len(DNA), LENGTH, 32, depth=1, window=LENGTH)
        torch.nn.init.normal_(network.logits.weight, std=0.15)
        self.reference = MaskedPolicy(network, len(DNA), LENGTH).requires_grad_(False)
        law = exact.evaluate(Objective(self.lookup, self.reference, 1.0), self.reference, self.score).law
        self.rare = int(law.argsort()[len(law) // 20])
        self.learned = {name: self.taught(learned, seed, draw) for name, learned in LEARNED.items()}

    def taught(self, learned: "Learned", seed: int, draw: torch.Generator) -> LearnedReward:
        """A reward as `difftilt reward fit` makes it."""
        known = self.score.argsort()[: int(learned.share * len(EVERY))]
        rows = known[torch.randperm(len(known), generator=draw)[: learned.labels]]
        noise = torch.randn(len(rows), generator=draw, dtype=torch.float64)
        labels = Labels(EVERY[rows], (self.score[rows] + learned.noise * noise).float())
        learner = Ensemble(len(DNA), seed=seed)
        scale, found = cross_validated(learner, labels, seed)
        best = labels.score.max().item(), found.optimism
        return LearnedReward(learner.taught(labels), learner, DNA, LENGTH, LENGTH, scale, 0.0, *best)

    def places(self, x: torch.Tensor) -> torch.Tensor:
        return (x * place_values(len(DNA), LENGTH)).sum(1)

    def lookup(self, x: torch.Tensor, cond: Any) -> torch.Tensor:
        return self.score[self.places(x)]

    def single(self, x: torch.Tensor, cond: Any) -> torch.Tensor:
        return (self.places(x) == self.rare).double()

    def failing(self, x: torch.Tensor, cond: Any) -> torch.Tensor:
        found = self.lookup(x, cond)
        return found.where(self.places(x) * 7919 % 10 >= 4, torch.nan)

    def reward(self, name: str) -> Any:
        if name in self.learned:
            return self.learned[name].of(lambda x: spell(x, DNA))
        return {"smooth": self.lookup, "single": self.single, "failing": self.failing}[name]

    def job(self, case: Case, seed: int) -> Job:
        tuned = MaskedPolicy(corrected(self.reference.network, len(DNA), LENGTH), len(DNA), LENGTH)
        training = Training(**(TRAINING | dict(case.training)), seed=seed, evaluate=512, on_error="drop")
        reference, algorithm = self.reference, case.algorithm()
        job = tune(
            tuned, self.reward(case.reward), algorithm, case.alpha, training, reference=reference,
            target_kl=case.target_kl,
        )  # fmt: skip
        if case.kind == "half":
            job = dataclasses.replace(job, objective=HalfKL(job.objective.reward, reference, case.alpha))
        return job


def run(world: World, case: Case, seed: int) -> dict[str, Any]:
    """Tunes, and tells what a user would have in the run folder and what truly became of the policy."""
    job, accelerator = world.job(case, seed), make_accelerator()
    place(job, accelerator)
    seen = evaluate(job.policy, job.objective, job.cond(512), {}, seed=seed)
    valid = seen.reward.isfinite()
    objective, training = job.objective, job.training
    before = seen.summary() | {"expected": expectations(seen)}
    before["objective"] = (seen.reward - case.alpha * seen.kl)[valid].mean().item()
    optimizer, scheduler = make_optimizer(job)
    controller = None if case.target_kl is None else KLController(objective, case.target_kl)
    rows: list[dict[str, float]] = []
    for number in range(training.rounds):
        conds = [job.cond(training.batch)]
        for row in fit(
            job.policy, objective, job.algorithm, conds, optimizer, training, accelerator, start=number,
            kl_controller=controller,
        ):  # fmt: skip
            guard = objective.reward
            rows.append({**row, **part_means(guard), "reward_calls": guard.calls, **guard.failures})
        scheduler.step()
    return {"before": before, "rows": rows, "exact": judged(world, case, job)}


def judged(world: World, case: Case, job: Job) -> dict[str, float]:
    """Exact numbers of the policy: J counts the reward that was tuned for."""
    alpha = job.objective.alpha
    honest = Objective(world.lookup, world.reference, alpha)
    table = {"smooth": world.score, "failing": world.score, "single": world.single(EVERY, None)}
    table |= {name: learned.belief(EVERY).mean.double() for name, learned in world.learned.items()}
    scores = table[case.reward]
    tuned, best = exact.evaluate(honest, job.policy, scores), exact.solve(honest, scores)
    start = exact.evaluate(honest, world.reference, scores)
    return {
        "alpha": alpha,
        "J": tuned.objective.item(),
        "J_before": start.objective.item(),
        "J_best": best.optimum.item(),
        "kl_nats": tuned.kl.item(),
        "words": number_of(tuned.law),
        "words_of_optimum": number_of(best.law),
        "ran_ahead": ((tuned.law - start.law).double() @ (scores - world.score)).item(),
    }


def number_of(law: torch.Tensor) -> float:
    """exp(entropy): how many words a distribution is spread over."""
    return torch.special.entr(law.double()).sum().exp().item()


def truths(case: Case, found: Mapping[str, float]) -> dict[str, bool | None]:
    """What each monitor should have said of a run; None where it may say either."""
    gained, most = found["J"] - found["J_before"], found["J_best"] - found["J_before"]
    way = gained / most
    provoked = case.kind in ("rate", "clip")
    ahead = found["ran_ahead"] if case.reward in LEARNED else 0.0
    words = found["words"] / found["words_of_optimum"]
    return {
        "collapse": None if found["words_of_optimum"] < 10 else _between(words, 0.25, 0.5),
        "exploration": None if case.target_kl or way < 0 else _between(way, 0.25, 0.5),
        "generalisation": _between(-ahead, -0.1, -0.05),
        "updates": case.kind == "failing" or (provoked and way < 0.5) or (None if provoked else False),
        "kl": None if case.target_kl else case.kind == "half" or gained < -0.05 * most,
    }


def _between(number: float, low: float, high: float) -> bool | None:
    """Whether a number is below the first of two limits; None between both."""
    return True if number < low else False if number > high else None


def scored(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Precision and recall of a monitor."""
    counts = {"right": 0, "false": 0, "missed": 0}
    for row in rows:
        truth, said = row["truths"][name], name in row["said"]
        if truth is not None:
            counts["right"] += truth and said
            counts["false"] += said and not truth
            counts["missed"] += truth and not said
    right, false, missed = counts.values()
    precision = round(right / (right + false), 3) if right + false else None
    recall = round(right / (right + missed), 3) if right + missed else None
    return {"precision": precision, "recall": recall, **counts}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each monitor's worth, and the share of clean runs in which any spoke."""
    clean = [row for row in rows if row["kind"] == "healthy" and not any(row["truths"].values())]
    alarmed = sum(bool(row["said"]) for row in clean)
    return {
        "runs": len(rows),
        "clean_runs": len(clean),
        "clean_runs_with_alarm": alarmed,
        "monitors": {name: scored(rows, name) for name in get_args(MonitorName)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(4), *range(HELD_OUT, 18)])
    parser.add_argument("--rows", type=Path, help="JSON lines of runs: read if it is there, else written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases, made = [*HEALTHY, *PROVOKED], []
    if given.rows and given.rows.exists():
        made = [json.loads(line) for line in given.rows.read_text().splitlines()]
    known = {(row["seed"], row["case"]) for row in made}
    for seed in given.seeds:
        missing = [k for k in range(len(cases)) if (seed, k) not in known]
        if not missing:
            continue
        world = World(seed)
        for k in missing:
            made.append({"seed": seed, "case": k} | run(world, cases[k], seed))
            print(seed, cases[k].kind, made[-1]["exact"], flush=True)
            if given.rows:
                with given.rows.open("a") as file:
                    file.write(json.dumps(made[-1]) + "\n")
    rows = []
    for each in made:
        case = cases[each["case"]]
        watching = Monitors(each["before"], each["rows"][-1]["round"] + 1, case.target_kl)
        said = {alarm.monitor: alarm.round for alarm in watching.see_all(each["rows"])}
        row = {"task": case.kind, "kind": case.kind, "seed": each["seed"], "exact": each["exact"]}
        rows.append(row | {"said": said, "truths": truths(case, each["exact"])})
    parts = {"chosen on": False, "held out": True}
    found = {
        name: summary([row for row in rows if (row["seed"] >= HELD_OUT) == held_out])
        for name, held_out in parts.items()
    }
    print(json.dumps(found, indent=1))
    given.out.write_text(json.dumps({"torch": torch.__version__, **found, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
