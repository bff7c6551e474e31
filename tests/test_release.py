"""What a release says of itself agrees: version, citation, changelog, licences, and the cards of weights."""

import datetime
import re
import sys
import tomllib
from pathlib import Path

import yaml
from release import SOURCE, find_python, start_page

from difftilt.data.catalog import DATASETS

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CARDS = sorted(path.parent / "README.md" for path in SOURCE.rglob("contents.json"))


def test_the_citation_names_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and found["license"] == "Apache-2.0"
    assert found["message"] and found["title"].startswith("difftilt: ")
    assert found["version"] == VERSION
    (review,) = found["references"]
    for work in (found, review):
        assert work["authors"] and all(
            "name" in person or {"family-names", "given-names"} <= set(person) for person in work["authors"]
        )
    assert {"type", "title", "year", "url"} <= set(review) and "2407.13734" in review["url"]


def test_the_changelog_begins_with_this_version():
    newest, when = re.findall(r"^## (\S+), (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == VERSION
    assert when == "not yet released" or datetime.date.fromisoformat(when)


def test_all_weights_have_a_card_a_command_and_a_licence():
    weights = {path.parent for path in SOURCE.rglob("*.safetensors") if path.parent.parts[-1] != "data"}
    assert weights == {card.parent for card in CARDS} and len(weights) == 3
    notice, page = (ROOT / "NOTICE").read_text(), (ROOT / "docs" / "licences.md").read_text()
    for card in CARDS:
        text, place = card.read_text(), card.parent.relative_to(ROOT).as_posix()
        assert "difftilt pretrain" in text and "## How it was made" in text and "## How good it is" in text
        assert f"../{place}/README.md" in page and place in notice
        for file in card.parent.glob("*.safetensors"):
            assert f"`{file.name}`" in text, f"the card in {place} does not say what {file.name} is"


def test_all_data_in_the_package_stand_on_the_page_of_licences_and_in_the_notice():
    page, notice = (ROOT / "docs" / "licences.md").read_text(), (ROOT / "NOTICE").read_text()
    listed = re.findall(r"^\| `([\w./]+)` \|.*\]\(\.\./(\S+)\) \|$", page, re.MULTILINE)
    binary = [path for path in SOURCE.rglob("*") if path.suffix in (".npz", ".safetensors")]
    named = {SOURCE / place for place, _ in listed}
    assert {path for path in binary if not named & {path, *path.parents}} == set()
    assert all(place.exists() for place in named) and len(named) == 5
    for place, card in listed:
        assert f"src/difftilt/{place}" in notice, place
        assert (ROOT / card).exists(), card


def test_terms_of_data_sets_are_those_of_the_catalogue():
    page = (ROOT / "docs" / "licences.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", page, re.MULTILINE)) == {
        name: data.terms for name, data in DATASETS.items()
    }


def test_templates_are_ones_that_github_reads():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert [form.stem for form in forms] == ["bug", "feature", "question"]
    for form in forms:
        _, head, body = form.read_text().split("---\n", 2)
        assert {"name", "about", "labels"} <= set(yaml.safe_load(head)) and "**" in body


def test_the_start_page_is_commands_of_this_program_and_files_that_they_name():
    commands, files = start_page()
    assert len(commands) >= 5 and {words[0] for words in commands} == {"difftilt"}
    named = {word.partition(":")[0] for words in commands for word in words if ".py:" in word}
    assert named == set(files)


def test_pythons_are_found_where_they_are():
    assert find_python("{}.{}".format(*sys.version_info)) == Path(sys.executable)
    assert find_python("2.0") is None
