"""What would go wrong with a job, found at the cost of a few samples before anything is trained."""

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from difftilt.conditions import context, on_device_of, take
from difftilt.experiment.job import Finding, Job
from difftilt.guard import RewardError
from difftilt.policy import Policy, Trajectory, Transitions, decide, rollout
from difftilt.shapes import PerSample
from difftilt.training.distributed import autocast
from difftilt.training.fit import denoisers
from difftilt.training.seeds import EVALUATION, seed_round

ROWS = 16  # samples that are drawn
SAME, SHUFFLED = 1e-3, 0.05  # nats, of log-ratios that should be 0: of the same batch, and of another one
ROUNDING = 0.01  # share of the largest number, by which rounding may change a pass: more is another network
WIDE, NARROW = 1e3, 1e-3  # spread of a reward over alpha


def examine(job: Job) -> Iterator[Finding]:
    """All checks, one after the other; the job's weights, gradients and counts are as before."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    networks = denoisers(job.policy, job.objective.reference, job.algorithm)
    if job.checks is not None:
        yield from job.checks()
    with autocast(networks, job.training.mixed_precision, accelerator):
        seed_round(job.training.seed, EVALUATION)
        cond = on_device_of(job.policy, job.cond(ROWS))
        try:
            path = rollout(job.policy, cond)
        except ValueError as error:
            yield Finding(f"No chain can be sampled: {error}.", wrong=True)
            return
        yield from chain_findings(job.policy, job.objective.reference, path)
        yield gradient_finding(job.policy, path)
    yield from reward_findings(job, path)


def chain_findings(policy: Policy, reference: Policy, path: Trajectory) -> Iterator[Finding]:
    """Whether densities are finite, and the same when they are computed again."""
    if not path.log_prob.isfinite().all():
        step = int((~path.log_prob.isfinite()).any(1).nonzero()[0, 0])
        yield Finding(
            f"The density of decision {step} of a chain is not finite; raise the noise or the precision.",
            wrong=True,
        )
        return
    yield Finding(f"Densities of {path.log_prob.numel()} decisions of {len(path.sample)} chains are finite.")
    count = path.log_prob.numel()
    index = torch.arange(count, device=path.log_prob.device).view(path.log_prob.shape)
    same = torch.stack([_again(policy, path, rows) for rows in index]) - path.log_prob
    worst = same.abs().amax(1)
    if worst.max() > SAME:
        step = int(worst.argmax())
        text = (
            f"Computed again for training, densities differ by up to {worst.max():.2g} nats (decision {step}"
        )
        text += f" of {len(worst)}), where the ratio of new to old policy must be 1"
        yield Finding(f"{text}: {_cause(policy, path)}.", wrong=True)
        return
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(index.device)
    shuffled = torch.cat([_again(policy, path, rows) for rows in order.split(len(path.sample))])
    other = (shuffled - path.log_prob.flatten()[order]).abs().max().item()
    text = f"Computed again, log-ratios are up to {worst.max():.1e} nats in the same batch, and"
    text += f" {other:.1e} in another"
    more = ", which is more than rounding: rows of a batch see each other" if other > SHUFFLED else ""
    yield Finding(f"{text}{more}.", wrong=other > SHUFFLED)
    kl = (path.log_prob - torch.stack([_again(reference, path, rows) for rows in index])).sum(0).mean().item()
    yield Finding(f"Training starts {kl:.2g} nats from the reference.")


def _again(policy: Policy, path: Trajectory, rows: Tensor) -> PerSample:
    """The density as training computes it: with gradients."""
    with torch.enable_grad():
        found = path.transitions(rows)
        return decide(policy, found).log_prob(found.x_next).detach()


def _first_step(path: Trajectory) -> Transitions:
    """The rows of the decision after x_T."""
    return path.transitions(torch.arange(len(path.sample), device=path.states.device) + len(path.sample))


def _cause(policy: Policy, path: Trajectory) -> str:
    """Why two passes through a network differ, as far as can be told."""
    rows = _first_step(path)
    active = [
        m for m in policy.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p and m.training
    ]

    def output(gradient: bool) -> Tensor:
        with torch.set_grad_enabled(gradient):
            step: Any = policy(rows.x, rows.t, rows.cond)
            return step.mean.detach() if "mean" in vars(step) else step.log_prob(rows.x_next).detach()

    first, second, trained = output(False), output(False), output(True)
    if active:
        return f"{len(active)} layers of dropout are active; call eval() on the network, or set their p to 0"
    if not first.equal(second):
        return "the network draws random numbers of its own; switch that off"
    share = ((first - trained).abs().max() / (first - rows.x).abs().max().clamp(min=1e-12)).item()
    if share > ROUNDING:
        return "in training the network is another one than in sampling; use guidance in both, or in neither"
    if share > 0:
        return "the network computes in another precision in training than in sampling; use one for both"
    return "the network remembers what it was asked before"


def gradient_finding(policy: Policy, path: Trajectory) -> Finding:
    """Whether a gradient reaches what is to be trained."""
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if not trained:
        return Finding("Nothing of the policy trains: no parameter requires a gradient.", wrong=True)
    rows = _first_step(path)
    with torch.enable_grad():
        value = decide(policy, rows).log_prob(rows.x_next).mean()
    if not value.requires_grad:
        return Finding("The density of a step does not depend on what is to be trained.", wrong=True)
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    reached = {
        _layer(name) for name, g in zip(trained, found, strict=True) if g is not None and bool((g != 0).any())
    }
    if any(g is not None and not g.isfinite().all() for g in found):
        return Finding("The gradient of a step's density is not finite.", wrong=True)
    idle = sorted({_layer(name) for name in trained} - reached)
    size = sum(p.numel() for p in trained.values())
    layers = f"{len(reached)} of their {len(reached) + len(idle)} layers"
    text = f"{size:,} numbers train, and a gradient reaches {layers}"
    if not reached:
        return Finding(f"{text}; whatever is trained, nothing would change.", wrong=True)
    return Finding(text + (f"; not {', '.join(idle[:3])}." if idle else "."))


def _layer(name: str) -> str:
    """The layer of a parameter; both parts of an adapter are one."""
    return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]


def reward_findings(job: Job, path: Trajectory) -> Iterator[Finding]:
    """What a reward says of samples of the model."""
    guard, cond, alpha = job.objective.reward, path.cond, job.objective.alpha
    began = time.monotonic()
    try:
        with torch.no_grad():
            reward = guard(path.sample, cond).double()
    except RewardError as error:
        yield Finding(f"The reward fails: {error}.", wrong=True)
        return
    seconds = (time.monotonic() - began) / len(reward)
    reward = reward.cpu()
    valid = reward[reward.isfinite()]
    ids = context(cond)
    inside = [valid_in for g in ids.unique() if len(valid_in := reward[ids == g]) > 1]
    spread = torch.stack([x.std() for x in inside]).mean().item() if inside else valid.std().item()
    if not valid.numel() or not spread > 0:
        yield Finding(
            f"The reward is {valid[:1].tolist() or 'no number'} for all samples of a condition, so there is"
            " nothing to learn; use one that tells samples apart.",
            wrong=True,
        )
        return
    low, high = valid.min().item(), valid.max().item()
    text = (
        f"The reward is {low:.4g} to {high:.4g}, and spreads by {spread:.2g} among samples of one condition"
    )
    text += f", which is {spread / alpha:.2g} times alpha; a sample takes {seconds:.2g} s."
    if not NARROW < spread / alpha < WIDE:
        text += f" Its range does not fit alpha {alpha:.3g}: give alpha near {spread:.1g}, or --target-kl."
    yield Finding(text, wrong=not NARROW < spread / alpha < WIDE)
    yield from _of_prompts(job, path, reward, spread)


def _of_prompts(job: Job, path: Trajectory, reward: Tensor, spread: float) -> Iterator[Finding]:
    """Whether the reward reads the conditions, if there are several."""
    ids = context(path.cond)
    if len(ids.unique()) < 2:
        return
    order = ids.argsort(stable=True)
    other = torch.empty_like(order)
    other[order] = order.roll(int(torch.bincount(ids).max()))  # those of one condition lie side by side
    with torch.no_grad():
        moved = job.objective.reward(path.sample, take(path.cond, other)).double().cpu()
    change = (moved - reward).abs().nanmean().item()
    if change == 0:
        yield Finding("The reward does not read the conditions: exchanged, they change none of its answers.")
    else:
        gap = (reward - moved).nanmean().item()
        yield Finding(
            f"With exchanged conditions the reward is {gap:.2g} lower, in a spread of {spread:.2g}."
        )
