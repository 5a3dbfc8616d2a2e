"""Control planes that sign what they ask for: requests on a connection, and bundles, by tests/unit/token/independent.py."""

from __future__ import annotations

import base64
import json
import pathlib
import sys
import time

from control import Control, encode
from lab import Lab

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "unit" / "token"))
import independent

USER = 4001  # in no group of ours
SEED, STRANGER = bytes([5]) * 32, bytes([6]) * 32


def public_line(seed: bytes) -> str:
    """The line between BEGIN and END of a public key in PEM."""
    return base64.b64encode(bytes.fromhex("302a300506032b6570032100") + independent.public_of(seed)).decode()


def thumbprint(seed: bytes) -> str:
    return independent.thumbprint(independent.public_of(seed)).hex()


def anchor(seed: bytes = SEED, **changes: object) -> dict:
    """One that may ask for everything; a change to None leaves its key out."""
    plain = {"issuer": "cp.example", "key": public_line(seed), "uses": ["request"], "tenants": ["*"], "verbs": ["*"]}
    return {key: value for key, value in (plain | changes).items() if value is not None}


class Signing:
    """What a control plane signs on its connection. Each part of it can be made wrong."""

    def __init__(self, control: Control, seed: bytes = SEED, **wrong: object) -> None:
        self.hello, self.seed, self.wrong, self.sequence = control.hello, seed, wrong, 0
        self.last = b""

    def __call__(self, request: bytes) -> bytes:
        self.sequence += 1
        parts = {
            "seed": self.seed, "purpose": "request", "node": self.hello["node"], "epoch": self.hello["epoch"],
            "challenge": self.hello["challenge"], "sequence": self.sequence, "issued": int(time.time()),
        } | self.wrong  # fmt: skip
        private = {1: parts["epoch"], 2: parts["challenge"], 3: parts["sequence"]}
        self.last = independent.make_signed(parts["seed"], parts["purpose"], parts["node"], parts["issued"], private, request)
        return self.last


def connect(lab: Lab, uid: int = USER, seed: bytes = SEED, **wrong: object) -> Control:
    control = Control(lab.socket_path, uid=uid)
    control.seal = Signing(control, seed, **wrong)
    return control


def bundle(node: str, document: dict | str, anchors: list[dict] | None = None, seed: bytes = SEED, **wrong: object) -> bytes:
    """A signed bundle for a node. Each part of it can be made wrong."""
    now = int(time.time())
    policy = document if isinstance(document, str) else json.dumps(document)
    content: dict = {"policy": policy}
    if anchors is not None:
        content["anchors"] = json.dumps({"version": 1, "anchors": anchors})
    parts = {
        "purpose": "bundle", "node": node, "issued": now, "expires": now + 3600, "content": encode(content),
        "generation": document["generation"] if isinstance(document, dict) else 1,
    } | wrong  # fmt: skip
    return independent.make_signed(
        seed, parts["purpose"], parts["node"], parts["issued"], {4: parts["generation"]} | parts.get("private", {}),
        parts["content"], parts["expires"],
    )  # fmt: skip
