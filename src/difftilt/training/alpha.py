"""What alpha means for a reward, from rewards of the pretrained model's samples, before anything is trained.

The optimum p* ~ p_pre exp(r / alpha) lies at KL(p* || p_pre) = E*[r] / alpha - log E_pre[exp(r / alpha)], and
both are weighted means over samples of p_pre. With n samples no KL above log n can be seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.settings import Positive, check_value

FEWEST = 10.0  # effective samples from which an estimate is one
FAINT = 0.05  # nats, below which a model hardly changes
REACH = 0.9  # share of the largest KL that samples can show, up to which alpha is looked for
HALVINGS = 60
FEWEST_REWARDS = 3  # from which the error of an estimate can be told


@dataclass(frozen=True)
class Tilt:
    """How far from the pretrained model the best policy lies, as far as samples tell.

    Args:
        kl_nats: KL of the optimum to the pretrained model; `kl_nats_se` is its standard error, by jackknife.
        effective_sample_size: Of the weights exp(r / alpha), from 1 to the number of samples.
        samples: Their number.
    """

    alpha: float
    kl_nats: float
    kl_nats_se: float
    effective_sample_size: float
    samples: int

    @property
    def known(self) -> bool:
        """Whether enough samples count for the KL to be an estimate."""
        return self.effective_sample_size >= FEWEST

    @property
    def warning(self) -> str | None:
        """What is wrong with this alpha for this reward, in a sentence, if anything is."""
        if not self.known:
            return (
                f"alpha {self.alpha:.3g} is so small for this reward that {self.effective_sample_size:.1f} of"
                f" {self.samples} samples decide, too few to tell where training leads; raise alpha, or give"
                " a target KL"
            )
        if self.kl_nats < FAINT:
            return (
                f"alpha {self.alpha:.3g} is so large for this reward that the best policy hardly differs from"
                " the pretrained model; lower alpha, or give a target KL"
            )
        return None


def expected_tilt(rewards: Tensor, alpha: float) -> Tilt:
    """The KL of the optimum at alpha.

    Args:
        rewards: Of samples of the pretrained model, shape (samples,), at least 3; what is not finite is left
            out.
        alpha: Weight of the KL, above 0, in units of the reward per nat.
    """
    check_value("alpha", alpha, Positive)
    y = _finite(rewards) / alpha
    a = (y - y.max()).exp()
    b = a * (y - y.max())
    kl = _kl(a.sum(), b.sum(), len(y))
    without = _kl(a.sum() - a, b.sum() - b, len(y) - 1)
    top, others = int(y.argmax()), torch.ones(len(y), dtype=torch.bool)
    others[top] = False  # its own weight would be lost in the difference of sums
    rest = y[others] - y[others].max()
    without[top] = _kl(rest.exp().sum(), (rest.exp() * rest).sum(), len(rest))
    error = ((len(y) - 1) / len(y) * (without - without.mean()).square().sum()).sqrt()
    return Tilt(alpha, max(kl.item(), 0.0), error.item(), (a.sum() ** 2 / (a @ a)).item(), len(y))


def starting_alpha(rewards: Tensor, target_kl: float) -> Tilt:
    """The alpha from which to look for a target KL: the one that leads there, as far as samples can tell.

    Where they cannot, it is the smallest alpha that they know, which leads to a smaller KL: a search that
    comes from there does not overshoot.

    Args:
        rewards: As in `expected_tilt`.
        target_kl: In nats, above 0.
    """
    check_value("target_kl", target_kl, Positive)
    finite = _finite(rewards)
    spread = (finite.max() - finite.min()).item()
    if spread == 0:
        raise ValueError(
            "rewards of the pretrained model must differ for a target KL to be reached, but got"
            f" {len(finite)} times {finite[0].item():g}; mend the reward, or draw more samples"
        )
    most = math.log(len(finite) / (finite == finite.max()).sum().item())
    target = min(target_kl, REACH * most)

    def beyond(alpha: float) -> bool:
        tilt = expected_tilt(finite, alpha)
        return tilt.kl_nats > target or not tilt.known

    return expected_tilt(finite, _boundary(beyond, spread))


def meaning_of_alpha(rewards: Tensor, alpha: float) -> str:
    """What alpha asks for, in a sentence, and a second one that warns where it suits the reward badly."""
    if (count := int(rewards.isfinite().sum())) < FEWEST_REWARDS:
        return f"got {count} rewards, too few to tell what alpha {alpha:.3g} asks for"
    if same := sameness(rewards):
        return same
    tilt = expected_tilt(rewards, alpha)
    sentence = (
        f"alpha {alpha:.3g} asks for a policy {tilt.kl_nats:.2g} ± {tilt.kl_nats_se:.1g} nats from the"
        f" pretrained model, as {tilt.samples} samples tell"
    )
    return f"{sentence}; {tilt.warning}" if tilt.warning else sentence


def sameness(rewards: Tensor) -> str | None:
    """What is wrong with a reward that tells no samples apart, in a sentence, if it does not."""
    finite = rewards[rewards.isfinite()]
    if len(finite) < FEWEST_REWARDS or (finite != finite[0]).any():
        return None
    return (
        f"the reward is {finite[0].item():g} for all {len(finite)} samples of the pretrained model, so"
        " nothing tells which are better; if it should, look at what it is given: a function of (samples,"
        " conditions) gets tensors, one of (samples) alone gets lines of text where samples can be written so"
    )


def _boundary(beyond: Callable[[float], bool], spread: float) -> float:
    """The smallest alpha that is not beyond; both the KL and the lack of samples fall as alpha grows."""
    low, high = math.log(spread) - 20, math.log(spread) + 20
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(math.exp(middle)) else (low, middle)
    return math.exp(high)


def _kl(weight: Tensor, slope: Tensor, count: int) -> Tensor:
    """KL to the uniform distribution on `count` samples, from sums of exp(y) and of y exp(y)."""
    return slope / weight - (weight / count).log()


def _finite(rewards: Tensor) -> Tensor:
    finite = rewards.detach().double().cpu()
    finite = finite[finite.isfinite()]
    if len(finite) < FEWEST_REWARDS:
        raise ValueError(
            f"at least {FEWEST_REWARDS} finite rewards are needed to judge alpha, but got {len(finite)}"
        )
    return finite
