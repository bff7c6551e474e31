"""One token changes: the distribution of a step of which the position and the token are drawn together."""

from dataclasses import dataclass
from typing import Union

import torch

from difftilt.shapes import PerSample, Probs, State
from difftilt.transition import Resampling, Transition, event_sum, one_hot, relative_entropy, tokens


@dataclass(frozen=True)
class Flip(Transition):
    """Draws one position and its new token from a joint distribution; all other positions stay.

    It is what a tilt makes of a `Resampling` of one position: one that is promising is drawn more often.

    Args:
        x: The state: tokens, or one-hot vectors, which may carry gradients.
        joint: Of every (position, token); 0 at present tokens, 1 in total.
    """

    x: State
    joint: Probs

    def sample(self) -> State:
        categories = self.joint.shape[-1]
        drawn = torch.multinomial(self.joint.detach().flatten(1), 1)
        x = tokens(self.x)
        changed = x.flatten(1).scatter(1, drawn // categories, drawn % categories)
        return changed.view_as(x)

    def rsample(self) -> State:
        """Draws one-hot vectors that carry the gradient of their mean (straight-through)."""
        x = one_hot(self.x, self.joint.shape[-1]).to(self.joint.dtype)
        mean = x * (1 - self.joint.sum(-1, keepdim=True)) + self.joint
        hard = one_hot(self.sample(), self.joint.shape[-1]).to(mean.dtype)
        return hard + (mean - mean.detach())  # in this order the value stays exactly one-hot

    def log_prob(self, x: State) -> PerSample:
        changed = x != tokens(self.x)
        p = self.joint.gather(-1, x[..., None])[..., 0]
        possible = changed.flatten(1).sum(1) == 1
        total = event_sum(torch.where(changed, p, 0))
        return torch.where(possible, torch.where(possible, total, 1).log(), -torch.inf)

    def kl(self, other: Union["Flip", Resampling]) -> PerSample:
        return event_sum(relative_entropy(self.joint, as_flip(other).joint))

    def tempered(self, temperature: float) -> "Flip":
        log_joint = self.joint.flatten(1).log() / temperature
        return Flip(self.x, log_joint.softmax(1).view_as(self.joint))


def as_flip(step: Transition) -> Flip:
    """A step that changes one position, as the joint distribution of position and token."""
    if isinstance(step, Flip):
        return step
    if not isinstance(step, Resampling) or not bool((step.count == 1).all()):
        raise ValueError(
            f"a flip changes one position per step, but got a {type(step).__name__} that may change several;"
            " let the chain draw one position at a time"
        )
    share = step.eligible.double() / step.eligible.double().sum(1, keepdim=True)
    return Flip(step.x, share[..., None] * step.probs)
