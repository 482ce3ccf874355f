"""Classes are small, and each kind of node is started by the engine."""

import ast
from pathlib import Path

import pytest

import ember_jax
from ember_jax._engine.steps.table import START
from ember_jax._plan import ir

PACKAGE = Path(ember_jax.__file__).parent
MOST_METHODS = 15

# Public classes whose methods are what users call, or what their values answer to: to move some would only hide them.
LARGE = {
    "_text.text.Text": "a value: operators, indexing, conversions, how JAX and notebooks see it",
}


def classes():
    """Name below the package, dotted -> its class definition; nested ones by their own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[f"{module}.{node.name}"] = node
    return found


CLASSES = classes()


def methods(definition):
    """The methods of a class, properties and dunders among them."""
    return [node for node in definition.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_few_methods_or_is_listed_with_its_reason(name):
    assert (len(methods(CLASSES[name])) > MOST_METHODS) == (name in LARGE)


def test_the_engine_starts_each_kind_of_node():
    def leaves(cls):
        return set().union(*map(leaves, cls.__subclasses__())) if cls.__subclasses__() else {cls}

    assert START.keys() == leaves(ir.Node)
