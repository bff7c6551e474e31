"""A newcomer's hour: from a table as labs have it to a plate, its results, the next plate and a page."""

import csv
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from difftilt.cli.main import main

SMALL = {
    "rows": 150,
    "pretrain": ["--steps", "20", "--batch", "32"],
    "fit": ["--members", "2", "--steps", "40"],
    "tune": ["--rounds", "2", "--batch", "16", "--evaluate", "8"],
    "plate": 12,
}
WHOLE = {"rows": 5000, "pretrain": [], "fit": [], "tune": ["--rounds", "20"], "plate": 96}


def true(word: str) -> float:
    return 3 * word.count("K") + 2 * word.count("W") - word.count("D") + len(word) / 4


def assay(path: Path, count: int, draw: random.Random) -> None:
    """Peptides of 6 to 10 residues in lower case, with replicates, and 20 rows that cannot be used."""
    words = ["".join(draw.choices("ADEGKLSTW", k=draw.randint(6, 10))) for _ in range(count - count // 10)]
    words += words[: count // 10]
    rows = [
        f"{n};{w.lower()};{f'{true(w) + draw.gauss(0, 0.5):.3f}'.replace('.', ',')};ok"
        for n, w in enumerate(words)
    ]
    bad = ["x;ade?gkls;1,0;ok", "x;;1,0;ok", "x;adegkls;broken;ok", "x;adegkls;1,0"] * 5
    for row in bad:
        rows.insert(draw.randrange(len(rows)), row)
    path.write_text("\n".join(["No.;Peptide (N to C);Signal, a.u.;QC", *rows]), encoding="utf-16")


def plate(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def timed() -> Callable[..., None]:
    """Runs a command, and prints how long it took."""

    def run(*words: object) -> None:
        begun = time.monotonic()
        main([str(word) for word in words])
        print(f"{time.monotonic() - begun:6.1f} s  difftilt {' '.join(map(str, words[:3]))}")

    return run


@pytest.mark.slow  # docs/lab.md has the same in a few seconds
@pytest.mark.parametrize("size", [SMALL, WHOLE], ids=["small", "whole"])
def test_a_newcomers_hour(size, tmp_path: Path, monkeypatch, timed, capsys):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    assay(Path("export.csv"), size["rows"], draw)
    data = ["--data", "export.csv", "--score", "Signal, a.u."]
    with pytest.raises(SystemExit):
        main(["pretrain", "sequences", *data])
    assert "20 of" in capsys.readouterr().err  # all of them at once
    data += ["--bad-rows", "drop"]
    timed("pretrain", "sequences", *data, "--out", "model", *size["pretrain"])
    timed("reward", "fit", *data, "--out", "reward", *size["fit"])
    tune = ["--model", "model", "--reward", "learned:reward", "--alpha", 0.5, "--out", "tuned", *size["tune"]]
    timed("finetune", "sequences", *tune)
    count = size["plate"]
    timed("lab", "init", "sequences", "--model", "model", *data, "--budget", 2 * count, "--batch", count)
    timed("lab", "propose", "lab")
    rows = plate(Path("lab/plates/round-01.csv"))
    assert len({row["sequence"] for row in rows}) == count and all(
        6 <= len(r["sequence"]) <= 10 for r in rows
    )
    back = [f"{row['id']},{true(row['sequence']) + draw.gauss(0, 0.5):.3f},plate reader 2" for row in rows]
    back[3] = f"{rows[3]['id']},fail,plate reader 2"
    Path("results.csv").write_text("\n".join(["Sample,Result,Instrument", *back]))
    timed("lab", "ingest", "lab", "results.csv")
    timed("lab", "propose", "lab")
    timed("lab", "report", "lab")
    told = capsys.readouterr().out
    assert f"{count - 1} measurements of {count - 1} sequences, 1 failed wells; 0 proposed" in told
    other = {row["sequence"] for row in plate(Path("lab/plates/round-02.csv"))}
    assert len(other) == count and not other & {row["sequence"] for row in rows}
    assert Path("tuned/report.html").exists() and "best measured" in Path("lab/report.html").read_text()
    print(told)
