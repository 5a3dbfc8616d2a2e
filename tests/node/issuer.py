"""A control plane in miniature: a key of openssl's making, and tokens by `holdfast token issue`."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
from base64 import b64decode, urlsafe_b64decode

from lab import Lab, wait_until
from signing import independent

ISSUER = "cp.example"


class Issuer:
    def __init__(self, lab: Lab, name: str = ISSUER) -> None:
        self.lab, self.name = lab, name
        self.key = lab.dir / f"{name}.pem"
        made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(self.key)]
        subprocess.run(made, check=True, capture_output=True)
        self.key.chmod(0o400)
        public = subprocess.run(
            ["openssl", "pkey", "-in", str(self.key), "-pubout"], check=True, capture_output=True, text=True
        )
        self.line = public.stdout.splitlines()[1]

    def thumbprint(self) -> str:
        return independent.thumbprint(b64decode(self.line)[-32:]).hex()

    def anchor(self, **changes: object) -> dict:
        plain = {"issuer": self.name, "key": self.line, "uses": ["token"], "tenants": ["*"], "operations": ["connect"]}
        return plain | changes

    def tokens(self, *words: object, kind: str = "grant", node: str = "", epoch: int = 0, life: str = "60s") -> list[str]:
        """What `token issue WORDS` prints. WORDS are tenant and options, or --from and a file."""
        status = self.lab.ask("status")
        return self.lab.cli_text(
            "token", "issue", *words, "--key", self.key, "--issuer", self.name, "--kind", kind, "--life", life,
            "--node", node or status["node"], "--epoch", epoch or status["epoch"],
        ).split()  # fmt: skip

    def issue(self, *words: object, **options: object) -> pathlib.Path:
        """One token, in a file that anybody may read."""
        (token,) = self.tokens(*words, **options)
        return self.keep(token)

    def keep(self, token: str) -> pathlib.Path:
        path = self.lab.dir / f"token-{len(list(self.lab.dir.glob('token-*')))}"
        path.write_text(token + "\n")
        path.chmod(0o444)
        return path


def as_bytes(token: str) -> bytes:
    """A token as it goes over a socket, of one as text."""
    text = token.strip()
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def trust(lab: Lab, *anchors: dict, **more: object) -> None:
    """Puts an anchors file in place, with MORE at its top, and has the daemon read it."""
    document = {"version": 1} | more | {"anchors": list(anchors)}
    (lab.dir / "config" / "anchors.yaml").write_text(json.dumps(document))
    lab.policy_file.unlink(missing_ok=True)  # of a test before, in a shared lab: it would be put in force
    if lab.daemon is not None:
        # What is believed has a number that rises; the log leaves out lines that come too often.
        before = lab.ask("status")["tokens"]["version"]
        lab.daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: lab.ask("status")["tokens"]["version"] > before, what="the anchors are read")


def as_uid(uid: int) -> list[str]:
    """What goes before a command that another user is to run."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
