"""Key files that are not as they have to be, and keys on a PKCS#11 token (softhsm2).

Covers REQUIREMENTS H9: what is wrong with the node's key file keeps the daemon from starting, and is named. Every bit
of the file: tests/unit/core/node_key_test.cpp. A token as broken as can be: tests/unit/token/pkcs11_test.cpp.
"""

import json
import os
import pathlib
import subprocess

from issuer import Issuer, as_uid, trust
from lab import A, Lab, policy
from packets import Probe, denied, passes, syn

USER, OTHER = 4001, 4002
WEB = Probe("client", "tenant-a", syn())
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "1234-5678"


# ---- the node's key ----------------------------------------------------------------------------------------


WRONG = {
    "mode 0440": ("key_exposed", lambda key: key.chmod(0o440)),
    "mode 0600": ("key_exposed", lambda key: key.chmod(0o600)),
    "another's": ("key_owner", lambda key: os.chown(key, USER, USER)),
    "too short": ("key_length", lambda key: os.truncate(key, 63)),
    "empty": ("key_length", lambda key: os.truncate(key, 0)),
    "a link": ("key_not_regular", lambda key: (key.rename(key.with_name("kept")), key.symlink_to("kept"))),
    "a link to nothing": ("key_not_regular", lambda key: (key.unlink(), key.symlink_to("nothing"))),
    "a directory": ("key_not_regular", lambda key: (key.unlink(), key.mkdir())),
    "a pipe": ("key_not_regular", lambda key: (key.unlink(), os.mkfifo(key, 0o400))),
}


def put_back(key: pathlib.Path, content: bytes) -> None:
    if key.is_dir() and not key.is_symlink():
        key.rmdir()
    key.unlink(missing_ok=True)
    key.write_bytes(content)
    key.chmod(0o400)


def test_a_key_file_that_is_not_as_it_has_to_be(own_lab: Lab) -> None:
    """H9: the daemon does not start, does not wait, says what is wrong, and touches nothing."""
    lab = own_lab
    name = lab.ask("status")["node"]
    lab.stop()
    key = lab.dir / "state" / "node.key"
    good = key.read_bytes()
    assert len(good) == 64 and key.stat().st_mode & 0o7777 == 0o400
    for what, (code, break_it) in WRONG.items():
        put_back(key, good)
        break_it(key)
        before = key.lstat()
        done = lab.try_start()
        assert done.returncode == 1 and code in done.stderr and str(key) in done.stderr, (what, done.stderr)
        after = key.lstat()
        assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size), what
    for at in (0, 31, 32, 39, 40, 63):  # key, magic and sum, the first byte of each and the last
        bad = bytearray(good)
        bad[at] ^= 0x10
        put_back(key, bytes(bad))
        done = lab.try_start()
        assert done.returncode == 1 and "key_damaged" in done.stderr, (at, done.stderr)
    put_back(key, good)
    lab.start()
    assert lab.ask("status")["node"] == name


def test_a_key_in_pem_is_written_anew(own_lab: Lab) -> None:
    """H9: earlier builds kept the node's key in PEM. The node stays who it is, with its epoch and its leases."""
    lab = own_lab
    lab.push(policy())
    (lease,) = lab.cli("lease", "grant", A, "--endpoint", "web", "--ttl", "300s")["leases"]
    before = lab.ask("status")
    lab.stop()
    key = lab.dir / "state" / "node.key"
    good = key.read_bytes()
    pkcs8 = bytes.fromhex("302e020100300506032b657004220420") + good[:32]
    made = ["openssl", "pkey", "-inform", "DER"]
    pem = subprocess.run(made, input=pkcs8, check=True, capture_output=True).stdout
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    put_back(key, pem)
    lab.start()
    assert "node_key_rewritten" in lab.log
    assert key.read_bytes() == good and key.stat().st_mode & 0o7777 == 0o400
    after = lab.ask("status")
    assert (after["node"], after["epoch"]) == (before["node"], before["epoch"])
    assert lease["id"] in lab.leases()
    passes(lab, WEB)
    count = lab.log.count("node_key_rewritten")
    lab.stop()
    lab.start()
    assert lab.log.count("node_key_rewritten") == count and key.read_bytes() == good


# ---- people's key files ------------------------------------------------------------------------------------


def refused(lab: Lab, code: str, *words: object, prefix: list[str]) -> dict:
    done = lab.try_cli(*words, prefix=prefix)
    assert done.returncode == 1, done
    error = json.loads(done.stderr)["error"]
    assert error["code"] == code and error["next_step"], error
    return error


def test_key_files_of_the_command_line(lab: Lab, issuer: Issuer) -> None:
    """H9: --sign-key, --key and --holder-key take a regular file of whoever runs this, which nobody else may read."""
    trust(lab, issuer.anchor(uses=["request", "token"], verbs=["*"]))
    key = lab.dir / "mine.pem"
    key.write_bytes(issuer.key.read_bytes())
    key.chmod(0o400)
    os.chown(key, USER, USER)
    link = lab.dir / "link.pem"
    link.symlink_to(key)
    fifo = lab.dir / "fifo"
    os.mkfifo(fifo, 0o400)
    os.chown(fifo, USER, USER)
    issue = ("token", "issue", A, "--endpoint", "web", "--issuer", issuer.name)
    for words in (("status", "--sign-key"), (*issue, "--key"), ("lease", "release", "0" * 32, "--holder-key")):
        for path, uid, code in (
            (key, 0, "key_owner"), (link, USER, "key_not_regular"), (fifo, USER, "key_not_regular"),
            ("/etc", USER, "key_not_regular"), (lab.dir / "none", USER, "key_missing"),
        ):  # fmt: skip
            refused(lab, code, *words, path, prefix=as_uid(uid))
    done = lab.try_cli(*issue, "--key", key, prefix=as_uid(USER))
    assert done.returncode == 0, done.stderr
    key.chmod(0o404)
    refused(lab, "key_exposed", *issue, "--key", key, prefix=as_uid(USER))


# ---- PKCS#11 -----------------------------------------------------------------------------------------------


class Hsm:
    """A directory of softhsm2 tokens, which its user may use."""

    def __init__(self, lab: Lab, uid: int = USER) -> None:
        self.uid = uid
        self.dir = lab.dir / "hsm"
        (self.dir / "tokens").mkdir(parents=True)
        (self.dir / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.dir}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.prefix = ["env", f"SOFTHSM2_CONF={self.dir}/softhsm2.conf", *as_uid(uid)]
        self.pin = self.keep("pin", PIN)
        for path in (self.dir, self.dir / "tokens"):
            os.chown(path, uid, uid)
        self.add_token("ops")

    def keep(self, name: str, content: str) -> pathlib.Path:
        path = self.dir / name
        path.write_text(content + "\n")
        path.chmod(0o400)
        os.chown(path, self.uid, self.uid)
        return path

    def run(self, *words: object) -> None:
        subprocess.run([*self.prefix, "softhsm2-util", *map(str, words)], check=True, capture_output=True)

    def add_token(self, label: str) -> None:
        self.run("--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", PIN)

    def add_key(self, pem: bytes, label: str, number: int, *words: str) -> None:
        """The key of a PEM file, on the token."""
        path = self.keep("import.pem", pem.decode())
        self.run("--import", path, "--token", "ops", "--label", label, "--id", f"{number:02x}", "--pin", PIN, *words)
        path.unlink()

    def uri(self, key: str = "object=root", token: str = "token=ops", pin: pathlib.Path | None = None) -> str:
        return f"pkcs11:{token};{key}?module-path={MODULE}&pin-source=file:{pin or self.pin}"


def test_a_key_on_a_token_signs(own_lab: Lab) -> None:
    """What is signed by a key that never leaves its token is believed as that of a file: requests, bundles, tokens, proofs."""
    lab = own_lab
    issuer = Issuer(lab)
    hsm = Hsm(lab)
    hsm.add_key(issuer.key.read_bytes(), "root", 1)
    uri = hsm.uri()
    lab.push(policy())
    trust(lab, issuer.anchor(uses=["request", "token", "operator"], verbs=["*"]))
    denied(lab, WEB, "no_lease", "from_uplink")
    done = lab.try_cli("lease", "grant", A, "--endpoint", "web", "--sign-key", uri, prefix=hsm.prefix)
    assert done.returncode == 0, done.stderr
    passes(lab, WEB)
    lab.cli("lease", "revoke", json.loads(done.stdout)["leases"][0]["id"])
    denied(lab, WEB, "no_lease", "from_uplink")

    # A token that it signed, for its holder: itself.
    public = lab.dir / "root.pub"
    public.write_text(f"-----BEGIN PUBLIC KEY-----\n{issuer.line}\n-----END PUBLIC KEY-----\n")
    done = lab.try_cli(
        "token", "issue", A, "--endpoint", "web", "--issuer", issuer.name, "--key", uri, "--holder-key", public, prefix=hsm.prefix
    )
    assert done.returncode == 0, done.stderr
    token = issuer.keep(json.loads(done.stdout)["token"])
    refused(lab, "wrong_holder", "lease", "grant", "--token", token, prefix=as_uid(OTHER))
    done = lab.try_cli("lease", "grant", "--token", token, "--holder-key", uri, prefix=hsm.prefix)
    assert done.returncode == 0, done.stderr
    passes(lab, WEB)

    # A grant for a person, and a bundle.
    node = lab.ask("status")["node"]
    public.chmod(0o444)
    words = lab.holdfast_argv(
        "operator", "grant", "ann", "--public-key", public, "--verb", "lease.grant", "--tenant", "*", "--key", uri, "--node", node
    )
    subprocess.run([*hsm.prefix, *words], check=True, capture_output=True)
    trust(lab, issuer.anchor(uses=["bundle"], operations=["*"]))
    document = policy()
    document["generation"] = lab.cli("bundle", "show")["generation"] + 1
    path = lab.write_policy(document)
    path.chmod(0o444)
    words = lab.holdfast_argv("bundle", "sign", path, "--key", uri, "--node", node)
    made = lab.dir / "node.bundle"
    made.write_bytes(subprocess.run([*hsm.prefix, *words], check=True, capture_output=True).stdout)
    pushed = lab.cli("bundle", "push", made)
    assert (pushed["generation"], pushed["signer"]) == (document["generation"], issuer.name)


def test_what_a_token_lacks(lab: Lab, issuer: Issuer) -> None:
    """Each says what, and what to do; a wrong PIN is tried once, and none is ever repeated."""
    hsm = Hsm(lab)
    pem = issuer.key.read_bytes()
    hsm.add_key(pem, "root", 1)
    hsm.add_key(pem, "alone", 2, "--no-public-key")
    hsm.add_key(pem, "twice", 3)
    hsm.add_key(pem, "twice", 4)
    rsa = subprocess.run(["openssl", "genpkey", "-algorithm", "RSA"], check=True, capture_output=True).stdout
    hsm.add_key(rsa, "rsa", 5)
    wrong = hsm.keep("wrong", "8765-4321")
    exposed = hsm.keep("exposed", PIN)
    exposed.chmod(0o444)
    no_module = hsm.uri().replace(MODULE, "/usr/lib/none.so")
    for uri, code, said in (
        (hsm.uri("object=none"), "pkcs11_key_missing", "none"),
        (hsm.uri("object=rsa"), "pkcs11_key_missing", "rsa"),
        (hsm.uri("object=root;id=%02"), "pkcs11_key_missing", "02"),
        (hsm.uri("object=twice"), "pkcs11_key_ambiguous", "twice"),
        (hsm.uri("object=alone"), "pkcs11_public_key_missing", "alone"),
        (hsm.uri(token="token=none"), "pkcs11_token_missing", "none"),
        (hsm.uri(pin=wrong), "pkcs11_pin_wrong", "ops"),
        (hsm.uri(pin=exposed), "key_exposed", str(exposed)),
        (hsm.uri(pin=hsm.dir / "no-pin"), "key_missing", "no-pin"),
        (hsm.uri().split("&")[0], "pkcs11_pin_missing", "ops"),
        (hsm.uri().split("&")[0] + f"&pin-value={PIN}", "pkcs11_uri", "PIN"),
        (no_module, "pkcs11_module", "/usr/lib/none.so"),
    ):  # fmt: skip
        error = refused(lab, code, "status", "--sign-key", uri, prefix=hsm.prefix)
        assert said in error["detail"], (uri, error)
        assert PIN not in json.dumps(error) and "8765" not in json.dumps(error)
    # The controls: by id, and with the token not named, there being one.
    trust(lab, issuer.anchor(uses=["request"], verbs=["*"]))
    for uri in (hsm.uri("object=twice;id=%04"), hsm.uri("id=%01"), hsm.uri(token="manufacturer=SoftHSM%20project")):
        done = lab.try_cli("status", "--sign-key", uri, prefix=hsm.prefix)
        assert done.returncode == 0, (uri, done.stderr)
    hsm.add_token("ops")
    refused(lab, "pkcs11_token_ambiguous", "status", "--sign-key", hsm.uri(), prefix=hsm.prefix)
