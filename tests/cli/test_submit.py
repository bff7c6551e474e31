"""Commands as jobs of submitit: its local executor preempts one, which goes on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from difftilt.cli.main import main
from difftilt.cli.submit import Launch, SubmitOptions, command

submitit = pytest.importorskip("submitit")
PYTHON = [sys.executable, "-m"]


def test_one_process_needs_no_launcher_and_several_machines_meet():
    words = ["finetune", "digits"]
    assert command(words, SubmitOptions(), "first", "7") == [*PYTHON, "difftilt.cli", *words]
    one = command(words, SubmitOptions(processes=2, restarts=1), "first", "7")
    sizes = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    assert one[2:] == ["torch.distributed.run", *sizes, "-m", "difftilt.cli", *words]
    many = " ".join(command(words, SubmitOptions(nodes=2), "first", "7"))
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id 7" in many


def test_what_cannot_be_submitted_is_refused(capsys):
    for words, said in ((["--cpus", "2"], "needs a command to run"), (["--hours", "0", "finetune"], "hours")):
        with pytest.raises(SystemExit):
            main(["submit", *words])
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_preempted_job_saves_is_started_again_and_goes_on(tmp_path):
    run = tmp_path / "run"
    small = ["--steps", "2", "--rounds", "12", "--batch", "16", "--evaluate", "8", "--reward", "ink"]
    executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=60)
    words = ["finetune", "digits", *small, "--out", str(run)]
    job = executor.submit(Launch(words, SubmitOptions()))
    while not any((run / "checkpoints").glob("round-*")):
        time.sleep(0.05)
    task = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task[0]), signal.SIGUSR2)  # as Slurm does
    assert job.result() == 0
    said = job.paths.stderr.read_text()
    assert "the run stopped after round" in said and "Requeued" in job.paths.stdout.read_text() + said
    assert (run / "report.html").exists() and (run / "checkpoints" / "round-000012").exists()
    steps = (run / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 12 * 16
