"""Anybody's molecules, from the file to the tuned model, without a line of Python."""

import itertools
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from invented import MOLECULES as TEXTS

from difftilt.cli.main import main
from difftilt.conditions import unconditional
from difftilt.data.chemistry import canonical, parse
from difftilt.data.vocabulary import all_sequences, spell
from difftilt.domains.molecules import card as cards
from difftilt.domains.molecules import model as models
from difftilt.domains.molecules import pretrain as pretraining
from difftilt.domains.molecules.model import build, chain_of, load_molecules
from difftilt.domains.molecules.notation import Notation, Writing, written
from difftilt.domains.molecules.recipe import molecules
from difftilt.domains.molecules.syntax import ANY, most_bonds, smiles_syntax, smiles_valences
from difftilt.domains.molecules.tokens import Pieces, learn_pieces
from difftilt.domains.molecules.view import (
    Molecules,
    clusters,
    internal_diversity,
    largest_family,
    structures,
    wasserstein,
)
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.evaluation.run_folder import read_pictures
from difftilt.networks.constraint import accepted
from difftilt.policy import rollout
from difftilt.rewards.molecule import read_or_none
from difftilt.settings import UsageError
from difftilt.training.settings import Training


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model of invented molecules, in a table with salts, stereochemistry and broken rows."""
    folder = tmp_path_factory.mktemp("molecules")
    rows = [f"{n};{text};{'test' if n % 4 == 0 else 'train'}" for n, text in enumerate(TEXTS)]
    rows += ["a;CC(=O)[O-].[Na+];train", "b;C[C@H](N)C(=O)O;train", "c;C1CC;train", "d;;train"]
    (folder / "own.csv").write_text("\n".join(["No;My Structure;SPLIT", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "NETWORK", {"width": 16, "depth": 1, "heads": 2})
        main(
            f"pretrain molecules --data {folder / 'own.csv'} --bad-rows drop --out {folder / 'model'}"
            " --steps 60 --batch 16 --merges 12 --drawn 100".split()
        )
    return folder / "model"


def test_a_model_of_a_file_says_what_it_was_made_of_and_how_good_it_is(model):
    found = json.loads((model / "quality.json").read_text())
    assert found["held_out"] == 20  # the other four are longer than all that was learned from
    assert found["bound"][0] < found["bound_free"][0]  # the grammar rules out what no molecule is
    assert 0 < found["valid"][0] < 1
    card = " ".join((model / "README.md").read_text().split())
    for said in (
        "SMILES: column My Structure", "rows that column SPLIT calls test", "2 of 100 rows cannot be used",
        "1 whose SMILES has a ring that is open, first line 100 (C1CC)", "1 whose SMILES is empty",
        "salts and mixtures of which the largest part is kept: 1", "taken away, of 1 rows",
        "--merges 12 --steps 60",
    ):  # fmt: skip
        assert said in card


def test_all_that_a_chain_draws_keeps_to_the_grammar(model):
    network, writing = load_molecules(model)
    torch.manual_seed(0)
    texts = writing.pieces.spell(rollout(chain_of(network, writing), unconditional(80)).sample)
    for text in texts:
        plain = re.sub(r"\[[^]]*]", "N", text)
        depths = list(itertools.accumulate((sign == "(") - (sign == ")") for sign in plain))
        assert text and min(depths) >= 0 and depths[-1] == 0
        assert all(plain.count(digit) % 2 == 0 for digit in "123")
        assert not re.search(r"[-=#(][-=#]?[)]|[-=#]{2}|^[^A-Za-z]|[-=#(]$|[()]\d|\)$", plain)


def test_tokens_are_pairs_of_tokens_and_spell_what_they_were_made_of():
    pieces = learn_pieces(TEXTS, 12)
    x, places = pieces.encode([*TEXTS, "C[Se]C", ""])
    assert pieces.spell(x) == [TEXTS[place] for place in places.tolist()]
    assert len(TEXTS) * 0.95 < len(x) <= len(TEXTS)
    assert (x < len(pieces.alphabet) - 1).sum(1).float().mean() < 0.7 * sum(map(len, TEXTS)) / len(TEXTS)
    assert "c1cc" in "".join(pieces.alphabet[len(pieces.symbols) :])
    with pytest.raises(ValueError, match="two that come before it"):
        Pieces(("C", "c"), ((0, 2),), 3)


def test_the_grammar_takes_molecules_and_nothing_that_is_open():
    alphabet = (*"CcNO()=1234-", "Cl", "")
    syntax = smiles_syntax(alphabet, 14, 2)
    pieces = Pieces(alphabet[:-1], (), 14)

    def takes(text: str) -> bool:
        rows, places = pieces.encode([text])
        assert len(places) == 1
        return syntax.accepts(rows[0].tolist())

    assert all(map(takes, ["C", "CC(C)(Cl)C=O", "c1ccccc1", "C1CC2CC1C2", "C(C(C)C)C", "C1CC=1", "c1cc-1"]))
    refused = [
        "C(",
        "C)",
        "C1CC",
        "C11",
        "C=",
        "=C",
        "(C)",
        "C()C",
        "C==C",
        "C(C)",
        "C(1)C",
        "C(C(C(C)C)C)C",
        "1",
    ]
    assert not any(map(takes, refused))


def test_what_the_automata_accept_is_a_molecule_but_for_rings_of_two_atoms():
    alphabet = (*"CNF()=1", "")
    every = all_sequences(len(alphabet) - 1, 5)
    syntax, valences = (rule(alphabet, 5, 2) for rule in (smiles_syntax, smiles_valences))
    left = accepted(syntax, every) & accepted(valences, every)
    texts = spell(every[left], alphabet)
    strange = [text for text in texts if read_or_none(text) is None]
    assert len(texts) > 200 and all("1" in text for text in strange) and len(strange) < 0.2 * len(texts)
    assert (accepted(syntax, every) & ~accepted(valences, every)).sum() > 200
    whole = [text for text in spell(every[~left], alphabet) if text[0] not in "()=" and read_or_none(text)]
    # what RDKit reads but does not write: brackets that end a text or follow one another, bonds of rings
    assert [text for text in whole if text[-1] != ")" and "1" not in text] == []
    bonds = {"C": 4, "F": 1, "[O-]": 1, "[N+]": 4, "[C@@H]": 3, "S": ANY, "c": ANY, "[nH]": ANY, "[2H]": 1}
    assert {symbol: most_bonds(symbol) for symbol in bonds} == bonds


@pytest.mark.parametrize("notation", get_args(Notation))
def test_in_every_notation_samples_are_smiles_as_rdkit_writes_them(notation):
    texts = [canonical(parse(text)) for text in TEXTS]
    writing = Writing(learn_pieces(written(texts, notation), 40), 2, notation)
    x = writing.encode(texts)
    assert writing.spell(x) == texts
    assert all(accepted(rule, x).all() for rule in (writing.grammar, writing.valences) if rule)
    assert any("c1" in text for text in writing.pieces.spell(x)) == (notation == "aromatic")
    torch.manual_seed(0)
    chain = chain_of(build(writing, {"width": 16, "depth": 1, "heads": 2}), writing)
    found = [read_or_none(text) for text in writing.spell(rollout(chain, unconditional(50)).sample)]
    valid = sum(one is not None for one in found) / len(found)  # of a network that has learned nothing
    assert valid >= {"kekule": 0.5, "aromatic": 0, "selfies": 0.9}[notation]


def test_a_run_says_what_invalid_samples_earn_and_shows_structures(model, tmp_path):
    out = tmp_path / "run"
    main(
        f"finetune molecules --model {model} --out {out} --rounds 1 --batch 24 --evaluate 60"
        " --alpha 0.1".split()
    )
    summary = json.loads((out / "summary.json").read_text())
    rows = [line.split(",") for line in (out / "samples" / "before.csv").read_text().splitlines()[1:]]
    broken = [row for row in rows if float(row[3]) == 0]
    assert broken and all(float(row[1]) == 0 for row in broken)  # a stated 0, which J contains
    assert summary["before"]["gold"]["valid"] == pytest.approx(1 - len(broken) / len(rows))
    assert summary["penalised"] > len(broken)
    assert summary["distances"]["molecules"][0] == pytest.approx(summary["gold"]["valid"])
    smiles = (out / "samples" / "after.smi").read_text().splitlines()
    blocks = (out / "samples" / "after.sdf").read_text().split("$$$$\n")
    assert len(smiles) == len(blocks) - 1 == round(60 * summary["gold"]["valid"])
    report = (out / "report.html").read_text()
    assert report.count("data:image/svg+xml;base64,") >= 6  # samples, best ones, the largest family
    assert "nats, at most" in report and "between the distributions of molecules the KL is at most" in report
    assert "Largest family" in report and "The best sample of each cluster" in report
    assert summary["family"].startswith("molecules ") and 0 < summary["before"]["family_share"] <= 1
    table = [line.split(",") for line in (out / "samples" / "after.csv").read_text().splitlines()]
    named = {row[-1] for row in table[1:]}
    assert table[0][-1] == "cluster" and named <= {"", *(row[0] for row in table[1:])}
    assert all((row[-1] == "") == (float(row[3]) == 0) for row in table[1:])


def test_rewards_that_need_patterns_ask_for_them(model):
    with pytest.raises(UsageError, match="reward wanted needs --wanted, but got none"):
        molecules(model=model, reward="qed + wanted")
    with pytest.raises(ValueError, match="SMARTS such as"):
        molecules(model=model, reward="forbidden", forbidden=("c1cc(",))
    job = molecules(model=model, reward="wanted", wanted=("[OX2H]",), training=Training(on_error="drop"))
    x = load_molecules(model)[1].encode(["CCc1ccccc1C(=O)O", "CCc1ccccc1OC"])
    assert job.objective.reward(x, unconditional(2)).tolist() == [1.0, 0.0]


def test_sets_are_compared_and_drawn_with_what_is_held_out(model, tmp_path):
    writing = load_molecules(model)[1]
    x = writing.encode(TEXTS)
    looks = Molecules(writing, x[:40], x[40:])
    sample = torch.cat([x[:30], x[:10], torch.full_like(x[:10], 0)])  # a tenth twice, and none of ten
    found = looks.distances(sample)
    assert found["molecules"][0] == pytest.approx(0.8) and found["unique molecules"][0] == pytest.approx(0.75)
    assert (
        found["Wasserstein distance of QED"][0]
        > 3 * looks.distances(x[40:])["Wasserstein distance of QED"][0]
    )
    assert looks.distances(x[40:])["mean aromatic rings (0.981 in the data)"] == pytest.approx(
        (0.981, 0.105), abs=1e-3
    )
    assert looks.family(x[:12]) == ("molecules of scaffold c1ccccc1", 1 / 3, pytest.approx(0.136, abs=1e-3))
    reward = torch.linspace(0, 1, 50, dtype=torch.float64)
    looks.draw(ScoredSamples(sample, reward, reward, {}, 0.1), tmp_path / "after")
    picture = next(after for _, after in read_pictures(tmp_path) if after.what == "best of each cluster")
    assert (picture.width, picture.height) == (880, 720) and picture.uri.startswith(
        "data:image/svg+xml;base64,"
    )
    assert (tmp_path / "after-properties.png").stat().st_size > 5000


def test_what_is_measured_of_sets():
    one, other = parse("CCc1ccccc1"), parse("CC(=O)O")
    assert internal_diversity([one, one]) == 0 and internal_diversity([one, other]) > 0.8
    assert internal_diversity([]) == 0
    assert largest_family([one, parse("CCCc1ccccc1"), other]) == ("c1ccccc1", 2, 3)
    assert largest_family([]) is None
    best = clusters([(0.2, one), (0.9, other), (0.8, parse("CCc1ccccc1"))], 5)
    assert [reward for reward, _ in best] == [0.9, 0.8]
    assert wasserstein(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])) == pytest.approx(3)
    assert structures([one, None], ["1", "none"]).startswith("<?xml")


def test_a_folder_that_is_no_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no model of molecules"):
        molecules(model=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"tokens": {"symbols": ["C"]}, "network": {}}))
    with pytest.raises(ValueError, match="none of a model of molecules"):
        molecules(model=tmp_path)


def test_the_shipped_model_is_as_good_as_its_card_says():
    network, writing = load_molecules()
    folder = models.bundle_of(None).folder
    said = json.loads((folder / "quality.json").read_text())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
    torch.manual_seed(1)
    sample = rollout(chain_of(network, writing), unconditional(100)).sample
    valid = torch.tensor([read_or_none(text) is not None for text in writing.spell(sample)]).double()
    assert valid.mean() == pytest.approx(
        said["valid"][0], abs=4 * said["valid"][1] * len(valid) ** -0.5 * said["drawn"] ** 0.5
    )


def test_a_model_that_writes_no_molecule_is_kept_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "NETWORK", {"width": 16, "depth": 1, "heads": 2})
    monkeypatch.setattr(cards, "readable", lambda texts: [])
    (tmp_path / "own.smi").write_text("\n".join(TEXTS))
    short = "--merges 12 --steps 20 --batch 4 --drawn 100"
    main(f"pretrain molecules --data {tmp_path / 'own.smi'} {short} --out {tmp_path / 'model'}".split())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "A share of\n0.000 ± 0.000 of **all**" in card
    assert re.search(r"\| QED \| 0\.\d+ ± 0\.\d+ \| none \| none \|", card) and "nan" not in card
    load_molecules(tmp_path / "model")


def test_too_few_molecules_are_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "few.smi").write_text("\n".join(TEXTS[:20]))
    with pytest.raises(SystemExit):
        main(f"pretrain molecules --data {tmp_path / 'few.smi'} --out {tmp_path / 'model'}".split())
    assert "molecules remain to learn from" in capsys.readouterr().err
