#!/usr/bin/python3
"""Issues a token, presents it, and asks the node about it: the whole way of a capability token, in one file.

    token_example.py --key cp.pem --issuer cp.example --tenant acme/shop/prod --endpoint web

The key is one that /etc/holdfast/anchors.yaml lists (openssl genpkey -algorithm ed25519 -out cp.pem). Three parties are
played here: a control plane, which signs; a holder, who presents the token and is granted a lease; and a service, which
is shown the use token and asks the node whether it holds. Needs python3 and openssl, and nothing of Holdfast's but its
sockets. The formats: userspace/token/README.md, userspace/wire/frame.hpp, userspace/wire/check_frame.hpp.
"""

import argparse
import base64
import hashlib
import os
import pathlib
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time

HEADER = struct.Struct("!4sBBHII")  # magic, version, type, flags, length, request id
REQUEST, REPLY, ERROR, CHECK, VERDICTS = 2, 3, 4, 6, 7
PRIVATE = -65537  # the label of what is Holdfast's own


# ---- deterministic CBOR (RFC 8949, 4.2.1), as much of it as is needed


def encode(value: object) -> bytes:
    def head(major: int, number: int) -> bytes:
        if number < 24:
            return bytes([major << 5 | number])
        size = next(size for size in (1, 2, 4, 8) if number < 1 << 8 * size)
        return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size]]) + number.to_bytes(size, "big")

    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    pairs = sorted((encode(key), encode(item)) for key, item in value.items())
    return head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


def decode(data: bytes, at: int = 0) -> tuple[object, int]:
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        return {20: False, 21: True, 22: None}[info], at
    number = info
    if info >= 24:
        size = 1 << info - 24
        number, at = int.from_bytes(data[at : at + size], "big"), at + size
    if major == 0:
        return number, at
    if major == 1:
        return -1 - number, at
    if major in (2, 3):
        text = data[at : at + number]
        return text if major == 2 else text.decode(), at + number
    items = []
    for _ in range(number * (major - 3)):
        item, at = decode(data, at)
        items.append(item)
    return (items, at) if major == 4 else (dict(zip(items[::2], items[1::2], strict=True)), at)


# ---- the node's sockets


class Node:
    """control.sock is a stream, verify.sock has a frame a datagram; the node speaks first on both."""

    def __init__(self, path: pathlib.Path, kind: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.connect(str(path))
        self.hello = self.read()

    def read(self) -> object:
        data = self.socket.recv(1 << 20)
        while data and (len(data) < HEADER.size or len(data) < HEADER.size + HEADER.unpack_from(data)[4]):
            data += self.socket.recv(1 << 20)
        if not data:
            sys.exit("the node closed the connection")
        kind = HEADER.unpack_from(data)[2]
        body, _ = decode(data[HEADER.size :])
        if kind == ERROR:
            sys.exit(f"refused: {body['code']}: {body['detail']}")
        return body

    def ask(self, kind: int, body: object) -> object:
        encoded = encode(body)
        self.socket.sendall(HEADER.pack(b"HLDF", 1, kind, 0, len(encoded), 1) + encoded)
        return self.read()


# ---- the control plane


def openssl(*words: str) -> bytes:
    return subprocess.run(["openssl", *words], check=True, capture_output=True).stdout


def sign(key: str, message: bytes) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.write(message)
        file.flush()
        return openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", file.name)


def issue_grant(key: str, issuer: str, node: str, epoch: int, tenant: str, endpoints: list[str]) -> bytes:
    """A grant token: a tree of one leaf, whose head is signed."""
    now = int(time.time())
    public = openssl("pkey", "-in", key, "-pubout", "-outform", "DER")[-32:]
    claims = encode({
        1: issuer, 3: node, 4: now + 60, 5: now - 30, 6: now, 7: secrets.token_bytes(16),
        PRIVATE: {1: tenant, 2: sorted(endpoints), 4: ["connect"], 6: f"uid:{os.getuid()}", 7: 60},
    })  # fmt: skip
    root = hashlib.sha256(b"\0" + claims).digest()  # of a tree of one, its leaf
    header = encode({
        1: -19, 4: hashlib.sha256(encode({1: 1, -1: 6, -2: public})).digest(), 15: {1: issuer, 3: node, 4: now + 60},
        16: "application/holdfast-grant+cwt", 395: 1, PRIVATE: {1: 1, 2: epoch},
    })  # fmt: skip
    signature = sign(key, encode(["Signature1", header, b"holdfast grant token v1", root]))
    proof = encode([1, 0, []])
    return encode([[header, {396: {-1: [proof]}}, None, signature], claims])


# ---- the service


def check_of(token: bytes, operation: str, resource: str) -> list:
    """What a frame on verify.sock asks: is this token good for that operation, shown by whoever asks?"""
    (receipt, claims), _ = decode(token)
    header, unprotected, _, signature = receipt
    (_, index, path), _ = decode(unprotected[396][-1][0])
    return [[[header, signature]], [[0, index, b"".join(path), claims, operation, resource, None]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", required=True, help="the issuer's private key, in PEM")
    parser.add_argument("--issuer", required=True, help="its name in anchors.yaml")
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--endpoint", required=True, action="append")
    parser.add_argument("--sockets", type=pathlib.Path, default="/run/holdfast", help="where they are")
    words = parser.parse_args()

    control = Node(words.sockets / "control.sock", socket.SOCK_STREAM)
    node, epoch = control.hello["node"], control.hello["epoch"]
    print(f"node    {node}, epoch {epoch}")
    grant = issue_grant(words.key, words.issuer, node, epoch, words.tenant, words.endpoint)
    print(f"issued  a grant token of {len(grant)} bytes")
    lease = control.ask(REQUEST, {"verb": "lease.grant", "args": {"token": grant}})
    print(f"granted lease {lease['id']}, generation {lease['generation']}")

    text = lease["token"]
    use = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    service = Node(words.sockets / "verify.sock", socket.SOCK_SEQPACKET)
    for resource in lease["resources"]:
        for operation in ("connect", "erase"):
            (verdict,) = service.ask(CHECK, check_of(use, operation, resource))
            print(f"asked   {operation} on {resource}: {service.hello['reasons'][verdict[0]]}")


if __name__ == "__main__":
    main()
