"""The contributors' page says where things are; they are there."""

import re

import pytest
import test_imports

ROOT = test_imports.PACKAGE.parent
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:ember_jax|tests|benchmarks|findings|\.ci|\.github)(?:/[\w./]+)?)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_what_the_page_names_is_there(path):
    assert (ROOT / path).exists()


def test_the_page_shows_the_floors_that_imports_are_held_to():
    table = PAGE.partition("## The floors")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in rows] == list(test_imports.FLOORS)


def test_the_page_names_the_files_of_all_life_stories():
    assert len(PATHS) > 40


def test_every_list_of_pinned_packages_that_is_installed_is_renewed_by_one_command():
    commands = {path.name: path.read_text() for path in (ROOT / ".ci").iterdir() if path.suffix != ".txt"}
    installed = {f for words in commands.values() for f in re.findall(r" -r ([\w./]+\.txt)", words)}
    assert installed == set(re.findall(r"^frozen ([\w./]+\.txt) ", commands["renew"], re.MULTILINE))
    assert len(installed) == 5
    assert all("Written by .ci/renew" in (ROOT / path).read_text().partition("\n")[0] for path in installed)
