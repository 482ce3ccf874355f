"""What digests take along to another process: the words that they stand for, and why some of them failed.

Design note. `pickle` and what is built on it (`copy`, `multiprocessing`, pools of processes, cloudpickle, joblib, Ray)
ask a Text itself how it is written, so its words go along. What flattens a tree and writes its arrays, as
`equinox.tree_serialise_leaves` and Orbax do, sees digests and never the Text. There `ember.save` is the way, and the
error of a digest whose words are not there says so.
"""

from typing import NamedTuple

import numpy as np

from ..errors import UnknownDigestError, portable
from . import failed, store, turns


class Contents(NamedTuple):
    """What the digests of an array stand for.

    **Fields:**

    - `words`: each once; their digests are found from them.
    - `causes`: failed digests, with their causes where they are known.
    """

    words: tuple[str, ...]
    causes: tuple[tuple[bytes, BaseException], ...]


def contents_of(digests: np.ndarray) -> Contents:
    """What the digests of an array `uint32[*shape, 4]` stand for.

    **Raises:** `UnknownDigestError` if the words of one are not in this process.
    """
    distinct = dict.fromkeys(store.split(digests))
    words = tuple(turns.closure([*distinct]).values())
    causes = {digest: failed.known_cause_of(digest) for digest in distinct if digest.startswith(failed.PREFIX)}
    return Contents(words, tuple((digest, portable(cause)) for digest, cause in causes.items() if cause is not None))


def restore(digests: np.ndarray, contents: Contents) -> None:
    """Puts what digests stand for into this process.

    **Raises:** `UnknownDigestError` if that does not hold the words of one of them.
    """
    known = {store.put(words) for words in contents.words}
    for digest, cause in contents.causes:
        failed.keep(digest, cause)
    for digest in store.split(digests):
        if digest not in known and not store.is_reserved(digest):
            raise UnknownDigestError(f"what was pickled of a Text is damaged: it lacks the words of {digest.hex()}.")
