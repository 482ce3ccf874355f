"""The journal on the command line: `python -m ember_jax journal stats|list|show|export|forget|prune`."""

import argparse
import contextlib
import datetime
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from .._runtime.journal.calls import Calls
from .._runtime.journal.columns import moment
from .._runtime.journal.place import default_path
from .._runtime.journal.queries import CONDITIONS
from .._runtime.journal.sqlite import Journal

# How many characters of a prompt or an answer a list shows.
_WIDTH = 60
# The options that calls are searched by, and the commands that take all of these options.
_ASKED = {condition.name: condition for condition in CONDITIONS if condition.option}
_SEARCHING = ("list", "export", "forget")


def add(commands: Any) -> None:
    """Adds the command `journal` to the commands of a parser, which are what `add_subparsers` gave."""
    journal = commands.add_parser("journal", help="look into the file where answers are kept, or shorten it")
    actions = journal.add_subparsers(dest="action", required=True)
    for action, run, words in (
        ("stats", _stats, "how many calls, of which models, and what they cost"),
        ("list", _list, "one line for each call, the newest last"),
        ("show", _show, "one call in full: what was asked, what was answered"),
        ("export", _export, "calls in full, as lines of JSON"),
        ("forget", _forget, "delete calls, so that they are asked again; without --yes only say how many"),
        ("prune", _prune, "delete calls that are old, and make the file shorter; without --yes only say how many"),
    ):
        parser = actions.add_parser(action, help=words, description=words)
        parser.add_argument("--path", type=Path, help="the journal's file (the user's own)")
        parser.set_defaults(run=run)
        for condition in _ASKED.values():
            if action in _SEARCHING or (action, condition.name) == ("prune", "model"):
                parser.add_argument(f"--{condition.name}", type=_PARSED.get(condition.name, str), help=condition.option)
        match action:
            case "list":
                parser.add_argument("--prompts", action="store_true", help="show prompts and answers, too")
            case "show":
                parser.add_argument("digest", type=_prefix, help="the first digits of the call's digest, as listed")
            case "export":
                parser.add_argument("--out", type=Path, help="a new file, readable by you alone (standard output)")
            case "forget":
                parser.add_argument("--yes", action="store_true", help="delete them")
            case "prune":
                parser.add_argument("--older-than", type=_days, help="only answered so many days ago: 30d, or 12h")
                parser.add_argument("--yes", action="store_true", help="delete them")


# -- arguments -------------------------------------------------------------------------------------------------------


def _date(words: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not a date such as 2026-01-31 or 2026-01-31T12:00") from None


def _lane(words: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, words.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not a lane such as 3 or 3,7") from None


def _days(words: str) -> datetime.timedelta:
    number, unit = words[:-1], {"d": "days", "h": "hours"}.get(words[-1:])
    if unit is None or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{words!r} is not a time such as 30d or 12h")
    return datetime.timedelta(**{unit: int(number)})


def _yes(words: str) -> bool:
    if words not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{words!r} is neither yes nor no")
    return words == "yes"


def _prefix(words: str) -> str:
    if not words or len(words) > 64 or not set(words.lower()) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{words!r} is not the beginning of a digest, which is hexadecimal")
    return words.lower()


# The functions that read the options whose values are other than plain words.
_PARSED = {"since": _date, "lane": _lane, "failed": _yes, "digest": _prefix}


# -- commands --------------------------------------------------------------------------------------------------------


def _journal(given: argparse.Namespace) -> Journal:
    return Journal(given.path or default_path())


def _calls(given: argparse.Namespace) -> Calls:
    return _journal(given).calls(**{name: getattr(given, name) for name in _ASKED})


def _stats(given: argparse.Namespace) -> None:
    journal = _journal(given)
    print(journal.path, journal.stats(), sep="\n")


def _list(given: argparse.Namespace) -> None:
    for call in _calls(given):
        cost = "" if math.isnan(call.cost) else f"${call.cost:.6f}"
        tokens = f"{call.input_tokens}+{call.output_tokens}"
        print(call.digest.hex()[:12], moment(call.ended), f"{tokens:>11} {cost:>10}", call.model)
        if given.prompts:
            for message in call.messages:
                print(f"    {message.role}: {_short(message.shown())}")
            print(f"    answer: {_short(call.answer or '')}")


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _WIDTH else words[: _WIDTH - 1] + "…"


def _show(given: argparse.Namespace) -> None:
    journal = _journal(given)
    found = journal.calls(digest=given.digest)
    if not found:
        sys.exit(f"no call in {journal.path} has a digest that begins with {given.digest}")
    if len(found) > 1:
        sys.exit(f"several calls have digests that begin with {given.digest}; give more digits")
    print(found[0])


def _export(given: argparse.Namespace) -> None:
    with contextlib.ExitStack() as open_files:
        out: TextIO = sys.stdout
        calls = _calls(given)
        if given.out is not None:
            # Mode "x" overwrites no file. The opener makes the file readable by its owner alone from the beginning, as
            # it holds prompts; a change of its mode afterwards would leave a moment in which others can open it.
            private = lambda path, flags: os.open(path, flags, 0o600)
            out = open_files.enter_context(open(given.out, "x", encoding="utf-8", opener=private))
        for call in calls:
            out.write(json.dumps(call.row()) + "\n")


def _forget(given: argparse.Namespace) -> None:
    if all(getattr(given, name) is None for name in _ASKED):
        sys.exit(f"say which calls to forget: {', '.join(f'--{name}' for name in _ASKED)}")
    _delete(_journal(given), _calls(given), given.yes)


def _prune(given: argparse.Namespace) -> None:
    if given.model is None and given.older_than is None:
        sys.exit("say which calls to delete: --older-than 30d, --model provider/model, or both")
    before = None if given.older_than is None else datetime.datetime.now() - given.older_than
    journal = _journal(given)
    _delete(journal, journal.calls(model=given.model, before=before), given.yes)
    if given.yes:
        journal.compact()


def _delete(journal: Journal, calls: Calls, is_sure: bool) -> None:
    if is_sure:
        print(f"{journal.forget(calls):,} calls were deleted.")
    else:
        print(
            f"{len(calls):,} calls would be deleted; --yes deletes them. They are paid for when they are asked again."
        )
