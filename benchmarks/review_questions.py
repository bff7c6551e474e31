"""Three questions that the review leaves open, each as a claim that can fail: whether alpha can be chosen
before training, whether a pessimistic reward makes up for limited data, and when to steer, not to tune.
"""

import torch
from learned import make_world
from review_experiments import as_world, has_gb1, learn
from review_verdict import Claim, Measured, Prediction, Size, Table, cell
from review_worlds import GB1, Words, dna, protein, tune_words

from difftilt.conditions import unconditional
from difftilt.exact import landscape as exact
from difftilt.samplers.best_of import best_of
from difftilt.samplers.smc import SMC
from difftilt.training.alpha import expected_tilt, starting_alpha
from difftilt.training.seeds import seed_round
from difftilt.values.tweedie import PosteriorMean

SHARE = 0.2  # by which a forecast may be off
DRAWS = 500  # rewards of the pretrained model that a forecast is made of
TARGET = 0.5  # nats
DELIVERED = 1000  # samples that a user wants
ROUNDS = {"few": 10, "many": 60}  # of 1,024 samples


def choosing_alpha(size: Size, found: Measured) -> None:
    rows = []
    for name, words in (("dna", dna(size.quick)), ("protein", None if size.quick else protein())):
        if words is None:
            continue
        unit = (words.law @ (words.table.score - words.start) ** 2).sqrt().item()
        for label, times in (("wide", 1.0), ("middle", 0.5), ("narrow", 0.25)):
            kl = exact.kl((words.law.log() + words.table.score / (times * unit)).softmax(0), words.law).item()
            told = [expected_tilt(draw(words, seed), times * unit) for seed in range(size.of(10, 2))]
            for tilt in told:
                found.add(f"{name}-{label}", SHARE - abs(tilt.kl_nats / kl - 1))
            warned = sum(not tilt.known for tilt in told)
            forecast = cell([tilt.kl_nats for tilt in told])
            rows.append(
                (f"{name}, alpha {times * unit:.3g}", cell([kl]), forecast, f"{warned} of {len(told)}")
            )
    found.notes.append("Forecasts have ten seeds, 0 to 9; training has three.")
    found.tables.append(
        Table(
            f"KL of the optimum, nats, from {DRAWS} rewards",
            ("", "exact", "forecast", "warn that they cannot tell"),
            rows,
        )
    )
    words, reached, best = dna(size.quick), [], []
    for seed in size.seeds:
        alpha = starting_alpha(draw(words, seed), TARGET).alpha
        run = tune_words(words, "ppo", alpha, seed, size.of(40, 2), batch=size.of(1024, 64))
        found.add("tuned", SHARE - abs(run.kl / TARGET - 1))
        found.reward_calls += run.calls
        reached.append(run.kl)
        best.append(exact.kl((words.law.log() + words.table.score / alpha).softmax(0), words.law).item())
    row = (f"DNA, alpha for {TARGET:g} nats", cell(best), cell(reached))
    found.tables.append(
        Table("From a target KL to a tuned model", ("", "its optimum", "tuned by PPO"), [row])
    )


def draw(words: Words, seed: int) -> torch.Tensor:
    """Rewards of samples of the pretrained model."""
    generator = torch.Generator().manual_seed(seed)
    return words.table.score[words.law.multinomial(DRAWS, replacement=True, generator=generator)]


def pessimism(size: Size, found: Measured) -> None:
    rows = []
    worlds = [("dna", as_world(dna(True)) if size.quick else make_world("six6"))]
    if not size.quick and has_gb1():
        worlds.append(("protein", make_world("gb1")))
    for name, world in worlds:
        for where, title in (("lower", "labels from the lower half"), ("all", "labels from everywhere")):
            gaps: dict[str, list[float]] = {}
            for seed in size.seeds:
                guess, mean = learn(world, where, seed, size)
                rules = {
                    "the mean": world.tilt(mean, 0.03),
                    "mean - std": world.tilt(mean - guess.std, 0.03),
                    "the mean, alpha x 2": world.tilt(mean, 0.06),
                }
                gap = {rule: world.judge(law, 0.03)["gap_nats"] for rule, law in rules.items()}
                found.add(f"{name}-{where}", gap["the mean"] - gap["mean - std"])
                if where == "lower":
                    found.add(f"{name}-beyond", gap["the mean, alpha x 2"] - gap["mean - std"])
                for rule, number in gap.items():
                    gaps.setdefault(rule, []).append(number)
                found.reward_calls += size.of(1000, 40)
            rows.append((f"{name}, {title}", *map(cell, gaps.values())))
    head = ("", "the mean", "mean - std", "the mean, alpha x 2")
    found.tables.append(Table("Gap to the optimum of the true reward at alpha 0.03, nats", head, rows))


def tune_or_steer(size: Size, found: Measured) -> None:
    words, rows = dna(size.quick), []
    objective = words.objective(0.1)
    for label, rounds in ROUNDS.items():
        rounds = size.of(rounds, 2)
        runs = [tune_words(words, "ppo", 0.1, seed, rounds, batch=size.of(1024, 64)) for seed in size.seeds]
        each = max(1, runs[0].calls // size.of(DELIVERED, 64))
        best, most = max((best_j(words, n), n) for n in range(1, each + 1))
        weighed = [smc(words, each, seed, size, found) for seed in size.seeds]
        for run, other in zip(runs, weighed, strict=True):
            steered = max(best, other)
            found.add(label, (steered - run.objective) if label == "few" else (run.objective - steered))
            found.reward_calls += run.calls
        tuned = cell([run.objective for run in runs])
        title = f"{runs[0].calls:,} calls, {each} per sample"
        rows.append((title, tuned, f"{cell([best])} (n = {most})", cell(weighed)))
    best = exact.solve(objective, words.table.score).optimum.item()
    head = ("", "J of PPO", "J of the best of n", "J of SMC, at least")
    title = f"DNA, alpha 0.1: J {words.start:.4f} at first, {best:.4f} at best"
    found.tables.append(Table(title, head, rows))


def best_j(words: Words, n: int) -> float:
    """J of the best of n samples, exactly."""
    law = best_of(words.law, words.table.score, n)
    return (law @ words.table.score).item() - 0.1 * exact.kl(law, words.law).item()


def smc(words: Words, calls: int, seed: int, size: Size, found: Measured) -> float:
    """J, at least, of SMC that may ask the reward so often per sample; it asks at every step."""
    objective = words.objective(0.1)
    particles = max(2, calls // words.reference.steps)
    seed_round(seed, 3)
    sampler = SMC(particles=particles, keep="one")
    seen = sampler.draw(objective, PosteriorMean(objective, draws=1), unconditional(size.of(400, 8)))
    found.reward_calls += seen.reward_calls
    return seen.summary()["objective"]


OFF = f"{SHARE:g} less the share by which it is off"
FORECASTS = {
    "wide": "alpha of one deviation of the reward",
    "middle": "half of it",
    "narrow": "a quarter of it",
}
CHOOSING = Claim(
    "choosing-alpha",
    "question",
    f"Alpha can be chosen before training: {DRAWS} rewards of the pretrained model tell the KL within 20 %.",
    {
        **{f"dna-{key}": Prediction(f"DNA, {what}", OFF) for key, what in FORECASTS.items()},
        **{f"protein-{key}": Prediction(f"protein GB1, {what}", OFF, GB1) for key, what in FORECASTS.items()},
        "tuned": Prediction(f"DNA: PPO at the alpha so chosen for {TARGET:g} nats ends there", OFF),
    },
    choosing_alpha,
)
LESS = "gap of the mean less gap of mean - std, nats"
DATA = "difftilt data fetch gb1"
PESSIMISM = Claim(
    "pessimism",
    "question",
    "A pessimistic reward, the mean less the spread of an ensemble, makes up for limited data.",
    {
        "dna-lower": Prediction("DNA, labels of the lower half: it ends nearer to the optimum", LESS),
        "dna-all": Prediction("DNA, labels from everywhere: it ends nearer to the optimum", LESS),
        "dna-beyond": Prediction(
            "DNA, labels of the lower half: and nearer than the mean at twice the alpha",
            "gap of the mean at twice the alpha less gap of mean - std, nats",
        ),
        "protein-lower": Prediction("protein GB1, labels of the lower half: as the first", LESS, DATA),
        "protein-all": Prediction("protein GB1, labels from everywhere: as the second", LESS, DATA),
        "protein-beyond": Prediction(
            "protein GB1: as the third",
            "gap of the mean at twice the alpha less gap of mean - std, nats",
            DATA,
        ),
    },
    pessimism,
)
TUNE_OR_STEER = Claim(
    "tune-or-steer",
    "question",
    f"For {DELIVERED:,} samples, steering is worth more where reward calls are few, tuning where many are.",
    {
        "few": Prediction(
            "DNA, about 10 calls per sample: the best steering has a higher J than PPO",
            "J of the best of steering, its lower bound for SMC, less J of PPO",
        ),
        "many": Prediction(
            "DNA, about 60 calls per sample: PPO has a higher J than the best steering", "the same, reversed"
        ),
    },
    tune_or_steer,
)
CLAIMS = (CHOOSING, PESSIMISM, TUNE_OR_STEER)
