"""The journal on the command line: `python -m ember_jax journal stats|list|show|export|prune`."""

import argparse
import contextlib
import datetime
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ._runtime import sqlite
from ._runtime.place import default_path

_DAY = 86400.0
_WIDTH = 60

_MODEL = "provider || '/' || model"
_CALLS = f"""select lower(hex(calls.digest)) as digest, {_MODEL} as model, endpoint, parameters, sample,
    words as answer, answered_by, request_id, input_tokens, output_tokens, cost, logprob, alternatives, began, ended,
    attempts, calls.id
    from calls join texts on texts.id = answer"""
_MESSAGES = "select role, words from messages join texts on texts.id = text where call = ? order by position"
# An answer, or a message, that holds some words.
_CONTAINS = """(instr(words, :contains) or calls.id in
    (select call from messages join texts on texts.id = text where instr(words, :contains)))"""


def add(commands: Any) -> None:
    """Adds the command `journal` to those of a parser."""
    journal = commands.add_parser("journal", help="look into the file where answers are kept, or shorten it")
    actions = journal.add_subparsers(dest="action", required=True)
    for action, run, words in (
        ("stats", _stats, "how many calls, of which models, and what they cost"),
        ("list", _list, "one line for each call, the newest last"),
        ("show", _show, "one call in full: what was asked, what was answered"),
        ("export", _export, "calls in full, as lines of JSON"),
        ("prune", _prune, "delete calls; without --yes only say which"),
    ):
        parser = actions.add_parser(action, help=words, description=words)
        parser.add_argument("--path", type=Path, help="the journal's file (the user's own)")
        parser.set_defaults(run=run)
        if action in ("list", "export", "prune"):
            parser.add_argument("--model", help="only of this model, as provider/model")
        if action in ("list", "export"):
            parser.add_argument("--since", type=_date, help="only answered since this date: 2026-01-31, or with a time")
            parser.add_argument("--contains", help="only with these words in the prompt or the answer")
        match action:
            case "list":
                parser.add_argument("--prompts", action="store_true", help="show prompts and answers, too")
            case "show":
                parser.add_argument("digest", type=_prefix, help="the first digits of the call's digest, as listed")
            case "export":
                parser.add_argument("--out", type=Path, help="a new file, readable by you alone (standard output)")
            case "prune":
                parser.add_argument("--older-than", type=_days, help="only answered so many days ago: 30d, or 12h")
                parser.add_argument("--yes", action="store_true", help="delete them")


# -- arguments -------------------------------------------------------------------------------------------------------


def _date(words: str) -> float:
    try:
        return datetime.datetime.fromisoformat(words).astimezone().timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not a date such as 2026-01-31 or 2026-01-31T12:00") from None


def _days(words: str) -> float:
    """Seconds."""
    number, unit = words[:-1], {"d": _DAY, "h": _DAY / 24}.get(words[-1:])
    if unit is None or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{words!r} is not a time such as 30d or 12h")
    return int(number) * unit


def _prefix(words: str) -> str:
    if not words or len(words) > 64 or not set(words.lower()) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{words!r} is not the beginning of a digest, which is hexadecimal")
    return words.lower()


# -- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(given: argparse.Namespace) -> Iterator[sqlite3.Connection]:
    """A connection whose rows have names, in one view of the file from beginning to end."""
    path = _path(given)
    with contextlib.closing(sqlite.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            yield connection
        except sqlite3.Error as error:
            raise sqlite.failure(path, error) from error


def _path(given: argparse.Namespace) -> Path:
    return (given.path or default_path()).expanduser().absolute()


def _calls(connection: sqlite3.Connection, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The calls that the arguments ask for, oldest first."""
    conditions = {"model": f"{_MODEL} = :model", "since": "ended >= :since", "contains": _CONTAINS}
    asked = {name: getattr(given, name) for name in conditions if getattr(given, name) is not None}
    where = " and ".join(conditions[name] for name in asked)
    cursor = connection.execute(f"{_CALLS} where {where or 'true'} order by calls.id", asked)
    return map(dict, cursor)


def _full(connection: sqlite3.Connection, call: dict[str, Any]) -> dict[str, Any]:
    """A call as an exported line, with its messages."""
    messages = [dict(zip(("role", "content"), m, strict=True)) for m in connection.execute(_MESSAGES, (call["id"],))]
    return {
        "digest": call["digest"],
        "model": call["model"],
        "endpoint": call["endpoint"],
        "messages": messages,
        "parameters": json.loads(call["parameters"]),
        "sample": call["sample"],
        "answer": call["answer"],
        "answered_by": call["answered_by"],
        "request_id": call["request_id"],
        "input_tokens": call["input_tokens"],
        "output_tokens": call["output_tokens"],
        "cost_usd": call["cost"],
        "logprob": call["logprob"],
        "alternatives": json.loads(call["alternatives"] or "[]"),
        "began": call["began"],
        "ended": call["ended"],
        "attempts": call["attempts"],
    }


# -- commands --------------------------------------------------------------------------------------------------------


def _stats(given: argparse.Namespace) -> None:
    path = _path(given)
    print(path, sqlite.Journal(path).stats(), sep="\n")


def _list(given: argparse.Namespace) -> None:
    with _opened(given) as connection:
        for call in _calls(connection, given):
            cost = "" if call["cost"] is None else f"${call['cost']:.6f}"
            tokens = f"{call['input_tokens']}+{call['output_tokens']}"
            print(call["digest"][:12], sqlite.moment(call["ended"]), f"{tokens:>11} {cost:>10}", call["model"])
            if given.prompts:
                for message in _full(connection, call)["messages"]:
                    print(f"    {message['role']}: {_short(message['content'])}")
                print(f"    answer: {_short(call['answer'])}")


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _WIDTH else words[: _WIDTH - 1] + "…"


def _show(given: argparse.Namespace) -> None:
    with _opened(given) as connection:
        first, last = (bytes.fromhex(given.digest.ljust(64, digit)) for digit in "0f")
        found = connection.execute(f"{_CALLS} where calls.digest between ? and ? limit 2", (first, last)).fetchall()
        if not found:
            sys.exit(f"no call in {_path(given)} has a digest that begins with {given.digest}")
        if len(found) > 1:
            sys.exit(f"several calls have digests that begin with {given.digest}; give more digits")
        call = _full(connection, dict(found[0]))
    messages, answer = call.pop("messages"), call.pop("answer")
    call |= {"began": sqlite.moment(call["began"]), "ended": sqlite.moment(call["ended"])}
    print(*(f"{name.replace('_', ' '):<13} {_plain(value)}" for name, value in call.items()), sep="\n")
    for message in (*messages, {"role": "answer", "content": answer}):
        print(f"\n-- {message['role']}", message["content"], sep="\n")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _export(given: argparse.Namespace) -> None:
    with contextlib.ExitStack() as open_files:
        out: TextIO = sys.stdout
        connection = open_files.enter_context(_opened(given))
        if given.out is not None:
            # "x": no other file is overwritten
            private = lambda path, flags: os.open(path, flags, 0o600)
            out = open_files.enter_context(open(given.out, "x", encoding="utf-8", opener=private))
        for call in _calls(connection, given):
            out.write(json.dumps(_full(connection, call)) + "\n")


def _prune(given: argparse.Namespace) -> None:
    if given.model is None and given.older_than is None:
        sys.exit("say which calls to delete: --older-than 30d, --model provider/model, or both")
    now = datetime.datetime.now().timestamp()
    before = now + _DAY if given.older_than is None else now - given.older_than
    where = f"where ended < :before and (:model is null or {_MODEL} = :model)"
    asked = {"before": before, "model": given.model}
    with _opened(given) as connection:
        (count,) = connection.execute(f"select count(*) from calls {where}", asked).fetchone()
        if not given.yes:
            print(f"{count:,} calls would be deleted; --yes deletes them. They are paid for when they are asked again.")
            return
        with sqlite.transaction(connection):
            count = connection.execute(f"delete from calls {where}", asked).rowcount
            connection.execute("delete from messages where call not in (select id from calls)")
            connection.execute(
                "delete from texts where id not in (select answer from calls union select text from messages)"
            )
        connection.execute("vacuum")
        connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        print(f"{count:,} calls were deleted.")
