"""Regular expressions that are compiled when they are first used, so that importing costs nothing for the others."""

import re
from typing import Any, cast


class _Lazy:
    def __init__(self, pattern: str, flags: int):
        self.pattern = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # reached for what an instance does not have yet: once for each method of the pattern
        found = getattr(re.compile(self.pattern, self._flags), name)
        setattr(self, name, found)
        return found


def regex(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """`re.compile`, later."""
    return cast("re.Pattern[str]", _Lazy(pattern, flags))
