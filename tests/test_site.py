"""Commands in the text are ones that the program takes, notebooks run, and pictures can be read aloud."""

import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_docs import BLOCKS, PAGES, ROOT

import difftilt.cli
from difftilt.cli import options
from difftilt.cli.main import choose_command
from difftilt.evaluation.course import Limits
from difftilt.policy import RATIO_TOLERANCE
from difftilt.settings import UsageError
from difftilt.training.alpha import FAINT, FEWEST

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CODE = '''
from difftilt import PPO, AnyAlgorithm, Job


def recipe(algorithm: AnyAlgorithm = PPO(), alpha: float = 1.0) -> Job:
    """Stands for what a reader would write."""


def score(sample, cond):
    """Stands for any reward."""


walk = recipe
'''


class TakenError(Exception):
    """A command line was understood; what it asks for is not done."""


@pytest.fixture
def take(tmp_path, monkeypatch):
    """Understands a command line as the program does, in a folder with what it names."""
    understood = options.parse

    def parse(*args, **settings):
        understood(*args, **settings)
        raise TakenError

    names = {module.name for module in pkgutil.iter_modules(difftilt.cli.__path__)}
    every = [importlib.import_module(f"difftilt.cli.{name}") for name in sorted(names - {"__main__"})]
    for found in every:  # all were loaded before: none takes another's stand-in for its own
        if getattr(found, "parse", None) is understood:
            monkeypatch.setattr(found, "parse", parse)
    monkeypatch.chdir(tmp_path)
    Path("my_file.py").write_text(CODE + BLOCKS["CONTRIBUTING.md"][0])

    def taken(line: str) -> None:
        words = shlex.split(line, comments=True)
        with pytest.raises(TakenError):
            choose_command(words)(words[1:])

    return taken


def command_lines() -> list[tuple[str, str]]:
    """Every line of the text that begins with the program, and its page."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).replace(" \\\n", " ")
        lines = re.findall(r"^ {4,}(?:torchrun.* -m )?difftilt(?:\.cli)? (.*)$", text, re.MULTILINE)
        found += [(page.name, line) for line in lines]
    return found


def test_command_lines_in_the_text_are_ones_that_the_program_takes(take):
    lines = command_lines()
    assert len(lines) > 60 and len({page for page, _ in lines}) > 10
    for page, line in lines:
        try:
            take(line)
        except Exception as error:
            raise AssertionError(f"{page}: difftilt {line}: {error}") from error


@pytest.mark.parametrize("line", ["finetune dna --alhpa 1", "lab propose", "sample digits sampler:smd"])
def test_lines_with_a_mistake_are_found(line, take):
    with pytest.raises(UsageError):
        take(line)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells), "outputs are not stored"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    (short,) = re.findall(r"(\d+\.\d+) nats short", said)
    assert 0 < float(short) < 1


def test_there_are_two_notebooks_and_the_site_links_them():
    assert len(NOTEBOOKS) == 2
    tutorials = (ROOT / "docs" / "tutorials.md").read_text()
    assert all(f"(notebooks/{path.name})" in tutorials for path in NOTEBOOKS)


def test_pictures_have_a_text_for_those_who_do_not_see_them():
    pictures = [
        found for page in PAGES for found in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
    ]
    assert len(pictures) > 5
    assert all(len(text) > 20 for text, _ in pictures), pictures


def test_links_of_pages_that_the_site_leaves_alone_lead_somewhere():
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", page.read_text())
    ]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_answers_agree_with_the_code():
    faq, precision = ((ROOT / "docs" / name).read_text() for name in ("faq.md", "precision.md"))
    assert f"under {FAINT} nats" in faq and f"above {Limits().clipped:g} the monitor" in faq
    assert "fewer than ten count" in faq and FEWEST == 10
    assert f"differs by more than {RATIO_TOLERANCE:.0e}".replace("e-05", "e-5") in precision
    source = " ".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # messages are written over several lines
    for said in (
        "before the first update the ratio of new to old policy must be 1",
        "this step was not taken and the weights are as before",
        "a distribution's parameters need float32 or better",
        "already holds a run",
        "detaches its input",
        "is so small for this reward that",
    ):
        assert said in " ".join((faq + precision).split()) and said in source, said
