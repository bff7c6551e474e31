"""Training as `difftilt finetune` does it, without a folder."""

from collections.abc import Iterator

from accelerate import Accelerator

from difftilt import fit
from difftilt.experiment.finetune import make_optimizer, make_trust_region
from difftilt.experiment.job import Job
from difftilt.training.seeds import SETUP, seed_round


def train(job: Job) -> Iterator[dict[str, float]]:
    """Yields a row per gradient step."""
    settings = job.training
    seed_round(settings.seed, SETUP)
    job.algorithm.setup(job.policy, job.cond(2))
    optimizer, scheduler = make_optimizer(job)
    region = make_trust_region(job, optimizer, Accelerator(cpu=True))
    for number in range(settings.rounds):
        conds = [job.cond(settings.batch)]
        yield from fit(
            job.policy, job.objective, job.algorithm, conds, optimizer, settings, start=number, region=region
        )
        scheduler.step()
