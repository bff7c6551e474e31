"""A job from its settings to its page: what recipes of any domain may hand over."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.ppo import PPO
from difftilt.data.vocabulary import DNA, spell
from difftilt.domains.sequences import view as sequences
from difftilt.evaluation.report import write_report
from difftilt.exact import landscape
from difftilt.experiment.finetune import finetune
from difftilt.experiment.job import Job, Maker, View, tune
from difftilt.experiment.sample import sample, trained
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.processes.masked import MaskedPolicy
from difftilt.training.settings import Training

LENGTH, ALPHA = 2, 0.2
TRAINING = Training(rounds=3, batch=64, evaluate=40, learning_rate=0.1)


class Table(nn.Module):
    """Logits of each position's token, whatever the others are."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(LENGTH, len(DNA)))

    def forward(self, x, t, cond):
        return self.logits.expand(len(x), -1, -1)


def chain() -> MaskedPolicy:
    return MaskedPolicy(Table(), len(DNA), LENGTH)


def a_share(x, cond) -> torch.Tensor:
    """The share of letters that are A."""
    return (x == 0).float().mean(1)


def job(training: Training = TRAINING) -> Job:
    """Two letters, of which A is rewarded; nothing about it is left to sampling."""
    objective = Objective(a_share, chain().requires_grad_(False), ALPHA)

    def exact(policy: Policy) -> dict[str, float]:
        found = landscape.evaluate(objective, policy)
        return {"J": found.objective.item(), "share of AA": found.law[0].item()}

    def optimum() -> dict[str, float]:
        solved = landscape.solve(objective)
        return {"J": solved.optimum.item(), "share of AA": solved.law[0].item()}

    return Job(
        chain(),
        objective,
        PPO(),
        training,
        view=View(
            draw=lambda seen, path: sequences.draw(seen, path, DNA),
            spell=lambda x: spell(x, DNA),
            exact=exact,
            optimum=optimum,
            exact_note="All 16 sequences were scored.",
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "letters"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"recipe": "letters", "settings": {"alpha": ALPHA}}))
    finetune(job(), folder, Accelerator(cpu=True))
    return folder


def test_exact_numbers_stand_in_the_summary_before_and_after(folder: Path):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["exact"] == pytest.approx({"J": 1 / 4, "share of AA": 1 / 16})
    z = (torch.tensor([1.0, 0, 0, 0]) / 2 / ALPHA).exp().mean()  # of one letter
    best = {"J": 2 * ALPHA * z.log().item(), "share of AA": (torch.e ** (1 / ALPHA) / (4 * z) ** 2).item()}
    assert summary["optimum"] == pytest.approx(best, rel=1e-5)
    assert summary["before"]["exact"]["J"] < summary["exact"]["J"] < best["J"]
    assert summary["exact"]["J"] == pytest.approx(summary["objective"], abs=4 * summary["objective_se"])
    assert summary["exact_note"] == "All 16 sequences were scored."


def test_the_table_and_the_fasta_hold_the_samples_with_their_rewards(folder: Path):
    for when in ("before", "after"):
        rows = list(csv.DictReader((folder / "samples" / f"{when}.csv").open()))
        assert len(rows) == TRAINING.evaluate and list(rows[0]) == ["sample", "reward", "kl_nats"]
        assert all(float(row["reward"]) == row["sample"].count("A") / LENGTH for row in rows)
        fasta = (folder / "samples" / f"{when}.fasta").read_text().splitlines()
        assert fasta[1::2] == [row["sample"] for row in rows]
        rewards = [float(re.findall(r"reward=(\S+)", line)[0]) for line in fasta[::2]]
        assert rewards == [float(row["reward"]) for row in rows]
        assert (folder / "samples" / f"{when}.png").exists()


def test_nothing_half_written_is_left(folder: Path):
    assert not [path for path in folder.rglob(".*")]


def rows_of(page: str) -> dict[str, list[str]]:
    """The table of exact numbers, by the name of the row."""
    table = re.search(r"Exactly, without sampling.*?<table.*?>(.*?)</table>", page, re.S)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.S)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_the_page_sets_the_tuned_model_between_the_pretrained_one_and_the_optimum(folder: Path):
    page = (folder / "report.html").read_text()
    rows, summary = rows_of(page), json.loads((folder / "summary.json").read_text())
    assert rows[""] == ["pretrained", "tuned", "best possible"]
    laws = (summary["before"]["exact"], summary["exact"], summary["optimum"])
    for name in ("J", "share of AA"):
        assert rows[name] == [f"{law[name]:.4g}" for law in laws]
    assert "All 16 sequences were scored." in page
    assert page.count("data:image/png") == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.25, "0.25"), (-3.052e-5, "−3.052 × 10⁻⁵"), (2e12, "2 × 10¹²"), (float("inf"), "inf"), (0, "0")],  # noqa: RUF001
)
def test_small_shares_are_written_as_people_do(tmp_path: Path, value: float, shown: str):
    (tmp_path / "run.json").write_text("{}")
    before = {"exact": {"<b>": value}}
    (tmp_path / "summary.json").write_text(json.dumps({"before": before, "exact": {"new": 1}}))
    rows = rows_of(write_report(tmp_path).read_text())
    assert rows == {"": ["pretrained", "tuned"], "&lt;b&gt;": [shown, ""], "new": ["", "1"]}


def test_an_unfinished_run_shows_what_is_known(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "before.json").write_text(json.dumps({"exact": {"J": 1}, "optimum": {"J": 2}}))
    assert rows_of(write_report(tmp_path).read_text()) == {
        "": ["pretrained", "best possible"],
        "J": ["1", "2"],
    }
    (tmp_path / "before.json").unlink()
    assert "Exactly, without sampling" not in write_report(tmp_path).read_text()


def test_samples_drawn_later_are_spelled_too(folder: Path):
    sample(trained(job(), folder), folder / "samples" / "sample-seed3", 5, seed=3)
    rows = list(csv.DictReader((folder / "samples" / "sample-seed3.csv").open()))
    assert len(rows) == 5 and all(len(row["sample"]) == LENGTH for row in rows)
    assert (folder / "samples" / "sample-seed3.fasta").exists()


def test_a_drawing_may_write_its_file_at_once(folder: Path, tmp_path: Path):
    def draw(seen, path: Path) -> None:
        path.with_suffix(".txt").write_text(str(len(seen.reward)))

    drawing = replace(job(), view=View(draw=draw))
    sample(drawing, tmp_path / "new" / "samples" / "mine", 5, seed=3)
    assert (tmp_path / "new" / "samples" / "mine.txt").read_text() == "5"


def recipe(part: Algorithm | None, training: Training = TRAINING) -> Job:
    """Of settings that hold others."""
    made = tune(chain(), a_share, training=training)
    return replace(made, maker=Maker(f"{__file__}:recipe", {"part": part, "training": training}))


OTHERS = {
    "training.rounds 3, but this job has 5": (PPO(), replace(TRAINING, rounds=5)),
    "part.clip 0.2, but this job has 0.1": (PPO(clip=0.1), TRAINING),
    "part ppo, but this job has None": (None, TRAINING),
    "part ppo, but this job has grpo": (GRPO(), TRAINING),
}


def test_a_run_of_other_settings_is_named_by_what_differs(tmp_path: Path):
    finetune(recipe(PPO()), tmp_path / "run")
    for said, other in OTHERS.items():
        with pytest.raises(ValueError, match=f"holds a run with {said}; name"):
            finetune(recipe(*other), tmp_path / "run")
