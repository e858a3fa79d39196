"""Header fields of HTTP/2 as they are compressed on the wire (RFC 7541)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

__all__ = ["Fields", "HeaderDecoder", "HeaderError", "literal_field"]

Fields = tuple[tuple[str, str], ...]
T = TypeVar("T")

_STATIC_NAMES = (
    ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme", ":status",
    ":status", ":status", ":status", ":status", ":status", ":status", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "accept",
    "access-control-allow-origin", "age", "allow", "authorization", "cache-control",
    "content-disposition", "content-encoding", "content-language", "content-length",
    "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "last-modified", "link", "location", "max-forwards",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
    "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent",
    "vary", "via", "www-authenticate",
)  # fmt: skip
_STATIC_VALUES = {
    1: "GET", 2: "POST", 3: "/", 4: "/index.html", 5: "http", 6: "https", 7: "200", 8: "204",
    9: "206", 10: "304", 11: "400", 12: "404", 13: "500", 15: "gzip, deflate",
}  # fmt: skip
_STATIC = tuple((name, _STATIC_VALUES.get(i, "")) for i, name in enumerate(_STATIC_NAMES))

# The bits of each symbol's Huffman code, as a letter from A = 5 on; the codes follow from them.
_CODE_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCD"
    "CDIOIJBKABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQR"
    "QSRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_END_OF_STRING = 256
_ENTRY_BYTES = 32
_MAX_NUMBER = 1 << 24
_MAX_REMEMBERED = 256


class HeaderError(Exception):
    """A header block that cannot be read: both sides no longer agree on the table."""


def _codes() -> dict[tuple[int, int], int]:
    lengths = [ord(letter) - ord("A") + 5 for letter in _CODE_LENGTHS]
    found: dict[tuple[int, int], int] = {}
    code = before = 0
    for symbol in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        code <<= lengths[symbol] - before
        before = lengths[symbol]
        found[before, code] = symbol
        code += 1
    return found


_CODES = _codes()


@lru_cache(maxsize=1024)
def _unpack(raw: bytes) -> str:
    """Return the text of a Huffman-coded string."""
    letters = bytearray()
    code = length = 0
    for byte in raw:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = _CODES.get((length, code))
            if symbol is None:
                continue
            if symbol == _END_OF_STRING:
                raise HeaderError("the end of string symbol is inside a string")
            letters.append(symbol)
            code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise HeaderError("a string ends in the middle of a symbol")
    return letters.decode("latin-1")


class HeaderDecoder(Generic[T]):
    """Reads the header blocks of one connection, in their order."""

    def __init__(
        self,
        make: Callable[[Fields], T],
        *,
        max_table_bytes: int = 4096,
        max_list_bytes: int = 16384,
    ) -> None:
        """Start with an empty table.

        Args:
            make: Makes of the fields what the connection wants to know.
            max_table_bytes: Largest table that the other side may use.
            max_list_bytes: Largest list of fields, uncompressed.
        """
        self._allowed = self._limit = max_table_bytes
        self._max_list_bytes = max_list_bytes
        self._table: deque[tuple[str, str]] = deque()
        self._size = 0
        self._make = make
        self._known: dict[bytes, T] = {}

    def decode(self, block: bytes) -> T:
        """Return what is made of the fields of a block.

        A block that neither reads nor changes what the table held at another time means the same
        again, so a client's repeated request costs one look-up.

        Raises:
            HeaderError: It cannot be read, or is too large.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        fields, is_change = self._decode(block)
        made = self._make(fields)
        if is_change:
            self._known.clear()
        elif len(self._known) < _MAX_REMEMBERED:
            self._known[block] = made
        return made

    def _decode(self, block: bytes) -> tuple[Fields, bool]:
        fields: list[tuple[str, str]] = []
        at = size = 0
        is_change = False
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _number(block, at, 7)
                field = self._entry(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HeaderError("the table changes its size behind a field")
                limit, at = _number(block, at, 5)
                self._resize(limit)
                is_change = True
                continue
            else:
                is_kept = bool(first & 0x40)
                field, at = self._literal(block, at, 6 if is_kept else 4)
                if is_kept:
                    self._add(field)
                    is_change = True
            size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
            if size > self._max_list_bytes:
                raise HeaderError(f"the fields have more than {self._max_list_bytes} bytes")
            fields.append(field)
        return tuple(fields), is_change

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[tuple[str, str], int]:
        index, at = _number(block, at, bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _text(block, at)
        value, at = _text(block, at)
        return (name, value), at

    def _entry(self, index: int) -> tuple[str, str]:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        try:
            if index == 0:
                raise IndexError
            return self._table[index - len(_STATIC) - 1]
        except IndexError:
            raise HeaderError(f"the table has no entry {index}") from None

    def _add(self, field: tuple[str, str]) -> None:
        self._table.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
        self._shrink()

    def _resize(self, limit: int) -> None:
        if limit > self._allowed:
            raise HeaderError(f"the table shall have {limit} bytes, allowed are {self._allowed}")
        self._limit = limit
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_BYTES


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Read a whole number whose first bits are the last ones of a byte."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        if at >= len(block):
            raise HeaderError("a number ends too early")
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_NUMBER:
            raise HeaderError("a number is too large")
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise HeaderError("a number is too long")


def _text(block: bytes, at: int) -> tuple[str, int]:
    if at >= len(block):
        raise HeaderError("a string is missing")
    is_packed = bool(block[at] & 0x80)
    length, at = _number(block, at, 7)
    end = at + length
    if end > len(block):
        raise HeaderError("a string ends too early")
    raw = block[at:end]
    return (_unpack(raw) if is_packed else raw.decode("latin-1")), end


def literal_field(name: bytes, value: bytes) -> bytes:
    """Write a field as it is, without compression and without changing the table."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    rest = size - 127
    out = bytearray((127,))
    while rest >= 128:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
