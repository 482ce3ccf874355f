"""The file that rows are written to as they finish.

Design note. A row is handed over on the event loop (`add`) and written by a thread, with others that have finished
meanwhile, so that neither its words nor the disk hold up a call. It is written when its lane has ended, and the journal
has its answers by then. So what a crash takes is the rows that were handed over and not written, and the end of the one
that was being written; the same program run again pays for none of them, and writes them.

When a file is opened that is there already, its rows are kept if they are this program's: each tells, as `run`, a
digest of the operator and one of its own data. A row without its end is dropped, and so is one that had failed, as it
is asked again. What remains is put in the file's place at once, by renaming.

Parquet has no rows before the whole is written. They are kept in a file of lines beside it, `out.parquet.part`, until
the evaluation ends.
"""

import abc
import csv
import dataclasses
import fcntl
import hashlib
import importlib
import io
import json
import math
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from .data import Columns

# What is found of a row, around the columns of the data; `index` comes first and `run` last.
_FOUND = ("answer", "score", "failed", "failure", "run")
_RUN = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
# How many seconds rows are gathered before they are written: each time costs a change of threads.
_PAUSE = 0.05


class LanesRead(NamedTuple):
    """What was found of some rows: their answers, scores and causes; a score is `None` where it is not known yet."""

    answers: Sequence[Any]
    scores: Sequence[float | None]
    causes: Sequence[str]


# Reads some lanes' results, a pytree of arrays with the lanes in front, for the rows of these numbers.
LanesReader: TypeAlias = Callable[[Any, Sequence[int]], LanesRead]


class _Kept(NamedTuple):
    """A row of a file: its bytes, its number, whether it failed, and its `run`."""

    raw: bytes
    number: int
    failed: bool
    run: str


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits that tell what is written apart."""
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        made.update(len(raw).to_bytes(8, "little") + raw)
    return made.hexdigest()


class RowFile:
    """The rows of an evaluation in a file, of which some may be there already.

    **Arguments:**

    - `to`: the file, which ends with `.jsonl`, `.csv` or `.parquet`.
    - `columns`: the data.
    - `operator`: a digest of all that answers depend on besides the row.
    - `read`: reads what lanes hand over. Called in a thread.

    **Raises:** `ValueError` for a file of another kind, and for rows of another program; `ImportError` for Parquet
    without pyarrow; `BlockingIOError` if another evaluation writes to the file; `OSError` if it cannot be written.
    """

    def __init__(self, to: str | os.PathLike[str], columns: Columns, operator: str, read: LanesReader):
        self._path = Path(to)
        kind = self._path.suffix.lower()
        if kind not in (".jsonl", ".csv", ".parquet"):
            raise ValueError(f"evaluate(to={str(to)!r}): give a file that ends with .jsonl, .csv or .parquet.")
        self._columns, self._operator, self._read = columns, operator, read
        self._names = {f"data_{name}" if name in ("index", *_FOUND) else name: name for name in columns}
        self._count = len(next(iter(columns.values())))
        self._is_parquet = kind == ".parquet"
        if self._is_parquet:
            _pyarrow()
        names = ["index", *self._names, *_FOUND]
        self._format: _Format = _TableFile(names) if kind == ".csv" else _Lines()
        self._lines = self._path.with_name(f"{self._path.name}.part") if self._is_parquet else self._path
        self._file = self._opened()
        self._size = os.fstat(self._file).st_size
        self._given: queue.SimpleQueue[tuple[int, Any, Sequence[np.ndarray]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="ember-rows", daemon=True)
        self._thread.start()

    def add(self, index: int, tree: Any, arrays: Sequence[np.ndarray]) -> None:
        """Takes a row that has finished, unless the file has it. Used on the event loop; it does not block."""
        if index not in self._seen:
            self._seen.add(index)
            self._given.put((index, tree, arrays))

    def close(self) -> None:
        """Waits until all rows are written. Raises `OSError` if that failed; the journal has their answers."""
        self._closing.set()
        self._given.put(None)
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            if self._is_parquet:
                _to_parquet(self._lines, self._path)
                self._lines.unlink()
        finally:
            os.close(self._file)

    # -- what is there -----------------------------------------------------------------------------------------------

    def _opened(self) -> int:
        """Opens the file, which holds what is kept of it, and no other process writes to."""
        while True:
            if self._is_parquet and self._path.exists() and not self._lines.exists():
                os.close(_replace(self._lines, b"".join(map(self._format.line, _parquet_rows(self._path)))))
            file = os.open(self._lines, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_ino != os.stat(self._lines).st_ino:  # another process has just replaced it
                    os.close(file)
                    continue
                raw = self._lines.read_bytes()
                kept = [row for row in self._checked(self._format.rows(raw, self._path)) if not row.failed]
                self._seen = {row.number for row in kept}
                whole = self._format.head + b"".join(row.raw for row in kept)
                if whole == raw:
                    return file
                replaced = _replace(self._lines, whole)
            except BlockingIOError:
                os.close(file)
                raise BlockingIOError(f"another evaluation is writing to {self._path}.") from None
            except BaseException:
                os.close(file)
                raise
            os.close(file)
            return replaced

    def _checked(self, rows: Sequence[_Kept]) -> Iterator[_Kept]:
        """Rows, each once. Raises `ValueError` for one that is not of this program."""
        seen: set[int] = set()
        for row in rows:
            operator, _, data = row.run.partition("-")
            what = "another operator, key or score" if operator != self._operator else ""
            if not what and not (0 <= row.number < self._count and data == self._of_row(row.number)):
                what = "other data"
            if what:
                raise ValueError(
                    f"{self._path} has rows of {what} (its row with the index {row.number} is the first). Nothing was "
                    "asked. Give another file, or delete this one."
                )
            if row.number not in seen:
                seen.add(row.number)
                yield row

    def _of_row(self, index: int) -> str:
        """A digest of a row's data."""
        return digest(*(f"{name}={values[index]!r}" for name, values in self._columns.items()))

    # -- what is written, in a thread --------------------------------------------------------------------------------

    def _serve(self) -> None:
        is_last = False
        while not is_last:
            given = [self._given.get()]
            while not self._given.empty():
                given.append(self._given.get())
            is_last = None in given
            rows = [row for row in given if row is not None]
            if rows and self._error is None:
                try:
                    self._write(rows)
                except Exception as error:  # told when the evaluation ends: the journal has the answers
                    self._error = error
            self._closing.wait(_PAUSE)

    def _write(self, rows: list[tuple[int, Any, Sequence[np.ndarray]]]) -> None:
        found = jax.tree.unflatten(rows[0][1], [np.stack(column) for column in zip(*(r[2] for r in rows), strict=True)])
        indices = [index for index, _, _ in rows]
        raw = b"".join(map(self._format.line, self._records(indices, self._read(found, indices))))
        try:
            written = 0
            while written < len(raw):
                written += os.write(self._file, raw[written:] if written else raw)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(raw)

    def _records(self, indices: Sequence[int], read: LanesRead) -> Iterator[dict[str, Any]]:
        for index, answer, score, cause in zip(indices, *read, strict=True):
            data = {name: self._columns[column][index] for name, column in self._names.items()}
            run = f"{self._operator}-{self._of_row(index)}"
            found = dict(zip(_FOUND, (answer, score, bool(cause), cause, run), strict=True))
            yield {"index": index, **data, **found}


def _replace(path: Path, whole: bytes) -> int:
    """Puts a file of such bytes in the place of another, at once; returns it, locked and open for appending."""
    made = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    file = os.open(made, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o666)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(file, "wb", closefd=False) as stream:
        stream.write(whole)
    os.fsync(file)
    os.replace(made, path)
    return file


# -- formats ---------------------------------------------------------------------------------------------------------


class _Format(abc.ABC):
    """How rows are written one after another, abstract.

    **Attributes:**

    - `head`: what stands before them.
    """

    head: bytes = b""

    @abc.abstractmethod
    def line(self, record: Mapping[str, Any]) -> bytes:
        """A row as it is written."""

    @abc.abstractmethod
    def rows(self, raw: bytes, path: Path) -> list[_Kept]:
        """The rows that are whole. Raises `ValueError` for what was not written by this."""


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} holds something else than rows of `evaluate`. Nothing was asked. Give another file.")


class _Lines(_Format):
    """JSON, a line for each row."""

    _BEGIN = b'{"index": '

    def line(self, record: Mapping[str, Any]) -> bytes:
        return f"{_json(record)}\n".encode()

    def rows(self, raw: bytes, path: Path) -> list[_Kept]:
        *lines, torn = raw.split(b"\n")
        if torn[: len(self._BEGIN)] != self._BEGIN[: len(torn)]:
            raise _foreign(path)
        return [self._kept(line, path) for line in lines]

    def _kept(self, line: bytes, path: Path) -> _Kept:
        try:
            found = json.loads(line)
            return _Kept(line + b"\n", int(found["index"]), bool(found["failed"]), _checked_run(found["run"]))
        except (ValueError, KeyError, TypeError):
            raise _foreign(path) from None


class _TableFile(_Format):
    """CSV, as RFC 4180 has it, but with a newline alone at the end of a row."""

    def __init__(self, names: Sequence[str]):
        self._names = list(names)
        self.head = self._row(self._names)

    def line(self, record: Mapping[str, Any]) -> bytes:
        return self._row([_cell(record[name]) for name in self._names])

    def rows(self, raw: bytes, path: Path) -> list[_Kept]:
        if len(raw) <= len(self.head):
            if not self.head.startswith(raw):
                raise _foreign(path)
            return []
        if not raw.startswith(self.head):
            raise _foreign(path)
        found: list[_Kept] = []
        rest = io.StringIO(raw[len(self.head) :].decode("utf-8", "replace"), newline="")
        longest = csv.field_size_limit(len(raw))  # which is the process's, and by default too short for long answers
        try:
            for row in csv.reader(rest, strict=True):
                named = dict(zip(self._names, row, strict=True))
                index, is_failed, run = int(named["index"]), named["failed"] == "true", _checked_run(named["run"])
                found.append(_Kept(self._row(row), index, is_failed, run))
        except (csv.Error, ValueError):
            if rest.read(1):  # it is not the last
                raise _foreign(path) from None
            return found
        finally:
            csv.field_size_limit(longest)
        return found if raw.endswith(b"\n") else found[:-1]

    def _row(self, cells: Sequence[str]) -> bytes:
        stream = io.StringIO(newline="")
        csv.writer(stream, lineterminator="\n").writerow(cells)
        return stream.getvalue().encode("utf-8", "backslashreplace")


def _checked_run(run: Any) -> str:
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise ValueError
    return run


def _cell(value: Any) -> str:
    """A value in words: a string as it is, nothing for what JSON has as null, and all else as JSON."""
    if isinstance(value, str):
        return value
    words = _json(value)
    return "" if words == "null" else words


def _json(value: Any) -> str:
    words = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return words if words.isascii() or _is_unicode(words) else json.dumps(_plain(value), allow_nan=False)


def _is_unicode(words: str) -> bool:
    try:
        words.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON's escapes can write
        return False
    return True


def _plain(value: Any) -> Any:
    """A value as JSON has it: fields by their names, what is no finite number as null, and all else in words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(held) for name, held in value.items()}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else str(value)


# -- Parquet ---------------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:  # imported where somebody wants such a file: it is heavy, and optional
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("a .parquet file needs pyarrow: `pip install pyarrow`; .jsonl and .csv do not.") from error
    return importlib.import_module("pyarrow")


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid:
        raise _foreign(path) from None


def _to_parquet(lines: Path, path: Path) -> None:
    pyarrow = _pyarrow()
    rows = [json.loads(line) for line in lines.read_bytes().split(b"\n")[:-1]]
    columns = {name: _column(pyarrow, [row[name] for row in rows]) for name in (rows[0] if rows else ())}
    made = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    pyarrow.parquet.write_table(pyarrow.table(columns), made)
    os.replace(made, path)


def _column(pyarrow: Any, values: list[Any]) -> Any:
    try:
        return pyarrow.array(values)
    except pyarrow.ArrowException:  # values of several types, which are told in words
        return pyarrow.array([None if value is None else _cell(value) for value in values])
