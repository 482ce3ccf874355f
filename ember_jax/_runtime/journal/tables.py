"""The tables of a journal's file."""

from .columns import COLUMNS

APPLICATION = 0x656D6272  # "embr", where SQLite's header says whose file it is

TABLES = (
    "create table texts (id integer primary key, digest blob not null unique, words text not null)",
    f"create table calls (id integer primary key, {', '.join(f'{c.name} {c.type}' for c in COLUMNS)})",
    """create table messages (
        call integer not null references calls, position integer not null, role text not null,
        text integer not null references texts, primary key (call, position)) without rowid""",
)
