"""The design's floors: folders stand one above the other, files stay short, and nothing runs in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "difftilt"

# A file imports what lies in folders before its own, never behind it; the loose files of the top come first.
FOLDERS = (
    "",
    *("data", "processes", "networks", "guidance", "rewards", "values", "samplers", "algorithms", "exact"),
    *("training", "evaluation", "experiment", "lab", "domains", "cli"),
)
MOST_LOOSE_FILES = 10
LONGEST_FILE, LONGEST_FUNCTION = 300, 40


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def folder_of(module: str) -> str:
    return module.partition(".")[0] if "." in module else ""


def imports(tree: ast.AST) -> set[str]:
    """The modules of the package that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("difftilt.") for name in found if name.startswith("difftilt.")}
    return {name for name in inside if (SOURCE / (name.replace(".", "/") + ".py")).exists()}


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")


GRAPH = {name_of(path): imports(ast.parse(path.read_text())) for path in MODULES}


def too_low(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a folder that stands behind that of the file."""
    found = []
    for module, others in graph.items():
        rank = FOLDERS.index(folder_of(module))
        found += [f"{module} imports {o}" for o in others if FOLDERS.index(folder_of(o)) > rank]
    return found


def test_a_file_imports_only_from_folders_before_its_own():
    assert not too_low(GRAPH)
    assert {folder_of(module) for module in GRAPH} == set(FOLDERS)


def test_files_of_one_folder_can_be_read_one_after_the_other():
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the circle


def test_few_files_lie_loose():
    assert len([path for path in SOURCE.iterdir() if path.is_file()]) <= MOST_LOOSE_FILES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            doc = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert lines - doc <= LONGEST_FUNCTION, f"{name_of(path)}.{node.name} has {lines - doc} lines"


def test_the_checks_can_fail():
    tree = ast.parse("from difftilt.policy import Policy\nimport difftilt.shapes\n")
    assert imports(tree) == {"policy", "shapes"}
    assert too_low({"algorithms.ppo": {"values.network", "policy"}, "samplers.smc": {"samplers.base"}}) == []
    assert too_low({"policy": {"processes.masked"}}) == ["policy imports processes.masked"]
    with pytest.raises(CycleError):
        list(TopologicalSorter({"policy": {"objective"}, "objective": {"policy"}}).static_order())


def test_no_assert_and_no_unpickling_in_library_code():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{name_of(path)} asserts at line {node.lineno}"
            names = {getattr(node, "id", None), getattr(node, "attr", None)}
            banned = names & {"pickle", "eval_string", "exec", "hasattr"}
            assert not banned, f"{name_of(path)} uses {banned}"
