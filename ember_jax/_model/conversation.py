"""`Conversation`: what was said by whom, as a handle of constant size that grows in loops."""

import base64
import mimetypes
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import numpy as np

from .._jax.internals import is_tracer
from .._text import turns
from .._text.elementwise import TEXT, Kind, elementwise
from .._text.text import Text, as_text, text
from ..errors import TextError
from ..providers.base import Message

Role: TypeAlias = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")


class Attachment(eqx.Module):
    """An image, a file or audio that is said in a `Conversation`; made by `ember.image`, `ember.file`, `ember.audio`.

    **Attributes:**

    - `url`: a Text: a URL, which may hold the whole content (`data:`). Several of them are mapped by `jax.vmap`.
    - `kind`: `image`, `file` or `audio`.
    - `name`: of the file.
    """

    url: Text
    kind: str = eqx.field(static=True)
    name: str = eqx.field(static=True, default="")


# What one turn may say: words, or a list of words and attachments.
Sayable: TypeAlias = "str | Text | Attachment | Sequence[str | Text | Attachment]"


class Conversation(eqx.Module):
    """What was said by whom, in order.

    ```python
    chat = ember.Conversation([("system", "Be short."), ("user", "What is 2 + 3?")])
    chat = chat.assistant(llm(chat)).user("And twice that?")
    answer = llm(chat)
    ```

    It is a handle like a Text: one leaf, the digest of what was said. So it has a constant size and grows in the carry
    of a `scan` or `while_loop`, is mapped by `jax.vmap`, and `==` compares what was said. `messages` gives it back,
    `print` shows it.

    **Arguments:**

    - `said`: pairs of a role (`"system"`, `"user"`, `"assistant"`) and what it says: a string, a Text of rank 0, an
        attachment (`ember.image`), or a list of these. Dictionaries with `role` and `content` do as well, and so does
        another conversation. Examples for a model to follow are pairs of `user` and `assistant`.

    **Raises:** `TextError` for another role, for what cannot be said, and for texts with axes of their own, which are
    mapped with `jax.vmap`.
    """

    turns: Text

    def __init__(self, said: "Sequence[Any] | Conversation" = ()):
        if isinstance(said, Conversation):
            self.turns = said.turns
            return
        if isinstance(said, str | Text | Mapping):
            raise TextError('Conversation takes a list of turns, as in Conversation([("user", "Hello")]).')
        whole = text(turns.EMPTY)
        for turn in said:
            whole = _grown(whole, *_turn(turn))
        self.turns = whole

    def say(self, role: Role, content: Sayable) -> "Conversation":
        """The conversation in which one more turn is said. Raises `TextError` as the class does."""
        return conversation_of(_grown(self.turns, *_turn((role, content))))

    def user(self, content: Sayable) -> "Conversation":
        """The conversation in which the user says something more."""
        return self.say("user", content)

    def assistant(self, content: Sayable) -> "Conversation":
        """The conversation in which the model says something more."""
        return self.say("assistant", content)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of an array of conversations; `()` for one."""
        return self.turns.shape

    @property
    def length(self) -> jax.Array:
        """How many turns were said: int32 of the shape; of a conversation that failed the least integer."""
        counted = jax.ShapeDtypeStruct((), np.int32)
        return elementwise(turns.count, (), [(self.turns.digests, TEXT)], counted)

    @property
    def last(self) -> Text:
        """The words of the last turn; empty if nothing was said."""
        return Text(elementwise(_last, (), [(self.turns.digests, TEXT)], TEXT))

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, turn by turn.

        **Raises:** `TextError` for an array of conversations, `TracedControlFlowError` for a traced one.
        """
        if self.shape:
            raise TextError(
                f"these are conversations of shape {list(self.shape)}; take one, as in `chats[0].messages`."
            )
        return messages_of(str(self.turns))

    def __getitem__(self, index: Any) -> "Conversation":
        return conversation_of(self.turns[index])

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("`len` counts several conversations; `chat.length` counts the turns of one.")
        return len(self.turns)

    def __eq__(self, other: object) -> Any:
        return self.turns == other.turns if isinstance(other, Conversation) else NotImplemented

    def __ne__(self, other: object) -> Any:
        return self.turns != other.turns if isinstance(other, Conversation) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a hash needs `==` to give one boolean

    def __str__(self) -> str:
        if self.shape:
            return "\n\n".join(f"[{i}]\n{self[i]}" for i in range(len(self)))
        return "\n".join(f"{message.role}: {message.shown()}" for message in self.messages)

    def __repr__(self) -> str:
        digests = self.turns.digests
        if not isinstance(digests, jax.Array | np.ndarray) or is_tracer(digests):
            return f"Conversation({self.turns!r})"
        if self.shape:
            return f"Conversation of shape {list(self.shape)}"
        said = self.messages
        return f"Conversation of {len(said)} turns" + (f", the last by {said[-1].role}" if said else "")


def conversation_of(whole: Text) -> Conversation:
    """The conversation whose words a Text holds."""
    made = object.__new__(Conversation)
    object.__setattr__(made, "turns", whole)
    return made


def messages_of(words: str) -> tuple[Message, ...]:
    """The messages that a conversation's words stand for. Raises `TextError` for words that are none."""
    return tuple(Message.of(turn.role, turn.parts) for turn in turns.read(words))


# -- attachments -----------------------------------------------------------------------------------------------------


def image(source: Any) -> Attachment:
    """An image to show to a model, in a `Conversation`.

    **Arguments:**

    - `source`: the path of a PNG, JPEG, GIF or WebP file, its bytes, a URL, or an array: `uint8[h, w]`, `[h, w, 3]` or
        `[h, w, 4]`, or of floats from 0 to 1. A list of these makes one attachment with an axis, to be mapped.

    **Raises:** `TextError` for what is no such image, `OSError` for a file that cannot be read.
    """
    if isinstance(source, list | tuple):
        return Attachment(text([_image(one) for one in source]), "image")
    return Attachment(text(_image(source)), "image")


def file(source: Any, name: str = "") -> Attachment:
    """A PDF or another file to show to a model, in a `Conversation`.

    **Arguments:**

    - `source`: its path, its bytes, or a URL.
    - `name`: what the model sees as its name; by default that of the path.

    **Raises:** `OSError` for a file that cannot be read; `TextError` for bytes without a name, which tells their type.
    """
    if _is_url(source):
        return Attachment(text(source), "file", name or source.rpartition("/")[2])
    data, found = _bytes(source)
    name = name or found
    kind = mimetypes.guess_type(name)[0]
    if kind is None:
        raise TextError(f'ember.file: the type of {name or "some bytes"} is not known; give name="report.pdf".')
    return Attachment(text(_data(kind, data)), "file", name)


def audio(source: Any) -> Attachment:
    """Audio to play to a model that takes it, in a `Conversation`: a path, or the bytes of a WAV or MP3 file.

    **Raises:** `OSError` for a file that cannot be read; `TextError` for what is neither WAV nor MP3.
    """
    data, name = _bytes(source)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        kind = "audio/wav"
    elif data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        kind = "audio/mpeg"
    else:
        raise TextError(f"ember.audio takes a WAV or an MP3 file; {name or 'these bytes'} is neither.")
    return Attachment(text(_data(kind, data)), "audio", name)


_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


def _image(source: Any) -> str:
    if _is_url(source):
        return source
    if isinstance(source, jax.Array | np.ndarray):
        return _data("image/png", _png(np.asarray(source)))
    data, name = _bytes(source)
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise TextError(f"{name or 'these bytes'} is no PNG, JPEG, GIF or WebP image, which is what models take.")
    return _data(kind, data)


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://", "data:", "gs://"))


def _bytes(source: Any) -> tuple[bytes, str]:
    """The bytes of a source, and its name."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), ""
    if not isinstance(source, str | os.PathLike):
        raise TextError(f"give a path, bytes or a URL, not {type(source).__name__}.")
    with open(source, "rb") as opened:
        return opened.read(), os.path.basename(os.fspath(source))


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(array: np.ndarray) -> bytes:
    """An array as a PNG file (RFC 2083), without filters."""
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.round(array * 255).astype(np.uint8)
    channels = {2: 1, 3: array.shape[-1] if array.ndim == 3 else 0}.get(array.ndim, 0)
    if array.dtype != np.uint8 or channels not in (1, 3, 4) or not array.size:
        raise TextError(
            f"an image is uint8[h, w], [h, w, 3] or [h, w, 4], or of floats from 0 to 1, not "
            f"{array.dtype}{list(array.shape)}. Several images are a list."
        )
    height, width = array.shape[:2]
    rows = array.reshape(height, width * channels)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    color = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">2I5B", width, height, 8, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


# -- turns -----------------------------------------------------------------------------------------------------------


def _turn(turn: Any) -> tuple[str, tuple[tuple[str, str], ...], list[Text]]:
    """A turn as it is given: the role, kind and name of each part, and the values of the parts."""
    if isinstance(turn, Message):
        parts = turn.parts or (turns.Part("text", turn.content),)
        if any(part.id for part in parts):
            raise TextError("a turn of tool calls or results is said by `llm.tools` and `ember.Agent`.")
        return turn.role, tuple((p.kind, p.name) for p in parts), [text(p.value) for p in parts]
    if isinstance(turn, Mapping):
        if turn.keys() != {"role", "content"}:
            raise TextError(f"a turn is a dictionary of role and content, not of {sorted(map(str, turn))}.")
        turn = turn["role"], turn["content"]
    if not isinstance(turn, tuple | list) or len(turn) != 2:
        raise TextError(f'a turn is a pair of who speaks and what is said, as in ("user", "Hello"); got {turn!r:.60}.')
    role, content = turn
    if role not in _ROLES:
        raise TextError(f"a turn is said by one of {', '.join(_ROLES)}, not by {role!r:.40}.")
    said = [content] if isinstance(content, str | Text | Attachment) else content
    if not isinstance(said, tuple | list) or not said:
        raise TextError(f"what is said is words, an attachment, or a list of them; got {content!r:.60}.")
    kinds, values = zip(*map(_part, said), strict=True)
    return role, kinds, list(values)


def _part(part: Any) -> tuple[tuple[str, str], Text]:
    if isinstance(part, Attachment):
        return (part.kind, part.name), part.url
    if isinstance(part, str | Text):
        return ("text", ""), as_text(part)
    raise TextError(f"what is said is words, or an attachment such as ember.image(…); got {part!r:.60}.")


def _grown(whole: Text, role: str, kinds: tuple[tuple[str, str], ...], values: list[Text]) -> Text:
    for value in values:
        if np.broadcast_shapes(value.shape, whole.shape) != whole.shape:
            raise TextError(
                f"what is said has shape {list(value.shape)}, and the conversation {list(whole.shape)}. Map over "
                "several: `jax.vmap(lambda words: chat.user(words))(texts)`."
            )
    operands: list[tuple[Any, Kind]] = [(whole.digests, TEXT), *((value.digests, TEXT) for value in values)]
    return Text(elementwise(turns.said, (role, kinds), operands, TEXT))


def _last(words: str) -> str:
    said = messages_of(words)
    return said[-1].content if said else ""
