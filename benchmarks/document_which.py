"""Writes the rules and tables of docs/which.md, between its markers, from what `difftilt advise` reads.

python benchmarks/document_which.py
"""

from pathlib import Path
from typing import Any

from document import table, write_page

from difftilt.experiment.advise import FEW_CALLS, RULES, Facts, advise, read_evidence

PAGE = Path(__file__).parents[1] / "docs" / "which.md"
SITUATIONS: tuple[tuple[str, dict[str, Any]], ...] = (  # in words, and as facts
    ("its best samples where the model hardly ever draws, and they are short sequences", {"rare": True}),
    ("a gradient, but it was learned", {"differentiable": True, "trusted": False}),
    (
        "a gradient, and the model leaves little memory",
        {"differentiable": True, "memory_gib": 24.0, "model_gib": 16.0},
    ),
    ("a gradient, and it is what you want", {"differentiable": True}),
    (f"scores only, fewer than {FEW_CALLS:,}, or slow ones", {"calls": FEW_CALLS - 1}),
    ("scores only, and it was learned", {"trusted": False}),
    ("scores only, as many as you like", {}),
)
LANDSCAPES = ("gb1-lower-0.05", "gb1-whole-0.05", "six6-lower-0.1", "pax6-lower-0.1", "egr2-lower-0.1")
EXACT = ("gmm-x", "gmm-sin", "lqg16", "lqg16-flow")


def main() -> None:
    write_page(PAGE, measured(Path()))


def measured(results: Path) -> str:
    """The rules and both tables, as Markdown. They come from the package, which holds what was measured."""
    return advised() + "\n" + evidence(read_evidence())


def advised() -> str:
    """What `advise` says in each situation, which a list shows better than a table on a phone."""
    lines = []
    for words, facts in SITUATIONS:
        found = advise(Facts(**facts), "digits")
        rule = next(rule for rule in RULES if rule.applies(Facts(**facts)))
        start = " ".join(filter(None, [f"algorithm:{found.algorithm}", rule.options]))
        lines.append(f"- **{words}**: `{start}`. {found.reason}")
    return "The reward has\n\n" + "\n".join(lines) + "\n"


def evidence(known: dict[str, Any]) -> str:
    """What was measured of each algorithm: on chains whose optimum is known, and on digits."""
    exact, landscapes, digits = [], [], []
    for name, found in known.items():
        if gaps := [found["exact"].get(task) for task in EXACT if "exact" in found]:
            cells = [f"{row['excess_nats']:.4f} ({row['seeds']})" if row else "" for row in gaps]
            exact.append([f"`{name}`", *cells])
        if short := [found["landscape"].get(task) for task in LANDSCAPES if "landscape" in found]:
            cells = [f"{row['gap_nats']:.3f} ({row['seeds']})" if row else "" for row in short]
            landscapes.append([f"`{name}`", *cells])
        if row := found.get("digits", {}).get("equal-kl"):
            numbers = [f"{row[key]:.2f}" for key in ("reward", "gold", "diversity", "kl_nats")]
            digits.append([f"`{name}`", *numbers, f"{row['reward_calls']:,.0f}", f"{row['seconds']:.0f}"])
    head = ["algorithm", "reward", "gold", "diversity", "KL, nats", "reward calls", "seconds"]
    tables = [table(["algorithm", *EXACT], exact), table(head, digits)]
    tables += [table(["algorithm", *LANDSCAPES], landscapes)] if landscapes else []
    return "\n".join(tables)


if __name__ == "__main__":
    main()
