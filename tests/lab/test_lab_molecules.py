"""A lab of molecules, by commands alone: a table of measurements, plates of SMILES, and what came back."""

import csv
from pathlib import Path

import pytest
import torch
from invented import MOLECULES

from difftilt.cli.main import main
from difftilt.data.chemistry import canonical, parse
from difftilt.domains.molecules import pretrain
from difftilt.experiment.fit_reward import learner_of
from difftilt.lab import language, propose
from difftilt.lab.language import MoleculeLanguage
from difftilt.rewards.molecule import logp


@pytest.fixture
def model(tmp_path: Path, monkeypatch) -> Path:
    """A tiny model, and labs that learn and draw little."""

    def learner(vocabulary, window, both_strands, **settings):
        return learner_of(vocabulary, window, both_strands, members=2, steps=30, **settings)

    monkeypatch.setattr(pretrain, "NETWORK", {"width": 16, "depth": 1, "heads": 2})
    monkeypatch.setattr(language, "learner_of", learner)
    monkeypatch.setattr(propose, "PARTICLES", 16)
    monkeypatch.setattr(propose, "POPULATIONS", 4)
    (tmp_path / "own.smi").write_text("\n".join(MOLECULES))
    words = f"pretrain molecules --data {tmp_path / 'own.smi'} --out {tmp_path / 'model'}"
    main(f"{words} --steps 40 --batch 16 --merges 12 --drawn 100".split())
    return tmp_path / "model"


def test_from_a_table_of_molecules_to_the_next_plate(model: Path, tmp_path: Path, capsys):
    lab = tmp_path / "lab"
    rows = [f"{text},{logp(parse(text)):.2f}" for text in MOLECULES[::3]]
    (tmp_path / "start.csv").write_text("\n".join(["Smiles,pIC50", *rows]))
    words = f"lab init molecules --model {model} --data {tmp_path / 'start.csv'} --budget 10 --batch 5"
    main([*words.split(), "--distance", "25", "--out", str(lab)])
    main(["lab", "propose", str(lab), "--rule", "ucb"])
    told = capsys.readouterr().out
    assert "SMILES: column Smiles" in told and "learned from 32 sequences" in told
    with (lab / "plates" / "round-01.csv").open() as file:
        first = list(csv.DictReader(file))
    texts = [row["sequence"] for row in first]
    known = {canonical(parse(text)) for text in MOLECULES[::3]}
    assert [canonical(parse(text)) for text in texts] == texts and not known & {*texts}
    assert all(int(row["to_labelled"]) > 0 for row in first)
    listed = (lab / "plates" / "round-01.smi").read_text().splitlines()
    assert listed == [f"{row['sequence']}\t{row['id']}" for row in first]
    points = MoleculeLanguage().read(texts)
    apart = MoleculeLanguage().apart(points, points)
    assert (apart.diagonal() == 0).all() and (apart + 100 * torch.eye(len(texts))).min() >= 25
    # one by its id, one by another spelling with a salt, and one that failed
    back = ["id,SMILES,result", f"{first[0]['id']},,3.5", f",{texts[1]}.Cl,4.5", f",{texts[2]},failed"]
    (tmp_path / "back.csv").write_text("\n".join(back))
    main(["lab", "ingest", str(lab), str(tmp_path / "back.csv")])
    main(["lab", "propose", str(lab)])
    main(["lab", "status", str(lab)])
    main(["lab", "report", str(lab)])
    told = capsys.readouterr().out
    assert "2 measurements of 2 sequences, 1 failed wells; 2 proposed sequences are pending" in told
    assert "proposed 10 of 10, measured 2, failed 1" in told
    with (lab / "plates" / "round-02.csv").open() as file:
        assert not {row["sequence"] for row in csv.DictReader(file)} & {*texts}
    with pytest.raises(SystemExit):
        main(["lab", "propose", str(lab), "--rule", "genetic", "--budget", "12"])
    assert "changes letters, which molecules have none of" in capsys.readouterr().err
