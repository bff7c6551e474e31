"""Classifier guidance (Dhariwal and Nichol, 2021): value guidance where the value is log p(y | x_t).

With r = log p(y | x_0) and alpha = 1 the optimum is p(x_0 | y), by Bayes' rule, and the soft value is

    v_t(x_t) = log E[p(y | x_0) | x_t] = log p(y | x_t),

what a classifier learns that is shown noised samples. A scale w guides by w grad log p(y | x_t): this is
value guidance with alpha = 1 / w.

Only w = 1 aims at a tilted distribution. The value of w log p(y | x_0) is log E[p(y | x_0)^w | x_t], which
w log p(y | x_t) falls short of where w > 1, so that no number of steps makes the chain draw
p(x_0) p(y | x_0)^w. Fine-tuning with alpha = 1 / w does, and so does SMC, whatever the value.
"""

import torch.nn as nn

from difftilt.guidance.value_guided import At, ValueGuided
from difftilt.objective import Objective, Value
from difftilt.policy import Policy
from difftilt.rewards.image import class_log_prob
from difftilt.settings import Positive, check_value
from difftilt.shapes import Cond, PerSample, State, Step


def class_value(classifier: nn.Module, target: int | str) -> Value:
    """The soft value log p(y | x_t) of the reward log p(y | x_0) at alpha = 1; differentiable.

    Args:
        classifier: Maps (x_t, t, cond) to logits, as `training.pretrain.classify_noised` teaches it.
        target: The class y, or the name of the condition that holds each sample's class.
    """

    def value(x: State, t: Step, cond: Cond) -> PerSample:
        return class_log_prob(lambda sample: classifier(sample, t, cond), target)(x, cond)

    return value


def classifier_guided(
    policy: Policy,
    objective: Objective,
    classifier: nn.Module,
    target: int | str,
    scale: float = 1.0,
    *,
    at: At = "mean",
    start: bool = False,
) -> ValueGuided:
    """The chain that classifier guidance draws from, which is a policy again.

    Args:
        policy: The chain that is guided, whose weights it uses.
        objective: Its reward is log p(y | x_0), for the step that draws x_0.
        classifier: As for `class_value`.
        target: As for `class_value`.
        scale: w, above 0; above 1 it is an ad-hoc sharpening, as said above.
        at: As for `ValueGuided`; Dhariwal and Nichol's code takes the gradient at the `state`.
        start: As for `ValueGuided`.

    Source:
        Dhariwal and Nichol (2021), Algorithm 1. https://arxiv.org/abs/2105.05233
    """
    check_value("scale", scale, Positive)
    sharpened = Objective(objective.reward, objective.reference, 1 / scale)
    return ValueGuided(policy, sharpened, class_value(classifier, target), at=at, start=start)
