"""The pretrained model, as it is judged before the first round of a run."""

import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from difftilt.data.atomic import atomic_file
from difftilt.data.read import UnreadableError, read_json, read_tensors
from difftilt.evaluation.diagnostics import frozen_start_warning
from difftilt.evaluation.expected import expectations
from difftilt.evaluation.schema import Numbers, Start
from difftilt.experiment.identity import ASKED
from difftilt.experiment.job import Job
from difftilt.experiment.record import write_json
from difftilt.experiment.sample import judge
from difftilt.shapes import PerSample
from difftilt.training.alpha import meaning_of_alpha, sameness, starting_alpha
from difftilt.training.tree import Packed, pack, unpack


def measured_before(job: Job, folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The pretrained model's numbers: measured once, before the first round."""
    path = folder / "before.json"
    if accelerator.is_main_process and not path.exists():
        seen, row = judge(job, folder, "before")
        row |= {
            "expected": expectations(seen),
            "warnings": _warnings(job, seen.reward),
            "start_alpha": _start_alpha(job, seen.reward),
        }
        kept = pack(job.objective.reward.state_dict())
        if kept.tensors:
            with atomic_file(folder / ASKED) as file:
                save_file(kept.tensors, file)
        write_json(path, row | {"reward_calls": job.objective.reward.calls, "asked": kept.plain})
    accelerator.wait_for_everyone()
    before = read_json(path, Numbers) | read_json(path, Start)
    job.objective.alpha = before["start_alpha"]
    asked = before.pop("asked")
    if accelerator.is_main_process:
        tensors = read_tensors(folder / ASKED) if (folder / ASKED).exists() else {}
        try:
            job.objective.reward.load_state_dict(unpack(Packed(asked, tensors)))
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UnreadableError(
                f"{path} does not hold the state of this reward ({type(error).__name__}: {error}); bring it"
                " back from a copy"
            ) from error
    return before


def _start_alpha(job: Job, rewards: PerSample) -> float:
    """The alpha that training starts with; what it means is told before anything is trained."""
    alpha = job.objective.alpha
    if job.target_kl is None:
        print(meaning_of_alpha(rewards, alpha), file=sys.stderr, flush=True)
        return alpha
    start = starting_alpha(rewards, job.target_kl)
    print(
        f"a KL of {job.target_kl:g} nats is looked for from alpha {start.alpha:.3g} on, which asks for"
        f" {start.kl_nats:.2g} ± {start.kl_nats_se:.1g} nats, as {start.samples} samples tell",
        file=sys.stderr,
        flush=True,
    )
    return start.alpha


def _warnings(job: Job, rewards: PerSample) -> list[str]:
    """What is wrong with the problem itself, in sentences, as far as it was asked to be measured."""
    starts, found = job.training.check_start, [sameness(rewards)]
    if starts:
        found.append(frozen_start_warning(job.policy, job.objective, job.cond(1), starts))
    return [warning for warning in found if warning]
