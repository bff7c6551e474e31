"""Handwritten digits: tune the shipped 8 x 8 digit model towards a reward."""

from typing import Annotated

import annotated_types as at
import torch

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.domains.digits.model import asked, digits_policy, load_classifier
from difftilt.domains.digits.view import digits_view
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.guard import Reward
from difftilt.guidance.start import TunedStart
from difftilt.rewards import image
from difftilt.settings import Count, Positive, Share
from difftilt.shapes import Cond, State
from difftilt.training.settings import Training

Digit = Annotated[int, at.Interval(ge=0, le=9)]
ALGORITHM = PPO(advantage="critic", minibatches=8)
# 20 rounds of 128 end at J -1.07 with these, and at -1.16 with the default rate and schedule
TRAINING = Training(rounds=30, learning_rate=3e-4, schedule="linear")


def digits(
    algorithm: AnyAlgorithm = ALGORITHM,
    reward: str = "class",
    target: Digit = 3,
    alpha: Positive = 0.1,
    target_kl: Positive | None = None,
    steps: Count = 16,
    eta: Share = 1.0,
    tune_std: bool = False,
    tune_start: bool = False,
    training: Training = TRAINING,
) -> Job:
    """Tunes the shipped 8 x 8 digit model towards a reward.

    Args:
        algorithm: How to tune.
        reward: What to maximise: `class`, log p(target | image) of the proxy classifier in nats; `ink`, mean
            darkness in [0, 1]; `symmetry`, minus the mean squared difference from the mirror image, -4 to 0;
            `png` or `jpeg`, minus the kilobytes of the image at eight times its size; or one of your own,
            FILE.py:NAME, command:COMMAND or http://HOST/PATH, of images (batch, 1, 8, 8) in [0, 1].
        target: The digit that reward `class` asks for, 0 to 9.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        steps: Denoising steps, at least 1.
        eta: Share of the DDPM noise in a step, in (0, 1]; below 1 the image remembers its first noise.
        tune_std: Tune one factor on the standard deviation of each step, too.
        tune_start: Tune the distribution of the first noise, x_T, too; its KL counts.
        training: How long and how fast to train.
    """
    policy = digits_policy(steps, eta=eta, tune_std=tune_std)
    named = {"class": image.class_log_prob(load_classifier("proxy"), target), **REWARDS}
    view = digits_view(target, steps) if reward == "class" else digits_view()
    job = tune(
        policy,
        find_reward(reward, named, view.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward,
        target_kl=target_kl,
        cond=asked,
        gold=gold(reward, target),
        proxy_for=("gold accuracy", "gold log p") if reward == "class" else (),
        view=view,
    )
    return job.starting_from(TunedStart(policy)) if tune_start else job


REWARDS = {
    "ink": image.ink,
    "symmetry": image.symmetry,
    "png": image.png_bytes,
    "jpeg": image.jpeg_bytes,
}


def gold(reward: str, target: int) -> dict[str, Reward]:
    """What training never sees: the classifier of the other half of the data."""
    judge = load_classifier("gold")

    def accuracy(sample: State, cond: Cond) -> torch.Tensor:
        return (judge(sample).argmax(1) == target).float()

    def confidence(sample: State, cond: Cond) -> torch.Tensor:
        return judge(sample).softmax(1).amax(1)

    if reward == "class":
        log_prob = image.class_log_prob(judge, target)
        return {"gold accuracy": accuracy, "gold log p": log_prob}
    return {"gold confidence": confidence}
