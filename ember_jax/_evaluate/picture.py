"""The axes that pictures are drawn in, and their colours."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

# Okabe and Ito's colours, which colour-blind people tell apart too.
RIGHT, WRONG, FAILED = "#0072b2", "#d55e00", "#999999"


@contextlib.contextmanager
def axes(to: Any, what: str) -> Iterator[Any]:
    """The axes to draw in. If `to` is axes, they are those; else they are those of a new figure.

    If `to` is a file, the figure is written to it and closed when the block ends. `what` names the caller in errors.

    **Raises:** `ImportError` without matplotlib.
    """
    try:  # imported where somebody wants a picture: it is heavy, and optional
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f'{what} needs matplotlib: `pip install "ember_jax[plot]"`.') from error
    if to is not None and not isinstance(to, str | os.PathLike):
        yield to
        return
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    yield ax
    if to is not None:
        figure.savefig(to, dpi=150)
        plt.close(figure)
