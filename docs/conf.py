"""The site: `make docs`. Pages are Markdown that GitHub shows, too; the reference comes from docstrings."""

import inspect
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import difftilt

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"  # pages that are made anew for each build
COPIES = {  # what stands elsewhere in the repository, and is a page of the site, too
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "src/difftilt/domains/digits/weights/README.md": "card-digits.md",
    "src/difftilt/domains/landscape/weights/six6/README.md": "card-six6.md",
    "src/difftilt/domains/molecules/weights/README.md": "card-molecules.md",
}
FOLDERS = {  # of the package, in the order of the reference
    "": "The problem: policies, steps and objectives",
    "processes": "Chains",
    "algorithms": "Algorithms",
    "samplers": "Samplers",
    "values": "Soft values",
    "networks": "Networks: adapters, constraints, conditions",
    "guidance": "Policies around policies",
    "training": "Training",
    "experiment": "Jobs",
    "evaluation": "Evaluation",
    "data": "Data",
}

project = "difftilt"
author = "The difftilt authors"
project_copyright = "2026, The difftilt authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "notebooks"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "code"
myst_heading_anchors = 4
nitpick_ignore_regex = [("py:.*", ".*")]  # types in docstrings are words, and no links
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
toc_object_entries = False
add_module_names = False

html_theme = "furo"
html_title = f"difftilt {version}"
html_show_sphinx = False


def write_pages(app: Any) -> None:
    """The reference, and copies of pages from elsewhere."""
    GENERATED.mkdir(exist_ok=True)
    for source, name in COPIES.items():
        write(
            GENERATED / name,
            relinked((ROOT / source).read_text(), posixpath.dirname(source), "docs/generated"),
        )
    places = [(module, name) for name, module in difftilt._PLACES.items()]
    folders: dict[str, list[tuple[str, str]]] = {folder: [] for folder in FOLDERS}
    for module, name in places:
        folders[module.rpartition(".")[0]].append((module, name))
    lines = [
        "Reference",
        "=========",
        "",
        "All public names, as their docstrings describe them; each is imported from `difftilt` itself.",
        "",
    ]
    for folder, title in FOLDERS.items():
        lines += [title, "-" * len(title), ""]
        for module, name in folders[folder]:
            lines += [f".. {directive(name)}:: difftilt.{module}.{name}", ""]
    write(GENERATED / "reference.rst", "\n".join(lines))


def write(path: Path, text: str) -> None:
    """Leaves a page alone that is as it should be, or each build would be one of all pages."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def directive(name: str) -> str:
    """How autodoc shows a public name."""
    found = getattr(difftilt, name)
    if inspect.isclass(found):
        return "autoclass"
    return "autofunction" if inspect.isfunction(found) else "autodata"


def relinked(text: str, folder: str, to: str) -> str:
    """Links between files of the repository as links between pages of the site, wherever the text moves."""

    def there(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / path).exists():
            return link[0]  # no link at all, as in a SMILES, or one that the build complains of
        shown = f"docs/generated/{COPIES[path]}" if path in COPIES else path
        if shown == "README.md":
            shown = "docs/index.md"
        if (ROOT / path).is_dir():  # a page can hold a file, but no folder
            shown = "docs/results.md"
        return f"]({posixpath.relpath(shown, to)}{link[2] or ''})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", there, text)


def relink_page(app: Any, name: str, text: list[str]) -> None:
    """What pages link to, in the place where the site has it."""
    if not name.startswith("generated/"):
        text[0] = relinked(
            text[0], posixpath.normpath(posixpath.join("docs", posixpath.dirname(name))), "docs"
        )


def plain(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, with formulas in indented lines, and no markup but `names`."""
    lines[:] = shown(lines)


def shown(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring as reStructuredText that reads the same."""
    literal = after_section = False
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() and not indented:
            literal, after_section = False, bool(re.fullmatch(r"[A-Z]\w+:", line))
        if indented and not after_section and not literal:
            literal = True
            yield from ("::", "")
        yield line if literal else escaped(line)


def escaped(line: str) -> str:
    """A line whose stars, bars and underscores are what they look like, outside of `names`."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|\\])|(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    return "`".join(parts)


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", relink_page)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before the sections are read
