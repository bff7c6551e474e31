"""The command that learns a reward from a table, and recipes that are tuned towards it."""

import json
from typing import Any

import pytest
import torch
from invented import MOLECULES
from safetensors.torch import load_file, save_file

from difftilt.answers import Failure
from difftilt.cli.reward import reward_command
from difftilt.data.chemistry import parse
from difftilt.data.vocabulary import DNA, Vocabulary, spell
from difftilt.domains.sequences.view import sequence_view
from difftilt.experiment import code
from difftilt.experiment.fit_reward import fit_reward
from difftilt.experiment.reward import find_reward
from difftilt.rewards.fingerprint import fingerprint
from difftilt.rewards.molecule import logp
from difftilt.rewards.saved import load_reward
from difftilt.transition import one_hot


def spelled(x):
    return spell(x, DNA)


def found(text, alphabet=DNA) -> Any:
    """The reward of that name in a recipe whose letters these are."""
    return find_reward(text, {}, sequence_view(alphabet).spell, 1.0)


def sequences(count, seed=0):
    return torch.randint(4, (count, 5), generator=torch.Generator().manual_seed(seed))


def table(path, x, score, letters=DNA):
    rows = [f"{word},{y:.4f}" for word, y in zip(spell(x, letters), score.tolist(), strict=True)]
    path.write_text("\n".join(["name,fitness", *rows]) + "\n")
    return {"data": path, "sequence": "name", "score": "fitness", "members": 3, "steps": 100}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a reward that counts A's, from a table in lower-case RNA."""
    folder = tmp_path_factory.mktemp("learned")
    x = sequences(2000).unique(dim=0)[::4]
    asked = table(folder / "assay.csv", x, (x == 0).sum(1).float(), letters="acgu")
    return folder / "reward", fit_reward(**asked, out=folder / "reward", beta=0.5)


def test_a_reward_is_learned_judged_and_written(made):
    folder, judged = made
    assert judged["at random"].correlation > 0.9
    assert judged["best tenth"].coverage < 0.8 < judged["at random"].coverage  # scores above all that it saw
    quality, card = json.loads((folder / "quality.json").read_text()), (folder / "README.md").read_text()
    assert quality["best tenth"]["count"] == judged["best tenth"].count
    assert f"{judged['at random'].correlation:.2f} ± " in card and "mean - 0.5 std" in card


def test_it_is_read_back_equal(made):
    one, two = load_reward(made[0]), load_reward(made[0])
    assert vars(one) | {"network": 0} == vars(two) | {"network": 0}
    x, weights = sequences(50, seed=1), load_file(made[0] / "reward.safetensors")
    for name, tensor in one.network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name])
    assert torch.equal(one.belief.lower(0.5)(x, {}), two.of(spelled)(x, {}))


def test_recipes_take_it_whatever_the_order_of_their_letters(made):
    x = sequences(20, seed=1)
    reward = found(f"learned:{made[0]}")
    mixed = found(f"learned:{made[0]}", "UGCA")
    assert torch.equal(reward(x, {}), mixed(3 - x, {}))
    soft = one_hot(3 - x, 4).float().requires_grad_()
    assert torch.allclose(mixed(soft, {}), reward(x, {}), atol=1e-6)
    (slope,) = torch.autograd.grad(mixed(soft, {}).sum(), soft)
    assert slope[..., 3].mean() > slope[..., :3].mean()  # A is what it wants
    combined = found(f"learned:{made[0]}:0.5 + learned:{made[0]}:2@linear(0,5)")
    assert [part.weight for part in combined] == [0.5, 2]
    with pytest.raises(ValueError, match="letters ACGT, but got samples in ACGX"):
        found(f"learned:{made[0]}", "ACGX")(one_hot(x, 4).float(), {})
    with pytest.raises(ValueError, match="no text"):
        find_reward(f"learned:{made[0]}", {}, None, 1.0)
    with pytest.raises(ValueError, match=r"nowhere holds no learned reward.*difftilt reward fit"):
        found("learned:nowhere")


def test_a_run_remembers_which_reward_it_was(made):
    text = f"learned:{made[0]}"
    about = code.record([text, "digits"])
    assert set(about) == {text} and len(about[text]["sha256"]) == 64 and not code.outside("learned:reward")
    assert fingerprint(load_reward(made[0]).of(spelled), text)


@pytest.mark.parametrize("damage", ["config", "learner", "weights", "letters"])
def test_a_damaged_reward_is_refused_by_name(made, tmp_path, damage):
    config, weights = (
        json.loads((made[0] / "config.json").read_text()),
        load_file(made[0] / "reward.safetensors"),
    )
    if damage == "config":
        del config["alphabet"]
    elif damage == "letters":
        config["length"] = 6
    elif damage == "learner":
        config["learner"]["members"] = 1
    else:
        del weights["hidden"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "reward.safetensors")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no learned reward in one piece"):
        load_reward(tmp_path)


def test_noise_is_no_reward(tmp_path):
    x = sequences(300).unique(dim=0)
    asked = table(tmp_path / "noise.csv", x, torch.randn(len(x), generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"correlate by .* but at least 0.1. is needed.*--anyway"):
        fit_reward(**asked, out=tmp_path / "reward")
    assert not (tmp_path / "reward").exists()
    fit_reward(**asked, out=tmp_path / "reward", anyway=True)
    assert load_reward(tmp_path / "reward").length == 5


def test_an_assay_is_taken_as_people_have_it(tmp_path, capsys):
    """Columns are found, measurements averaged, and rows without a score left out."""
    x = sequences(300).unique(dim=0)
    rows = [f"v{i};{word.lower()};{word.count('A')},5" for i, word in enumerate(spell(x, DNA))]
    again = [f"w{i};{word};{word.count('A')},7" for i, word in enumerate(spell(x[:20], DNA))]
    blank = ["x;AAAAA;"] if "AAAAA" not in spell(x, DNA) else []
    (tmp_path / "assay.csv").write_text("\n".join(["name;Seq;Activity", *rows, *again, *blank]))
    found = fit_reward(tmp_path / "assay.csv", tmp_path / "reward", members=3, steps=100)
    assert (
        found["at random"].count == len(x) and "of which 20 are means of several" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("rows", "said"), [(["ACG,1", "AC,2"], "20 labels or more, but got 2"), (["ACG,", "ACC,"], "no sc")]
)
def test_what_cannot_be_learned_from_is_refused_with_the_file(rows, said, tmp_path):
    (tmp_path / "assay.csv").write_text("\n".join(["sequence,score", *rows]))
    with pytest.raises(ValueError, match=f"{tmp_path}/assay.csv: .*{said}"):
        fit_reward(tmp_path / "assay.csv", tmp_path / "reward")


def test_a_reward_is_learned_of_sequences_of_any_length(tmp_path):
    """What follows a sequence spells nothing, and a chain's lengths may be others."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(4, (400, 7), generator=draw)
    words = [word[: 4 + i % 4] for i, word in enumerate(spell(x, DNA))]
    rows = [f"{word},{word.count('A') + len(word) / 10}" for word in words]
    (tmp_path / "assay.csv").write_text("\n".join(["sequence,score", *rows]))
    made = fit_reward(tmp_path / "assay.csv", tmp_path / "reward", members=2, steps=80)
    assert made["at random"].correlation > 0.8
    reward = load_reward(tmp_path / "reward")
    assert (reward.shortest, reward.length) == (4, 7)
    ours, chain = reward.vocabulary, Vocabulary(tuple("TGCA"), 3, 7)
    scored = reward.of(chain.spell)(chain.encode(["AAAA", "AAAAA", "CCCCCCC"]), {})
    assert torch.equal(scored, reward.belief.mean(ours.encode(["AAAA", "AAAAA", "CCCCCCC"]), {}))
    assert scored[1] > scored[0] > scored[2]
    soft = one_hot(chain.encode(["AAAA", "CCCCCCC"]), 5).float()
    assert torch.allclose(reward.of(chain.spell)(soft, {}), scored[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="letters ACGT of several lengths, but got samples in ACGT;"):
        reward.of(spelled)(one_hot(x, 4).float(), {})
    with pytest.raises(ValueError, match="has 3 letters, but 4 to 7 are expected"):
        reward.of(spelled)(x[:, :3], {})
    with pytest.raises(ValueError, match="both strands are read of DNA of one length, but got 4 to 7"):
        fit_reward(tmp_path / "assay.csv", tmp_path / "other", both_strands=True)


def test_a_reward_is_learned_of_molecules_and_says_which_samples_are_none(tmp_path, capsys):
    rows = [f"m{n},{text},{logp(parse(text)):.3f}" for n, text in enumerate(MOLECULES)]
    rows += ["a,C[C@H](N)C(=O)O,-1", "b,OCC.Cl,0.5", "c,OCC,0.7", "d,C1CC,2", "e,CCO,"]
    (tmp_path / "assay.csv").write_text("\n".join(["compound,canonical SMILES,pIC50", *rows]))
    words = (
        f"fit --data {tmp_path / 'assay.csv'} --out {tmp_path / 'reward'} --members 3 --steps 60 --bad-rows"
    )
    with pytest.raises(
        ValueError, match="1 of 101 rows cannot be used: 1 whose SMILES has a ring that is open"
    ):
        fit_reward(tmp_path / "assay.csv")
    reward_command([*words.split(), "drop"])
    said = capsys.readouterr().out
    assert "SMILES: column canonical SMILES" in said and "scores: column pIC50" in said
    assert "98 different molecules, without stereochemistry, 98 with a score, of which 1 are means" in said
    quality = json.loads((tmp_path / "reward" / "quality.json").read_text())
    assert quality["at random"]["correlation"] > 0.8
    assert "98 labels of molecules, as 1024 counts" in (tmp_path / "reward" / "README.md").read_text()
    texts = ["CCc1ccccc1CCl", "C1CC", "Clc1ccccc1CCl", "NC(=O)CC(=O)O"]
    reward: Any = find_reward(f"learned:{tmp_path / 'reward'}", {}, lambda x: [texts[i] for i in x], 1.0)
    found: Any = reward(torch.arange(4), {})
    assert isinstance(found[1], Failure) and "ring that is open" in found[1].reason
    assert found[0] > found[3] + 1 and found[2] > found[3] + 1
    assert reward.answers["spread of members"].isfinite().tolist() == [True, False, True, True]
    with pytest.raises(ValueError, match="no motifs"):
        fit_reward(tmp_path / "assay.csv", window=3, bad_rows="drop")
