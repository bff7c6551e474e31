"""The learner that is the default: an ensemble of small networks, each taught on labels of its own.

Every member sees a bootstrap of the labels, drawn with replacement, and begins elsewhere: where labels are
many, members agree, and elsewhere they do not. All are trained at once, as batched products of matrices.
Lakshminarayanan et al. (2017), https://arxiv.org/abs/1612.01474
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.rewards.learned import Belief, Labels, Prediction
from difftilt.settings import Count, Natural, NonNegative, Positive, check_settings
from difftilt.shapes import PerSample, Sample
from difftilt.transition import one_hot

WARM = 20  # steps in which the learning rate rises
LEAST = 8  # labels


class EnsembleNetwork(nn.Module):
    """Networks side by side: the first axis of every parameter is the member.

    A sequence is seen twice: as a whole, and through filters of a few letters of which the strongest and the
    mean answer count, wherever they occur. Samples of real numbers are seen as a whole only. Where filters
    read both strands, nothing is seen as a whole: what binds to either has no place of its own.

    Args:
        shape: Of one sample: of its tokens, or of its real numbers.
        categories: Letters of a sequence, K; 0 for samples of real numbers.
        members: At least 2.
        width: Units per layer.
        window: Letters of a filter; 0 is none.
        both_strands: A sequence and its reverse complement share their answer, for DNA in the order A, C,
            G, T.
    """

    shift: Tensor
    unit: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        categories: int,
        members: int,
        width: int,
        window: int = 0,
        both_strands: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.categories, self.window, self.both_strands = categories, window, both_strands
        size = torch.Size(shape).numel() * max(categories, 1)

        def layer(inputs: int, outputs: int, share: float = 1.0) -> nn.Parameter:
            """Weights and, as the last row, biases; `share` of the inputs differ from 0."""
            scale = (2 / (inputs * share)) ** 0.5
            weight = scale * torch.randn(members, inputs, outputs, generator=generator)
            return nn.Parameter(torch.cat([weight, torch.zeros(members, 1, outputs)], 1))

        share = 1 / max(categories, 1)
        self.whole = None if window and both_strands else layer(size, width, share)
        self.filters = layer(window * categories, width, share) if window else None
        wide = width * ((self.whole is not None) + 2 * (self.filters is not None))
        self.hidden, self.mean = layer(wide, width), layer(width, 1)
        self.noise_hidden, self.log_noise = layer(wide, width), layer(width, 1)
        for name, value in (("shift", 0.0), ("unit", 1.0)):  # of the scores
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log noise of every member in units of the scores' deviation, (member, batch).

        The noise is less than the deviation of all scores, wherever a network is asked.

        Args:
            x: Each member's own inputs: (member, batch, ...).
        """
        features = self._features([x, x.flip(-1, -2)] if self.both_strands else [x])
        # the noise is learned of features that the mean has made, and never at their cost
        noise = _apply(F.silu(_apply(features.detach(), self.noise_hidden)), self.log_noise)
        return _apply(F.silu(_apply(features, self.hidden)), self.mean)[..., 0], F.logsigmoid(noise[..., 0])

    def inputs(self, sample: Sample) -> Tensor:
        """Samples as the members read them."""
        return (one_hot(sample, self.categories) if self.categories else sample).to(self.mean.dtype)

    def belief(self, scale: float = 1.0) -> Belief:
        """What the members say; see `Belief` for the scale."""
        return Belief(self.predict, scale, len(self.mean), self.alone)

    def alone(self, sample: Sample, number: int) -> PerSample:
        """What one member says; the others are not asked."""
        own = {name: weight[number : number + 1] for name, weight in self.named_parameters()}
        mean, _ = torch.func.functional_call(self, own, self.inputs(sample)[None])
        return self.shift + self.unit * mean[0]

    def predict(self, sample: Sample) -> Prediction:
        x = self.inputs(sample)
        mean, log_noise = self(x.expand(len(self.mean), *x.shape))
        members = self.shift + self.unit * mean
        noise = self.unit * (2 * log_noise).exp().mean(0).sqrt()
        return Prediction(members.mean(0), members.std(0), noise, members)

    def _features(self, strands: Sequence[Tensor]) -> Tensor:
        found = []
        if self.whole is not None:
            seen = [F.silu(_apply(x.flatten(2), self.whole)) for x in strands]
            found.append(torch.stack(seen).amax(0))
        if self.filters is not None:
            pad = self.window // 2
            unfolded = [F.pad(x, (0, 0, pad, pad)).unfold(2, self.window, 1).flatten(3) for x in strands]
            words = torch.cat(unfolded, 2)
            answers = F.silu(_apply(words.flatten(1, 2), self.filters)).view(*words.shape[:3], -1)
            found += [answers.amax(2), answers.mean(2)]
        return torch.cat(found, -1)


@dataclass(frozen=True)
class Ensemble:
    """Teaches an ensemble: least squares for the means, and the likelihood of the residuals for the noise.

    Args:
        categories: Letters of a sequence, K; 0 for samples of real numbers.
        members: At least 2.
        width: Units per layer.
        window: Letters of a filter; 0 is none.
        both_strands: For DNA in the order A, C, G, T that is read on both strands.
        steps: Of gradient descent.
        batch: Labels per step and member.
        learning_rate: AdamW's, at its peak.
        weight_decay: AdamW's.
        seed: Of the first weights, the bootstraps and the minibatches.
    """

    categories: Natural
    members: Annotated[int, at.Ge(2)] = 8
    width: Count = 32
    window: Natural = 0
    both_strands: bool = False
    steps: Count = 250
    batch: Count = 128
    learning_rate: Positive = 2e-2
    weight_decay: NonNegative = 0.1
    seed: Natural = 0

    def __post_init__(self):
        check_settings(self)

    def network(self, shape: Sequence[int], generator: torch.Generator | None = None) -> EnsembleNetwork:
        """An untaught one for samples of that shape."""
        return EnsembleNetwork(
            shape, self.categories, self.members, self.width, self.window, self.both_strands, generator
        )

    def fit(self, labels: Labels) -> Belief:
        return self.taught(labels).belief()

    def taught(self, labels: Labels) -> EnsembleNetwork:
        """The network of a belief, frozen.

        Raises:
            ValueError: If there are too few labels, or all scores are alike.
        """
        score = labels.score.float()
        if len(labels) < LEAST or not (score.isfinite().all() and score.std() > 0):
            raise ValueError(
                f"a reward is learned from {LEAST} labels or more that are finite and not all alike, but got"
                f" {len(labels)} with a standard deviation of {score.std().item():g}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        events = labels.sample.ndim - bool(self.categories and labels.sample.is_floating_point())
        network = self.network(labels.sample.shape[1:events], generator).to(score.device)
        network.shift.copy_(score.mean())
        network.unit.copy_(score.std())
        x, y = network.inputs(labels.sample), (score - network.shift) / network.unit
        own = torch.randint(len(y), (self.members, len(y)), generator=generator)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=self.weight_decay)
        for step in range(self.steps):
            rate = self.learning_rate * min(1, (step + 1) / WARM) * (1 - step / self.steps)
            optimizer.param_groups[0]["lr"] = rate
            batch = torch.randint(len(y), (self.members, min(self.batch, len(y))), generator=generator)
            rows = own.gather(1, batch)
            mean, log_noise = network(x[rows])
            residual = (y[rows] - mean).square()
            likelihood = log_noise + residual.detach() / (2 * log_noise).exp() / 2
            optimizer.zero_grad()
            (residual + likelihood).mean(1).sum().backward()
            optimizer.step()
        return network.eval().requires_grad_(False)


def _apply(x: Tensor, layer: Tensor) -> Tensor:
    """Each member's own product, and its biases."""
    return torch.baddbmm(layer[:, -1:], x, layer[:, :-1])
