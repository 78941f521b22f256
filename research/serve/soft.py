"""The media of a text that an engine writes: where they stand in it, what tells them from others,
and the vectors in their places.

Tokens that see themselves whole, of an image or of a whole prompt with images, are a block. It is
read in one step, and a page that has tokens of it is one of this block alone.

A medium is encoded when the first of its places is read, and its vectors are dropped behind the
last. A text whose places are in pages that it shares encodes nothing, and one that was stopped
encodes again.

Letters: D width of the decoder, I images or sounds, S places of a medium.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import Execution, ModelConfig
from research.models.media import image_tokens, sounds_tokens
from research.models.model import Model
from research.tree import Tree
from research.tuning.adapter_bank import select

KINDS = ("images", "sounds")
NONE: Mapping[str, np.ndarray] = {}


@dataclass(frozen=True, eq=False)
class Medium:
    """One that stands in a text: a key of `KINDS`, what is encoded of it, the places in the text
    that its vectors take, and a digest of its content."""

    kind: str
    content: np.ndarray
    places_S: np.ndarray
    digest: bytes


@dataclass(frozen=True)
class Block:
    """The tokens [first, end) of a text, which see each other whole, and a digest of what they
    are, beside the media that stand there."""

    first: int
    end: int
    digest: bytes


class Soft:
    """The media of a text with these tokens: `media` has "images" [I, size, size, 3] and "sounds"
    [I, frames, mels] in the order of their places, of which there are as many as they take."""

    def __init__(self, c: ModelConfig, ids: Sequence[int], media: Mapping[str, np.ndarray]):
        self.media: list[Medium] = []
        self._vectors: dict[int, np.ndarray] = {}  # by the number of the medium
        for kind, content in media.items():
            of, each = (c.image, c.image.frames) if kind == "images" else (c.sound, 1)
            places = np.flatnonzero(np.array(ids) == of.token).reshape(-1, of.tokens)
            for number, places_S in enumerate(places):
                own = np.asarray(content[number * each : (number + 1) * each])
                self.media.append(Medium(kind, own, places_S, _digest(kind, own)))
        self.blocks = _blocks(c, ids, self.media)
        self.ends = tuple((block.first, block.end) for block in self.blocks)

    def digest(self, first: int, end: int) -> bytes:
        """What tells these tokens of the text from others with the same ids: the contents of the
        media that have places among them, and of the blocks that they are in."""
        media = [one.digest for _, one, _ in self._among(first, end)]
        return b"".join(media + [b.digest for b in self.blocks if b.first < end and first < b.end])

    def spans(self, first: int, end: int) -> np.ndarray:
        """The first and the last place, int [end - first, 2], of the block that each of these
        tokens of the text is in; its own of a token in none."""
        spans_T2 = np.repeat(np.arange(first, end)[:, None], 2, axis=1)
        for block in self.blocks:
            here = slice(max(block.first - first, 0), max(block.end - first, 0))
            spans_T2[here] = block.first, block.end - 1
        return spans_T2

    def vectors(
        self, first: int, end: int, encode: Callable[[Medium], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places, their vectors [places, D]) of each medium among these tokens of the text."""
        for number, one, here in self._among(first, end):
            if number not in self._vectors:
                self._vectors[number] = encode(one)
            yield one.places_S[here], self._vectors[number][here]

    def forget(self, cached: int | None = None) -> None:
        """Drops the vectors of media whose places are all among the first `cached` tokens; without
        a number those of all."""
        for number in list(self._vectors):
            if cached is None or self.media[number].places_S[-1] < cached:
                del self._vectors[number]

    def _among(self, first: int, end: int) -> Iterator[tuple[int, Medium, slice]]:
        """(number, medium, which of its places) of the media with places in [first, end)."""
        for number, one in enumerate(self.media):
            start, stop = np.searchsorted(one.places_S, (first, end))
            if start < stop:
                yield number, one, slice(start, stop)


def _blocks(c: ModelConfig, ids: Sequence[int], media: Sequence[Medium]) -> list[Block]:
    """The blocks of a text with these tokens, of which all stand before an answer."""
    images = [one for one in media if one.kind == "images"]
    if not images or c.image.attention == "causal":
        return []
    if c.image.attention == "prefix":
        contents = [np.array(ids, "<i4").tobytes(), *(one.digest for one in media)]
        return [Block(0, len(ids), hashlib.blake2b(b"".join(contents), digest_size=16).digest())]
    blocks = []
    for one in images:
        for run in np.split(one.places_S, np.flatnonzero(np.diff(one.places_S) > 1) + 1):
            first, end = int(run[0]), int(run[-1]) + 1
            blocks.append(Block(first, end, f"{first} {end}".encode()))
    return blocks


def _digest(kind: str, content: np.ndarray) -> bytes:
    head = f"{kind} {content.dtype} {content.shape}".encode()
    return hashlib.blake2b(head + content.tobytes(), digest_size=16).digest()


def kinds_read(c: ModelConfig) -> tuple[str, ...]:
    """Which kinds of media an engine reads in a model's prompts."""
    return ("image",) * c.image.in_texts + ("audio",) * (c.sound.layers > 0)


def read_at_once(c: ModelConfig, chunk: int) -> int:
    """How many tokens an engine must read in one step that is to read `chunk` of them: an image
    that sees itself whole, and so many words beside it where they are one block with it."""
    if not c.image.in_texts or c.image.attention == "causal":
        return chunk
    if c.image.attention == "prefix":
        return chunk + c.image.tokens
    return max(chunk, c.image.tokens)


def blanks(c: ModelConfig) -> list[Medium]:
    """A medium without content of each kind that an engine encodes, to compile with."""
    nothing = np.zeros(0, np.int32)
    made = []
    if "image" in kinds_read(c):
        pixels = np.zeros((c.image.frames, c.image.size, c.image.size, 3), np.uint8)
        made.append(Medium("images", pixels, nothing, b""))
    if "audio" in kinds_read(c):
        mel = np.zeros((1, c.sound.frames, c.sound.mels), np.float32)
        made.append(Medium("sounds", mel, nothing, b""))
    return made


def encode(model: Model, params: Tree, medium: Medium, adapter: int) -> np.ndarray:
    """The vectors [S, D] of a medium, float32 on the host, with that adapter of the model's bank.
    One medium is encoded at a time, so a kind has one program."""
    how = {"kind": medium.kind, "model": model}
    return np.asarray(_encoded(params, medium.content, np.int32(adapter), **how))


@partial(jax.jit, static_argnames=("kind", "model"))
def _encoded(
    params: Tree, content: jax.Array, adapter: jax.Array, *, kind: str, model: Model
) -> jax.Array:
    name, tokens = ("image", image_tokens) if kind == "images" else ("sound", sounds_tokens)
    # Images and sounds are the rows of their encoder, and a bank has an adapter for each row.
    p_encoder = select(params[name], jnp.broadcast_to(adapter, content.shape[:1]))
    dtype = model.precision.compute_dtype
    vectors_1SD = tokens(p_encoder, content[None], model.config, Execution(), dtype)
    return vectors_1SD[0].astype(jnp.float32)
