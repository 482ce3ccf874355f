"""Warnings about models, which are told once of each."""

import warnings

from ..providers.base import Request


class Warned:
    """Warns once of each kind for each model."""

    def __init__(self) -> None:
        self._told: set[tuple[type[Warning], str]] = set()

    def tell(self, request: Request, kind: type[Warning], words: str) -> None:
        """Warns of the model that a request asks; its id is put before the words.

        It is called on the event loop, between a paid answer and its lane. Where the user makes warnings errors,
        raising one here would lose the answer, so the warning is only shown.
        """
        model = f"{request.provider}/{request.model}"
        if (kind, model) in self._told:
            return
        self._told.add((kind, model))
        try:
            warnings.warn(f"{model} {words}", kind, stacklevel=1)
        except kind as told:
            warnings.showwarning(told, kind, __file__, 0)
