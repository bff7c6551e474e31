"""A trial round says what a round would say; what can be refused is refused before anything is touched."""

import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.algorithms.choices import PRESETS, AnyAlgorithm
from difftilt.cli.main import main
from difftilt.domains.digits.recipe import digits
from difftilt.domains.landscape.recipe import dna
from difftilt.experiment.finetune import make_optimizer, place
from difftilt.experiment.job import Job
from difftilt.experiment.plan import plan
from difftilt.objective import Algorithm
from difftilt.training.alpha import meaning_of_alpha
from difftilt.training.distributed import make_accelerator
from difftilt.training.fit import fit
from difftilt.training.settings import Training

ALGORITHMS: dict[str, typing.Callable[[], Algorithm]] = {
    **{kind.__name__: kind for kind in typing.get_args(AnyAlgorithm)[:-1]},
    **{name: lambda preset=preset: preset for name, (preset, _) in PRESETS.items()},
}
SHORT = 2  # recipes that presets are tried with: what they are presets of is tried with all
BATCHES = (2, 32)


def jobs(algorithm: Algorithm, batch: int) -> dict[str, Job]:
    training = Training(rounds=1, batch=batch, evaluate=3)
    given = {"training": training, "algorithm": algorithm}
    return {
        "digits": digits(reward="ink", steps=2, **given),
        "digits, first noise tuned": digits(reward="ink", steps=2, eta=0.5, tune_start=True, **given),
        "dna": dna(**given),
        "dna, constrained": dna(template="NNGANNNN", gc=(0.25, 0.75), forbidden=("GATC",), **given),
    }


def played(job: Job) -> str:
    """What one round of training says, if it is refused."""
    try:
        place(job, make_accelerator())
        conds = [job.cond(job.training.batch)]
        list(fit(job.policy, job.objective, job.algorithm, conds, make_optimizer(job)[0]))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_trial_says_what_a_round_says(name):
    refused = 0
    for batch in BATCHES:
        tried = jobs(ALGORITHMS[name](), batch)
        for recipe, job in list(tried.items())[: SHORT if name in PRESETS else None]:
            weights = {key: value.clone() for key, value in job.policy.state_dict().items()}
            state = torch.get_rng_state()
            try:
                said = "" if plan(job)["gradient_steps"] else "no steps"
            except ValueError as error:
                said = str(error)
            assert torch.equal(state, torch.get_rng_state())
            assert all(torch.equal(value, weights[key]) for key, value in job.policy.state_dict().items())
            assert all(p.grad is None for p in job.policy.parameters()) and not job.objective.reward.calls
            of_a_round = played(job)
            if "detaches its input" in of_a_round:  # a reward is not asked for a trial
                of_a_round = ""
            assert said == of_a_round, f"{recipe}, batch {batch}"
            refused += bool(said)
    assert name not in ("GRPO", "Backprop", "NFT") or 0 < refused < len(BATCHES) * 4


def test_processes_share_a_round():
    job = digits(reward="ink", steps=2, training=Training(rounds=3, batch=32, evaluate=8))
    assert plan(job, 4)["reward_calls"] == plan(job)["reward_calls"] == 3 * 32 + 2 * 8
    with pytest.raises(ValueError, match="32, which 5 processes cannot share"):
        plan(job, 5)


def test_what_is_deployed_is_judged_and_budgeted_for():
    training = Training(rounds=3, batch=32, evaluate=8, reward_budget=40)
    job = replace(digits(reward="ink", steps=2, training=training), deployed=lambda x, cond: x)
    assert plan(job)["reward_calls"] == 3 * 32 + 4 * 8
    short = replace(job, training=replace(training, reward_budget=32))
    with pytest.raises(ValueError, match=r"about 32 samples, of the chain and as deployed, .* but got 32"):
        plan(short)


REFUSED = {
    "groups": ["--batch", "8", "algorithm:grpo", "--algorithm.group-size", "16"],
    "minibatches": ["algorithm:ppo", "--algorithm.minibatches", "100000"],
    "parts": ["--batch", "4", "algorithm:backprop", "--algorithm.minibatches", "5"],
    "comparisons": ["--batch", "4", "algorithm:trajectory-balance", "--algorithm.minibatches", "4"],
    "the sampler of a distillation": ["algorithm:distill", "algorithm.sampler:discrete-guidance"],
    "batch": ["--batch", "99999999999"],
    "evaluate": ["--evaluate", "1"],
    "what is measured": ["--evaluate", "2"],
    "a target for few samples": ["--evaluate", "2", "--target-kl", "1"],
    "threads": ["--threads", "1000000"],
    "learning rate": ["--learning-rate", "1e6"],
    "own learning rate": ["--own-learning-rate", "1e30"],
    "target": ["--target-kl", "0"],
    "a missing reward": ["--reward", "none.py:score"],
    "a missing tracker": ["--log-to", "wandb"],
    "budget": ["--reward-budget", "4"],
    "seeds": ["--seeds", "99999999999"],
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err


def test_what_is_refused_leaves_the_earlier_run_as_it_was(tmp_path, monkeypatch, capsys):
    small = ["finetune", "digits", "--reward", "ink", "--rounds", "1", "--batch", "8", "--steps", "2"]
    small += ["--evaluate", "4", "--out", str(tmp_path / "run")]
    main(small)
    before = content(tmp_path)
    monkeypatch.setattr("difftilt.training.trackers.find_spec", lambda name: None)
    capsys.readouterr()
    for name, words in REFUSED.items():
        said = refusal([*small, "--overwrite", *words], capsys)
        assert len(said.splitlines()) == 1, (name, said)
        assert refusal([*small, *words, "--dry-run"], capsys) == said, name
        assert content(tmp_path) == before, name
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        for also in ([], ["--dry-run"]):
            assert "is no folder" in refusal([*small, "--out", str(out), *also], capsys)
    few = ["finetune", "dna", "--rounds", "1", "--batch", "8", "--evaluate", "2"]
    assert "got 2; draw more" in refusal([*few, "--out", str(tmp_path / "few")], capsys)


def test_two_rewards_do_not_tell_what_alpha_means():
    assert "too few to tell" in meaning_of_alpha(torch.tensor([1.0, 2.0]), 0.1)
    assert "asks for a policy" in meaning_of_alpha(torch.tensor([1.0, 2.0, 3.0]), 0.1)


def test_values_are_tried_too(tmp_path, capsys):
    words = ["value", "fit", "digits", "--reward", "ink", "--batch", "2", "--value.minibatches", "1000"]
    assert "cannot be dealt" in refusal([*words, "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()
