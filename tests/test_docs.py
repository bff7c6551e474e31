"""Every Python block in the front-page documents runs, and every measured table is that of the JSON."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/algorithms.md", "docs/sequences.md", "docs/steering.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_code_blocks_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    scope = {"__name__": "blocks"}
    exec(compile(script.read_text(), script, "exec"), scope)
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "name, script",
    [("algorithms", "document"), ("sequences", "document_sequences"), ("steering", "document_steering")],
)
def test_measured_tables_are_those_of_the_results(name, script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    document = importlib.import_module(script)
    text = (ROOT / "docs" / f"{name}.md").read_text()
    shown = text[text.index(document.START) + len(document.START) : text.index(document.END)]
    assert shown == document.measured(ROOT / "benchmarks" / "results")


def test_tables_of_sequences_take_what_problems_and_methods_there_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    document = importlib.import_module("document_sequences")
    assert document.measured(tmp_path) == ""
    law = {"gap_nats": 0.5, "reverse_kl_nats": 0.4, "forward_kl_nats": 0.3, "missed": 0.2}
    law |= {"better_than_seen": 0.1}
    optimum = law | {"gap_of_best_masked_nats": 0.01}
    best_of = {"1": law | {"n": 1}, "4": law | {"n": 4, "forward_kl_nats": float("inf")}}
    ends = [law | {"gap_nats": gap, "seconds": 60.2, "calls": 5000} for gap in (0.5, 0.3)]
    runs = [{"method": "ppo", "seed": k, "curve": [ends[k]]} for k in range(2)]
    problem = {"problem": "gb1-lower-0.05", "optimum": optimum, "best_of_n": best_of, "runs": runs}
    alone = document.landscape(problem)
    assert "| `ppo` | 0.300 to 0.500 |  | 0.400 | 0.300 | 20.0 % | 10.0 % | 5,000 | 60 |" in alone
    assert "| best of 4 | 0.500 |  | 0.400 | infinite |" in alone
    student = {"method": "student", "seed": 0, "curve": [ends[0] | {"gap_nats": 0.2, "calls": 0}]}
    beside = document.landscape(problem | {"runs": [*runs, student]})
    assert "| `ppo` | 0.300 to 0.500 | 2.00 |" in beside  # 0.4 over 0.2
    assert beside.index("`student`") < beside.index("`ppo`")
    document.draw([problem], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
