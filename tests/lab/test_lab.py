"""A lab in the loop: plates, results of all kinds, kills at every write, and a budget that holds."""

import csv
import os
import signal
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from difftilt.cli.main import main
from difftilt.data.vocabulary import Vocabulary, all_sequences, spell
from difftilt.experiment.fit_reward import learner_of
from difftilt.lab import language, propose, rounds
from difftilt.lab.edits import apart
from difftilt.lab.folder import Lab
from difftilt.lab.language import SequenceLanguage
from difftilt.lab.plate import Batch, wells
from difftilt.lab.propose import RIVALS, RuleName
from difftilt.lab.report import standings
from difftilt.networks.automaton import forbid
from difftilt.networks.constraint import constrain, obeys
from difftilt.networks.sequence import MLP
from difftilt.processes.masked import MaskedPolicy
from difftilt.rewards.queries import RULES

START = "construct;Activity\n" + "\n".join(f"{w.lower()};{w.count('A')},5" for w in ("ACGTACGT", "AACCGGTT"))


def said(capsys, *words) -> str:
    """What a command prints."""
    main(["lab", *map(str, words)])
    return capsys.readouterr().out


def refused(capsys, *words) -> str:
    """The one sentence with which a command fails."""
    with pytest.raises(SystemExit) as stop:
        main(["lab", *map(str, words)])
    assert stop.value.code
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("difftilt: ")


def plate(lab: Path, number: int) -> list[dict[str, str]]:
    with (lab / "plates" / f"round-{number:02}.csv").open() as file:
        return list(csv.DictReader(file))


def result(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """One of DNA, that has two measurements: too few to learn from, so that rounds come at once."""
    start = result(tmp_path / "start.csv", START)
    words = ["init", "dna", "--data", start, "--budget", 20, "--batch", 8, "--out", tmp_path / "lab"]
    main(["lab", *map(str, words)])
    return tmp_path / "lab"


def test_rounds_are_new_diverse_and_end_with_the_budget(lab: Path, capsys):
    assert "the rule was random" in said(capsys, "propose", lab)
    said(capsys, "propose", lab)  # while the first one is pending
    assert "4 sequences" in said(capsys, "propose", lab)
    rows = [plate(lab, number) for number in (1, 2, 3)]
    texts = [row["sequence"] for round in rows for row in round]
    assert len(set(texts)) == 20 and not {"ACGTACGT", "AACCGGTT"} & set(texts)
    assert [row["well"] for row in rows[0]] == [f"A{k:02}" for k in range(1, 9)]
    assert rows[1][0]["id"] == "P002-A01" and rows[1][0]["to_proposed"] and not rows[0][0]["to_proposed"]
    for round in rows:
        words = [row["sequence"] for row in round]
        assert all(sum(a != b for a, b in zip(x, y, strict=True)) > 1 for x in words for y in words if x < y)
    fasta = (lab / "plates" / "round-01.fasta").read_text().splitlines()
    assert fasta[:2] == [f">{rows[0][0]['id']}", rows[0][0]["sequence"]]
    assert refused(capsys, "propose", lab).startswith("the budget of 20 sequences is spent")
    assert "1 sequences" in said(capsys, "propose", lab, "--budget", 21)


def test_results_of_every_kind_are_taken_once(lab: Path, tmp_path: Path, capsys):
    """Replicates, failed wells, renamed columns, parts, exports that grow, and no file twice."""
    said(capsys, "propose", lab)
    ids, texts = ([row[name] for row in plate(lab, 1)] for name in ("id", "sequence"))
    lines = [f"{ids[0]},12.0,s", f"{ids[0]},14.0,s", f"{ids[1].lower()},fail,s", f"{ids[2]},,s"]
    first = result(tmp_path / "one.csv", "Sample ID,Plate reader (RFU),operator", *lines)
    assert "2 measurements of 1 sequences, 2 failed wells; 5 proposed" in said(capsys, "ingest", lab, first)
    assert "was ingested on" in said(capsys, "ingest", lab, first)
    grown = result(tmp_path / "two.tsv", first.read_text().strip().replace(",", "\t"), f"{ids[2]}\t3\ts")
    assert "1 measurements of 1 sequences, and 4 that were known" in said(capsys, "ingest", lab, grown)
    other = [f'"{texts[3].lower()}";"7,25"', f'"{texts[4]}";"8,5"']
    said(capsys, "ingest", lab, result(tmp_path / "three.csv", '"oligo";"value"', *other))
    with Lab(lab).held() as held:
        known = held.measured()
        score = dict(zip(known.texts, known.score.tolist(), strict=True))
        (each,) = standings(held)
    assert score[texts[0]] == 13 and known.error[known.texts.index(texts[0])] == 1
    assert score[texts[3]] == 7.25 and score["ACGTACGT"] == 2.5 and texts[1] not in score
    assert (len(each.measured), each.failed, each.pending) == (4, 1, 3)
    assert "measured 4, failed 1, pending 3" in said(capsys, "status", lab)
    read = result(tmp_path / "wells.csv", "Well,Plate,OD", "A6,1,6.5", "A07,1,7.5")
    assert "2 measurements of 2 sequences; 1 proposed" in said(capsys, "ingest", lab, read, "--score", "OD")
    fix = result(tmp_path / "four.csv", "id,value", f"{ids[0]},20")
    said(capsys, "ingest", lab, fix, "--replace")
    with Lab(lab).held() as held:
        assert held.results()[texts[0]] == [20.0]


def test_a_file_that_is_not_meant_changes_nothing(lab: Path, tmp_path: Path, capsys):
    said(capsys, "propose", lab)
    before = _copy(lab)
    ids, texts = ([row[name] for row in plate(lab, 1)] for name in ("id", "sequence"))
    wrong = {
        "none of its rows": ["sequence,value", "ACGTACGA,1", "ACGTACGC,2", "--unknown", "drop"],
        "1 of 2 rows cannot be used: 1 of sequences that this lab did not propose, first line 3 (TTTTTTTT)": [
            "sequence,value", f"{texts[0]},1", "TTTTTTTT,2"],
        "no column holds results": [",".join(plate(lab, 1)[0]), f"{ids[0]},{texts[0]},,,,,,,,"],
        "with an id and a sequence that do not belong together": ["id,seq,value", f"{ids[0]},{texts[1]},1"],
        "with a result that is no number, nor a failure": ["id,value", f"{ids[0]},>9000"],
        "several columns hold numbers (OD600, weight)": [
            "id,OD600,weight", f"{ids[0]},.3,2.5", f"{ids[1]},.4,2.7"],
        "of sequences that the model cannot write": ["id,sequence,value", f"{ids[0]},{texts[0]},1", ",ACG,2"],
    }  # fmt: skip
    for sentence, lines in wrong.items():
        more = [line for line in lines if line in ("--unknown", "drop")]
        path = result(tmp_path / "results.csv", *[line for line in lines if line not in more])
        told = refused(capsys, "ingest", lab, path, *more)
        assert sentence in told and told.startswith(str(path))
    assert _copy(lab) == before
    extra = result(tmp_path / "extra.csv", "sequence,value", f"{texts[0]},1", "TTTTTTTT,2")
    assert "2 measurements of 2 sequences" in said(capsys, "ingest", lab, extra, "--unknown", "accept")
    half = result(tmp_path / "half.csv", "id,value", f"{ids[1]},5", f"{ids[2]},")
    assert "6 proposed sequences are pending" in said(capsys, "ingest", lab, half, "--blank", "pending")


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Learns and draws little."""

    def learner(vocabulary, window, both_strands, **settings):
        return learner_of(vocabulary, 0, both_strands, members=2, steps=20, **settings)

    monkeypatch.setattr(language, "learner_of", learner)
    monkeypatch.setattr(propose, "PARTICLES", 16)
    monkeypatch.setattr(propose, "POPULATIONS", 4)
    monkeypatch.setattr(propose, "WAVES", 3)


class Killed(BaseException):
    """What nothing catches."""


def test_killed_at_any_write_a_lab_proposes_the_same_and_nothing_twice(
    lab: Path, monkeypatch, capsys, tmp_path
):
    """At each write to the file and to plates, before it and after it, the process is gone."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "lab.db").write_bytes(_copy(lab))
    said(capsys, "propose", whole)
    expected, landed = plate(whole, 1), 0
    for target, name in ((Lab, "propose"), (rounds, "write_round"), (Lab, "wrote")):
        for late in (False, True):
            place = tmp_path / f"{name}-{late}"
            place.mkdir()
            (place / "lab.db").write_bytes(_copy(lab))
            right = getattr(target, name)

            def killed(*args, right=right, late=late):
                if late:
                    right(*args)
                raise Killed

            monkeypatch.setattr(target, name, killed)
            with pytest.raises(Killed):
                main(["lab", "propose", str(place)])
            monkeypatch.setattr(target, name, right)
            landed += 1
            finished = name == "wrote" and late
            if not finished:
                said(capsys, "propose", place)
            assert plate(place, 1) == expected and not (place / "plates" / "round-02.csv").exists()
            with Lab(place).held() as held:
                assert len(held.proposals()) == 8 and all(each.written for each in held.rounds())
    assert landed == 6


def _copy(lab: Path) -> bytes:
    """The file of a lab, which is all of it once a command has ended."""
    assert not (lab / "lab.db-wal").exists()
    return (lab / "lab.db").read_bytes()


def test_killed_while_it_ingests_a_lab_takes_the_file_again(lab: Path, monkeypatch, capsys, tmp_path):
    said(capsys, "propose", lab)
    path = result(
        tmp_path / "r.csv", "id,value", *[f"{row['id']},{k}" for k, row in enumerate(plate(lab, 1))]
    )
    monkeypatch.setattr("difftilt.lab.folder._source", _after_source)
    with pytest.raises(Killed):
        main(["lab", "ingest", str(lab), str(path)])
    monkeypatch.undo()
    assert "8 measurements" in said(capsys, "ingest", lab, path)


def _after_source(db, digest, name):
    db.execute("INSERT INTO source VALUES (?, ?, ?)", (digest, name, ""))
    raise Killed


def test_one_works_at_a_time_and_folders_are_refused_in_a_sentence(lab: Path, tmp_path: Path, capsys):
    assert "holds a lab already" in refused(capsys, "init", "dna", "--budget", 5, "--out", lab)
    assert "holds no lab" in refused(capsys, "status", tmp_path)
    begun = os.fork()
    if not begun:  # holds the lab until it is told to end
        with Lab(lab).held():
            (tmp_path / "held").touch()
            signal.pause()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert "is in use by another process" in refused(capsys, "propose", lab)
    os.kill(begun, signal.SIGKILL)
    os.waitpid(begun, 0)
    said(capsys, "status", lab)
    (tmp_path / "mine").mkdir()
    result(tmp_path / "mine" / "notes.txt", "x")
    assert "holds notes.txt already" in refused(
        capsys, "init", "dna", "--budget", 5, "--out", tmp_path / "mine"
    )
    (tmp_path / "torn").mkdir()
    result(tmp_path / "torn" / "lab.db", "no database" * 100)
    assert "cannot be used" in refused(capsys, "status", tmp_path / "torn")
    assert "samples are text" in refused(capsys, "init", "digits", "--budget", 5, "--out", tmp_path / "d")
    short = result(tmp_path / "short.csv", "sequence,score", "ACGTACGT,1", "ACG,2")
    told = refused(capsys, "init", "dna", "--data", short, "--budget", 5, "--out", tmp_path / "s")
    assert told.startswith(str(short)) and "other lengths than the model writes, 8 to 8, first ACG" in told


def test_distances_are_edits_where_lengths_differ():
    words = Vocabulary(tuple("AB"), 1, 4)
    x, y = words.encode(["AB", "ABAB", "BAA"]), words.encode(["AB", "BAB", "A"])
    assert apart(x, y, 2).tolist() == [[0, 1, 1], [2, 1, 3], [2, 1, 2]]
    assert apart(x, y, None).tolist() == [[0, 3, 1], [2, 4, 3], [3, 1, 3]]  # positions, ends included
    every = words.encode([w for n in range(1, 5) for w in spell(all_sequences(2, n), "AB")])
    d = apart(every, every, 2)
    assert torch.equal(d, d.T) and (d.diagonal() == 0).all() and (d[:, None] + d[..., None] >= d[None]).all()


def test_a_batch_is_new_far_apart_and_of_many_parents():
    every, words = all_sequences(4, 4), Vocabulary(tuple("ACGT"), 4, 4)
    known = words.encode(["AAAA", "CCCC"])
    strands = SequenceLanguage(words, both_strands=True)
    batch = Batch(strands, known, known, 2, per_parent=5)
    assert batch.add(every, 100) == 10
    spelt = words.spell(batch.sample)
    assert "TTTT" not in spelt and "AAAA" not in spelt  # one molecule
    d = strands.apart(batch.points, batch.points).fill_diagonal_(9)
    assert d.min() == 2 and min(batch.nearest(known), key=lambda found: found or 0)
    assert Batch(SequenceLanguage(words), known, known, 0).add(every, 999) == 254
    places = [where for where, _ in zip(wells(3), range(97), strict=False)]
    assert places[11:13] == [(3, "A12"), (3, "B01")] and places[95:] == [(3, "H12"), (4, "A01")]


def test_what_a_chain_could_draw():
    chain = MaskedPolicy(MLP(2, 3, 4, depth=1), 2, 3, start=torch.tensor([2, 2, 0]))
    ruled = constrain(chain, forbid(["BB"], 3, "AB"))
    every = all_sequences(2, 3)
    assert spell(every[obeys(ruled, every)], "AB") == ["AAA", "ABA", "BAA"]
    assert int(obeys(chain, every).sum()) == 4


def test_a_learned_round_and_the_page(tmp_path: Path, capsys):
    """Members are asked; a part that is too sharp says that it collapsed, and is filled all the same."""
    words = spell(all_sequences(4, 8)[:: 65536 // 40], "ACGT")
    start = result(
        tmp_path / "s.csv", "seq,score", *[f"{w},{w.count('A') + w.count('C') / 2}" for w in words]
    )
    lab = tmp_path / "lab"
    said(capsys, "init", "dna", "--data", start, "--budget", 30, "--batch", 20, "--alpha", 0.05, "--out", lab)
    told = said(capsys, "propose", lab)
    assert "learned from 41 sequences, alpha 0.05" in told and "different sequences, of which" in told
    rows = plate(lab, 1)
    assert len(rows) == 20 and {row["rule"][:10] for row in rows} >= {f"ladder {k}/5" for k in range(1, 6)}
    assert sum(row["sequence"].count("A") for row in rows) > 2.5 * 20  # 2 without a reward
    assert all(float(row["std"]) > 0 for row in rows)
    back = [f"{row['id']},{row['sequence'].count('A') + row['sequence'].count('C') / 2}" for row in rows[:-2]]
    said(capsys, "ingest", lab, result(tmp_path / "r.csv", "id,value", *back, f"{rows[-2]['id']},fail"))
    assert "4 sequences by genetic" in said(capsys, "propose", lab, "--rule", "genetic", "--batch", 4)
    said(capsys, "report", lab)
    page = (lab / "report.html").read_text()
    assert "The best measured so far is" in page and "24 of 30" in page and page.count("<svg") == 3
    assert "1 of the 20 sequences of round 1 are pending" in page and "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_simulated_lab_tells_regret(capsys):
    words = ["simulate", "dna", "--rule", "greedy", "random", "--budget", 16, "--batch", 8, "--start", 24]
    assert get_args(RuleName) == (*RULES, *RIVALS)
    told = said(capsys, *words)
    assert "regret" in told and "greedy, seed 0: best 0." in told
