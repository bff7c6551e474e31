"""What a run's numbers mean, in plain words, by rules that can say no."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from difftilt.evaluation.estimate import CLEAR, Change, Estimate, average, log_best_of
from difftilt.evaluation.outcome import Outcome

FEW_SAMPLES = 100
LARGE_KL = 10.0  # nats; best-of-n reaches it with n = 60,000
FREE = 0.01  # the KL's price, as a share of the reward gained, below which nothing holds the model back
LOST_DIVERSITY, COLLAPSED_DIVERSITY = 0.5, 0.1  # what is left, as a share of the pretrained model's
LARGE_FAMILY = 0.25  # share of one family above which a rise is worth a word
SMALL_TREND = 0.02  # of what J gained in the whole run
KEPT_BUDGET = 0.1  # distance from the target KL, as a share of it, that counts as kept
FEW_EFFECTIVE = 0.05  # share of the samples that carry the weight, below which weighting is a lottery


@dataclass(frozen=True)
class Finding:
    """One thing to know about a run: something achieved, or something to watch."""

    kind: Literal["achieved", "watch"]
    text: str


def findings(outcome: Outcome) -> list[Finding]:
    """All that the rules have to say, what was achieved first."""
    said = [finding for rule in RULES for finding in rule(outcome)]
    return sorted(said, key=lambda finding: finding.kind != "achieved")


def headline(outcome: Outcome) -> str:
    """The run in one line: the worst news if there is bad news."""
    reward, objective, spread = outcome.reward, outcome.objective, outcome.diversity
    if not outcome.finished:
        return "This run is not finished"
    if spread and spread.after.value < COLLAPSED_DIVERSITY * spread.before.value:
        return "The samples have collapsed"
    if reward and reward.direction > 0 and any(gold.direction < 0 for gold in outcome.gold.values()):
        return "The reward rose while a gold score fell"
    if objective and objective.direction < 0:
        return "The KL costs more than the reward gained"
    if reward and reward.direction < 0:
        return "The reward fell"
    if objective and objective.direction > 0:
        golds = outcome.gold.values() if outcome.is_proxy else ()
        agrees = "agrees in part" if reward and any(map(reward.outgrows, golds)) else "agrees"
        gold = agrees if all(gold.direction > 0 for gold in golds) else "does not follow"
        return f"Better on J, and gold {gold}" if golds else "Better on J"
    return "No clear gain"


def _unfinished(run: Outcome) -> Iterator[Finding]:
    if not run.finished:
        yield _watch(
            "The run is not finished: the numbers are those of its latest round, from a training batch."
        )


def _reward(run: Outcome) -> Iterator[Finding]:
    if run.reward is None:
        return
    change = f"{run.reward} ({run.reward.difference.signed})"
    if run.reward.direction > 0:
        yield _achieved(f"Fine-tuning raised the mean reward {change}.")
    elif run.reward.direction < 0:
        yield _watch(f"The mean reward fell {change}: check its sign and the learning rate.")
    else:
        yield _watch(f"The mean reward {_unclear(run.reward)}: {change}.")


def _gold(run: Outcome) -> Iterator[Finding]:
    risen = run.reward is not None and run.reward.direction > 0
    if not run.gold and run.finished:
        yield _watch("No gold score was measured, so nothing confirms the reward: look at the samples.")
    for name, gold in run.gold.items():
        change = f"{gold} ({gold.difference.signed})"
        if gold.direction > 0:
            yield _achieved(f"The gold score “{name}”, which training never saw, rose {change}.")
            if run.reward and run.reward.outgrows(gold):
                yield _watch(
                    f"The reward and the gold score “{name}” agreed on the pretrained samples, but now the"
                    f" reward is {run.reward.after - gold.after} higher: that part is over-optimisation."
                )
        elif risen and (run.is_proxy or gold.direction < 0):
            what = "fell" if gold.direction < 0 else "did not clearly rise"
            cure = " Stop earlier, raise alpha, or mend the reward." if gold.direction < 0 else ""
            yield _watch(
                f"The reward rose but the gold score “{name}” {what}, {change}: this is over-optimisation if"
                f" both are meant to measure the same.{cure}"
            )
        elif gold.direction < 0:
            yield _watch(f"The gold score “{name}” fell {change}.")


def _kl(run: Outcome) -> Iterator[Finding]:
    if run.kl is None:
        return
    if run.kl.value <= CLEAR * run.kl.se:
        yield _watch(f"The model has hardly moved: its KL is {run.kl} nats.")
        return
    log_n = log_best_of(run.kl.value)
    scale = f"{math.exp(log_n):,.0f}" if log_n < 13 else f"10^{log_n / math.log(10):.0f}"
    price = f" ({run.alpha * run.kl.value:.3g} of reward at alpha = {run.alpha:g})" if run.alpha else ""
    yield _achieved(
        f"The price is a KL of {run.kl} nats to the pretrained model{price}, as much as keeping the best of"
        f" {scale} pretrained samples."
    )
    if run.kl.value > LARGE_KL:
        free = run.alpha and run.reward and run.alpha * run.kl.value < FREE * run.reward.difference.value
        collapse = " It costs next to nothing here, so the samples collapse onto what the reward likes best."
        yield _watch(
            f"A KL above {LARGE_KL:g} nats is large: the pretrained model would hardly ever take these paths."
            f"{collapse if free else ''} A larger alpha keeps closer to them."
        )


def _budget(run: Outcome) -> Iterator[Finding]:
    if run.kl is None or run.target_kl is None or run.alpha is None or not run.finished:
        return
    off = run.kl - Estimate(run.target_kl, 0)
    if abs(off.value) <= KEPT_BUDGET * run.target_kl or not off.direction:
        yield _achieved(
            f"That is the KL asked for, {run.target_kl:g} nats, which alpha was moved to {run.alpha:.3g} for."
        )
    elif off.direction > 0:
        yield _watch(
            f"The KL, {run.kl} nats, is above its target of {run.target_kl:g}: take more rounds, a lower"
            " learning rate, or a larger alpha to start from."
        )
    else:
        yield _watch(
            f"The KL, {run.kl} nats, is below its target of {run.target_kl:g}: take more rounds, or a smaller"
            " alpha to start from."
        )


def _objective(run: Outcome) -> Iterator[Finding]:
    if run.objective is None:
        return
    change = f"{run.objective} ({run.objective.difference.signed})"
    if run.objective.direction > 0:
        yield _achieved(f"J, the reward less that price, rose {change}.")
    elif run.objective.direction < 0 and not run.finished:
        yield _watch(f"J fell {change}: so far the KL costs more than the reward gained.")
    elif run.objective.direction < 0:
        yield _watch(
            f"J fell {change}: the KL costs more than the reward gained, so at this alpha the pretrained"
            " model is the better one. Train for fewer rounds or lower the learning rate; or, if the reward"
            " is worth that KL to you, say so with a smaller alpha."
        )
    else:
        yield _watch(f"J, the reward less the price of the KL, {_unclear(run.objective)}: {change}.")


def _optimum(run: Outcome) -> Iterator[Finding]:
    objective, best = run.objective, run.optimum
    if objective is None or best is None or not run.finished:
        return
    if best.exceeded_by(objective.after):
        few = "" if best.exact else "either the pretrained samples are too few to tell, or "
        yield _watch(
            f"J = {objective.after} is above {best.objective}, which no policy can exceed: {few}a part of the"
            " KL is not counted."
        )
    elif way := run.way:
        error = f" (± {100 * way.se:.2g} points)" if way.se > 0 else ""
        yield _achieved(
            f"That is {way.value:.0%} of the way{error} to the best possible J, {best.objective},"
            f" {best.origin}."
        )


def _diversity(run: Outcome) -> Iterator[Finding]:
    if run.diversity is None or not run.diversity.before.value > 0:
        return
    left = run.diversity.after.value / run.diversity.before.value
    fell = f"{run.diversity}, {left:.0%} of what it was"
    if left < COLLAPSED_DIVERSITY:
        yield _watch(f"The samples have collapsed: diversity fell {fell}.")
    elif left < LOST_DIVERSITY:
        yield _watch(
            f"Diversity fell {fell}. A reward that asks for a part of what the model made costs some of it;"
            " repeated samples would be too much."
        )


def _family(run: Outcome) -> Iterator[Finding]:
    family = run.family
    if family and family.after.value > LARGE_FAMILY and family.direction > 0:
        yield _watch(
            f"The largest family, {run.family_name}, is {family.after.value:.0%} now; that of the pretrained"
            f" model was {family.before.value:.0%}. A diversity filter makes large families earn less."
        )


def _trend(run: Outcome) -> Iterator[Finding]:
    """Compares the last quarter of the rounds with the one before."""
    quarter = len(run.rounds) // 4
    if quarter < 2:
        return
    span = abs(run.rounds[-1].value - run.rounds[0].value)
    slope = average(run.rounds[-quarter:]) - average(run.rounds[-2 * quarter : -quarter])
    last = f"({slope.signed} from the third quarter of the rounds to the last)"
    if abs(slope.value) < SMALL_TREND * span:
        return
    if slope.direction > 0:
        yield _watch(f"J was still rising at the end {last}: more rounds may help.")
    elif slope.direction < 0:
        yield _watch(f"J was falling at the end {last}: an earlier checkpoint may be better.")


def _samples(run: Outcome) -> Iterator[Finding]:
    if run.samples is not None and 0 < run.samples < FEW_SAMPLES:
        yield _watch(
            f"Only {run.samples} samples were scored: what happens in fewer than one of"
            f" {max(run.samples // 3, 1)} may not show at all."
        )
    fates = {
        "dropped": (run.dropped, "all numbers are those of the samples that it can score"),
        "given the stated penalty": (run.penalised, "the mean reward holds it, too"),
    }
    for fate, (count, so) in fates.items():
        if count > 0:
            were = "sample was" if count == 1 else "samples were"
            yield _watch(f"{count:,} {were} {fate} because the reward failed: {so}.")


def _weights(run: Outcome) -> Iterator[Finding]:
    share = float(np.median(run.ess)) if len(run.ess) else 1.0
    if share < FEW_EFFECTIVE:
        yield _watch(
            f"In half of the rounds at most {share:.1%} of the samples carried the weight: first try a larger"
            " alpha, then tempered weights (temperature), form value, or a larger batch."
        )


def _own_words(run: Outcome) -> Iterator[Finding]:
    yield from map(_watch, run.warnings)


def _unclear(change: Change) -> str:
    measured = math.isfinite(change.difference.se)
    return "shows no clear change" if measured else "has no error bar to judge its change by"


def _achieved(text: str) -> Finding:
    return Finding("achieved", text)


def _watch(text: str) -> Finding:
    return Finding("watch", text)


RULES = [
    _unfinished, _reward, _gold, _kl, _budget, _objective, _optimum, _diversity, _family, _trend, _samples,
    _weights, _own_words,
]  # fmt: skip
