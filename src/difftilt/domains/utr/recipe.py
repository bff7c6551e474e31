"""5' UTRs: tune a model of random ones towards those that ribosomes like, with a gold oracle watching."""

import dataclasses
from functools import partial
from pathlib import Path

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.data.vocabulary import DNA
from difftilt.domains.sequences.view import kmer_correlation, sequence_view
from difftilt.domains.utr.model import LETTERS, STEPS, load_measured, load_oracle, utr_policy
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.guard import Reward
from difftilt.settings import Count, Positive
from difftilt.shapes import Cond, PerSample, Sequences, State
from difftilt.training.settings import Training

ALGORITHM = PPO(epochs=1, minibatches=8)
TRAINING = Training(rounds=40, batch=256, learning_rate=8e-3, schedule="linear")


def utr(
    algorithm: AnyAlgorithm = ALGORITHM,
    reward: str = "load",
    alpha: Positive = 0.1,
    target_kl: Positive | None = None,
    steps: Count = STEPS,
    weights: Path | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes a model of random 5' UTRs towards a high ribosome load.

    The reward is the load, in ribosomes, that a proxy oracle predicts; the gold oracle, which learned from
    other measurements, only judges. Both come from difftilt pretrain utr.

    Args:
        algorithm: How to tune.
        reward: What to maximise: `load`, as above; or one of your own, FILE.py:NAME, command:COMMAND,
            http://HOST/PATH or learned:DIR. A function of one argument gets the sequences as text.
        alpha: Weight of the KL to the pretrained model, above 0, in ribosomes per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        steps: Steps in which the 50 letters are drawn, 1 to 50; those of one step do not know of each other.
        weights: The folder that difftilt pretrain utr wrote; ~/.cache/difftilt/models/utr by default.
        training: How long and how fast to train.
    """
    view = dataclasses.replace(
        sequence_view(DNA),
        distances=partial(words, measured=load_measured(weights)),
        distances_note="Correlations, 1 for equal frequencies, between how often each word of three letters"
        " occurs in the samples and in measured UTRs that no network has learned from, or in the 1 % of all"
        " UTRs that ribosomes like best.",
    )
    return tune(
        utr_policy(steps, folder=weights),
        find_reward(reward, {"load": load(weights, "proxy")}, view.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward,
        target_kl=target_kl,
        gold={"gold load": load(weights, "gold")},
        proxy_for=("gold load",) if reward == "load" else (),
        view=view,
    )


def load(weights: Path | None, name: str) -> Reward:
    """The load in ribosomes that an oracle predicts; differentiable in one-hot vectors."""
    oracle = load_oracle(name, weights)

    def predicted(sample: State, cond: Cond) -> PerSample:
        return oracle(sample)

    return predicted


def words(sample: State, measured: dict[str, Sequences]) -> dict[str, tuple[float, float]]:
    """Correlations of the samples' 3-mers with those of measured UTRs, each with its standard error."""
    names = {"all": "random UTRs", "best": "the best UTRs"}
    return {f"3-mers of {names[key]}": kmer_correlation(sample, x, LETTERS) for key, x in measured.items()}
