"""Which journal a session keeps answers in: by default the user's own."""

import os
from pathlib import Path
from typing import Any

from .base import AbstractJournal
from .memory import MemoryJournal, NoJournal
from .sqlite import Journal

# The environment variable that names the user's own journal: a path; or `off` for no journal, or `memory` for one that
# each session keeps to itself. `session(journal=…)` takes the same two words.
VARIABLE = "EMBER_JAX_JOURNAL"
_WORDS = ("off", "memory")

# The default of `session(journal=…)`. It cannot be `None`, which asks for no journal.
UNSET: Any = object()


def default_path() -> Path:
    """The user's own journal: what the environment names, else a file in the user's data folder."""
    named = os.environ.get(VARIABLE, "")
    if named and named not in _WORDS:
        return Path(named).expanduser()
    # Imported here, as `import ember_jax` is to load little, and who names a file does without it.
    import platformdirs

    return platformdirs.user_data_path("ember_jax", appauthor=False) / "journal.db"


def places(journal: AbstractJournal | str | os.PathLike[str] | None) -> tuple[AbstractJournal, AbstractJournal]:
    """The journal for answers of providers with an endpoint, and the journal for answers of those without.

    A journal that the session names keeps both. If none is named, the first is the user's own journal and the second
    lives as long as the session. So the user's own keeps no answer of a simulated model or a function: those cost
    nothing to ask again, and a kept answer would hide that the model or function was changed since.

    **Raises:** `JournalError` if a named file cannot be used, `TypeError` for what is no journal.
    """
    if journal is UNSET:
        named = os.environ.get(VARIABLE, "")
        if named not in _WORDS:
            return Journal(default_path()), MemoryJournal()
        journal = named
    if journal in _WORDS:
        journal = MemoryJournal() if journal == "memory" else None
    if isinstance(journal, str | os.PathLike):
        journal = Journal(journal)
        journal.check()
    journal = NoJournal() if journal is None else journal
    if not isinstance(journal, AbstractJournal):
        raise TypeError(f"session(journal=…) takes a path, an ember.Journal or None, not {type(journal).__name__}.")
    return journal, journal
