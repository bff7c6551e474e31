"""A stranger's sequences, from the file to the tuned model, without a line of Python."""

import json
import math
from pathlib import Path

import invented
import pytest
import torch

from difftilt.cli.main import main
from difftilt.conditions import unconditional
from difftilt.data.read import UnreadableError
from difftilt.data.vocabulary import PROTEIN, Vocabulary
from difftilt.domains.sequences import pretrain as pretraining
from difftilt.domains.sequences.model import LISTED, build, chain_of, load_sequences, network_for, tunable
from difftilt.domains.sequences.recipe import frozen, sequences
from difftilt.exact import landscape
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.settings import UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    data = invented.assay(folder / "assay.csv")
    main(
        f"pretrain sequences --data {data} --out {folder / 'model'} --steps 120 --batch 64"
        " --learning-rate 0.02".split()
    )
    return folder / "model"


def test_a_model_of_a_file_has_learned_its_sequences_and_says_so(model):
    network, vocabulary = load_sequences(model)
    assert vocabulary == Vocabulary(tuple("ACGT"), 5, 8)
    texts = vocabulary.spell(rollout(chain_of(network, vocabulary), unconditional(200)).sample)
    assert {len(text) for text in texts} == {5, 6, 7, 8}
    right = [set(text[::2]) <= set("GC") and set(text[1::2]) <= set("AT") for text in texts]
    assert sum(right) > 190  # of uniform letters, hardly any
    found = json.loads((model / "quality.json").read_text())
    # each letter is one of two, each length one of four; the shares of positions know no more than that
    entropy = 6.5 * torch.tensor(2.0).log().item() + torch.tensor(4.0).log().item()
    assert found["bound"][0] == pytest.approx(entropy, abs=0.6)
    assert found["bound"][0] < found["independent"][0]
    assert found["words"]["drawn"][0] > 0.9
    card = (model / "README.md").read_text()
    assert "column construct, DNA" in card and "--steps 120 --batch 64" in card


def test_the_bound_is_one_of_the_exact_probability():
    short = Vocabulary(tuple("ACGT"), 2, 3)
    torch.manual_seed(0)
    chain = chain_of(build(network_for(short), short), short)
    objective = Objective(lambda sample, cond: torch.zeros(len(sample)), chain, 1.0)
    law = landscape.evaluate(objective, chain).law
    x = short.encode(["ACG", "TT"])
    with torch.no_grad():
        bound = pretraining.bound(chain, x)
    exact = law[(x * torch.tensor([25, 5, 1])).sum(1)].log()
    assert (bound < exact + 0.1).all() and torch.allclose(bound.double(), exact, atol=0.4)


def test_what_is_tuned_obeys_the_constraints_and_the_reward_reads_texts(model, tmp_path):
    reward = tmp_path / "score.py"
    reward.write_text("def score(texts):\n    return [text.count('GA') for text in texts]\n")
    asked = {"template": "GTNT", "forbidden": ("GAGA",), "share": ("GC", 0.25, 0.6)}
    job = sequences(model=model, reward=f"{reward}:score", **asked)
    spell, distances = job.view.spell, job.view.distances
    assert spell is not None and distances is not None
    for policy in (job.policy, job.objective.reference):
        path = rollout(policy, unconditional(100))
        texts = spell(path.sample)
        assert job.objective.reward(path.sample, path.cond).tolist() == [text.count("GA") for text in texts]
        assert len({len(text) for text in texts}) == 4
        for text in texts:
            assert text.startswith("GT") and text[3] == "T" and "GAGA" not in text
            assert 0.25 <= sum(map(text.count, "GC")) / len(text) <= 0.6
    assert set(distances(path.sample)) == {
        "3-mers of held-out sequences",
        "3-mers of the best tenth",
    }


def test_the_network_suits_the_size():
    for longest, kind in ((4, "MLP"), (20, "MLP"), (21, "Convolutional"), (300, "Convolutional")):
        vocabulary = Vocabulary(tuple(PROTEIN), longest, longest)
        made = network_for(vocabulary)
        assert made["kind"] == kind
        network = build(made, vocabulary)
        x = torch.zeros(2, longest, 21)
        x[0, :, 20] = x[1, :, 20] = 1
        x[1, 0] = torch.eye(21)[3]
        torch.nn.init.normal_(network.get_parameter("out.weight" if kind != "MLP" else "logits.weight"))
        last = network(x, torch.ones(2, dtype=torch.long), {})[:, -1]
        assert not torch.equal(*last)  # the last position knows of the first
        corrected = tunable(network, vocabulary) is not None and 21**longest <= LISTED
        assert (
            any("correction" in name for name, _ in tunable(network, vocabulary).named_parameters())
            == corrected
        )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: sequences(model=model), "a reward is needed"),
        (
            lambda model: sequences(model=model / "x", reward="a"),
            "--data FILE --out FOLDER, or name its folder",
        ),
        (
            lambda model: frozen("GGX", Vocabulary(tuple("ACGT"), 5, 8)),
            "or N for those to be drawn, but got 'GGX'",
        ),
        (lambda model: frozen("N" * 9, Vocabulary(tuple("ACGT"), 5, 8)), "has at most 8 letters"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said, model):
    with pytest.raises((UsageError, ValueError), match=said):
        call(model)


def test_too_few_sequences_and_a_broken_model_are_refused(model, tmp_path):
    few = invented.assay(tmp_path / "few.csv", 10)
    with pytest.raises(ValueError, match="10 different sequences, but at least 30 are needed"):
        pretraining.pretrain_sequences(few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "model"
    broken.mkdir()
    for config in ({}, {"vocabulary": {"letters": ["A"], "shortest": 3, "longest": 1}, "network": {}}):
        (broken / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnreadableError, match=r"none of a model of sequences|make it anew"):
            load_sequences(broken)
    whole = json.loads((model / "config.json").read_text())
    whole["vocabulary"]["longest"] = 9
    (broken / "config.json").write_text(json.dumps(whole))
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(UnreadableError, match="holds no whole model"):
        load_sequences(broken)


def test_the_card_s_comparisons_are_what_they_say():
    words = Vocabulary(tuple("ACGT"), 2, 4)
    data, x = words.encode(["ACGT", "ACG", "TT", "AC"]), words.encode(["ACGA", "TTT"])
    assert pretraining.nearest(x, data, 5).tolist() == [1, 1]
    shares = [(3.5, 4), (3.5, 4), (2.5, 4), (0.5, 4)], [(1.5, 4), (1.5, 4), (0.5, 4), (3.5, 4)]
    expected = [math.prod(count / (n + 2.5) for count, n in row) for row in shares]
    assert pretraining.independent(x, data, 5).exp().tolist() == pytest.approx(expected)
    held_out, checked, learned = pretraining.split_rows(torch.arange(40)[:, None])
    assert sorted(torch.cat([held_out, checked, learned])[:, 0].tolist()) == list(range(40))
    assert (len(held_out), len(checked)) == (4, 4)
