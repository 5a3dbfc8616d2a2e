"""The asking side of verify.sock: one SEQPACKET datagram a frame, many tokens in it.

Written from userspace/wire/check_frame.hpp, and not from its code. Tokens are text as the daemon and `token issue`
print it.
"""

from __future__ import annotations

import dataclasses
import os
import socket

from control import ERROR, HEADER, Refused, decode, encode
from issuer import as_bytes

HELLO, CHECK, VERDICTS, PROVE, PROVED = 1, 6, 7, 8, 9


@dataclasses.dataclass(frozen=True)
class Parts:
    """A token taken apart, as a frame carries it."""

    header: bytes
    signature: bytes
    index: int
    path: bytes
    claims: bytes


def take_apart(text: str) -> Parts:
    data = as_bytes(text)
    (receipt, claims), end = decode(data)
    assert end == len(data)
    header, unprotected, payload, signature = receipt
    assert payload is None
    (_, index, path), _ = decode(unprotected[396][-1][0])
    return Parts(header, signature, index, b"".join(path), claims)


@dataclasses.dataclass(frozen=True)
class Check:
    token: str
    operation: str
    resource: str
    presenter: str | None = None


def body_of(checks: list[Check]) -> bytes:
    heads: dict[tuple[bytes, bytes], int] = {}
    items = []
    for each in checks:
        parts = take_apart(each.token)
        head = heads.setdefault((parts.header, parts.signature), len(heads))
        items.append([head, parts.index, parts.path, parts.claims, each.operation, each.resource, each.presenter])
    return encode([[list(head) for head in heads], items])


class VerifySock:
    def __init__(self, path: os.PathLike, uid: int = 0, timeout_s: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(timeout_s)
        self.last_id = 0
        try:
            os.seteuid(uid)  # whom SO_PEERCRED names
            try:
                self.socket.connect(str(path))
            finally:
                os.seteuid(0)
            kind, _, self.hello = self.read()
            assert kind == HELLO
        except BaseException:
            self.socket.close()
            raise
        self.reasons = self.hello["reasons"]

    def __enter__(self) -> VerifySock:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def read(self) -> tuple[int, int, object]:
        data = self.socket.recv(1 << 17)
        if not data:
            raise ConnectionError("the daemon closed the connection")
        magic, version, kind, flags, length, number = HEADER.unpack(data[: HEADER.size])
        assert (magic, version, flags, length) == (b"HLDF", 1, 0, len(data) - HEADER.size)
        body, end = decode(data[HEADER.size :])
        assert end == length
        return kind, number, body

    def send(self, body: bytes, kind: int = CHECK) -> int:
        self.last_id += 1
        self.socket.sendall(HEADER.pack(b"HLDF", 1, kind, 0, len(body), self.last_id) + body)
        return self.last_id

    def prove(self, proof: bytes) -> bytes:
        """The thumbprint of the key that is proved."""
        sent = self.send(proof, PROVE)
        kind, number, body = self.read()
        if kind == ERROR:
            raise Refused(body)
        assert (kind, number) == (PROVED, sent)
        return body

    def answer(self) -> list[list[int]]:
        kind, number, body = self.read()
        if kind == ERROR:
            raise Refused(body)
        assert kind == VERDICTS
        self.answered = number
        return body

    def ask(self, checks: list[Check]) -> list[list[int]]:
        """Verdicts, in order: [0, slot, generation, valid_until], or [reason]."""
        number = self.send(body_of(checks))
        verdicts = self.answer()
        assert self.answered == number and len(verdicts) == len(checks)
        return verdicts

    def reason(self, check: Check) -> str:
        """ "good", or why not."""
        return self.reasons[self.ask([check])[0][0]]
