"""The review's three next checks: whether what a reward asks for generalises, how sensitive results are to
alpha, and whether they carry over from one domain to another.
"""

import dataclasses
from collections.abc import Callable

import torch
from exact import ALGORITHMS, TASKS, trained
from fixed_rate import FIXED
from review_experiments import as_world, learn
from review_verdict import Claim, Measured, Prediction, Size, Table, cell
from review_worlds import (
    GB1,
    NOTHING,
    Words,
    before_and_after,
    digits_job,
    dna,
    first,
    mixture,
    molecules_job,
    protein,
    tune_words,
    wave,
)
from review_worlds import train as train_job

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.domains.utr.recipe import utr
from difftilt.evaluation.evaluate import ScoredSamples, evaluate
from difftilt.exact import grid
from difftilt.experiment.job import Job
from difftilt.networks.bundle import user_folder
from difftilt.shapes import PerSample, Points
from difftilt.training.alpha import expected_tilt
from difftilt.training.settings import Training

KEPT = 0.9  # share of a gain that an independent judge must confirm
UTR = "difftilt data fetch utr and difftilt pretrain utr"
RIVALS = ("ppo", "reward-weighted")


def generalisation(size: Size, found: Measured) -> None:
    rows = []
    for name, alpha in (("digits", 0.1), ("digits-free", NOTHING)):
        make = lambda seed, alpha=alpha: digits_job(size, seed, "class", alpha)  # noqa: E731
        rows.append(judged(name, f"digits, log p(3), alpha {alpha:g}", make, "gold log p", size, found))
    if not size.quick and user_folder("utr").exists():
        rows.append(judged("utr", "5' UTRs, load, alpha 0.1", utr_job, "gold load", size, found))
    world, gains = as_world(dna(size.quick)), []
    for seed in size.seeds:
        _, mean = learn(world, "lower", seed, size)
        pre, law = world.log_pre.exp(), world.tilt(mean, 0.01)
        seen = [(law - pre) @ score for score in (mean, world.reward)]
        gains.append([each.item() for each in seen] + [world.judge(law, 1.0)["kl_nats"]])
        note(found, "dna", *gains[-1][:2])
    rows.append(("DNA, a reward learned of the lower half, alpha 0.01", *map(cell, zip(*gains, strict=True))))
    head = ("", "gain by the reward that was tuned for", "gain by the independent judge", "KL, nats")
    found.tables.append(Table("What a judge that training never sees makes of it", head, rows))


def note(found: Measured, name: str, gain: float, confirmed: float) -> None:
    found.add(f"{name}-rises", confirmed)
    found.add(f"{name}-kept", confirmed - KEPT * gain)


def judged(
    name: str, title: str, make: Callable[[int], Job], gold: str, size: Size, found: Measured
) -> tuple[str, ...]:
    """A row of what the reward and an independent judge gained, over seeds."""
    gains = []
    for seed in size.seeds:
        before, after, calls = before_and_after(make(seed), size.of(300, 16))
        gain = [(after.reward - before.reward).mean(), (after.gold[gold] - before.gold[gold]).mean()]
        gains.append([each.item() for each in gain] + [after.kl.mean().item()])
        note(found, name, *gains[-1][:2])
        found.reward_calls += calls
    return (title, *map(cell, zip(*gains, strict=True)))


def utr_job(seed: int) -> Job:
    training = Training(rounds=8, batch=128, learning_rate=8e-3, schedule="linear", seed=seed, **FIXED)
    return utr(training=training)


def sensitivity(size: Size, found: Measured) -> None:
    rows = []
    for name, objective in (("line-x", mixture(first, 1.0)), ("line-s", mixture(wave, 1.0))):
        axis = grid.Axis(-8, 8, 401)
        base = grid.evaluate(objective, objective.reference, axis).law
        rows.append(exactly(name, base, objective.reward(axis.x[:, None], {}).double(), found))
    words = dna(size.quick)
    rows.append(exactly("dna", words.law, words.table.score, found))
    if not size.quick and (gb1 := protein()) is not None:
        rows.append(exactly("protein", gb1.law, gb1.table.score, found))
    sampled = {"digits": digits_pretrained, "molecules": molecules_pretrained}
    for name, make in list(sampled.items())[: size.of(2, 1)]:
        rewards = [make(size, seed, found) for seed in size.seeds]
        unit = torch.cat(rewards).std().item()
        kls = [[expected_tilt(each, times * unit).kl_nats for times in (1, 0.5)] for each in rewards]
        for whole, half in kls:
            found.add(name, half / whole - 2)
        rows.append((f"{name}, estimated", cell([unit]), *map(cell, zip(*kls, strict=True))))
    unit = deviation(words.law, words.table.score)
    pairs = []
    for seed in size.seeds:
        pairs.append([
            tune_words(words, "ppo", times * unit, seed, size.of(16, 2), batch=size.of(1024, 64))
            for times in (1, 0.5)
        ])  # fmt: skip
        found.add("ppo", pairs[-1][1].kl / pairs[-1][0].kl - 2)
        found.reward_calls += sum(run.calls for run in pairs[-1])
    rows.append(("dna, tuned by PPO", cell([unit]), *(cell([p[k].kl for p in pairs]) for k in (0, 1))))
    head = ("", "deviation of the reward", "KL at alpha = deviation, nats", "KL at half of it")
    found.tables.append(Table("The KL of the optimum", head, rows))


def deviation(law: Points, score: Points) -> float:
    return (law @ (score - law @ score) ** 2).sqrt().item()


def exactly(name: str, law: Points, score: Points, found: Measured) -> tuple[str, ...]:
    """The KL of the exact tilt at the deviation of the reward, and at half of it."""
    unit, kls = deviation(law, score), []
    for alpha in (unit, unit / 2):
        log_w = score / alpha
        tilted = (law.log() + log_w).softmax(0)
        kls.append((tilted @ log_w - (law.log() + log_w).logsumexp(0)).item())
    found.add(name, kls[1] / kls[0] - 2)
    return (f"{name}, exact", *(cell([number]) for number in (unit, *kls)))


def digits_pretrained(size: Size, seed: int, found: Measured) -> PerSample:
    job = digits_job(size, seed, "class", 1.0)
    return pretrained(job, size.of(512, 16), seed, found).reward


def molecules_pretrained(size: Size, seed: int, found: Measured) -> PerSample:
    return pretrained(molecules_job(size, seed, 1.0), size.of(200, 16), seed, found).reward


def pretrained(job: Job, count: int, seed: int, found: Measured) -> ScoredSamples:
    found.reward_calls += count
    return evaluate(job.objective.reference, job.objective, job.cond(count), {}, seed=seed)


def domains(size: Size, found: Measured) -> None:
    rows = []
    for name, gains in (
        ("line", [on_the_line(size, seed, found) for seed in size.seeds]),
        ("dna", [on_words(dna(size.quick), 0.1, size, seed, found) for seed in size.seeds]),
        ("protein", on_protein(size, found)),
        ("digits", [on_job("digits", size, seed, found) for seed in size.seeds]),
        ("molecules", [on_job("molecules", size, seed, found) for seed in size.of(size.seeds, ())]),
    ):
        for gain in gains:
            found.add(f"{name}-rises", gain["ppo"])
            found.add(f"{name}-same", gain["ppo"] - gain["reward-weighted"])
        if gains:
            rows.append((name, *(cell([gain[method] for gain in gains]) for method in RIVALS)))
    head = ("", "gain in J by PPO", "gain in J by reward-weighted MLE")
    found.tables.append(Table("The same two algorithms in every domain, at equal reward calls", head, rows))


def on_the_line(size: Size, seed: int, found: Measured) -> dict[str, float]:
    """What J gains on a one-dimensional chain, exactly."""
    gain, task = {}, TASKS["gmm-x"]
    for method in RIVALS:
        entry = ALGORITHMS[method].for_task("gmm-x")
        entry = dataclasses.replace(entry, batch=size.of(512, 16), rounds=size.of(12, 1), ema=0.0)
        policy, objective, *_ = trained(task, entry, seed)
        with torch.no_grad():
            axis = grid.Axis(-8, 8, 401)
            chains = policy, objective.reference
            now, start = (grid.evaluate(objective, each, axis).objective for each in chains)
        gain[method] = (now - start).item()
        found.reward_calls += objective.reward.calls
    return gain


def on_words(words: Words, alpha: float, size: Size, seed: int, found: Measured) -> dict[str, float]:
    gain = {}
    for method in RIVALS:
        run = tune_words(words, method, alpha, seed, size.of(12, 2), batch=size.of(1024, 64))
        gain[method] = run.objective - words.start
        found.reward_calls += run.calls
    return gain


def on_protein(size: Size, found: Measured) -> list[dict[str, float]]:
    words = None if size.quick else protein()
    return [] if words is None else [on_words(words, 0.05, size, seed, found) for seed in size.seeds]


def on_job(name: str, size: Size, seed: int, found: Measured) -> dict[str, float]:
    """What J gains, of fresh samples."""
    ways: dict[str, AnyAlgorithm] = {
        "digits": {"ppo": PPO(advantage="critic", minibatches=8), "reward-weighted": RewardWeighted()},
        "molecules": {
            "ppo": PPO(epochs=1, minibatches=4, advantage="path", kl="reward"),
            "reward-weighted": RewardWeighted(),
        },
    }[name]
    gain, count, start = {}, size.of({"digits": 256, "molecules": 128}[name], 16), 0.0
    for method, algorithm in ways.items():
        if name == "digits":
            job = digits_job(size, seed, "class", 0.3, algorithm)
        else:
            job = molecules_job(size, seed, 0.07, algorithm)
        if not gain:
            start = pretrained(job, count, seed, found).reward.mean().item()
        calls = job.objective.reward.calls
        for _ in train_job(job):
            pass
        found.reward_calls += job.objective.reward.calls - calls
        seen = evaluate(job.policy, job.objective, job.cond(count), {}, seed=seed)
        gain[method] = (seen.reward.mean() - seen.alpha * seen.kl.mean()).item() - start
    return gain


RISES = "gain by the independent judge"
NINE = "that gain less nine tenths of the gain by the reward itself"
GENERALISATION = Claim(
    "generalisation",
    "check",
    "What is tuned towards one reward is better by a judge that training never sees, too.",
    {
        "digits-rises": Prediction(
            "digits, alpha 0.1: the gold classifier sees more threes", f"{RISES}, log p"
        ),
        "digits-kept": Prediction("and confirms nine tenths of the gain", f"{NINE}, log p"),
        "digits-free-rises": Prediction(
            "digits without a KL to speak of: the gold classifier sees more", RISES
        ),
        "digits-free-kept": Prediction("and confirms nine tenths of the gain", NINE),
        "utr-rises": Prediction("5' UTRs, alpha 0.1: the gold oracle sees a higher load", RISES, UTR),
        "utr-kept": Prediction("and confirms nine tenths of the gain", NINE, UTR),
        "dna-rises": Prediction("DNA, a reward learned of the lower half: the true reward rises", RISES),
        "dna-kept": Prediction("and confirms nine tenths of the gain", NINE),
    },
    generalisation,
)
TWICE = "KL at half of alpha over KL at alpha, less 2"
SENSITIVITY = Claim(
    "alpha-sensitivity",
    "check",
    "Results are sensitive to alpha: half of an alpha of one deviation more than doubles the KL.",
    {
        "line-x": Prediction("a line, reward x", TWICE),
        "line-s": Prediction("a line, reward sin 3x", TWICE),
        "dna": Prediction("DNA", TWICE),
        "protein": Prediction("protein GB1", TWICE, GB1),
        "digits": Prediction("digits, log p(3)", TWICE),
        "molecules": Prediction("molecules, drug-likeness", TWICE),
        "ppo": Prediction("DNA, of policies that PPO tuned", TWICE),
    },
    sensitivity,
)
RISE, SAME = "gain in J", "gain in J by PPO less that by reward-weighted MLE"
PLACES = {
    "line": "a line, reward x", "dna": "DNA", "protein": "protein GB1", "digits": "digits",
    "molecules": "molecules",
}  # fmt: skip
DOMAINS = Claim(
    "cross-domain",
    "check",
    "What works in one domain works in another: PPO gains everywhere, and more than reward-weighted MLE.",
    {
        f"{name}-{what}": Prediction(
            f"{place}: PPO {'raises J' if what == 'rises' else 'raises J more than reward-weighted MLE'}",
            RISE if what == "rises" else SAME,
            GB1 if name == "protein" else "",
        )
        for name, place in PLACES.items()
        for what in ("rises", "same")
    },
    domains,
)
CLAIMS = (GENERALISATION, SENSITIVITY, DOMAINS)
