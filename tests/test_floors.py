"""The design's floors: a module imports only from lower floors, never sideways, and stays short."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "difftilt"

FLOORS = [
    ["shapes", "settings", "draft"],
    ["options"],
    [
        "transition",
        "grid",
        "advantages",
        "features",
        "automaton",
        "data.alphabet",
        "data.store",
        "counter",
        "conditions",
        "particles",
        "footprint",
        "best_of",
    ],
    ["policy", "jacobi", "flip", "data.landscape", "data.libraries"],
    ["guard", "data.catalog", "processes.masked", "models.sequence", "models.half", "values.network"],
    ["objective", "data.fetch", "evidence"],
    ["processes.*", "data.command", "rewards.*", "values.*", "steered"],
    ["steering"],
    ["replay", "imitation", "exact.result"],
    ["algorithms.*", "samplers.*", "models.*", "exact.*"],
    [f"training.{name}" for name in ("seeds", "signals", "log", "ema", "tree", "distributed", "budget")],
    ["training.checkpoint", "training.fit", "training.pretrain", "evaluation.number"],
    [f"evaluation.{name}" for name in ("metrics", "plots", "folder", "verdict", "evaluate")],
    ["training.state", "evaluation.*"],
    ["training.run"],
    ["recipes.guidances"],
    ["recipes.job", "recipes.record"],
    ["recipes.execute", "recipes.algorithms"],
    ["recipes.*"],
    ["commands.runs"],
    ["commands.*"],
    ["cli"],
]
LONGEST_FILE, LONGEST_FUNCTION = 300, 40


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def floor_of(module: str) -> int:
    floors = [i for i, names in enumerate(FLOORS) if any(fnmatch(module, name) for name in names)]
    if not floors:
        pytest.fail(f"{module} stands on no floor: add it to FLOORS")
    return floors[0]


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_from_lower_floors(path: Path):
    module = name_of(path)
    for other in imports(ast.parse(path.read_text())):
        assert floor_of(other) < floor_of(module), f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            doc = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert lines - doc <= LONGEST_FUNCTION, f"{name_of(path)}.{node.name} has {lines - doc} lines"


def test_the_check_can_fail():
    tree = ast.parse("from difftilt.policy import Policy\nimport difftilt.shapes\n")
    assert imports(tree) == {"policy", "shapes"}
    assert floor_of("policy") > floor_of("transition")


def test_no_assert_and_no_unpickling_in_library_code():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{name_of(path)} asserts at line {node.lineno}"
            names = {getattr(node, "id", None), getattr(node, "attr", None)}
            banned = names & {"pickle", "eval_string", "exec", "hasattr"}
            assert not banned, f"{name_of(path)} uses {banned}"
