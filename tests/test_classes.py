"""Classes are small, abstract or final, and one name means one thing.

The second is Equinox's pattern: a class is abstract, and then its subclasses fill in what it leaves open, or final.
What a method does is read in one place, and no caller has to know which of several runs. What a class does is changed
by wrapping it.
"""

import ast
import collections
import re
from pathlib import Path

import pytest

import ember_jax

PACKAGE = Path(ember_jax.__file__).parent
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

HTTP = (
    "batch_limits",
    "cost",
    "decisions",
    "endpoint",
    "least_prefix",
    "marks_prefix",
    "models",
    "most_cost",
    "most_output",
    "most_samples",
    "price_table",
    "stream",
)
# What may override a concrete method, and why.
OVERRIDING = {
    # Users write providers: they say what they know of the service, and a default tells that nothing is known.
    "Callable": {"Provider.endpoint"},
    "Encoder": {"Provider.endpoint"},
    # Most protocols have answers asked for as a whole.
    "ChatCompletions": {"Dialect.stream", "Dialect.most_samples", "Dialect.batch_limits", "Dialect.decisions"},
    "ChatOrResponses": {"Dialect.stream", "Dialect.most_samples", "Dialect.decisions"},
    "Converse": {"Dialect.stream", "Dialect.least_prefix"},
    "Published": {"Dialect.least_prefix", "Dialect.marks_prefix"},
    # What most services keep of a prompt, and these otherwise.
    "Messages": {"Dialect.least_prefix", "Dialect.marks_prefix"},
    # A feed that has something more to do with each piece.
    "_Answers": {"Feed.__init__"},
    "SpokenWords": {"Feed.__init__", "Feed.give"},
    # Answers in fields alone can be mended.
    "StructuredCall": {"ModelCall.mending"},
    # A question that a service does not decide is asked by letters.
    "DecideCall": {"ModelCall.instead"},
    # A vector is no sample.
    "EmbedCall": {"ModelCall.draws_shared"},
    "RankCall": {"ModelCall.draws_shared"},
    # Some take less in one request for vectors than others, keep another part of a prompt, or decide without words.
    "GenerateContent": {"Dialect.batch_limits", "Dialect.least_prefix", "Dialect.decisions"},
    "HTTPProvider": {f"Provider.{name}" for name in HTTP},
    "Sim": {"Provider.endpoint", "Provider.cost", "Provider.most_output", "Provider.models", "Provider.stream"},
    "Vendor": {f"Provider.{name}" for name in HTTP},
    # Most kinds of node hold no plan and have nothing to say of one; a kind that does says which it holds, what it
    # gives besides, and how it loses inputs.
    "Branch": {"Node.held"},
    "Enclosed": {"Node.held", "Node.extras"},
    "Lanes": {"Node.held", "Node.narrowed"},
    "Scan": {"Node.held", "Node.narrowed"},
    "While": {"Node.held", "Node.narrowed"},
    # A domain says where its own idea is more than that of any walk: of a value's parts, of constants, of steps that
    # hold plans.
    "Bounds": {"Walk.constants", "Walk.control"},
    "Time": {"Walk.control"},
    "_CallOperands": {"Walk.constants", "Walk.part"},
    "_Sharing": {"Walk.carried"},
}

# What may have a name that something else has, and why.
SHARED = {
    # What a service answers, named as its protocol names it.
    "Choice": {"_model/choose.py", "providers/openai.py"},
    "Completion": {"_model/llm.py", "providers/openai.py"},
    "Message": {"providers/base.py", "providers/openai.py"},
    "Usage": {
        "_operator/enclosing.py",
        "providers/anthropic.py",
        "providers/billed.py",
        "providers/decisions.py",
        "providers/gemini.py",
        "providers/openai.py",
        "providers/responses.py",
    },
    # The same thing, as users have it and as the package does; as JAX writes it and as the plan does.
    "Plan": {"_operator/lower.py", "_plan/ir.py"},
    "Scan": {"_jax/equations.py", "_plan/ir.py"},
    "While": {"_jax/equations.py", "_plan/ir.py"},
}


CLASSES = collections.defaultdict(list)  # by name
for _tree in TREES.values():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.ClassDef):
            CLASSES[_node.name].append(_node)


def bases(node):
    """The package's own classes that a class derives from, nearest first."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
        for found in CLASSES.get(name, ()):
            yield found
            yield from bases(found)


def functions(node):
    """The functions that a class has written in it, each overload and each setter by itself."""
    return [member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)]


def methods(node):
    """The methods that a class has written in it: names -> whether they are abstract."""
    return {f.name: any("abstract" in ast.unparse(d) for d in f.decorator_list) for f in functions(node)}


def written(node):
    """All names that a class has written in it: a value may stand for a method of its bases, too."""
    values = [target for member in node.body if isinstance(member, ast.Assign) for target in member.targets]
    values += [member.target for member in node.body if isinstance(member, ast.AnnAssign)]
    return {value.id for value in values if isinstance(value, ast.Name)} | methods(node).keys()


def overridden(node):
    """The concrete methods of its bases that a class overrides."""
    own = written(node)
    for base in bases(node):
        yield from (f"{base.name}.{name}" for name, abstract in methods(base).items() if name in own and not abstract)


def test_no_class_overrides_a_concrete_method():
    found = {name: {method for node in nodes for method in overridden(node)} for name, nodes in CLASSES.items()}
    assert {name: overriding for name, overriding in found.items() if overriding} == OVERRIDING


def test_what_is_to_be_filled_in_is_abstract():
    """A method of a base that only raises `NotImplementedError` is found when it is called; an abstract one before."""
    raising = [
        f"{name}.{member.name}"
        for name, nodes in CLASSES.items()
        for node in nodes
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
        if ast.unparse(member.body[-1]).startswith("raise NotImplementedError")
    ]
    assert not raising


def named(tree):
    """The classes and aliases of types at the top of a module, private ones too; constants are in capitals."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name.lstrip("_")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if re.fullmatch("_*([A-Z][a-z]+)+", name):
                    yield name.lstrip("_")


def test_a_name_of_a_class_means_one_thing():
    places = collections.defaultdict(set)
    for path, tree in TREES.items():
        for name in named(tree):
            places[name].add(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == SHARED


# Public classes whose methods are what users call, or what their values answer to: to move some would only hide them.
MOST_METHODS = 15
LARGE = {
    "Text": "a value: operators, indexing, conversions, how JAX and notebooks see it",
    "Strings": "the methods of str, under their own names",
    "HTTPProvider": "all that is asked of a provider, for every vendor",
    "Vendor": "the same, under a vendor's name",
    "Session": "what every call meets, and what its user has of it",
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_few_methods_or_is_listed_with_its_reason(name):
    assert any(len(functions(node)) > MOST_METHODS for node in CLASSES[name]) == (name in LARGE)
