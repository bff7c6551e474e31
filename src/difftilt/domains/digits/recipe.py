"""Handwritten digits: tune the shipped 8 x 8 digit model towards a reward."""

import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import annotated_types as at
import torch
import torch.nn.functional as F
from PIL import Image

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.atomic import atomic_file
from difftilt.domains.digits.model import asked, digits_policy, load_classifier, load_split, state_of
from difftilt.evaluation.evaluate import Evaluation
from difftilt.evaluation.metrics import diversity, two_sample
from difftilt.experiment.job import Job, Training
from difftilt.guard import Guard, Reward
from difftilt.guidance.start import TunedStart
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.rewards import image
from difftilt.settings import Count, Positive, Share
from difftilt.shapes import Cond, State

Digit = Annotated[int, at.Interval(ge=0, le=9)]
RewardName = Literal["class", "ink", "symmetry", "png", "jpeg"]
ALGORITHM = PPO(advantage="critic", minibatches=8)
TRAINING = Training(rounds=30, learning_rate=3e-4, schedule="linear")


def digits(
    algorithm: AnyAlgorithm = ALGORITHM,
    reward: RewardName = "class",
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
            `png` or `jpeg`, minus the kilobytes of the image at eight times its size.
        target: The digit that reward `class` asks for, 0 to 9.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        steps: Denoising steps, at least 1.
        eta: Share of the DDPM noise in a step, in (0, 1]; below 1 the image remembers its first noise.
        tune_std: Tune one factor on the standard deviation of each step, too.
        tune_start: Tune the law of the first noise, x_T, too; its KL counts.
        training: How long and how fast to train.
    """
    policy = digits_policy(steps, eta=eta, tune_std=tune_std)
    guard = Guard(proxy(reward, target), reward, training.on_error, training.cache)
    reference = copy.deepcopy(policy).requires_grad_(False)
    return Job(
        TunedStart(policy) if tune_start else policy,
        Objective(guard, reference, alpha),
        copy.deepcopy(algorithm),
        training,
        target_kl,
        cond=asked,
        gold=gold(reward, target),
        draw=draw,
        diversity=lambda sample: diversity(state_of(sample)).value,
        distances=partial(distances, target=target, steps=steps) if reward == "class" else None,
        distances_note="Energy distances between the pixels, in [-1, 1], of generated and of all real images"
        " of the digit, unbiased: 0 for equal laws, and negative at times. The last halves the real ones.",
    )


def proxy(reward: RewardName, target: int) -> Reward:
    """The reward that training sees; for `class`, by the classifier of one half of the data."""
    if reward == "class":
        return image.class_log_prob(load_classifier("proxy"), target)
    rewards = {"ink": image.ink, "symmetry": image.symmetry, "png": image.png_bytes, "jpeg": image.jpeg_bytes}
    return rewards[reward]


def gold(reward: RewardName, target: int) -> dict[str, Reward]:
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


def distances(sample: State, target: int, steps: int) -> dict[str, tuple[float, float]]:
    """Energy distances to the real images of the target digit, each with its standard error."""
    real = state_of(real_images(target))
    half = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    conditional = state_of(rollout(digits_policy(steps), asked(len(sample), target)).sample)
    return {
        f"tuned model to real {target}s": two_sample(state_of(sample), real),
        f"conditional model to real {target}s": two_sample(conditional, real),
        f"real {target}s to real {target}s": two_sample(half[::2], half[1::2]),
    }


def real_images(digit: int) -> State:
    """All real images of one digit."""
    split = load_split()
    parts = (split.proxy, split.gold, split.held_out)
    return torch.cat([part.image[part.label == digit] for part in parts])


def draw(seen: Evaluation, path: Path, columns: int = 12, rows: int = 5, scale: int = 4) -> None:
    """Writes the first samples as one PNG, dark ink on white."""
    pixels = ((1 - seen.sample[: columns * rows, 0]) * 255).round().to(torch.uint8)
    missing = columns * rows - len(pixels)
    pixels = F.pad(F.pad(pixels, (1, 1, 1, 1), value=255), (0, 0, 0, 0, 0, missing), value=255)
    side = pixels.shape[-1]
    sheet = pixels.view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
    picture = Image.fromarray(sheet.cpu().numpy())
    large = picture.resize((columns * side * scale, rows * side * scale), Image.Resampling.NEAREST)
    with atomic_file(path.with_suffix(".png")) as file:
        large.save(file)
