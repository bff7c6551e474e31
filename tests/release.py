"""Builds wheel and sdist, looks at what they hold, and starts from the wheel as a newcomer does.

python tests/release.py [--pythons 3.11 3.12 3.13] [--exact] [--quick] [--constraints FILE]

Each Python that is found gets a clean environment with nothing but the wheel, in which the commands of
docs/start.md run. `--exact` adds the tests against exact references; `--quick` shortens the runs.
"""

import argparse
import ast
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "difftilt"
EXACT = ["tests/exact", "tests/test_transition.py"]
QUICK = ["--rounds", "2", "--batch", "32", "--evaluate", "32"]
MINUTES = 5  # from nothing to the end of the start page


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist and the wheel that is built from it."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """All of the package, its licences and its types are there, and nothing else is installed.

    Raises:
        ValueError: If something is missing or does not belong there.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    info = f"difftilt-{version}.dist-info"
    package = {
        f"difftilt/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if not name.endswith("/")}
        metadata = file.read(f"{info}/METADATA").decode()
    licences = {f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    wanted = (
        package
        | licences
        | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    )
    if held != wanted:
        raise ValueError(f"the wheel lacks {sorted(wanted - held)} and has {sorted(held - wanted)} too much")
    for line in (f"Version: {version}", "License-Expression: Apache-2.0", "# difftilt"):
        if line not in metadata.splitlines():
            raise ValueError(f"the wheel's METADATA has no line {line!r}")
    top = f"difftilt-{version}"
    with tarfile.open(sdist) as file:
        packed = set(file.getnames())
    wanted = {f"{top}/src/{name}" for name in package}
    wanted |= {f"{top}/{name}" for name in ("README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CITATION.cff")}
    if wanted - packed:
        raise ValueError(f"the sdist lacks {sorted(wanted - packed)}")


def find_python(version: str) -> Path | None:
    """An interpreter of a version, such as 3.12: this one, of pyenv, or on PATH."""
    if version == "{}.{}".format(*sys.version_info):
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
    for path in filter(None, found):
        said = subprocess.run([path, "--version"], capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return Path(path)
    return None


def start_page() -> tuple[list[list[str]], dict[str, str]]:
    """The commands of docs/start.md, and the files that it asks to save."""
    page = (ROOT / "docs" / "start.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line) for block in commands for line in block.splitlines()], dict(files)


def start(python: Path, wheel: Path, home: Path, constraints: Path | None, quick: bool) -> Path:
    """A clean environment, the wheel, and the commands of the start page, each with its seconds.

    Args:
        quick: Shorten the runs.

    Returns:
        The environment's interpreter.
    """
    begin, worked = time.monotonic(), processor_seconds()
    subprocess.run([python, "-m", "venv", home / "venv"], check=True)
    bin = home / "venv" / "bin"
    install = [bin / "pip", "install", "--quiet", "--no-compile", wheel]
    timed("pip install", [*install, *(["--constraint", constraints] if constraints else [])], home)
    script = "import difftilt; print(difftilt.__file__)"
    placed = timed("import", [bin / "python", "-c", script], home)
    if not Path(placed.strip()).is_relative_to(home.resolve()):
        raise ValueError(f"difftilt was imported from {placed.strip()}, which is not the clean environment")
    timed("help", [bin / "difftilt", "--help"], home)
    commands, files = start_page()
    for name, text in files.items():
        (home / name).write_text(text)
    for program, *words in commands:
        words += QUICK if quick and words[0] == "finetune" else []
        timed(shlex.join([program, *words]), [bin / program, *words], home)
    minutes, work = (time.monotonic() - begin) / 60, (processor_seconds() - worked) / 60
    print(f"  from nothing to the end of the start page: {minutes:.1f} minutes, {work:.1f} of processor time")
    if work > MINUTES:  # the network and other programs have their own pace
        raise ValueError(f"the start page took {work:.1f} minutes of work, which are more than {MINUTES}")
    return bin / "python"


def processor_seconds() -> float:
    """Of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(what: str, words: Sequence[str | Path], home: Path) -> str:
    """What a command prints, run as if nothing of this process were there; and says how long it took."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DIFFTILT"))}
    begin, worked = time.monotonic(), processor_seconds()
    done = subprocess.run([*words], cwd=home, env=own, capture_output=True, text=True)
    spent, work = time.monotonic() - begin, processor_seconds() - worked
    print(f"  {spent:6.1f} s, {work:5.1f} s of processor time  {what}", flush=True)
    if done.returncode:
        raise ValueError(f"{what} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def prove(python: Path, home: Path, constraints: Path | None) -> None:
    """The tests against exact references, of the installed package."""
    shutil.copytree(ROOT / "tests", home / "tests")
    shutil.copy(ROOT / "pyproject.toml", home)
    tools = [python, "-m", "pip", "install", "--quiet", "--no-compile", "pytest", "hypothesis", "beartype"]
    timed("pip install pytest", [*tools, *(["--constraint", constraints] if constraints else [])], home)
    said = timed("exact tests", [python, "-m", "pytest", "-p", "no:cacheprovider", *EXACT], home)
    print(f"  {said.strip().splitlines()[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(ast.get_docstring(ast.parse(Path(__file__).read_text()))))
    parser.add_argument("--pythons", nargs="+", default=["{}.{}".format(*sys.version_info)])
    parser.add_argument("--exact", action="store_true", help="run the tests against exact references, too")
    parser.add_argument("--quick", action="store_true", help="two short rounds for each run")
    parser.add_argument("--constraints", type=Path, help="exact versions of what is installed")
    asked = parser.parse_args()
    constraints = asked.constraints and asked.constraints.resolve()
    tested, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(Path(folder))
        check_contents(sdist, wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB; complete, and so is {sdist.name}")
        for version in asked.pythons:
            interpreter = find_python(version)
            if interpreter is None:
                missing.append(version)
                continue
            print(f"Python {version}, {interpreter}", flush=True)
            with tempfile.TemporaryDirectory() as home:
                python = start(interpreter, wheel, Path(home), constraints, asked.quick)
                if asked.exact:
                    prove(python, Path(home), constraints)
            tested.append(version)
    print(f"tested on Python {', '.join(tested) or 'none'}; not found: {', '.join(missing) or 'none'}")
    if not tested:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
