"""The review's first three experiments: a sweep of alpha, algorithms on one task, and a reward learned from
labels of limited coverage.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator

import torch
from exact import ALGORITHMS, TASKS, trained
from landscape import RATE
from learned import World, ensemble, make_world, measured
from review_verdict import Claim, Measured, Prediction, Size, Table, cell
from review_worlds import Tuned, Words, dna, tune_words

from difftilt.data.landscape import GB1 as GB1_FILE
from difftilt.data.store import locate
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.learned import Prediction as Guess
from difftilt.shapes import Points

ALPHA = 0.1
ALPHAS = (0.02, 0.1, 0.5)
TEMPTED = (0.03, 0.01, 0.003)  # alphas at which a learned reward is tilted towards
LABELS, NOISE = 1000, 0.05
RIVALS = ("grpo", "reward-weighted", "vargrad")
FASTER = 10.0  # times the learning rate
LEARNED: dict[tuple[str, str, int, bool], Guess] = {}  # several claims ask for the same beliefs


def alpha_sweep(size: Size, found: Measured) -> None:
    words = dna(size.quick)
    runs: dict[float, list[Tuned]] = {alpha: [] for alpha in ALPHAS}
    news: dict[float, list[float]] = {alpha: [] for alpha in ALPHAS}
    for seed in size.seeds:
        for alpha in ALPHAS:
            run = tune_words(words, "ppo", alpha, seed, size.of(24, 3), batch=size.of(1024, 64))
            runs[alpha].append(run)
            news[alpha].append(words.better[run.asked].sum().item())
            found.reward_calls += run.calls
    for k in range(len(size.seeds)):
        rewards = [runs[alpha][k].reward for alpha in ALPHAS]
        kls = [runs[alpha][k].kl for alpha in ALPHAS]
        new = [news[alpha][k] for alpha in ALPHAS]
        found.add("reward", least_fall(rewards))
        found.add("kl", least_fall(kls))
        found.add("hinders", new[ALPHAS.index(0.1)] - new[-1])
        found.add("hinders-always", least_fall(new))
        found.add("entropy", least_fall([-entropy(runs[a][k].law) for a in ALPHAS]))
    rows = [
        (f"alpha {alpha:g}",
         *(cell([getattr(run, name) for run in runs[alpha]]) for name in ("reward", "kl")),
         cell([entropy(run.law) for run in runs[alpha]]), cell(news[alpha]),
         cell([float(len(run.asked)) for run in runs[alpha]]))
        for alpha in ALPHAS
    ]  # fmt: skip
    head = (
        "",
        "reward",
        "KL, nats",
        "entropy, nats",
        "found above training data",
        "different ones asked for",
    )
    found.tables.append(Table(f"PPO on DNA, {runs[0.1][0].calls:,} reward calls each", head, rows))


def least_fall(numbers: list[float]) -> float:
    """The least amount by which each number is below the one before it."""
    return min(a - b for a, b in itertools.pairwise(numbers))


def entropy(law: Points) -> float:
    return torch.special.entr(law).sum().item()


def drop(run: Tuned, start: float) -> float:
    """The deepest fall of J below the best round before it."""
    best, deepest = start, 0.0
    for row in run.course:
        best = max(best, row["objective"])
        deepest = max(deepest, best - row["objective"])
    return deepest


def algorithms(size: Size, found: Measured) -> None:
    words = dna(size.quick)
    names = ("ppo", *RIVALS)
    runs: dict[tuple[str, float], list[Tuned]] = {}
    for seed in size.seeds:
        for name in names:
            for faster in (1.0, FASTER):
                run = tune_words(
                    words, name, ALPHA, seed, size.of(12, 2), faster * RATE, batch=size.of(1024, 512)
                )
                runs.setdefault((name, faster), []).append(run)
                found.reward_calls += run.calls
    for k in range(len(size.seeds)):
        drops = {name: drop(runs[name, 1.0][k], words.start) for name in names}
        ends = {name: runs[name, 1.0][k].objective for name in names}
        lost = {name: ends[name] - runs[name, FASTER][k].objective for name in names}
        found.add("ppo-drop", middle(drops) - drops["ppo"])
        found.add("ppo-rate", middle(lost) - lost["ppo"])
        found.add("ppo-end", ends["ppo"] - middle(ends))
    rows = [
        (name,
         *(cell([getattr(run, what) for run in runs[name, 1.0]]) for what in ("reward", "kl", "objective")),
         f"{statistics.stdev([run.objective for run in runs[name, 1.0]]):.2g}",
         cell([drop(run, words.start) for run in runs[name, 1.0]]),
         cell([run.objective for run in runs[name, FASTER]]))
        for name in names
    ]  # fmt: skip
    head = ("", "reward", "KL, nats", "J", "deviation of J over seeds", "deepest fall of J between rounds")
    calls = runs["ppo", 1.0][0].calls
    title = f"DNA, alpha {ALPHA:g}, {calls:,} reward calls each, J {words.start:.4f} at first"
    found.tables.append(Table(title, (*head, f"J at {FASTER:g} x the learning rate"), rows))
    found.tables.append(with_gradients(size, found))


def middle(numbers: dict[str, float]) -> float:
    """The median of PPO's rivals."""
    return statistics.median(numbers[name] for name in RIVALS)


def with_gradients(size: Size, found: Measured) -> Table:
    """PPO and backpropagation of the reward, at equal reward calls, on a linear-Gaussian chain."""
    task, ends = TASKS["lqg16"], {"ppo": [], "backprop": []}
    for seed in size.seeds:
        for name, held in ends.items():
            entry = dataclasses.replace(
                ALGORITHMS[name].for_task("lqg16"), batch=size.of(512, 16), rounds=size.of(20, 2), ema=0.0,
                learning_rate=5e-3,
            )  # fmt: skip
            policy, objective, *_ = trained(task, entry, seed)
            with torch.no_grad():
                held.append(task.measure(policy, objective))
            found.reward_calls += objective.reward.calls
    for mine, other in zip(ends["backprop"], ends["ppo"], strict=True):
        found.add("backprop", (mine[0].objective - other[0].objective).item())
    rows = [
        (name,
         *(cell([getattr(each[0], what).item() for each in held]) for what in ("reward", "kl", "objective")),
         cell([held[0][1]]))
        for name, held in ends.items()
    ]  # fmt: skip
    title = (
        f"A linear-Gaussian chain, {size.of(512, 16) * size.of(20, 2):,} reward calls each, computed exactly"
    )
    return Table(title, ("", "reward", "KL, nats", "J", "best J"), rows)


def coverage(size: Size, found: Measured) -> None:
    rows = []
    worlds = [as_world(dna(True)) if size.quick else make_world("six6")]
    if not size.quick and has_gb1():
        worlds.append(make_world("gb1"))
    for world in worlds:
        kind = "protein" if world.name == "gb1" else "dna"
        held: dict[str, list[float]] = {}
        for seed in size.seeds:
            for where in ("lower", "all"):
                for key, number in tempted(world, where, seed, size):
                    held.setdefault(f"{where} {key}", []).append(number)
        for k in range(len(size.seeds)):
            at = {key: numbers[k] for key, numbers in held.items()}
            found.add(f"{kind}-over", at["lower too high 0.01"] - at["lower too high inf"])
            found.add(f"{kind}-limited", at["all true 0.01"] - at["lower true 0.01"])
            found.add(f"{kind}-falls", at["lower true 0.01"] - at["lower true 0.003"])
        for where, title in (("lower", "labels from the lower half"), ("all", "labels from everywhere")):
            for alpha in ("inf", *(f"{a:g}" for a in TEMPTED)):
                cells = (cell(held[f"{where} {what} {alpha}"]) for what in ("true", "modelled", "kl"))
                label = "pretrained" if alpha == "inf" else f"alpha {alpha}"
                rows.append((f"{kind}, {title}, {label}", *cells))
    head = ("", "true mean reward", "modelled mean reward", "KL, nats")
    title = f"The exact tilt towards a reward learned of {size.of(LABELS, 40):,} labels"
    found.tables.append(Table(title, head, rows))
    found.reward_calls += len(worlds) * 2 * len(size.seeds) * size.of(LABELS, 40)


def as_world(words: Words) -> World:
    table = words.table
    pool = table.lower_half()
    best = table.score[pool].max().item()
    return World("dna", table.sequences(), table.score, words.law.log(), pool, best, len(table.alphabet))


def has_gb1() -> bool:
    try:
        return locate("gb1", GB1_FILE).exists()
    except ValueError:
        return False


def learn(world: World, where: str, seed: int, size: Size) -> tuple[Guess, Points]:
    """What an ensemble believes of everything, taught by labels of the lower half or of all."""
    key = (world.name, where, seed, size.quick)
    if key not in LEARNED:
        generator = torch.Generator().manual_seed(seed)
        half = world.reward.argsort()[: len(world.x) // 2]
        pool = half if where == "lower" else torch.arange(len(world.x))
        rows = pool[torch.randperm(len(pool), generator=generator)[: size.of(LABELS, 40)]]
        learner = Ensemble(world.letters, members=2, seed=seed) if size.quick else ensemble(world, seed)
        LEARNED[key] = world.predict(learner.fit(measured(world, rows, NOISE, generator)))
    return LEARNED[key], LEARNED[key].mean.double()


def tempted(world: World, where: str, seed: int, size: Size) -> Iterator[tuple[str, float]]:
    """Along alpha: true and modelled reward, KL, and by how much the model is too high."""
    _, mean = learn(world, where, seed, size)
    for alpha in (float("inf"), *TEMPTED):
        law = world.log_pre.exp() if alpha == float("inf") else world.tilt(mean, alpha)
        true, modelled = (law @ world.reward).item(), (law @ mean).item()
        yield f"true {alpha:g}", true
        yield f"modelled {alpha:g}", modelled
        yield f"too high {alpha:g}", modelled - true
        yield f"kl {alpha:g}", world.judge(law, 1.0)["kl_nats"]


SWEEP = Claim(
    "alpha-sweep",
    "experiment",
    "A smaller alpha buys reward with KL; a larger alpha may hinder exploration.",
    {
        "reward": Prediction("the reward falls with every step up in alpha", "least fall between neighbours"),
        "kl": Prediction("so does the KL", "least fall between neighbours, nats"),
        "hinders": Prediction(
            "alpha 0.5 finds fewer sequences above the training data than alpha 0.1",
            "sequences found at 0.1 less those at 0.5",
        ),
        "hinders-always": Prediction(
            "fewer are found with every step up in alpha", "least fall between neighbours, sequences"
        ),
        "entropy": Prediction(
            "the entropy of the samples rises with every step up in alpha",
            "least rise between neighbours, nats",
        ),
    },
    alpha_sweep,
)
ALGORITHMS_CLAIM = Claim(
    "algorithms",
    "experiment",
    "PPO is the stable choice; backpropagation of the reward is the efficient one where it can be used.",
    {
        "ppo-drop": Prediction(
            "J of PPO falls less between rounds than the median of its rivals' does",
            "deepest fall of the rivals less PPO's",
        ),
        "ppo-rate": Prediction(
            "ten times the learning rate costs PPO less J than the median of its rivals",
            "what the rivals lose less what PPO loses",
        ),
        "ppo-end": Prediction(
            "PPO ends at a higher J than the median of its rivals", "J of PPO less that of the rivals"
        ),
        "backprop": Prediction(
            "with gradients, backpropagation ends at a higher J than PPO at equal reward calls",
            "J of backpropagation less J of PPO",
        ),
    },
    algorithms,
)
OVER = "rise of (modelled less true reward) from the pretrained model to the tilt at alpha 0.01"
GB1_DATA = "difftilt data fetch gb1"
COVERAGE = Claim(
    "coverage",
    "experiment",
    "A reward that was learned from limited data is over-optimised outside of what the data cover.",
    {
        "dna-over": Prediction(
            "DNA, labels of the lower half: the tilt is promised more than it earns", OVER
        ),
        "dna-limited": Prediction(
            "DNA: labels of the lower half lead to less true reward than labels from everywhere",
            "true reward, all less lower half, at alpha 0.01",
        ),
        "dna-falls": Prediction(
            "DNA, labels of the lower half: the true reward falls when alpha is lowered further",
            "true reward at alpha 0.01 less that at 0.003",
        ),
        "protein-over": Prediction("protein GB1: as the first", OVER, GB1_DATA),
        "protein-limited": Prediction(
            "protein GB1: as the second", "true reward, all less lower half, at alpha 0.01", GB1_DATA
        ),
        "protein-falls": Prediction(
            "protein GB1: as the third", "true reward at alpha 0.01 less that at 0.003", GB1_DATA
        ),
    },
    coverage,
)
CLAIMS = (SWEEP, ALGORITHMS_CLAIM, COVERAGE)
