"""The command `difftilt pretrain`."""

import importlib
from collections.abc import Mapping

from difftilt.cli.interruption import watch
from difftilt.cli.options import parse
from difftilt.settings import UsageError, choose

PRETRAIN: Mapping[str, tuple[str, str]] = {
    "digits": ("difftilt.domains.digits.pretrain", "pretrain_digits"),
    "dna": ("difftilt.domains.landscape.pretrain", "pretrain_dna"),
    "molecules": ("difftilt.domains.molecules.pretrain", "pretrain_molecules"),
    "protein": ("difftilt.domains.landscape.pretrain", "pretrain_protein"),
    "sequences": ("difftilt.domains.sequences.pretrain", "pretrain_sequences"),
    "utr": ("difftilt.domains.utr.pretrain", "pretrain_utr"),
}


def pretrain_command(words: list[str]) -> None:
    """Trains a recipe's starting model from its data."""
    if words and words[0] in ("-h", "--help"):
        print(f"usage: difftilt pretrain {{{','.join(PRETRAIN)}}} [OPTIONS]")
        return
    if not words:
        raise UsageError(f"difftilt pretrain needs a recipe: {', '.join(PRETRAIN)}")
    module, name = choose("recipe", words[0], PRETRAIN)
    pretrain = getattr(importlib.import_module(module), name)
    options = parse(pretrain, words[1:], f"difftilt pretrain {words[0]}")
    with watch.repeatable():
        pretrain(**options)
