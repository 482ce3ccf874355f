"""What a module shows, what it imports when it is first asked for, and what it says of a slip, as PEP 562 has it."""

import difflib
import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def later(
    module: str, names: Mapping[str, str], public: Collection[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a module is given as its `__getattr__` and its `__dir__`.

    **Arguments:**

    - `module`: its name.
    - `names`: those that are imported later, each with the module that it is in, or that it is, below this one.
    - `public`: all that it shows to a user.
    """

    def found(name: str) -> Any:
        if name not in names:
            # Python's own hint knows no letters that are swapped, and notebooks do not show it.
            near = difflib.get_close_matches(name, public, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module {module!r} has no attribute {name!r}.{hint}")
        inside = importlib.import_module(f"{module}.{names[name]}")
        value = getattr(inside, name, inside)
        setattr(sys.modules[module], name, value)
        return value

    def shown() -> list[str]:
        dunders = (name for name in vars(sys.modules[module]) if name.startswith("__"))
        return sorted({*public, *dunders})

    return found, shown
