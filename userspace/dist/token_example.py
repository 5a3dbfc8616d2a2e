#!/usr/bin/python3
"""Issues a token, presents it, asks the node about it, and renews: the whole way of a capability token, in one file.

    token_example.py --key cp.pem --issuer cp.example --tenant acme/shop/prod --endpoint web
    token_example.py ... --policy policy.yaml --watch

The key is one that /etc/holdfast/anchors.yaml lists (openssl genpkey -algorithm ed25519 -out cp.pem). Three parties are
played here: a control plane, which signs; a holder, who presents the token and is granted a lease; and a service, which
is shown the use token and asks the node whether it holds. With --policy the control plane first signs that policy for the
node and pushes it (uses: [token, bundle]), with --watch it follows what becomes of leases, asked for in its name (uses:
[token, request], verbs: [watch]); both take a key of all tenants. Needs python3 and openssl, and nothing of Holdfast's but
its sockets. The formats: userspace/token/README.md, userspace/wire/frame.hpp, userspace/wire/check_frame.hpp.
"""

import argparse
import base64
import hashlib
import os
import pathlib
import re
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time

HEADER = struct.Struct("!4sBBHII")  # magic, version, type, flags, length, request id
REQUEST, REPLY, ERROR, EVENT, CHECK, VERDICTS, SIGNED_REQUEST = 2, 3, 4, 5, 6, 7, 10
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
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.data = b""
        self.hello = self.read()

    def take(self, size: int) -> bytes:
        while len(self.data) < size:
            got = self.socket.recv(1 << 20)
            if not got:
                sys.exit("the node closed the connection")
            self.data += got
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def read(self) -> object:
        kind, _, length, _ = HEADER.unpack(self.take(HEADER.size))[2:]
        body, _ = decode(self.take(length))
        if kind == ERROR:
            sys.exit(f"refused: {body['code']}: {body['detail']}")
        return body

    def send(self, kind: int, content: bytes) -> object:
        self.socket.sendall(HEADER.pack(b"HLDF", 1, kind, 0, len(content), 1) + content)
        return self.read()

    def ask(self, kind: int, body: object) -> object:
        return self.send(kind, encode(body))


# ---- the control plane


def openssl(*words: str) -> bytes:
    return subprocess.run(["openssl", *words], check=True, capture_output=True).stdout


def sign(key: str, message: bytes) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.write(message)
        file.flush()
        return openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", file.name)


def thumbprint(key: str) -> bytes:
    public = openssl("pkey", "-in", key, "-pubout", "-outform", "DER")[-32:]
    return hashlib.sha256(encode({1: 1, -1: 6, -2: public})).digest()


def issue(kind: str, key: str, issuer: str, node: str, epoch: int, what: dict) -> bytes:
    """A token: a tree of one leaf, whose head is signed. WHAT: the claims that are Holdfast's own."""
    now = int(time.time())
    claims = encode({
        1: issuer, 3: node, 4: now + 150, 5: now - 30, 6: now, 7: secrets.token_bytes(16),
        PRIVATE: {4: ["connect"], 6: f"uid:{os.getuid()}"} | what,
    })  # fmt: skip
    root = hashlib.sha256(b"\0" + claims).digest()  # of a tree of one, its leaf
    header = encode({
        1: -19, 4: thumbprint(key), 15: {1: issuer, 3: node, 4: now + 150},
        16: f"application/holdfast-{kind}+cwt", 395: 1, PRIVATE: {1: 1, 2: epoch},
    })  # fmt: skip
    signature = sign(key, encode(["Signature1", header, f"holdfast {kind} token v1".encode(), root]))
    proof = encode([1, 0, []])
    return encode([[header, {396: {-1: [proof]}}, None, signature], claims])


def make_signed(key: str, purpose: str, node: str, content: bytes, private: dict, more: dict | None = None) -> bytes:
    """Content under a signature for one purpose. PRIVATE: the labels of the header that are Holdfast's own."""
    header = encode({
        1: -19, 4: thumbprint(key), 15: {3: node, 6: int(time.time())} | (more or {}),
        16: f"application/holdfast-{purpose}+cose", PRIVATE: private,
    })  # fmt: skip
    signature = sign(key, encode(["Signature1", header, f"holdfast {purpose} v1".encode(), content]))
    return encode([header, {}, content, signature])


def push_bundle(control: Node, key: str, policy: str) -> None:
    """A policy, signed for this node for an hour. Whoever delivers it, it is the key that counts."""
    found = re.search(r'\bgeneration"?\s*:\s*(\d+)', policy)
    if not found:
        sys.exit("the policy has no generation")
    content = encode({"policy": policy})
    made = make_signed(key, "bundle", control.hello["node"], content, {4: int(found[1])}, {4: int(time.time()) + 3600})
    answer = control.ask(REQUEST, {"verb": "bundle.push", "args": {"signed": True}, "body": made})
    print(f"pushed  generation {found[1]}, signed by {answer['signer']}")


class Watch:
    """What becomes of leases, on a connection of its own: first how things stand, then each event in its order."""

    def __init__(self, path: pathlib.Path, key: str) -> None:
        self.node = Node(path, socket.SOCK_STREAM)
        hello = self.node.hello
        # Good on this connection only: the challenge is its own, and the sequence rises with each request.
        private = {1: hello["epoch"], 2: hello["challenge"], 3: 1}
        content = encode({"verb": "watch", "args": {"kinds": ["lease"]}})
        frame = self.node.send(SIGNED_REQUEST, make_signed(key, "request", hello["node"], content, private))
        while frame["type"] != "snapshot_end":
            frame = self.node.read()

    def until(self, name: str, lease: str) -> None:
        """Prints what happens to that lease, to the event of that name."""
        while True:
            for event in self.node.read().get("events", []):
                if event.get("lease") != lease:
                    continue
                print(f"watched {event['event']} of {lease}")
                if event["event"] == name:
                    return


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
    parser.add_argument("--policy", type=pathlib.Path, help="a policy that is signed and pushed first, in YAML or JSON")
    parser.add_argument("--watch", action="store_true", help="print what the node says of the lease")
    parser.add_argument("--sockets", type=pathlib.Path, default="/run/holdfast", help="where they are")
    words = parser.parse_args()

    control = Node(words.sockets / "control.sock", socket.SOCK_STREAM)
    node, epoch = control.hello["node"], control.hello["epoch"]
    print(f"node    {node}, epoch {epoch}")
    if words.policy:
        push_bundle(control, words.key, words.policy.read_text())
    watch = Watch(words.sockets / "control.sock", words.key) if words.watch else None
    signer = (words.key, words.issuer, node, epoch)
    grant = issue("grant", *signer, {1: words.tenant, 2: sorted(words.endpoint), 7: 60})
    print(f"issued  a grant token of {len(grant)} bytes")
    lease = control.ask(REQUEST, {"verb": "lease.grant", "args": {"token": grant}})
    print(f"granted lease {lease['id']}, generation {lease['generation']}")

    if watch:
        watch.until("lease.grant", lease["id"])

    text = lease["token"]
    use = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    service = Node(words.sockets / "verify.sock", socket.SOCK_SEQPACKET)
    for resource in lease["resources"]:
        for operation in ("connect", "erase"):
            (verdict,) = service.ask(CHECK, check_of(use, operation, resource))
            print(f"asked   {operation} on {resource}: {service.hello['reasons'][verdict[0]]}")

    # Once no more than three quarters of the new term remain. It names the generation, so it serves once.
    renewal = {1: words.tenant, 7: 120, 8: bytes.fromhex(lease["id"]), 9: lease["generation"]}
    renewed = control.ask(REQUEST, {"verb": "lease.renew", "args": {"token": issue("renew", *signer, renewal)}})
    print(f"renewed lease {renewed['id']}, generation {renewed['generation']}, for {renewed['remaining_ns'] // 10**9} s")
    if watch:
        watch.until("lease.renew", lease["id"])


if __name__ == "__main__":
    main()
