"""Writes what was measured beside published numbers into docs/molecules.md, between its markers, from JSON.

python benchmarks/document_molecules.py
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from document import rows, table, write_page

from difftilt.evaluation.estimate import Estimate

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "molecules.md"
SPLITS = ("test", "test_scaffolds")
Row = dict[str, Any]

# AUC of the top 10, means and standard deviations: GenMol of Lee et al. (2025), three seeds, as Kaech et al.
# (2025, https://arxiv.org/abs/2509.26405) quote it; the others of Kim et al. (2024), Table 12, who ran five
# seeds of all three with PyTDC 0.4.0, https://arxiv.org/abs/2402.05961v2
TASKS = ("qed", "celecoxib_rediscovery", "median1", "isomers_c7h8n2o2", "isomers_c9h10n2o2pf2cl")
PMO = {
    "Genetic GFN": ((0.942, 0.000), (0.802, 0.029), (0.379, 0.010), (0.969, 0.003), (0.897, 0.007)),
    "GenMol": ((0.942, 0.000), (0.826, 0.018), (0.398, 0.000), (0.942, 0.004), (0.833, 0.014)),
    "REINVENT": ((0.941, 0.000), (0.717, 0.027), (0.363, 0.011), (0.942, 0.012), (0.838, 0.030)),
    "Graph GA": ((0.937, 0.001), (0.593, 0.092), (0.285, 0.012), (0.949, 0.020), (0.839, 0.042)),
}
# FCD of 30,000 samples, mean and standard deviation of three trained models: Polykovskiy et al. (2020)
MOSES = {
    "CharRNN": ((0.0732, 0.0247), (0.5204, 0.0379)),
    "VAE": ((0.099, 0.0125), (0.567, 0.0338)),
    "LatentGAN": ((0.2968, 0.0087), (0.8281, 0.0117)),
    "JTN-VAE": ((0.3954, 0.0234), (0.9382, 0.0531)),
    "AAE": ((0.5555, 0.2033), (1.0572, 0.2375)),
    "molecules that were learned from": ((0.008, None), (0.4755, None)),
}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """Both tables, as Markdown."""
    parts = [pmo(rows(results / "pmo.json")), fcd(rows(results / "molecules_fcd.json"))]
    return "\n".join(part for part in parts if part)


def pmo(found: list[Row]) -> str:
    """The areas of each task, ours and published ones."""
    found = [row for row in found if row["calls"] == 10_000]
    if not found:
        return ""
    lines = []
    for method, model in sorted({(row["method"], row["model"]) for row in found}):
        mine = [row for row in found if (row["method"], row["model"]) == (method, model)]
        own = {task: [row["auc_top10"] for row in mine if row["task"] == task] for task in TASKS}
        lines.append([f"`{method}`, {model} model", *(spread(own[task]) for task in TASKS), whole(own)])
    for name, areas in PMO.items():
        cells = [f"{area:.3f} ± {deviation:.3f}" for area, deviation in areas]
        lines.append([name, *cells, f"{mean(area for area, _ in areas):.3f}"])
    seconds = [row["cpu_seconds"] for row in found]
    head = ["method", *(f"`{task}`" for task in TASKS), "mean"]
    return (
        f"Area under the mean of the best ten, over 10,000 calls; ours took {min(seconds):.0f} to"
        f" {max(seconds):.0f} processor seconds each.\n\n{table(head, lines)}"
    )


def spread(areas: list[float]) -> str:
    """The mean, and the standard deviation of several seeds."""
    if not areas:
        return ""
    deviation = f" ± {stdev(areas):.3f}" if len(areas) > 1 else ""
    return f"{mean(areas):.3f}{deviation} ({len(areas)})"


def whole(own: dict[str, list[float]]) -> str:
    """The mean over all tasks, if each was run."""
    return f"{mean(mean(areas) for areas in own.values()):.3f}" if all(own.values()) else ""


def fcd(found: list[Row]) -> str:
    """The distances of our models, with their floors, and of published ones."""
    if not found:
        return ""
    lines = []
    for row in found:
        name = f"{row['model']} model, {row['drawn']:,} samples"
        cells = [str(Estimate(part["fcd"], part["fcd_se"])) for part in (row[split] for split in SPLITS)]
        floors = [f"{row[split]['floor']:.3f}" for split in SPLITS]
        lines.append([name, cells[0], floors[0], cells[1], floors[1]])
    for name, parts in MOSES.items():
        cells = [f"{value}" + ("" if error is None else f" ± {error}") for value, error in parts]
        lines.append([name, cells[0], "", cells[1], ""])
    head = ["", "to `test`", "floor", "to `test_scaffolds`", "floor"]
    return f"The Frechet ChemNet distance, FCD:\n\n{table(head, lines)}"


if __name__ == "__main__":
    main()
