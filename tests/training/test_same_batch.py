"""The same batch, dealt to 1, 2 or 4 processes, trains the same weights: statistics are those of all rows."""

import copy
import dataclasses

import pytest
import torch
from dealt import Dealt, classes, part_of
from several import in_processes
from toy_run import make_policy

from difftilt.algorithms import advantages
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import concat, take
from difftilt.data.across import context, gathered, together
from difftilt.experiment.job import Job
from difftilt.experiment.plan import share_of_round
from difftilt.training.distributed import finish, make_accelerator
from difftilt.training.fit import fit
from difftilt.training.kl_controller import KLController
from difftilt.training.settings import Training

BATCH, ROUNDS = 32, 3
ALGORITHMS = {
    **{
        name: PPO(advantage=name, minibatches=1)
        for name in ("batch", "context", "leave_one_out", "path", "critic")
    },
    "group": PPO(advantage="group", kl="reward", minibatches=1),
    "grpo": GRPO(group_size=4, minibatches=1),
    "grpo, one group in two processes": GRPO(group_size=16, minibatches=1),
    "reward-weighted": RewardWeighted(minibatches=1),
    "top": RewardWeighted(select="top", keep=0.5, minibatches=1),
    "percentile": RewardWeighted(select="percentile", keep=0.5, minibatches=1),
    "value": RewardWeighted(form="value", value=lambda x, t, cond: x[:, 0], minibatches=1),
    "trajectory-balance": TrajectoryBalance(minibatches=1),
    "scalar": TrajectoryBalance(log_z="scalar", minibatches=1),
    "path-consistency": PathConsistency(minibatches=1),
}
FEW = ["context", "grpo, one group in two processes", "reward-weighted", "trajectory-balance"]
SINGLE = ("critic", "scalar", "path-consistency")  # with networks in single precision


def job_of(name: str, process: int, processes: int) -> Job:
    policy = make_policy().double()
    reference = copy.deepcopy(policy).requires_grad_(False)

    def reward(x, cond):
        return x[:, 0] * (1 + cond["class"]) + cond["class"]

    objective = Dealt(reward, reference, 0.5)
    objective.process, objective.processes = process, processes
    algorithm = copy.deepcopy(ALGORITHMS[name])
    torch.manual_seed(3)
    algorithm.setup(policy, classes(2))
    training = Training(batch=BATCH, rounds=ROUNDS)
    job = Job(policy, objective, algorithm, training, cond=classes)
    if name.startswith("grpo, one"):
        job = dataclasses.replace(job, cond=lambda count: {"class": torch.arange(count)})
    return job


def trained(name, accelerator, whole: bool = False) -> dict[str, torch.Tensor]:
    """The weights, alpha and some statistics after a few rounds.

    Args:
        whole: Ask for what the processes of another run were dealt, in one.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    job = job_of(name, process, processes)
    controller = KLController(job.objective, 0.3)

    def conds():
        for number in range(ROUNDS):
            if whole:
                parts = [share_of_round(job, number, k, 2) for k in range(2)]
                yield concat(parts)
            else:
                yield share_of_round(job, number, process, processes)

    learning = [*job.policy.parameters(), *job.algorithm.parameters()]
    optimizer = torch.optim.SGD([p for p in learning if p.requires_grad], 1e-2)  # Adam would blow rounding up
    loop = fit(
        job.policy, job.objective, job.algorithm, conds(), optimizer, job.training, accelerator,
        kl_controller=controller,
    )  # fmt: skip
    rows = list(loop)
    numbers = {"alpha": job.objective.alpha, **{k: rows[-1][k] for k in ("ess", "kl_nats") if k in rows[-1]}}
    found = {key: torch.tensor(number) for key, number in numbers.items()}
    own = {f"algorithm {key}": x.clone() for key, x in job.algorithm.named_parameters()}
    return {**job.policy.state_dict(), **own, **found}


@pytest.mark.parametrize(("count", "names"), [(2, list(ALGORITHMS)), (4, FEW)])
def test_the_same_batch_on_several_processes_trains_the_same_weights(count, names, tmp_path):
    def work(rank):
        torch.set_num_threads(1)
        accelerator = make_accelerator(timeout_minutes=1)
        found = {name: trained(name, accelerator) for name in names}
        torch.save(found, tmp_path / f"{rank}.pt")
        finish(accelerator)

    in_processes(count, work)
    alone = {name: trained(name, make_accelerator(), whole=True) for name in names}
    for rank in range(count):
        for name, found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            for key, value in alone[name].items():
                tolerance = 1e-5 if name in SINGLE else 1e-9
                try:
                    torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {key} of process {rank}") from error


def test_statistics_are_not_those_of_a_part():
    """What the test above compares would differ, if each process went by its own rows."""
    job = job_of("grpo", 0, 1)
    cond = classes(BATCH)
    seen = job.objective.sample(job.policy, cond)
    first = part_of(seen, torch.arange(BATCH // 2))
    ids = context(cond)[: BATCH // 2]
    whole = advantages.group(seen.reward[None], context(cond))[0, : BATCH // 2]
    assert (advantages.group(first.reward[None], ids)[0] - whole).abs().max() > 0.1


def test_conditions_are_dealt_without_loss_or_repetition():
    job = job_of("grpo", 0, 1)
    turn = iter(range(1000))

    def in_turn(count):
        return {"class": torch.tensor([next(turn) for _ in range(count)])}

    for processes in (2, 4):
        seen = []
        for process in range(processes):
            turn = iter(range(1000))  # every process has its own copy of what deals
            one = dataclasses.replace(job, cond=in_turn, algorithm=PPO())
            seen += [share_of_round(one, number, process, processes)["class"] for number in range(3)]
        assert sorted(torch.cat(seen).tolist()) == list(range(3 * BATCH))
    groups = dataclasses.replace(job, cond=lambda n: {"class": torch.arange(n)})
    parts = [share_of_round(groups, 1, k, 2)["class"] for k in range(2)]
    assert torch.cat(parts).tolist() == [k for k in range(1, BATCH, 4) for _ in range(4)]


def test_a_batch_that_makes_no_equal_shares_of_groups_is_refused():
    job = dataclasses.replace(
        job_of("grpo", 0, 1), cond=lambda n: {"class": torch.arange(n)}, training=Training(batch=39)
    )
    with pytest.raises(ValueError, match="makes 36 chains in whole groups, which 13 processes cannot share"):
        share_of_round(job, 0, 0, 13)


def test_alone_nothing_is_gathered():
    x = torch.randn(3, requires_grad=True)
    with together(2):  # which have not found each other
        assert gathered(x) is x
    assert take(classes(8), torch.arange(8)).keys() == {"class"}
