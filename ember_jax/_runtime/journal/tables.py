"""The tables of a journal's file."""

from .columns import COLUMNS, VERSION

APPLICATION = 0x656D6272  # "embr", where SQLite's header says whose file it is

TABLES = (
    "create table texts (id integer primary key, digest blob not null unique, words text not null)",
    f"create table calls (id integer primary key, {', '.join(c.definition for c in COLUMNS)})",
    """create table messages (
        call integer not null references calls, position integer not null, role text not null,
        text integer not null references texts, primary key (call, position)) without rowid""",
)


def migration(version: int) -> list[str]:
    """The statements that make the tables of an earlier version those of this one.

    SQLite adds a column without writing a row anew, so this takes as long for a million calls as for none.
    """
    added = [f"alter table calls add column {c.definition}" for c in COLUMNS if c.since > version]
    # Whether an empty answer of those days was cut is not known. It was replayed as an answer, and still is.
    whole = ["update calls set finish = 1 where answer = ''"] if version < 3 else []
    return [*added, *whole] if version < VERSION else []
