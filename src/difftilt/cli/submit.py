"""The command `difftilt submit`: other commands as jobs of Slurm, through submitit."""

import dataclasses
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types as at

from difftilt.cli.options import parse
from difftilt.settings import Count, Natural, Positive, UsageError

JOBS = ("finetune", "resume", "sample", "value", "pretrain", "reward")  # what can be submitted
PORT, POLL = 29500, 0.2  # where machines meet; seconds between two looks
REQUEUED = "SLURM_RESTART_COUNT"  # by which `difftilt finetune` knows that it goes on


@dataclasses.dataclass(frozen=True)
class SubmitOptions:
    """What the job gets.

    Args:
        cluster: Where it runs: `slurm`, `local`, in the background of this machine, or whichever is there.
        nodes: Machines, at least 1.
        processes: Of each machine, at least 1; several are started by torchrun.
        gpus: Of each machine.
        cpus: Cores of each machine, at least 1.
        memory: GiB of each machine, if it is to be asked for.
        hours: Longest time of one life of the job, above 0.
        grace: Seconds before its end in which it is told to save, at least 10.
        requeues: How often it may run out of time and go on.
        restarts: How often torchrun may start the processes again after one has died.
        partition: Of Slurm.
        account: Of Slurm.
        logs: Folder for what the job prints, and for submitit's own files, which are pickles: keep it yours.
        wait: Return when the job has ended, with its exit code.
    """

    cluster: Literal["slurm", "local"] | None = None
    nodes: Count = 1
    processes: Count = 1
    gpus: Natural = 0
    cpus: Count = 1
    memory: Count | None = None
    hours: Positive = 1.0
    grace: Annotated[int, at.Ge(10)] = 90
    requeues: Natural = 100
    restarts: Natural = 3
    partition: str | None = None
    account: str | None = None
    logs: Path = Path("runs/jobs")
    wait: bool = False


@dataclasses.dataclass
class Launch:
    """What each machine of a job does: it starts the processes, and at a signal has them save and end.

    Args:
        words: Of the command, behind `difftilt`.
        again: Whether the job was requeued.
    """

    words: list[str]
    options: SubmitOptions
    again: bool = False
    child: Any = None

    def __call__(self) -> int:
        import submitit

        job, variables = submitit.JobEnvironment(), dict(os.environ)
        if self.again:
            variables.setdefault(REQUEUED, "1")
        line = command(self.words, self.options, job.hostnames[0], job.job_id)
        print("difftilt submit:", *line, flush=True)
        self.child = subprocess.Popen(line, env=variables)
        while self.child.poll() is None:  # no wait, which a signal could not interrupt to wait for the same
            time.sleep(POLL)
        if code := self.child.poll():
            raise RuntimeError(f"difftilt {' '.join(self.words)} ended with exit code {code}; see above")
        return code

    def checkpoint(self) -> Any:
        """Is called by submitit before the job is requeued: what is done is saved."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None:
            self.child.terminate()
            while self.child.poll() is None:
                time.sleep(POLL)
        return DelayedSubmission(Launch(self.words, self.options, again=True))


def command(words: list[str], options: SubmitOptions, first: str, job: str) -> list[str]:
    """The command line of one machine.

    Args:
        first: Name of the first machine, where the others find each other.
        job: What tells the job from others.
    """
    python, module = [sys.executable, "-m"], ["difftilt.cli", *words]
    if options.nodes * options.processes == 1:
        return [*python, *module]
    meet = ["--standalone"]
    if options.nodes > 1:
        place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}"]
        meet = ["--nnodes", str(options.nodes), *place, "--rdzv-id", job]
    sizes = ["--nproc-per-node", str(options.processes), "--max-restarts", str(options.restarts)]
    return [*python, "torch.distributed.run", *meet, *sizes, "-m", *module]


def submit_command(words: list[str]) -> None:
    """Submits another command as a job that goes on after preemption."""
    place = next((i for i, word in enumerate(words) if word in JOBS), len(words))
    options = SubmitOptions(**parse(_submit, words[:place], "difftilt submit", SubmitOptions))
    if place == len(words):
        raise UsageError(f"difftilt submit needs a command to run, after its own options: {', '.join(JOBS)}")
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError:
        raise UsageError("difftilt submit needs submitit; pip install 'difftilt[cluster]'") from None
    executor = submitit.AutoExecutor(
        folder=options.logs, cluster=options.cluster, slurm_max_num_timeout=options.requeues
    )
    slurm = {"partition": options.partition, "account": options.account, "signal_delay_s": options.grace}
    asked = {
        "name": f"difftilt-{words[place]}",
        "timeout_min": max(1, round(60 * options.hours)),
        "nodes": options.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem_gb": options.memory,
    }
    given = {**asked, **{f"slurm_{name}": value for name, value in slurm.items()}}
    executor.update_parameters(**{name: value for name, value in given.items() if value is not None})
    job = executor.submit(Launch(words[place:], options))
    print(f"job {job.job_id}: it prints to {job.paths.stdout} and {job.paths.stderr}", flush=True)
    if options.wait:
        _wait(job)


def _wait(job: Any) -> None:
    """Waits for a job, and fails if it has failed."""
    job.wait()
    if job.exception() is not None:
        raise ValueError(f"job {job.job_id} has failed; see {job.paths.stderr}")


def _submit() -> None:
    """Submits another command as a job: difftilt submit [OPTIONS] finetune digits --reward ink.

    It is told to save before its time is over, or when it is preempted, is put into the queue again, and goes
    on from its last checkpoint.
    """
