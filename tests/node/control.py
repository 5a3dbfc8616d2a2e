"""A persistent connection to control.sock, for tests that ask faster than a process can be started.

Frames and deterministic CBOR as userspace/wire/frame.hpp has them, written from RFC 8949 and not from the daemon's
code. One request at a time; a refusal raises Refused, a lost connection ConnectionError.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

HEADER = struct.Struct("!4sBBHII")
REQUEST, REPLY, ERROR, SIGNED_REQUEST = 2, 3, 4, 10
MORE = 1


class Refused(Exception):
    def __init__(self, error: dict) -> None:
        super().__init__(f"{error['code']}: {error['detail']}")
        self.code = error["code"]
        self.error = error


def head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << 8 * size:
            return bytes([major << 5 | info]) + value.to_bytes(size, "big")
    raise OverflowError(value)


def encode(value: object) -> bytes:
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    assert isinstance(value, dict)
    return head(5, len(value)) + b"".join(key + encode(item) for key, item in sorted((encode(k), v) for k, v in value.items()))


def decode(data: bytes, at: int = 0) -> tuple[object, int]:
    """The item that begins at `at`, and where the next one does."""
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        return {20: False, 21: True, 22: None}[info], at
    value = info
    if info >= 24:
        size = 1 << info - 24
        value, at = int.from_bytes(data[at : at + size], "big"), at + size
    if major == 0:
        return value, at
    if major == 1:
        return -1 - value, at
    if major == 2:
        return data[at : at + value], at + value
    if major == 3:
        return data[at : at + value].decode(), at + value
    items = []
    for _ in range(value * (major - 3)):
        item, at = decode(data, at)
        items.append(item)
    return (items, at) if major == 4 else (dict(zip(items[::2], items[1::2], strict=True)), at)


class Control:
    def __init__(self, path: os.PathLike, timeout_s: float = 30.0, uid: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.buffer = b""
        self.last_id = 0
        self.seal: Callable[[bytes], bytes] | None = None  # makes a signed request of a request
        try:
            before = os.geteuid()
            if uid is not None:
                os.seteuid(uid)  # whom SO_PEERCRED names
            try:
                self.socket.connect(str(path))  # waits its turn; with a time limit it would give up at once
            finally:
                if uid is not None:
                    os.seteuid(before)
            self.socket.settimeout(timeout_s)
            self.hello = self.read_frame()[3]
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            got = self.socket.recv(1 << 20)
            if not got:
                raise ConnectionError("the daemon closed the connection")
            self.buffer += got
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def read_frame(self) -> tuple[int, int, int, dict]:
        magic, version, kind, flags, length, number = HEADER.unpack(self.take(HEADER.size))
        assert (magic, version) == (b"HLDF", 1)
        body = self.take(length)
        value, end = decode(body)
        assert end == length and isinstance(value, dict)
        return kind, flags, number, value

    def call(self, verb: str, args: dict | None = None, body: bytes | None = None) -> dict:
        request: dict = {"verb": verb, "args": args or {}}
        if body is not None:
            request["body"] = body
        encoded = encode(request)
        return self.send(REQUEST, encoded) if self.seal is None else self.send(SIGNED_REQUEST, self.seal(encoded))

    def send(self, kind: int, content: bytes) -> dict:
        """A frame, and its one answer."""
        self.last_id += 1
        self.socket.sendall(HEADER.pack(b"HLDF", 1, kind, 0, len(content), self.last_id) + content)
        kind, flags, number, answer = self.read_frame()
        if kind == ERROR:
            raise Refused(answer)
        assert kind == REPLY and number == self.last_id and not flags & MORE
        return answer

    def push(self, policy: str) -> dict:
        return self.call("bundle.push", {"file": "pushed"}, policy.encode())

    def grant(self, tenant: str, *endpoints: str, ttl_s: float = 120, **options: object) -> dict:
        """One lease. `egress`: a list of ports; `peer`: a prefix."""
        request = {"tenant": tenant, "ttl_ns": round(ttl_s * 1e9), **options}
        if endpoints:
            request["endpoints"] = list(endpoints)
        return self.call("lease.grant", {}, encode([request]))["leases"][0]

    def renew(self, lease_id: str, ttl_s: float) -> dict:
        return self.call("lease.renew", {"id": lease_id, "ttl_ns": round(ttl_s * 1e9)})

    def revoke(self, lease_id: str) -> dict:
        return self.call("lease.revoke", {"id": lease_id})

    def leases_of(self, tenant: str) -> dict[str, dict]:
        return {each["id"]: each for each in self.call("lease.list", {"tenant": tenant})["leases"]}

    def leases(self) -> dict[str, dict]:
        return {lease["id"]: lease for lease in self.call("lease.list")["leases"]}
