"""Reward fine-tuning of diffusion models: maximise E[r(x_0)] - alpha KL(p || p_pre).

Names are loaded when they are first used, so that `import difftilt` and `difftilt --help` take no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftilt.algorithms.adjoint_matching import AdjointMatching as AdjointMatching
    from difftilt.algorithms.backprop import Backprop as Backprop
    from difftilt.algorithms.choices import AnyAlgorithm as AnyAlgorithm
    from difftilt.algorithms.distill import Distill as Distill
    from difftilt.algorithms.dpo import DPO as DPO
    from difftilt.algorithms.grpo import GRPO as GRPO
    from difftilt.algorithms.local_search import LocalSearch as LocalSearch
    from difftilt.algorithms.nft import NFT as NFT
    from difftilt.algorithms.path_consistency import PathConsistency as PathConsistency
    from difftilt.algorithms.ppo import PPO as PPO
    from difftilt.algorithms.reward_weighted import RewardWeighted as RewardWeighted
    from difftilt.algorithms.trajectory_balance import TrajectoryBalance as TrajectoryBalance
    from difftilt.answers import Failure as Failure
    from difftilt.conditions import unconditional as unconditional
    from difftilt.data.landscape import Landscape as Landscape
    from difftilt.data.landscape import load_landscape as load_landscape
    from difftilt.data.landscape import make_landscape as make_landscape
    from difftilt.evaluation.report import write_report as write_report
    from difftilt.experiment.finetune import finetune as finetune
    from difftilt.experiment.job import Job as Job
    from difftilt.experiment.job import View as View
    from difftilt.experiment.job import tune as tune
    from difftilt.experiment.reward import find_reward as find_reward
    from difftilt.experiment.sample import sample as sample
    from difftilt.guard import Guard as Guard
    from difftilt.guard import RewardError as RewardError
    from difftilt.guidance.start import TunedStart as TunedStart
    from difftilt.networks.adapters import load_lora as load_lora
    from difftilt.networks.adapters import lora as lora
    from difftilt.networks.adapters import save_lora as save_lora
    from difftilt.networks.automaton import both as both
    from difftilt.networks.automaton import count_range as count_range
    from difftilt.networks.automaton import forbid as forbid
    from difftilt.networks.automaton import gc_range as gc_range
    from difftilt.networks.conditional import Conditional as Conditional
    from difftilt.networks.constraint import constrain as constrain
    from difftilt.networks.guidance import ClassifierFreeGuidance as ClassifierFreeGuidance
    from difftilt.networks.micro_batch import MicroBatch as MicroBatch
    from difftilt.objective import Algorithm as Algorithm
    from difftilt.objective import Experience as Experience
    from difftilt.objective import Loss as Loss
    from difftilt.objective import Objective as Objective
    from difftilt.policy import Diffusion as Diffusion
    from difftilt.policy import Policy as Policy
    from difftilt.policy import Trajectory as Trajectory
    from difftilt.policy import Transitions as Transitions
    from difftilt.policy import path_log_prob as path_log_prob
    from difftilt.policy import rollout as rollout
    from difftilt.processes.gaussian import GaussianPolicy as GaussianPolicy
    from difftilt.processes.likelihood import elbo as elbo
    from difftilt.processes.masked import MaskedPolicy as MaskedPolicy
    from difftilt.processes.noise import DDIM as DDIM
    from difftilt.processes.noise import Euler as Euler
    from difftilt.processes.noise import FixedLarge as FixedLarge
    from difftilt.processes.noise import FlowSDE as FlowSDE
    from difftilt.processes.schedule import NoiseSchedule as NoiseSchedule
    from difftilt.processes.simplex import SimplexPolicy as SimplexPolicy
    from difftilt.processes.uniform import UniformPolicy as UniformPolicy
    from difftilt.samplers.best_of_n import BestOfN as BestOfN
    from difftilt.samplers.choices import AnySampler as AnySampler
    from difftilt.samplers.classifier_guidance import class_value as class_value
    from difftilt.samplers.classifier_guidance import classifier_guided as classifier_guided
    from difftilt.samplers.discrete_guidance import DiscreteGuidance as DiscreteGuidance
    from difftilt.samplers.mcmc import MCMC as MCMC
    from difftilt.samplers.smc import SMC as SMC
    from difftilt.samplers.svdd import SVDD as SVDD
    from difftilt.samplers.value_guidance import ValueGuidance as ValueGuidance
    from difftilt.training.fit import NonFiniteError as NonFiniteError
    from difftilt.training.fit import fit as fit
    from difftilt.training.load import load_policy as load_policy
    from difftilt.training.settings import Training as Training
    from difftilt.training.train import train as train
    from difftilt.transition import Categorical as Categorical
    from difftilt.transition import Gaussian as Gaussian
    from difftilt.transition import Transition as Transition
    from difftilt.values.nested import NestedMonteCarlo as NestedMonteCarlo
    from difftilt.values.regression import ValueRegression as ValueRegression
    from difftilt.values.tweedie import PosteriorMean as PosteriorMean

_PUBLIC = {
    "answers": ("Failure",),
    "algorithms.adjoint_matching": ("AdjointMatching",),
    "algorithms.backprop": ("Backprop",),
    "algorithms.choices": ("AnyAlgorithm",),
    "algorithms.distill": ("Distill",),
    "algorithms.dpo": ("DPO",),
    "algorithms.grpo": ("GRPO",),
    "algorithms.local_search": ("LocalSearch",),
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
    "training.load": ("load_policy",),
    "training.settings": ("Training",),
    "training.train": ("train",),
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
