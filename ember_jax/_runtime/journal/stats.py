"""What a journal's file holds, in numbers."""

import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from .columns import MODEL, moment

_TOTALS = """select count(*), total(input_tokens), total(output_tokens), total(cost), count(*) - count(cost),
    min(ended), max(ended) from calls"""
_MODELS = f"select {MODEL}, count(*) from calls group by 1 order by 2 desc, 1"


@dataclass(frozen=True)
class Stats:
    """What a journal holds.

    **Fields:**

    - `calls`: how many answered calls it holds.
    - `models`: how many of these calls were of each model, by `provider/model`.
    - `texts`: how many different texts were sent.
    - `input_tokens`, `output_tokens`: the sums over all calls.
    - `cost_usd`: the sum over the calls whose cost is known, in US dollars.
    - `unpriced`: how many calls have no known cost.
    - `bytes`: the size of the file and its log.
    - `oldest`, `newest`: when the first and the last answer came, in seconds since 1970; NaN if there is none.
    """

    calls: int
    models: Mapping[str, int]
    texts: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    unpriced: int
    bytes: int
    oldest: float
    newest: float

    def __str__(self) -> str:
        rows = {name: f"{getattr(self, name):,}" for name in ("calls", "texts", "input_tokens", "output_tokens")}
        rows["cost_usd"] = f"${self.cost_usd:,.6f}"
        rows |= {name: f"{getattr(self, name):,}" for name in ("unpriced", "bytes")}
        rows |= {name: moment(getattr(self, name)) for name in ("oldest", "newest")}
        rows |= {name: f"{count:,}" for name, count in self.models.items()}
        left, right = max(map(len, rows)), max(map(len, rows.values()))
        return "\n".join(f"{name.replace('_', ' '):<{left}} {value:>{right}}" for name, value in rows.items())


def read_stats(connection: sqlite3.Connection, size: int) -> Stats:
    """What a file of `size` bytes holds."""
    totals = connection.execute(_TOTALS).fetchone()
    calls, input_tokens, output_tokens, cost, unpriced, oldest, newest = totals
    (texts,) = connection.execute("select count(*) from texts").fetchone()
    return Stats(
        calls=calls,
        models=dict(connection.execute(_MODELS).fetchall()),
        texts=texts,
        input_tokens=int(input_tokens),
        output_tokens=int(output_tokens),
        cost_usd=cost,
        unpriced=unpriced,
        bytes=size,
        oldest=math.nan if oldest is None else oldest,
        newest=math.nan if newest is None else newest,
    )
