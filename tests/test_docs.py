"""Every Python block in the documents runs, J rises where one trains, and what is generated is not stale."""

import ast
import importlib
import itertools
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_map
import pytest

import difftilt
from difftilt.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {path.name: re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) for path in PAGES}
SHORTER = {  # a command of the documents, in a few seconds
    "pretrain": ["--steps", "20", "--batch", "32"],
    "finetune": ["--rounds", "2", "--batch", "32", "--evaluate", "32"],
}
IN_ORDER = "lora.md"  # its blocks go on from what its commands wrote
Rows = list[dict[str, float]]


@pytest.fixture
def trainings(monkeypatch) -> list[Rows]:
    """The rows of every call of `fit`; of one of `finetune`, what was measured before and after."""
    calls: list[Rows] = []
    fit, finetune = difftilt.fit, difftilt.finetune

    def recorded(*args, **settings) -> Iterator[dict[str, float]]:
        calls.append([])
        for row in fit(*args, **settings):
            calls[-1].append(row)
            yield row

    def measured(*args, **settings) -> dict[str, Any]:
        summary = finetune(*args, **settings)
        calls.append([summary["before"], summary])
        return summary

    monkeypatch.setattr(difftilt, "fit", recorded)
    monkeypatch.setattr(difftilt, "finetune", measured)
    return calls


def rise(rows: Rows) -> float:
    """How far J went up from the first row to the last, in standard errors."""
    first, last = rows[0], rows[-1]
    error = math.hypot(first["objective_se"], last["objective_se"])
    return (last["objective"] - first["objective"]) / error


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks and name != IN_ORDER])
def test_code_blocks_run_and_j_rises_where_they_train(page, tmp_path, monkeypatch, capsys, trainings):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(BLOCKS[page]))
    exec(compile(script.read_text(), script, "exec"), {"__name__": "blocks"})
    assert capsys.readouterr().out
    trains = re.search(r"\b(fit|train|finetune)\(", script.read_text())
    assert bool(trainings) == bool(trains), "a block trains by something that this test does not watch"
    assert all(rise(rows) > 3 for rows in trainings), [round(rise(rows), 1) for rows in trainings]


@pytest.mark.parametrize("page", ["lab.md", "sequences.md"])
def test_commands_run_on_what_the_block_before_them_wrote(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = r"```python\n((?:(?!```).)*)```\n+```sh\n(.*?)```"
    for block, commands in re.findall(shown, (ROOT / "docs" / page).read_text(), re.DOTALL):
        exec(compile(block, "block", "exec"), {"__name__": "block"})
        for line in commands.splitlines():
            program, command, *words = shlex.split(line)
            assert program == "difftilt"
            main([command, *words, *SHORTER.get(command, [])])
    assert "difftilt:" not in capsys.readouterr().err
    assert Path({"lab.md": "lab/report.html", "sequences.md": "runs/own/report.html"}[page]).exists()


def test_blocks_and_commands_of_a_tutorial_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "docs" / IN_ORDER).read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "block"}
    for kind, text in found:
        if kind == "python":
            exec(compile(text, "block", "exec"), names)
        for line in text.splitlines() if kind == "sh" else ():
            main(shlex.split(line)[1:])
    assert [kind for kind, _ in found].count("sh") > 1
    told = capsys.readouterr()
    assert "difftilt:" not in told.err and "draw the same one: True" in told.out
    summary = names["summary"]
    assert rise([summary["before"], summary]) > 2  # both are of the same noise, which this leaves aside


def test_no_page_has_commands_that_are_not_run():
    """Those of start.md run in a clean environment, tests/release.py, those of cluster.md elsewhere."""
    assert [path.name for path in PAGES if "```sh" in path.read_text()] == [
        "cluster.md",
        "lab.md",
        "lora.md",
        "sequences.md",
        "start.md",
    ]


def test_the_front_pages_have_code():
    assert BLOCKS["README.md"] and BLOCKS["CONTRIBUTING.md"]


def test_the_map_of_the_folders_is_that_of_the_tree():
    text = folder_map.PAGE.read_text()
    shown = text[text.index(folder_map.START) + len(folder_map.START) : text.index(folder_map.END)]
    assert shown == folder_map.drawn(), "run python tests/folder_map.py"


@pytest.mark.parametrize(
    "name, script",
    [
        ("algorithms", "document"),
        ("sequences", "document_sequences"),
        ("steering", "document_steering"),
        ("learned", "document_learned"),
        ("which", "document_which"),
        ("review", "document_review"),
        ("cluster", "document_fleet"),
        ("molecules", "document_molecules"),
    ],
)
def test_measured_tables_are_those_of_the_results(name, script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    document = importlib.import_module(script)
    _, shown, _ = importlib.import_module("document").split_page(ROOT / "docs" / f"{name}.md")
    assert shown == document.measured(ROOT / "benchmarks" / "results")


def test_the_exponent_of_a_power_is_its_own_and_errors_are_those_of_the_fit(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    growth = importlib.import_module("growth")
    rows = [{"sweeps": ["batch"], "batch": n, "cost": 3 * n**1.5} for n in (8, 2, 4, 1)]
    rows[3]["cost"] = 1e6  # of the smallest, which does not count
    slope, error = growth.exponent(growth.sweep(rows, "batch"), "batch", "cost")
    assert slope == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-9)
    rows[2]["cost"] *= math.e  # the middle one is off, which leaves the slope: residuals 1/3, 2/3, 1/3
    slope, error = growth.exponent(growth.sweep(rows, "batch"), "batch", "cost")
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx(math.sqrt(2 / 3 / (2 * math.log(2) ** 2)))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_takes_no_sentence_that_follows_it(page):
    lines = page.read_text().splitlines()
    after = [b for a, b in itertools.pairwise(lines) if a.startswith("| ") and not b.startswith("| ")]
    assert all(not line or line.startswith("<!--") for line in after), after


def test_files_that_the_documents_name_are_there():
    places, named = (ROOT, ROOT / "src" / "difftilt"), 0
    for page in PAGES:
        for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|json|md|npz))`", page.read_text()):
            named += 1
            assert any((place / name).exists() for place in places), f"{page.name}: {name}"
    assert named > 20


def described(docstring: str) -> list[str]:
    """The names below `Args:`."""
    found = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    return re.findall(r"^ {4}(\w+):", found[1], re.MULTILINE) if found else []


def own_names(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The arguments of a function, or of what makes an instance of a class."""
    if isinstance(node, ast.FunctionDef):
        return {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
    made = [own_names(f) for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    targets = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
    return {name.id for name in targets if isinstance(name, ast.Name)}.union(*made)


def test_what_docstrings_describe_is_there():
    said = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = described(ast.get_docstring(node) or "")
                said += len(names)
                assert set(names) <= own_names(node), f"{path}:{node.lineno}"
    assert said > 500
