"""Server-sent events, as the HTML standard has them, without any IO."""

from collections.abc import Iterator


class ServerEvents:
    """Takes a stream's bytes as they come, and tells the data of each event that is complete.

    Names, ids and comments are passed over. What stands behind the last empty line is no event, as it may be torn.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, raw: bytes) -> Iterator[bytes]:
        """Takes more bytes; gives the data of the events that they complete."""
        # A line ends with \n, \r\n or \r. Behind a \r at the end the \n may be yet to come.
        raw = self._rest + raw
        held = raw[-1:] if raw.endswith(b"\r") else b""
        whole = raw.removesuffix(b"\r") if held else raw
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        for line in lines:
            if not line and self._data:
                yield b"\n".join(self._data)
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
