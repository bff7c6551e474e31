"""A distribution of x_T that is tuned with the rest of the chain.

Where x_0 depends on x_T, the best policy that keeps the distribution of x_T falls short of alpha log Z by
alpha log E exp(v_T / alpha) - E v_T. A tuned distribution of x_T closes this gap, and its KL counts like
every step's.
"""

from math import prod

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size, unconditional
from difftilt.networks.features import condition_features
from difftilt.policy import Diffusion, Policy
from difftilt.shapes import Cond, PerSample, Sample, State, Step
from difftilt.transition import Gaussian, Transition, gaussian


class TunedStart(Diffusion):
    """Replaces N(mean, std^2), a chain's distribution of x_T, by N(mean + std shift, (std exp(log_scale))^2).

    `shift` and `log_scale` start at zero, where the distribution is the chain's own.

    Args:
        chain: Draws x_T from a Gaussian. Everything else is left to it.
        cond: An example of conditions, if the distribution of x_T is to depend on them. Their tensors are
            seen, by a small MLP; text is not.
        width: Hidden units of the MLP.
    """

    def __init__(self, chain: Diffusion, cond: Cond | None = None, width: int = 64):
        super().__init__()
        self.chain, self.steps = chain, chain.steps
        law = _start(chain, cond or unconditional(1))
        zero = law.mean.new_zeros(2, *law.mean.shape[1:])
        self.offset = _Same(zero) if cond is None else _PerCondition(zero, cond, width)

    @property
    def network(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The chain's: as a second attribute its weights would be saved twice."""
        return self.chain.network

    def initial(self, cond: Cond) -> Gaussian:
        law = _start(self.chain, cond)
        shift, log_scale = self.offset(cond).to(law.mean.dtype).unbind(1)
        return Gaussian(law.mean + law.std * shift, law.std * log_scale.exp())

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        return self.chain(x, t, cond)

    def decode(self, x: State, cond: Cond) -> Sample:
        return self.chain.decode(x, cond)

    def noised(self, x_0: State, t: Step) -> Transition:
        return self.chain.noised(x_0, t)

    def signal(self, t: Step) -> PerSample:
        return self.chain.signal(t)

    def noising(self, x_next: State, t: Step) -> Transition:
        return self.chain.noising(x_next, t)

    def posterior(self, x_0: State, x: State, t: Step) -> Transition:
        return self.chain.posterior(x_0, x, t)

    def loss_at(self, x_0: State, x: State, t: Step, cond: Cond) -> PerSample:
        return self.chain.loss_at(x_0, x, t, cond)

    def clean(self, x: State, t: Step, cond: Cond) -> State:
        return self.chain.clean(x, t, cond)


class _Same(nn.Module):
    """One shift and one log-scale for all conditions."""

    def __init__(self, zero: Tensor):
        super().__init__()
        self.value = nn.Parameter(zero)

    def forward(self, cond: Cond) -> Tensor:
        return self.value.expand(batch_size(cond), *self.value.shape)


class _PerCondition(nn.Module):
    """A shift and a log-scale for each condition."""

    def __init__(self, zero: Tensor, cond: Cond, width: int):
        super().__init__()
        self.shape = zero.shape
        last = nn.Linear(width, prod(zero.shape))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        features = _features(cond).shape[1]
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), last).to(zero.device)

    def forward(self, cond: Cond) -> Tensor:
        return self.mlp(_features(cond)).unflatten(1, self.shape)


def _features(cond: Cond) -> Tensor:
    seen = condition_features(cond)
    if not seen:
        raise ValueError(
            f"a start that depends on conditions needs a tensor among them, but {sorted(cond)} are text;"
            " give their embeddings, or leave `cond` out"
        )
    return torch.cat(seen, 1)


def _start(chain: Policy, cond: Cond) -> Gaussian:
    need = "TunedStart needs a chain that starts from a Gaussian"
    return gaussian(chain.initial(cond), need, "leave the start as it is")
