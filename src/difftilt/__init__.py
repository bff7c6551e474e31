"""Reward fine-tuning of diffusion models: maximise E[r(x_0)] - alpha KL(p || p_pre).

Names are loaded when they are first used, so that `import difftilt` and `difftilt --help` take no time; what
their types are stands in `__init__.pyi`.
"""

import importlib
from typing import Any

_PUBLIC = {
    "algorithms.adjoint_matching": ("AdjointMatching",),
    "algorithms.backprop": ("Backprop",),
    "algorithms.choices": ("AnyAlgorithm",),
    "algorithms.distill": ("Distill",),
    "algorithms.grpo": ("GRPO",),
    "algorithms.nft": ("NFT",),
    "algorithms.path_consistency": ("PathConsistency",),
    "algorithms.ppo": ("PPO",),
    "algorithms.reward_weighted": ("RewardWeighted",),
    "algorithms.trajectory_balance": ("TrajectoryBalance",),
    "conditions": ("unconditional",),
    "data.landscape": ("Landscape", "load_landscape", "make_landscape"),
    "evaluation.report": ("write_report",),
    "experiment.finetune": ("finetune",),
    "experiment.job": ("Job", "View", "tune"),
    "experiment.reward": ("find_reward",),
    "experiment.sample": ("sample",),
    "guard": ("Guard", "RewardError"),
    "guidance.start": ("TunedStart",),
    "networks.adapters": ("load_lora", "lora", "save_lora"),
    "networks.automaton": ("both", "count_range", "forbid", "gc_range"),
    "networks.conditional": ("Conditional",),
    "networks.constraint": ("constrain",),
    "networks.guidance": ("ClassifierFreeGuidance",),
    "networks.micro_batch": ("MicroBatch",),
    "objective": ("Algorithm", "Experience", "Loss", "Objective"),
    "policy": ("Diffusion", "Policy", "Trajectory", "Transitions", "path_log_prob", "rollout"),
    "processes.gaussian": ("GaussianPolicy",),
    "processes.likelihood": ("elbo",),
    "processes.masked": ("MaskedPolicy",),
    "processes.noise": ("DDIM", "Euler", "FixedLarge", "FlowSDE"),
    "processes.schedule": ("NoiseSchedule",),
    "processes.simplex": ("SimplexPolicy",),
    "processes.uniform": ("UniformPolicy",),
    "samplers.best_of_n": ("BestOfN",),
    "samplers.choices": ("AnySampler",),
    "samplers.classifier_guidance": ("class_value", "classifier_guided"),
    "samplers.discrete_guidance": ("DiscreteGuidance",),
    "samplers.mcmc": ("MCMC",),
    "samplers.smc": ("SMC",),
    "samplers.svdd": ("SVDD",),
    "samplers.value_guidance": ("ValueGuidance",),
    "training.fit": ("NonFiniteError", "fit"),
    "training.settings": ("Training",),
    "training.train": ("load_policy", "train"),
    "transition": ("Categorical", "Gaussian", "Transition"),
    "values.nested": ("NestedMonteCarlo",),
    "values.regression": ("ValueRegression",),
    "values.tweedie": ("PosteriorMean",),
}
_PLACES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'difftilt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"difftilt.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
