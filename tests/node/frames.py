"""control.sock's frames, written a second time from userspace/wire/frame.hpp's words, to send what no client would.

    | "HLDF" | version u8 | type u8 | flags u16 | length u32 | request id u32 | body: deterministic CBOR |
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from lab import Lab

MAGIC, VERSION = b"HLDF", 1
HELLO, REQUEST, REPLY, ERROR, EVENT = 1, 2, 3, 4, 5
HEADER = struct.Struct(">4sBBHII")


def cbor(value: object) -> bytes:
    """Deterministic CBOR (RFC 8949, 4.2.1) of the few types that requests use."""
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    assert isinstance(value, dict)
    pairs = sorted((cbor(key), cbor(item)) for key, item in value.items())
    return head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


def head(major: int, number: int) -> bytes:
    for size, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << 8 * size:
            return bytes([major << 5 | code]) + number.to_bytes(size, "big")
    raise OverflowError(number)


def decode(data: bytes) -> object:
    value, rest = decode_some(data)
    assert rest == b"", f"{len(rest)} bytes behind a value"
    return value


def decode_some(data: bytes) -> tuple[object, bytes]:
    major, low = data[0] >> 5, data[0] & 31
    data = data[1:]
    if low < 24:
        number = low
    else:
        size = 1 << low - 24
        number, data = int.from_bytes(data[:size], "big"), data[size:]
    if major == 0:
        return number, data
    if major == 1:
        return -1 - number, data
    if major in (2, 3):
        text, data = data[:number], data[number:]
        return text if major == 2 else text.decode(), data
    if major == 4:
        items = []
        for _ in range(number):
            item, data = decode_some(data)
            items.append(item)
        return items, data
    if major == 5:
        pairs = {}
        for _ in range(number):
            key, data = decode_some(data)
            pairs[key], data = decode_some(data)
        return pairs, data
    return {20: False, 21: True, 22: None}[low], data


def frame(kind: int, body: bytes, identifier: int = 1, **changes: object) -> bytes:
    fields = {"magic": MAGIC, "version": VERSION, "flags": 0, "length": len(body)} | changes
    return HEADER.pack(fields["magic"], fields["version"], kind, fields["flags"], fields["length"], identifier) + body


def request(verb: str, args: dict | None = None, identifier: int = 1, body: bytes | None = None) -> bytes:
    content: dict = {"verb": verb, "args": args or {}}
    if body is not None:
        content["body"] = body
    return frame(REQUEST, cbor(content), identifier)


class Connection:
    """A raw connection to the daemon."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        raw.settimeout(10)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.raw.sendall(data)

    def read(self) -> tuple[int, int, object] | None:
        """The next frame as (type, request id, body); none when the daemon closed."""
        header = self.read_bytes(HEADER.size)
        if header is None:
            return None
        magic, version, kind, _, length, identifier = HEADER.unpack(header)
        assert (magic, version) == (MAGIC, VERSION)
        body = self.read_bytes(length) or b""
        return kind, identifier, decode(body)

    def read_bytes(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                piece = self.raw.recv(count - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                assert data == b"", "the daemon closed in the middle of a frame"
                return None
            data += piece
        return data


@contextlib.contextmanager
def connected(lab: Lab) -> Iterator[Connection]:
    """A connection whose greeting has been read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.connect(str(lab.socket_path))
        connection = Connection(raw)
        kind, identifier, _ = connection.read()
        assert (kind, identifier) == (HELLO, 0)
        yield connection
