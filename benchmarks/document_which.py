"""Writes the tables of docs/which.md, between its markers, from what `difftilt advise` reads.

python benchmarks/document_which.py
"""

from pathlib import Path
from typing import Any

from document import table, write_page

from difftilt.experiment.advise import FEW_CALLS, RULES, Facts, advise, read_evidence

PAGE = Path(__file__).parents[1] / "docs" / "which.md"
SITUATIONS: tuple[tuple[str, dict[str, Any], str], ...] = (  # in words, facts, options of `difftilt advise`
    (
        "a gradient, but a reward that was learned",
        {"differentiable": True, "trusted": False},
        "--differentiable --no-trusted",
    ),
    (
        "a gradient, and little memory beside the model",
        {"differentiable": True, "memory_gib": 24.0, "model_gib": 16.0},
        "--differentiable --memory-gib 24 --model-gib 16",
    ),
    ("a gradient, and a reward that is what you want", {"differentiable": True}, "--differentiable"),
    (f"scores only, and fewer than {FEW_CALLS:,} of them", {"calls": 5000}, "--calls 5000"),
    ("scores only, of a reward that was learned", {"trusted": False}, "--no-trusted"),
    ("scores only, as many as you like", {}, ""),
)
EXACT = ("gmm-x", "gmm-sin", "lqg16", "lqg16-flow")


def main() -> None:
    write_page(PAGE, measured(Path()))


def measured(results: Path) -> str:
    """Both tables, as Markdown. They come from the package, which holds what was measured."""
    return advised() + "\n" + evidence(read_evidence())


def advised() -> str:
    """What `advise` says in each situation, by the rule that decides it."""
    lines = []
    for words, facts, options in SITUATIONS:
        found = advise(Facts(**facts), "digits")
        rule = next(rule for rule in RULES if rule.applies(Facts(**facts)))
        start = " ".join(filter(None, [f"algorithm:{found.algorithm}", rule.options]))
        asked = f"`difftilt advise {options}`" if options else "`difftilt advise`"
        lines.append([words, f"`{start}`", found.reason, asked])
    return table(["the reward has", "start with", "because", "asked by"], lines)


def evidence(known: dict[str, Any]) -> str:
    """What was measured of each algorithm."""
    head = [
        "algorithm",
        *EXACT,
        "digits: reward",
        "gold accuracy",
        "diversity",
        "KL, nats",
        "reward calls",
        "seconds",
    ]
    lines = []
    for name, found in known.items():
        gaps = [found["exact"].get(task) for task in EXACT]
        cells = [f"{row['excess_nats']:.4f} ({row['seeds']})" if row else "" for row in gaps]
        row = found.get("digits", {}).get("equal-kl")
        numbers = ("reward", "gold", "diversity", "kl_nats")
        cells += [f"{row[key]:.2f}" for key in numbers] if row else [""] * len(numbers)
        cells += [f"{row['reward_calls']:,.0f}", f"{row['seconds']:.0f}"] if row else ["", ""]
        lines.append([f"`{name}`", *cells])
    return table(head, lines)


if __name__ == "__main__":
    main()
