"""The tables of a journal's file."""

from .columns import COLUMNS

APPLICATION = 0x656D6272  # "embr", where SQLite's header says whose file it is

# Of the processes that use the file, and what they are asking.
_CLAIMS = (
    "create table owners (id integer primary key, host text not null, pid integer not null, until real not null)",
    "create table claims (digest blob primary key, owner integer not null) without rowid",
)

TABLES = (
    "create table texts (id integer primary key, digest blob not null unique, words text not null)",
    f"create table calls (id integer primary key, {', '.join(c.definition for c in COLUMNS)})",
    """create table messages (
        call integer not null references calls, position integer not null, role text not null,
        text integer not null references texts, primary key (call, position)) without rowid""",
    *_CLAIMS,
)


def migration(version: int) -> list[str]:
    """The statements that make the tables of an earlier version those of this one.

    SQLite adds a column without writing a row anew, so this takes as long for a million calls as for none.
    """
    added = [f"alter table calls add column {c.definition}" for c in COLUMNS if c.since > version]
    # Whether an empty answer of those days was cut is not known. It was replayed as an answer, and still is.
    whole = ["update calls set finish = 1 where answer = ''"] if version < 3 else []
    claimed = _CLAIMS if version < 4 else ()
    return [*added, *whole, *claimed]
