"""Reward fine-tuning of diffusion models: maximise E[r(x_0)] - alpha KL(p || p_pre)."""

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.distill import Distill
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.nft import NFT
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.data.landscape import Landscape, load_landscape, make_landscape
from difftilt.guard import Guard, RewardError
from difftilt.guidance.start import TunedStart
from difftilt.networks.adapters import load_lora, lora, save_lora
from difftilt.networks.automaton import both, count_range, forbid, gc_range
from difftilt.networks.conditional import Conditional
from difftilt.networks.constraint import constrain
from difftilt.networks.guidance import ClassifierFreeGuidance
from difftilt.networks.micro_batch import MicroBatch
from difftilt.objective import Algorithm, Experience, Loss, Objective
from difftilt.policy import Diffusion, Policy, Trajectory, Transitions, path_log_prob, rollout
from difftilt.processes.flow_sde import FlowSDE
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.likelihood import elbo
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.schedule import NoiseSchedule
from difftilt.processes.simplex import SimplexPolicy
from difftilt.processes.uniform import UniformPolicy
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.classifier_guidance import class_value, classifier_guided
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.smc import SMC
from difftilt.samplers.svdd import SVDD
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.training.fit import NonFiniteError, fit
from difftilt.transition import Categorical, Gaussian, Transition
from difftilt.values.nested import NestedMonteCarlo
from difftilt.values.regression import ValueRegression
from difftilt.values.tweedie import PosteriorMean

__all__ = [
    "GRPO",
    "MCMC",
    "NFT",
    "PPO",
    "SMC",
    "SVDD",
    "AdjointMatching",
    "Algorithm",
    "Backprop",
    "BestOfN",
    "Categorical",
    "ClassifierFreeGuidance",
    "Conditional",
    "Diffusion",
    "DiscreteGuidance",
    "Distill",
    "Experience",
    "FlowSDE",
    "Gaussian",
    "GaussianPolicy",
    "Guard",
    "Landscape",
    "Loss",
    "MaskedPolicy",
    "MicroBatch",
    "NestedMonteCarlo",
    "NoiseSchedule",
    "NonFiniteError",
    "Objective",
    "PathConsistency",
    "Policy",
    "PosteriorMean",
    "RewardError",
    "RewardWeighted",
    "SimplexPolicy",
    "Trajectory",
    "TrajectoryBalance",
    "Transition",
    "Transitions",
    "TunedStart",
    "UniformPolicy",
    "ValueGuidance",
    "ValueRegression",
    "both",
    "class_value",
    "classifier_guided",
    "constrain",
    "count_range",
    "elbo",
    "fit",
    "forbid",
    "gc_range",
    "load_landscape",
    "load_lora",
    "lora",
    "make_landscape",
    "path_log_prob",
    "rollout",
    "save_lora",
    "unconditional",
]
