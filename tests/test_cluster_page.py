"""The blocks of docs/cluster.md: command lines are resolved and planned, scripts and YAML are read."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from difftilt.cli import main as cli
from difftilt.cli.options import parse
from difftilt.cli.sample import SampleOptions, sample_options
from difftilt.cli.submit import JOBS, SubmitOptions, _submit, command

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def lines() -> list[list[str]]:
    """The words behind `difftilt` of every command on the page."""
    found = []
    for language, block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines() if language != "yaml" else ():
            words = shlex.split(line.rstrip("& "), comments=True)
            if "difftilt.cli" in words:
                found.append(words[words.index("difftilt.cli") + 1 :])
            elif words[:1] == ["difftilt"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("words", lines(), ids=" ".join)
def test_command_lines_are_understood(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "submit":
        place = next(i for i, word in enumerate(words) if word in JOBS)
        options = SubmitOptions(**parse(_submit, words[1:place], "difftilt submit", SubmitOptions))
        started = command(words[place:], options, "first", "7")
        assert started[started.index("difftilt.cli") + 1 :] == words[place:]
        words = words[place:]
    if words[0] == "finetune":
        cli.main([*words, "--dry-run"])
        assert '"plan"' in capsys.readouterr().out
    elif words[0] == "sample":
        assert parse(sample_options, words[1:], "difftilt sample", SampleOptions)["shards"] == 64
    else:
        assert words == ["resume", "runs/ink"]


def test_scripts_are_read_by_bash():
    scripts = [block for language, block in BLOCKS if language == "bash"]
    assert len(scripts) == 4
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(find_spec("ray") is None, reason="an extra")
def test_commands_of_ray_have_options_that_ray_knows():
    from ray.scripts.scripts import cli

    shell = "\n".join(block for language, block in BLOCKS if language != "yaml").replace("\\\n", " ")
    found = [shlex.split(line.rstrip("& ")) for line in re.findall(r"\bray ([a-z].*)", shell)]
    assert [words[0] for words in found] == ["get-auth-token", "start", "start", "start", "start"]
    for name, *words in found:
        cli.commands[name].make_context(name, words)


def test_the_kubernetes_job_runs_a_script_that_goes_on(tmp_path):
    (block,) = [block for language, block in BLOCKS if language == "yaml"]
    container = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"][0]
    (script,) = container["args"]
    script = script.replace("/runs/ink", str(tmp_path)).replace("exec torchrun", "echo")
    said = [subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout]
    (tmp_path / "run.json").write_text("{}")
    said.append(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)
    options = "--standalone --nproc-per-node 4 --max-restarts 3 -m difftilt.cli"
    assert said[0] == f"{options} finetune digits --reward ink --out {tmp_path}\n"
    assert said[1] == f"{options} resume {tmp_path}\n"


def test_no_block_is_left_out():
    assert {language for language, _ in BLOCKS} == {"sh", "bash", "yaml"}
    shell = "\n".join(block for language, block in BLOCKS if language != "yaml")
    assert len(lines()) == len(re.findall(r"difftilt\.cli |^difftilt ", shell, re.MULTILINE)) > 5
