"""Molecules: tune the shipped model of drug-like ones, or one of your own, towards a reward."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.domains.molecules.model import bundle_of, chain_of, load_molecules
from difftilt.domains.molecules.view import Molecules
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.guard import Reward
from difftilt.rewards import molecule
from difftilt.rewards.combined import names_in
from difftilt.rewards.docking import Docking
from difftilt.settings import Count, Positive, UsageError
from difftilt.shapes import State
from difftilt.training.settings import Training

ALGORITHM = PPO(epochs=1, minibatches=4, advantage="path", kl="reward")
TRAINING = Training(
    rounds=12,
    batch=64,
    learning_rate=5e-4,
    evaluate=256,
    on_error="penalty",
    penalty=0.0,
    cache=True,
)
# the options that a reward is made of
NEEDS: Mapping[str, tuple[Callable[..., molecule.Score], tuple[str, ...]]] = {
    "wanted": (molecule.having, ("wanted",)),
    "forbidden": (molecule.lacking, ("forbidden",)),
    "similarity": (molecule.similarity, ("references",)),
    "scaffold": (molecule.keeping, ("references",)),
    "docking": (Docking, ("receptor", "pocket", "box", "exhaustiveness")),
}


def molecules(
    algorithm: AnyAlgorithm = ALGORITHM,
    model: Path | None = None,
    reward: str = "druglike",
    wanted: tuple[str, ...] = (),
    forbidden: tuple[str, ...] = (),
    references: tuple[str, ...] = (),
    receptor: Path | None = None,
    pocket: str | None = None,
    box: Positive = 20.0,
    exhaustiveness: Count = 8,
    alpha: Positive = 0.07,
    target_kl: Positive | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes the shipped model of drug-like molecules, or your own, towards a reward.

    Samples that are no molecule have no reward. By default they earn 0 (--on-error penalty --penalty 0),
    which J then contains, and their share is reported; with --on-error drop they are left out.

    Args:
        algorithm: How to tune.
        model: A folder that difftilt pretrain molecules wrote; by default the model that ships with the
            package.
        reward: What to maximise. In [0, 1]: `qed`, likeness to drugs; `sa`, how easily it is made;
            `druglike`, their product; `alerts`, 1 without PAINS and BRENK alerts; `wanted`, the share of the
            SMARTS that it holds; `forbidden`, 1 if it holds none; `similarity` to the nearest reference;
            `scaffold`, 1 if it holds a reference's. As they are: `logp`, `mw`, `tpsa`, `rotatable`, and
            `docking`, minus the free energy of binding by AutoDock Vina in kcal/mol, in seconds per molecule
            (--reward-workers); give these a shape, such as mw@double-sigmoid(250,350). Or one of your own:
            FILE.py:NAME, command:COMMAND, http://HOST/PATH or learned:DIR. A function of one argument gets
            SMILES.
        wanted: SMARTS for the reward of that name.
        forbidden: SMARTS for the reward of that name.
        references: SMILES for the rewards `similarity` and `scaffold`.
        receptor: For `docking`, a PDB file of a protein without ligands and waters, or a PDBQT file.
        pocket: For `docking`, where: a PDB, SDF or MOL file of a bound ligand, or a point x,y,z in Angstrom.
        box: Edges of the cube around it in which `docking` searches, above 0, in Angstrom.
        exhaustiveness: How long `docking` searches, at least 1, as Vina counts.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        training: How long and how fast to train.
    """
    network, writing = load_molecules(model)
    kept = {name: x.long() for name, x in bundle_of(model).tensors("measured").items()}
    looks = Molecules(writing, kept["known"], kept["held_out"])
    given = {
        "wanted": wanted, "forbidden": forbidden, "references": references, "receptor": receptor,
        "pocket": pocket, "box": box, "exhaustiveness": exhaustiveness,
    }  # fmt: skip
    known = rewards(reward, given, looks.spell)
    return tune(
        chain_of(network, writing),
        find_reward(reward, known, looks.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward,
        target_kl=target_kl,
        gold={"valid": looks.valid},
        view=looks.view(),
    )


def rewards(asked: str, given: Mapping[str, Any], spell: Callable[[State], list[str]]) -> dict[str, Reward]:
    """The recipe's own rewards, by name.

    Args:
        asked: The reward as a user wrote it.
        given: The values of the options that some of them need.
    """
    scores = dict(molecule.SCORES)
    for name in set(names_in(asked)) & set(NEEDS):
        make, options = NEEDS[name]
        if missing := [option for option in options if not given[option]]:
            raise UsageError(f"the reward {name} needs --{missing[0]}, but got none")
        scores[name] = make(*[given[option] for option in options])
    return {name: molecule.rewarding(score, spell) for name, score in scores.items()}
