"""Every Python block in the front-page documents runs, and every measured table is that of the JSON."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_code_blocks_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    scope = {"__name__": "blocks"}
    exec(compile(script.read_text(), script, "exec"), scope)
    assert capsys.readouterr().out


def test_measured_tables_are_those_of_the_results():
    path = ROOT / "benchmarks" / "document.py"
    spec = importlib.util.spec_from_file_location("benchmark_document", path)
    assert spec and spec.loader
    document = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(document)
    text = (ROOT / "docs" / "algorithms.md").read_text()
    shown = text[text.index(document.START) + len(document.START) : text.index(document.END)]
    assert shown == document.measured(ROOT / "benchmarks" / "results")
