"""Imports point down: a file imports only from floors below its own, and `import ember_jax` loads nothing heavy."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ember_jax
from ember_jax._jax import axes, equations, moves

PACKAGE = Path(ember_jax.__file__).parent

# Each of the package's own files and folders stands on one floor; within a folder imports make no circle.
FLOORS = (
    ("errors", "_types", "_alike", "_regex", "_spilling", "_intervals", "_later"),
    ("_jax",),
    ("_callback",),
    ("_text",),
    ("providers", "_annotations"),
    ("_runtime",),
    ("_host", "_returns"),
    ("_function",),
    ("_model", "_plan"),
    ("_engine", "_tell"),
    ("_operator", "testing"),
    ("_evaluate",),
    ("scores",),
    ("learn",),
    ("__init__",),
    ("non",),
    ("_cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Folders that are written with the public names, and named among them: the package imports them when it has the others.
ON_TOP = {"non"}


def modules():
    """Name below the package, dotted -> path: `_plan.ir`, `_plan` for its `__init__`, `__init__` for the package's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return found


MODULES = modules()


def is_package(name):
    return MODULES[name].name == "__init__.py"


def imported(name):
    """The package's own modules that a module imports, each with the line, and whether that is inside a function."""
    tree = ast.parse(MODULES[name].read_text())
    here = [] if name == "__init__" else name.split(".")
    base = here if is_package(name) else here[:-1]
    for_types = [inside for node in tree.body if _is_for_types(node) for inside in node.body]
    at_top = set(map(id, [*tree.body, *for_types]))
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.ImportFrom):
            if node.level:
                start = [*base[: len(base) - node.level + 1], *(node.module or "").split(".")]
                start = [part for part in start if part]
            elif (node.module or "").split(".")[0] == "ember_jax":
                start = node.module.split(".")[1:]
            else:
                continue
            targets = [".".join([*start, alias.name]) for alias in node.names]
            targets = [t if t in MODULES else ".".join(start) or "__init__" for t in targets]
        elif isinstance(node, ast.Import):
            own = [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "ember_jax"]
            targets = [".".join(parts) or "__init__" for parts in own]
        for target in targets:
            assert target in MODULES, f"{name}:{node.lineno} imports {target}, which is no module"
            if name == "__init__" and target in ON_TOP:
                continue
            yield target, node.lineno, id(node) not in at_top


def _is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_stands_on_a_floor_and_imports_from_below_it(name):
    top = name.split(".")[0]
    assert top in FLOOR, f"{name} stands on no floor; add it to FLOORS"
    for target, line, _ in imported(name):
        below = target.split(".")[0]
        assert below in FLOOR, f"{below} stands on no floor; add it to FLOORS"
        assert below == top or FLOOR[below] < FLOOR[top], f"{name}:{line} imports {target}, which is not below it"


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_own_imports_stand_at_its_head(name):
    inside = [f"{name}:{line} imports {target}" for target, line, is_inside in imported(name) if is_inside]
    assert not inside


def test_no_imports_make_a_circle():
    graph = {name: {target for target, _, _ in imported(name)} - {name} for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ON_TOP])
def test_what_stands_on_top_uses_public_names_alone(name):
    top = name.split(".")[0]
    others = {target for target, _, _ in imported(name) if target.split(".")[0] != top} - {"__init__", "_later"}
    assert not [target for target in others if any(part.startswith("_") for part in target.split("."))]


def test_no_floor_names_what_is_not_there():
    assert FLOOR.keys() == {name.split(".")[0] for name in MODULES}


def said(path, attributes, imports, strings=frozenset()):
    """The lines of a module that say one of some attributes, names that are imported, or strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) if name in attributes:
                yield node.lineno
            case ast.Import() if any(alias.name.startswith(imports) for alias in node.names):
                yield node.lineno
            case ast.ImportFrom(module=module, names=names, level=0):
                if any(f"{module}.{alias.name}".startswith(imports) or alias.name in attributes for alias in names):
                    yield node.lineno
            case ast.Attribute(value=ast.Name(id="jax"), attr=name) if f"jax.{name}".startswith(imports):
                yield node.lineno
            case ast.Constant(value=str(words)) if words in strings or words.startswith(imports):
                yield node.lineno


def test_only_the_callback_module_binds_callbacks():
    """The room that knows JAX says `jax.pure_callback` too: its file is where callbacks' frames are."""
    names = {"pure_callback", "io_callback"}
    found = {name: lines for name, path in MODULES.items() if (lines := [*said(path, names, ("no module",))])}
    assert list(found) == ["_callback", "_jax.internals"], found


def test_only_one_room_knows_how_jax_writes_programs_down():
    """Parameters, effects and sources of equations, primitives and their names, and what is private in JAX."""
    attributes = {"params", "primitive", "effects", "source_info", "ctx", "debug_info", "eval_jaxpr", "Tracer"}
    imports = ("jax._src", "jax.core", "jax.interpreters", "jaxlib._jax", "jaxlib.xla_client")
    # Those of one word are words, and two are settings of models too.
    tables = (equations._VIEWS, equations._FACTS, axes._PAIRED, axes._SEVERAL, axes._HOLDING, moves._MOVES)
    primitives = {name for table in tables for name in table if "_" in name or "-" in name}
    primitives -= {"top_k", "random_seed"}
    outside = {name: path for name, path in MODULES.items() if not name.startswith("_jax")}
    assert len(outside) + 8 <= len(MODULES)
    found = {n: lines for n, path in outside.items() if (lines := [*said(path, attributes, imports, primitives)])}
    assert not found


def test_three_files_do_the_io_of_vendors():
    """The others may name a client's type; they read no environment and connect to nothing."""
    io = ("httpx", "httpx2", "aiohttp", "os", "socket", "ssl", "urllib.request", "http.client", "subprocess")
    io += ("botocore.session", "google.auth", "requests")
    folder = {name: path for name, path in MODULES.items() if name.startswith("providers.")}

    def used(path):
        tree = ast.parse(path.read_text())
        typing_only = [
            node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        skipped = {id(node) for branch in typing_only for node in ast.walk(branch)}
        for node in ast.walk(tree):
            if id(node) not in skipped and isinstance(node, ast.Import | ast.ImportFrom):
                yield from [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                yield from [arg.value for arg in node.args if isinstance(arg, ast.Constant)]

    found = [name for name, path in folder.items() if set(used(path)) & set(io)]
    assert found == ["providers.clouds", "providers.environment", "providers.transport"]


def test_importing_loads_nothing_that_is_heavy_or_optional():
    heavy = ("httpx", "httpx_aiohttp", "aiohttp", "tiktoken", "genai_prices", "pandas", "matplotlib", "optax", "tqdm")
    heavy += ("botocore", "google.auth", "requests")
    script = f"import sys, ember_jax; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_importing_starts_no_thread_and_no_backend():
    script = """
import threading, ember_jax
from jax._src import xla_bridge
print(threading.active_count(), xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "False"]), done.stderr


@pytest.mark.parametrize("name", ["__init__", "providers"])
def test_what_is_imported_later_is_what_type_checkers_see(name):
    package = importlib.import_module("ember_jax" if name == "__init__" else f"ember_jax.{name}")
    tree = ast.parse(MODULES[name].read_text())
    seen = {
        alias.name: f"{node.module}.{alias.name}" if node.module else alias.name
        for block in tree.body
        if _is_for_types(block)
        for node in block.body
        for alias in node.names
    }
    assert seen.keys() == {*getattr(package, "_LATER", ()), *getattr(package, "_VENDORS", ())}
    assert seen.keys() <= {*dir(package)}
    for public, path in seen.items():
        found = getattr(package, public)
        module = sys.modules.get(f"{package.__name__}.{path}")
        assert found is (module or getattr(sys.modules[f"{package.__name__}.{path.rpartition('.')[0]}"], public))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018
