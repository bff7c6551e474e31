"""The map of the folders in CONTRIBUTING.md, from the first lines of the docstrings.

python tests/folder_map.py writes it anew.
"""

import ast
from pathlib import Path

from test_floors import FOLDERS, SOURCE

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
START, END = "<!-- map -->\n", "<!-- /map -->"


def drawn() -> str:
    """The folders in the order in which they may import, each with its files."""
    lines = []
    for folder in FOLDERS:
        if folder:
            lines.append(f"- **`{folder}/`** {said(SOURCE / folder / '__init__.py')}")
        else:
            lines.append(f"- **loose files** {said(SOURCE / '__init__.py')}")
        for path in files(folder):
            name = path.relative_to(SOURCE / folder).with_suffix("").as_posix()
            lines.append(f"  - `{name.removesuffix('/__init__')}` {said(path)}")
    return "\n".join(lines) + "\n"


def files(folder: str) -> list[Path]:
    found = (SOURCE / folder).rglob("*.py") if folder else SOURCE.glob("*.py")
    top = SOURCE / folder / "__init__.py"
    return sorted(path for path in found if path != top and path.name != "__main__.py")


def said(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def main() -> None:
    text = PAGE.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    PAGE.write_text(before + drawn() + after)


if __name__ == "__main__":
    main()
