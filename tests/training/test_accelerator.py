"""A user's own Accelerator is followed, or refused in one sentence; nothing of it is ignored in silence."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toy_run import Job

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.objective import Objective
from difftilt.training.fit import fit
from difftilt.training.settings import Training


def seen(training: Training, **settings: Any) -> tuple[float, set[torch.dtype], set[torch.dtype]]:
    """The length of a round's gradient, and the types that a layer and the network computed in."""
    job, inside, outside = Job(), set(), set()
    network = job.policy.network
    network.get_submodule("layers.0").register_forward_hook(lambda m, x, y: inside.add(y.dtype))
    network.register_forward_hook(lambda m, x, y: outside.add(y.dtype))
    objective = Objective(lambda x, cond: x[:, 0], copy.deepcopy(job.policy).requires_grad_(False), 1.0)
    accelerator = Accelerator(cpu=True, **settings)
    rows = list(
        fit(job.policy, objective, PPO(epochs=1), [unconditional(16)], job.optimizer, training, accelerator)
    )
    assert "forward" not in vars(network), "the network must be as it was"
    return rows[0]["grad_norm"], inside, outside


@pytest.mark.parametrize("how", ["accelerator", "training"])
def test_bfloat16_is_followed_whoever_asks_for_it(servant, how):
    life = servant.Process(target=_bfloat16, args=(how,))  # accelerate's precision is that of a process
    life.start()
    life.join()
    assert life.exitcode == 0


def _bfloat16(how: str) -> None:
    if how == "accelerator":
        _, inside, outside = seen(Training(), mixed_precision="bf16")
    else:
        _, inside, outside = seen(Training(mixed_precision="bf16"))
    assert (inside, outside) == ({torch.bfloat16}, {torch.float32})


def test_float32_is_the_default():
    assert seen(Training())[1:] == ({torch.float32}, {torch.float32})


REFUSED = [
    ({"gradient_accumulation_steps": 4}, r"must be 1, but got 4; give Training\(accumulate=4\) instead"),
    ({"mixed_precision": "fp16"}, "must be 'no' or 'bf16', but got 'fp16'"),
    ({"dynamo_backend": "inductor"}, "must be NO, but got INDUCTOR"),
]


@pytest.mark.parametrize("loop", ["fit", "train"])
@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_would_be_ignored_is_refused(ram, monkeypatch, loop, settings, message):
    job, accelerator = Job(), Accelerator(cpu=True)
    for name, value in settings.items():
        if name == "dynamo_backend":
            plugin = accelerator.state.dynamo_plugin
            assert plugin is not None
            monkeypatch.setattr(plugin, "backend", type(plugin.backend)(value.upper()))
        else:
            monkeypatch.setattr(Accelerator, name, value)
    with pytest.raises(ValueError, match=message):
        if loop == "fit":
            args = job.policy, job.objective, job.algorithm, [unconditional(16)], job.optimizer
            next(fit(*args, Training(), accelerator))
        else:
            job.train(ram / "run", 1, accelerator=accelerator)
    assert not (ram / "run").exists()


def test_losses_are_accumulated_by_the_setting_that_the_sentence_names():
    one, other = seen(Training(accumulate=4, max_norm=1e9))[0], seen(Training(max_norm=1e9))[0]
    assert one != other
