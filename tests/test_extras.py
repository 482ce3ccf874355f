"""The extras of `pyproject.toml` bring what they are for."""

import ast
import json
import re
import sys
import tomllib

import test_imports

ROOT = test_imports.PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported by a method of ours, and not by the notebook itself.
METHODS = {"to_pandas": "pandas", "plot": "matplotlib"}


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in requirements}


def needed(code):
    """The packages that a program imports, itself or by a method of ours."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.Attribute(attr=name) if name in METHODS:
                yield METHODS[name]


def test_the_notebooks_extra_brings_what_notebooks_import():
    brought = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["notebooks"]) | {"ember_jax"}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        code = "\n".join("".join(cell["source"]) for cell in cells)
        code = re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE)  # without IPython's own commands
        packages = set(needed(code))
        assert packages - brought - set(sys.stdlib_module_names) == set(), notebook.name
        assert "ember_jax" in packages


def test_the_notebooks_extra_brings_what_programs_import():
    brought = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["notebooks"]) | {"ember_jax"}
    programs = sorted((ROOT / "notebooks" / "programs").glob("*.py"))
    assert len(programs) == 10
    for program in programs:
        packages = set(needed(program.read_text())) - {"orbax"}  # which one of them does without
        assert packages - brought - set(sys.stdlib_module_names) == set(), program.name


def test_the_dev_extra_has_all_others():
    extras = {name: names(packages) for name, packages in PROJECT["optional-dependencies"].items()}
    assert extras["notebooks"] | extras["plot"] | extras["mcp"] | extras["bedrock"] | extras["vertex"] <= extras["dev"]


def test_what_the_dev_extra_brings_is_pinned_where_tests_are_run_with_pinned_packages():
    pinned = (ROOT / ".ci" / "requirements.txt").read_text().splitlines()[1:]
    assert {name.lower() for name in names(PROJECT["optional-dependencies"]["dev"])} <= {
        line.partition("==")[0].lower().replace("-", "_") for line in pinned
    }


def test_readme_has_every_command_of_the_journal():
    readme = (ROOT / "README.md").read_text()
    listed = re.search(r"python -m ember_jax journal ([\w|]+)", readme)[1].split("|")
    found = re.findall(r'^        \("(\w+)", _\w+, ', (test_imports.PACKAGE / "_cli" / "journal.py").read_text(), re.M)
    assert listed == found
