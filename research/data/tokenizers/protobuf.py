"""Messages of protocol buffers, the format of sentencepiece models, read field by field."""

from collections.abc import Iterator


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field of a protocol buffer message, in order: int for varints,
    bytes for all else. ValueError for a wire type that is out of use, IndexError for a message
    that ends early.

    Read by hand because the protobuf package is a large dependency for a few fields. Format:
    https://protobuf.dev/programming-guides/encoding.
    """
    at = 0
    while at < len(message):
        # A field begins with its number and, in the last three bits, how its value is stored:
        # 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 2, 5):
            size, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    # Seven bits a byte, the lowest first; the top bit says that another byte follows.
    value, shift = 0, 0
    while message[at] & 0x80:
        value, shift, at = value | (message[at] & 0x7F) << shift, shift + 7, at + 1
    return value | message[at] << shift, at + 1
