"""The review's three mechanisms: beyond the training data, similarity by entropy regularisation, and sampling
by values without training.
"""

from collections.abc import Callable

import torch
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
    protein,
    tune_words,
    wave,
)

from difftilt.conditions import unconditional
from difftilt.domains.digits.model import load_split
from difftilt.evaluation.estimate import mean
from difftilt.evaluation.evaluate import evaluate
from difftilt.evaluation.metrics import two_sample
from difftilt.exact import grid
from difftilt.exact import landscape as exact
from difftilt.exact.result import TableEvaluation
from difftilt.exact.sampler_laws import evaluate_svdd
from difftilt.guidance.value_guided import ValueGuided
from difftilt.objective import Objective
from difftilt.rewards.image import ink
from difftilt.samplers.base import Sampler
from difftilt.samplers.best_of import best_of
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.shapes import Cond, Points
from difftilt.training.seeds import seed_round
from difftilt.values.tweedie import PosteriorMean

ALPHA = 0.1  # of the binding scores, which lie in [0, 1]
COUNT = 4  # candidates of SVDD, and n of the best of n


def beyond(size: Size, found: Measured) -> None:
    rows = []
    for name, words, alpha in (("dna", dna(size.quick), ALPHA), ("protein", protein(), 0.05)):
        if words is None or (size.quick and name == "protein"):
            continue
        start = (words.law @ words.better).item()
        runs = [
            tune_words(words, "ppo", alpha, seed, size.of(30, 2), batch=size.of(1024, 64))
            for seed in size.seeds
        ]
        for run in runs:
            found.add(f"{name}-share", (run.law @ words.better).item() - start)
            found.reward_calls += run.calls
            if name == "dna":
                found.add("dna-mean", run.reward - words.table.score[words.better == 0].max().item())
        shares = [(run.law @ words.better).item() for run in runs]
        mine = (cell([start]), cell(shares), cell([run.kl for run in runs]))
        rows.append((f"{name}: share above all that was seen", *mine))
    most = torch.cat([ink(part.image, {}) for part in vars(load_split()).values()]).max()
    inked: list[list[float]] = []
    for seed in size.seeds:
        before, after, calls = before_and_after(digits_job(size, seed, "ink", 0.01), size.of(300, 16))
        inked.append([(seen.reward > most).double().mean().item() for seen in (before, after)])
        inked[-1].append(after.kl.mean().item())
        found.add("ink-share", inked[-1][1] - inked[-1][0])
        found.reward_calls += calls
    rows.append(("digits: share with more ink than any image", *map(cell, zip(*inked, strict=True))))
    found.tables.append(Table("Beyond the training data", ("", "pretrained", "tuned", "KL, nats"), rows))


def similarity(size: Size, found: Measured) -> None:
    words, rows = dna(size.quick), []
    held: dict[str, list[float]] = {}
    for seed in size.seeds:
        kept, free = (
            tune_words(words, "ppo", alpha, seed, size.of(24, 3), batch=size.of(1024, 64))
            for alpha in (ALPHA, NOTHING)
        )
        alike = [correlation(words, run.law) for run in (kept, free)]
        found.add("dna-words", alike[0] - alike[1])
        stopped = next((row for row in free.course if row["reward"] >= kept.reward), free.course[-1])
        found.add("dna-stopped", stopped["kl_nats"] - kept.kl)
        found.reward_calls += kept.calls + free.calls
        numbers = {
            "kept": (kept.reward, kept.kl, alike[0]),
            "free": (free.reward, free.kl, alike[1]),
            "stopped": (stopped["reward"], stopped["kl_nats"], float("nan")),
        }
        for name, three in numbers.items():
            for k, number in enumerate(three):
                held.setdefault(f"{name}{k}", []).append(number)
    titles = {"kept": f"DNA, alpha {ALPHA:g}", "free": f"DNA, alpha {NOTHING:g}"}
    titles["stopped"] = f"DNA, alpha {NOTHING:g}, stopped at the reward of alpha {ALPHA:g}"
    for name, title in titles.items():
        cells = [cell(held[f"{name}{k}"]) for k in range(3)]
        rows.append((title, *cells[:2], "" if name == "stopped" else cells[2]))
    for alpha in (0.3, NOTHING):
        rows.append(similar_digits(size, alpha, found, held))
    for with_it, without in zip(held["digits0.3"], held[f"digits{NOTHING:g}"], strict=True):
        found.add("digits-distance", without - with_it)
    head = ("", "reward", "KL, nats", "correlation of 3-mers, or energy distance")
    found.tables.append(Table("With and without the KL", head, rows))


def similar_digits(
    size: Size, alpha: float, found: Measured, held: dict[str, list[float]]
) -> tuple[str, ...]:
    """Threes by one alpha: reward, KL and how far the images are from the pretrained model's."""
    numbers = []
    for seed in size.seeds:
        before, after, calls = before_and_after(digits_job(size, seed, "class", alpha), size.of(300, 16))
        distance = two_sample(after.sample, before.sample).value
        numbers.append((after.reward.mean().item(), after.kl.mean().item(), distance))
        held.setdefault(f"digits{alpha:g}", []).append(distance)
        found.reward_calls += calls
    return (f"digits, alpha {alpha:g}", *map(cell, zip(*numbers, strict=True)))


def correlation(words: Words, law: Points) -> float:
    """Of how often each word of three letters occurs, with the pretrained model's samples; exact."""
    letters, every = len(words.table.alphabet), words.table.sequences()
    places = torch.tensor([letters**2, letters, 1])
    index = (every.unfold(1, 3, 1) * places).sum(2)
    shares = [
        torch.zeros(letters**3, dtype=torch.float64).index_add(
            0, index.flatten(), each.repeat_interleave(index.shape[1])
        )
        for each in (law, words.law)
    ]
    return torch.corrcoef(torch.stack(shares))[0, 1].item()


def steering(size: Size, found: Measured) -> None:
    words, rows = dna(size.quick), []
    objective = words.objective(ALPHA)
    value = PosteriorMean(objective, draws=4)
    samplers: dict[str, Sampler] = {
        "smc": SMC(particles=size.of(32, 4), keep="one"),
        "guidance": DiscreteGuidance(),
    }
    rows += exactly(words, found)
    rows += steered(
        "dna", words.start, objective, value, samplers, unconditional(size.of(400, 8)), size, found
    )
    job = digits_job(size, 0, "class", 1.0)
    asked = job.cond(size.of(96, 8))
    start = mean(evaluate(job.objective.reference, job.objective, asked, {}, seed=0).reward).value
    samplers = {"smc": SMC(particles=size.of(8, 2), keep="one"), "guidance": ValueGuidance()}
    value = PosteriorMean(job.objective)
    rows += steered("digits", start, job.objective, value, samplers, asked, size, found)
    head = ("", "reward", "KL, nats, at most", "J", "J of the pretrained model")
    found.tables.append(Table("Steered by the posterior mean, no weight changed", head, rows))
    found.tables.append(on_the_line(size, found))


def exactly(words: Words, found: Measured) -> list[tuple[str, ...]]:
    """SVDD and the best of n on DNA, whose distributions are known; of SVDD samples tell only a bound."""
    objective, score, rows = words.objective(ALPHA), words.table.score, []
    drawn = evaluate_svdd(objective, PosteriorMean(objective), COUNT, score)
    law = best_of(words.law, score, COUNT)
    best = TableEvaluation(law @ score, exact.kl(law, words.law), ALPHA, law)
    for method, seen in (("svdd", drawn), ("best-of-n", best)):
        found.add(f"dna-{method}", seen.objective.item() - words.start)
        numbers = (seen.reward.item(), seen.kl.item(), seen.objective.item(), words.start)
        rows.append((f"dna, {method}, exact", *(cell([number]) for number in numbers)))
    return rows


def steered(
    name: str, start: float, objective: Objective, value: Callable[..., torch.Tensor],
    samplers: dict[str, Sampler], asked: Cond, size: Size, found: Measured,
) -> list[tuple[str, ...]]:  # fmt: skip
    """One row per sampler: what it draws, over seeds."""
    rows = []
    for method, sampler in samplers.items():
        drawn = []
        for seed in size.seeds:
            seed_round(seed, 0)
            seen = sampler.draw(objective, value, asked)
            drawn.append(seen.summary())
            found.add(f"{name}-{method}", drawn[-1]["objective"] - start)
            found.reward_calls += seen.reward_calls
        cells = [cell([row[key] for row in drawn]) for key in ("reward", "kl_nats", "objective")]
        rows.append((f"{name}, {method}", *cells, cell([start])))
    return rows


def on_the_line(size: Size, found: Measured) -> Table:
    """Guidance of a one-dimensional chain by the posterior mean and by the exact value, computed."""
    axis, rows = grid.Axis(-6, 6, 301), []
    cases = {"x": (first, 1.0), "sin 3x": (wave, 0.5)}
    for name, (score, alpha) in cases.items():
        objective = mixture(score, alpha)
        solved = grid.solve(objective, axis)
        base = grid.evaluate(objective, objective.reference, axis).objective.item()
        for label, value in (("posterior mean", PosteriorMean(objective)), ("exact value", solved.value)):
            law = grid.evaluate(objective, ValueGuided(objective.reference, objective, value), axis)
            key = "line-exact" if label == "exact value" else "line-mean"
            found.add(f"{key}-{name[0]}", law.objective.item() - base)
            numbers = (law.reward.item(), law.kl.item(), law.objective.item(), base, solved.optimum.item())
            rows.append((f"{name}, alpha {alpha:g}, {label}", *(cell([number]) for number in numbers)))
    head = ("", "reward", "KL, nats", "J", "J of the pretrained model", "best J")
    return Table("Guidance on a line, by quadrature", head, rows)


BEYOND = Claim(
    "beyond",
    "mechanism",
    "Fine-tuning with a reward makes samples that are better than all of the training data.",
    {
        "dna-share": Prediction(
            "DNA: tuned samples score above all training data more often", "share tuned less share pretrained"
        ),
        "dna-mean": Prediction(
            "DNA: even the mean of tuned samples is above the best of the training data",
            "mean score less that best",
        ),
        "protein-share": Prediction(
            "protein GB1: tuned samples score above all training data more often",
            "share tuned less share pretrained", GB1,
        ),
        "ink-share": Prediction(
            "digits: tuned images hold more ink than any real one more often",
            "share tuned less share pretrained",
        ),
    },
    beyond,
)  # fmt: skip
SIMILARITY = Claim(
    "similarity",
    "mechanism",
    "Entropy regularisation, the KL, keeps samples similar to those of the pretrained model.",
    {
        "dna-words": Prediction(
            "DNA: with the KL, words of three letters occur more as they did",
            "correlation at alpha 0.1 less that at 0.001",
        ),
        "digits-distance": Prediction(
            "digits: with the KL, images are nearer to the pretrained model's",
            "energy distance at alpha 0.001 less that at 0.3",
        ),
        "dna-stopped": Prediction(
            "DNA: tuning without the KL that is stopped at the same reward has moved further",
            "its KL less that with the KL, nats",
        ),
    },
    similarity,
)
J_GAIN = "J, for SMC its lower bound, less J of the pretrained model"
STEERING = Claim(
    "steering",
    "mechanism",
    "Value-weighted sampling optimises the reward without training.",
    {
        "dna-smc": Prediction("DNA: SMC has a higher J than the pretrained model", J_GAIN),
        "dna-svdd": Prediction("DNA: SVDD of four candidates does", J_GAIN),
        "dna-guidance": Prediction("DNA: one-flip guidance does", J_GAIN),
        "dna-best-of-n": Prediction("DNA: the best of four does", J_GAIN),
        "digits-smc": Prediction("digits: SMC does", J_GAIN),
        "digits-guidance": Prediction("digits: guidance by the posterior mean does", J_GAIN),
        "line-mean-x": Prediction("a line, reward x: guidance by the posterior mean does", J_GAIN),
        "line-mean-s": Prediction("a line, reward sin 3x: guidance by the posterior mean does", J_GAIN),
        "line-exact-x": Prediction("a line, reward x: guidance by the exact value does", J_GAIN),
        "line-exact-s": Prediction("a line, reward sin 3x: guidance by the exact value does", J_GAIN),
    },
    steering,
)
CLAIMS = (BEYOND, SIMILARITY, STEERING)
