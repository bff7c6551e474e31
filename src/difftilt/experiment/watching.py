"""The monitors of a run: what they say is told as it happens, and may end the run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftilt.data.read import read_rows
from difftilt.evaluation.monitors import Monitors
from difftilt.evaluation.schema import Row
from difftilt.experiment.job import Job
from difftilt.training.train import Round


class Watching:
    """Tells what the monitors say, once, and says when one of them ends the run.

    Args:
        before: The pretrained model's numbers.
        show: Whether to tell.

    Attributes:
        ended: Why it ended training, if it did.
    """

    def __init__(self, job: Job, folder: Path, before: Mapping[str, Any], show: bool):
        self.monitors = Monitors(before, job.training.rounds, job.target_kl)
        self.ended: list[str] = []
        self._log, self._show, self._stop_on = folder / "metrics.jsonl", show, job.training.stop_on
        self._judged = (folder / "summary.json").exists()

    def __call__(self, done: Round) -> bool:
        """Whether to end the run with this round; that with which an earlier life ended has no rows."""
        if done.rows:
            new = self.monitors.see(done.rows)
            for alarm in new if self._show else ():
                print(f"monitor: {alarm}", file=sys.stderr, flush=True)
        else:  # what earlier lives saw, they have told; who has read how the run ended has it go on
            rows = [row for row in read_rows(self._log, Row)[0] if row["round"] <= done.number]
            earlier = self.monitors.see_all(rows)
            new = [a for a in earlier if a.round == done.number + 1 and not self._judged]
        self.ended += [
            f"training ended early: the monitor {alarm.monitor} spoke in round {alarm.round}; go on with"
            " --past-alarms"
            for alarm in new
            if alarm.monitor in self._stop_on
        ]
        return bool(self.ended)
