"""Classes are small, and abstract or final; each kind of node is started by the engine."""

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
    """The names of a class's methods, properties and dunders among them, each with its decorators."""
    functions = [node for node in definition.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: [ast.unparse(decorator) for decorator in node.decorator_list] for node in functions}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_few_methods_or_is_listed_with_its_reason(name):
    assert (len(methods(CLASSES[name])) > MOST_METHODS) == (name in LARGE)


@pytest.mark.parametrize("name", [n for n in CLASSES if n.startswith(("_engine.", "_runtime."))])
def test_a_class_of_the_engine_or_the_runtime_is_abstract_or_final(name):
    """It may override what is abstract, and nothing that works already: to change a class one wraps it."""
    by_own_name = {full.rpartition(".")[2]: definition for full, definition in CLASSES.items()}
    for base in CLASSES[name].bases:
        bare = ast.unparse(base).rpartition(".")[2]
        if bare in by_own_name:
            works = {n for n, marks in methods(by_own_name[bare]).items() if "abc.abstractmethod" not in marks}
            assert not works & methods(CLASSES[name]).keys(), f"{name} overrides what works in {bare}"


def test_the_engine_starts_each_kind_of_node():
    def leaves(cls):
        return set().union(*map(leaves, cls.__subclasses__())) if cls.__subclasses__() else {cls}

    assert START.keys() == leaves(ir.Node)
