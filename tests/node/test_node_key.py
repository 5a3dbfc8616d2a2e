"""The node's own key on a PKCS#11 token (softhsm2): the node is named for it, and an epoch key in memory signs.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers PROTOCOL.md section 5 (the last paragraph), H9, G16. Each refusal stands beside its control. A token as broken as can be:
tests/unit/token/pkcs11_test.cpp; certificates that are not the node's: tests/unit/token/node_identity_test.cpp.
"""

import json
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import Control, Refused
from issuer import Issuer, as_bytes, trust
from lab import A, HOSTS, Lab, policy
from packets import Probe, denied, passes, syn
from signing import anchor, connect, independent, thumbprint
from test_enroll import SEED, answer, finish
from test_keys import MODULE, PIN, Hsm
from verify_sock import Check, VerifySock

WEB = Probe("client", "tenant-a", syn())
RESOURCE = f"web@{HOSTS['tenant-a'].v4}:8080"


class Node:
    """A lab whose daemon has its key on a token."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.hsm = lab, Hsm(lab, uid=0)
        self.prefix = ["env", f"SOFTHSM2_CONF={self.hsm.dir}/softhsm2.conf"]
        self.add_key("node", 1)
        self.uri = self.hsm.uri("object=node")

    def add_key(self, label: str, number: int) -> bytes:
        made = ["openssl", "genpkey", "-algorithm", "ed25519"]
        pem = subprocess.run(made, check=True, capture_output=True).stdout
        self.hsm.add_key(pem, label, number)
        return pem

    def start(self, **changes: object) -> None:
        self.lab.start(prefix=self.prefix, **({"node_key": self.uri} | changes))

    def again(self, **changes: object) -> None:
        self.lab.stop()
        self.start(**changes)

    def refused(self, code: str, **changes: object) -> str:
        """A start that is, and what it says."""
        before = self.kept()
        done = self.lab.try_start(prefix=self.prefix, **({"node_key": self.uri} | changes))
        assert done.returncode == 1 and f"code={code}" in done.stderr, done.stderr
        assert PIN not in done.stderr and self.kept() == before
        return done.stderr

    def kept(self) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in (self.lab.dir / "state").glob("*") if each.is_file()}

    def identity(self) -> dict:
        return self.lab.ask("node.identity")


@pytest.fixture
def node() -> Iterator[Node]:
    """One that has never started."""
    with Lab(daemon=False) as lab:
        yield Node(lab)


def use_token(lab: Lab, issuer: Issuer, life: str = "250s") -> tuple[pathlib.Path, dict]:
    """A grant token, and the lease that it makes."""
    path = issuer.issue(A, "--endpoint", "web", "--operation", "connect", "--ttl", "200s", life=life)
    return path, lab.ask("lease.grant", {"token": as_bytes(path.read_text())})


def asked(lab: Lab, token: str) -> str:
    """What the node says of it on verify.sock."""
    with VerifySock(lab.dir / "run" / "verify.sock") as node:
        return node.reason(Check(token, "connect", RESOURCE))


def judged(lab: Lab, token: str, identity: pathlib.Path, **wrong: object) -> str:
    """What `token verify` says of it without the node."""
    path = lab.dir / "shown"
    path.write_text(token + "\n")
    shown = lab.ask("status")
    words = {"node": shown["node"], "epoch": shown["epoch"]} | wrong
    done = lab.try_cli("token", "verify", path, "--identity", identity, "--node", words["node"], "--epoch", words["epoch"])
    if done.stdout:
        return json.loads(done.stdout).get("reason", "good")
    return json.loads(done.stderr)["error"]["code"]


def test_the_key_never_leaves_its_token(node: Node) -> None:
    """Nothing secret is in the state directory; the name is the key's; what is minted is by another, which the key certifies."""
    lab = node.lab
    node.start()
    lab.serve_all()
    lab.push(policy())
    shown = node.identity()
    assert shown["kept"] == "pkcs11" and shown["epoch_key"] != shown["key"]
    assert shown["node"] == "ni:///sha-256;" + independent.to_text(bytes.fromhex(shown["key"])) == lab.ask("status")["node"]
    assert "node.key" not in node.kept()

    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    denied(lab, WEB, "no_lease", "from_uplink")
    _, lease = use_token(lab, issuer)
    passes(lab, WEB)
    assert asked(lab, lease["token"]) == "good"
    # Without the node: by its name alone, here and in the other implementation.
    kept = lab.dir / "node.id"
    assert "on a PKCS#11 token" in lab.cli_text("node", "identity", "--out", kept)
    certificate = kept.read_bytes()
    assert judged(lab, lease["token"], kept) == "good"
    key, epoch = independent.epoch_key_of(certificate, shown["node"])
    assert (independent.thumbprint(key).hex(), epoch) == (shown["epoch_key"], shown["epoch"])
    anchors = independent.own_anchors(certificate, shown["node"])
    assert independent.verify(as_bytes(lease["token"]), anchors, shown["node"], epoch, int(time.time())) == "good"
    assert judged(lab, lease["token"], kept, epoch=epoch + 1) == "stale_epoch"
    assert judged(lab, lease["token"], kept, node="ni:///sha-256;another") == "wrong_node"
    damaged = lab.dir / "damaged.id"
    damaged.write_bytes(certificate[:-1] + bytes([certificate[-1] ^ 1]))
    assert judged(lab, lease["token"], damaged) == "bad_signature"
    # Nobody may name the epoch key or the key as another's.
    with pytest.raises(Refused, match="own_key"):
        lab.ask("enroll.begin", {"anchor": shown["key"]})
    with pytest.raises(Refused, match="own_key"):
        lab.ask("enroll.begin", {"anchor": shown["epoch_key"]})


def test_a_file_has_a_certificate_too(own_lab: Lab) -> None:
    """Whoever checks need not know where the key is: with a file it signs by itself, and so it does after a restart."""
    lab = own_lab
    lab.push(policy())
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    _, lease = use_token(lab, issuer)
    shown = lab.ask("node.identity")
    assert shown["kept"] == "file" and shown["epoch_key"] == shown["key"]
    kept = lab.dir / "node.id"
    lab.cli("node", "identity", "--out", kept)
    assert judged(lab, lease["token"], kept) == "good"
    lab.stop()
    lab.start()
    assert asked(lab, lease["token"]) == judged(lab, lease["token"], kept) == "good"


def test_a_restart_has_another_epoch_key(node: Node) -> None:
    """Use tokens of before are refused, with a reason; leases live on, and their tokens give new ones."""
    lab = node.lab
    node.start()
    lab.serve_all()
    lab.push(policy())
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    path, lease = use_token(lab, issuer)
    kept, before = lab.dir / "node.id", node.identity()
    lab.cli("node", "identity", "--out", kept)
    assert asked(lab, lease["token"]) == "good"

    node.again()
    after = node.identity()
    assert [after[each] == before[each] for each in ("node", "epoch", "key", "epoch_key")] == [True, True, True, False]
    assert lease["id"] in lab.leases()
    passes(lab, WEB)
    assert asked(lab, lease["token"]) == "unknown_key"
    # Shown again, the grant token has the same lease and another use token; a renewal likewise.
    again = lab.ask("lease.grant", {"token": as_bytes(path.read_text())})
    assert (again["id"], again["generation"]) == (lease["id"], lease["generation"])
    assert asked(lab, again["token"]) == "good" and judged(lab, again["token"], kept) == "unknown_key"
    lab.cli("node", "identity", "--out", kept)
    assert judged(lab, again["token"], kept) == "good" and judged(lab, lease["token"], kept) == "unknown_key"
    words = ("--lease", again["id"], "--generation", again["generation"], "--ttl", "100s", "--operation", "connect")
    renewal = issuer.issue(A, *words, kind="renew", life="250s")
    renewed = lab.ask("lease.renew", {"token": as_bytes(renewal.read_text())})
    assert asked(lab, renewed["token"]) == "good" and asked(lab, again["token"]) == "old_generation"


def test_what_keeps_it_from_starting(node: Node) -> None:
    """Each names which: module, token, PIN, key. Nothing is written, and the key as it was starts it."""
    lab, hsm = node.lab, node.hsm
    wrong = hsm.keep("wrong", "8765-4321")
    exposed = hsm.keep("exposed", PIN)
    exposed.chmod(0o444)
    node.start()
    lab.stop()
    for uri, code, said in (
        (node.uri.replace(MODULE, "/usr/lib/none.so"), "pkcs11_module", "/usr/lib/none.so"),
        (hsm.uri("object=node", token="token=none"), "pkcs11_token_missing", "none"),
        (hsm.uri("object=none"), "pkcs11_key_missing", "none"),
        (hsm.uri("object=node", pin=wrong), "pkcs11_pin_wrong", "ops"),
        (hsm.uri("object=node", pin=exposed), "key_exposed", str(exposed)),
        (hsm.uri("object=node", pin=hsm.dir / "no-pin"), "key_missing", "no-pin"),
        (node.uri.split("&")[0], "pkcs11_pin_missing", "ops"),
        (f"{lab.dir}/node.pem", "pkcs11_uri", "pkcs11:"),
    ):  # fmt: skip
        assert said in node.refused(code, node_key=uri), uri
    gone = hsm.dir / "gone"
    (hsm.dir / "tokens").rename(gone)
    (hsm.dir / "tokens").mkdir()
    node.refused("pkcs11_token_missing")
    (hsm.dir / "tokens").rmdir()
    gone.rename(hsm.dir / "tokens")
    node.start()


def test_another_key_is_another_node(node: Node) -> None:
    """From file to token, from key to key and back: refused, unless the operator removes what says who the node was."""
    lab = node.lab
    state = lab.dir / "state"
    lab.start()  # with a file
    in_file = lab.ask("status")["node"]
    lab.stop()
    assert in_file in node.refused("node_key_changed")
    identity = (state / "identity").read_bytes()
    (state / "identity").unlink()
    node.refused("node_key_in_file")
    key = (state / "node.key").read_bytes()
    (state / "node.key").unlink()
    node.start()
    on_token = node.identity()["node"]
    assert on_token != in_file
    # A flag that was forgotten makes no other node; nor does another key of the token.
    lab.stop()
    before = node.kept()
    done = lab.try_start()
    assert done.returncode == 1 and "code=node_key_changed" in done.stderr and on_token in done.stderr
    assert node.kept() == before
    node.add_key("other", 2)
    node.refused("node_key_changed", node_key=node.hsm.uri("object=other"))
    node.start()
    assert node.identity()["node"] == on_token
    # And back, by the operator's word.
    lab.stop()
    (state / "identity").write_bytes(identity)
    (state / "node.key").write_bytes(key)
    (state / "node.key").chmod(0o400)
    lab.start()
    assert lab.ask("status")["node"] == in_file


def test_a_key_that_moves_to_a_token_is_the_same_node(node: Node) -> None:
    """The name is the key's, wherever it is kept; and a copy in the state directory is not left there unseen."""
    lab = node.lab
    state = lab.dir / "state"
    lab.start()
    before = lab.ask("status")
    lab.stop()
    seed = (state / "node.key").read_bytes()[:32]
    der = bytes.fromhex("302e020100300506032b657004220420") + seed
    pem = subprocess.run(["openssl", "pkey", "-inform", "DER"], input=der, check=True, capture_output=True).stdout
    node.hsm.add_key(pem, "moved", 3)
    node.uri = node.hsm.uri("object=moved")
    node.refused("node_key_in_file")
    (state / "node.key").unlink()
    node.start()
    after = lab.ask("status")
    assert (after["node"], after["epoch"]) == (before["node"], before["epoch"])


def test_a_token_that_is_removed(node: Node) -> None:
    """The epoch key goes on serving; what the key itself has to sign says what fails, and leaves nothing behind."""
    lab = node.lab
    node.start()
    lab.serve_all()
    lab.push(policy())
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    gone = node.hsm.dir / "gone"
    tokens = node.hsm.dir / "tokens"
    shutil.move(tokens, gone)
    tokens.mkdir()
    _, lease = use_token(lab, issuer)
    assert asked(lab, lease["token"]) == "good"
    passes(lab, WEB)
    with pytest.raises(Refused, match="pkcs11_failed") as error:
        lab.ask("enroll.begin", {"anchor": thumbprint(SEED)})
    assert "node's key" in error.value.error["detail"]
    assert lab.ask("enroll.show")["state"] == "unenrolled" and lease["id"] in lab.leases()
    # An epoch that begins without the key: the node knows its own, and nobody else can be shown that it is.
    before = node.identity()
    lab.ask("node.quarantine")
    lab.ask("node.release")
    after = node.identity()
    assert after["epoch"] > before["epoch"] and before["certificate"] and after["certificate"] is None
    assert "node_key_unavailable" in lab.log
    with pytest.raises(Refused, match="no_certificate"):
        lab.ask("node.report", {"challenge": bytes(32), "for": "x"})
    assert lab.try_cli("node", "identity", "--out", lab.dir / "node.id").returncode == 1
    _, lease = use_token(lab, issuer)
    assert asked(lab, lease["token"]) == "good"
    lab.stop()
    node.refused("pkcs11_token_missing")
    tokens.rmdir()
    shutil.move(gone, tokens)
    node.start()
    assert lab.ask("enroll.begin", {"anchor": thumbprint(SEED)})["node"] == node.identity()["node"]


def test_enrollment_by_a_key_on_a_token(node: Node) -> None:
    """The request's CSR is by the key that never leaves; and another key has left the enrollment."""
    lab = node.lab
    node.start()
    lab.serve_all()
    issuer = Issuer(lab)
    request = lab.ask("enroll.begin", {"anchor": thumbprint(SEED)})
    csr = subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-subject"], input=request["csr"], capture_output=True, text=True, check=True
    )
    assert request["node"] in csr.stdout.replace("\\", "")
    finish(lab, answer(request, policy(5), [issuer.anchor()]))
    assert lab.ask("enroll.show")["state"] == "enrolled"
    _, lease = use_token(lab, issuer)
    node.again()
    assert lab.ask("enroll.show")["state"] == "enrolled" and lease["id"] in lab.leases()
    # Another node: the root's keys count no more, its policy opens nothing.
    lab.stop()
    node.add_key("other", 2)
    (lab.dir / "state" / "identity").unlink()
    node.start(node_key=node.hsm.uri("object=other"))
    assert lab.ask("enroll.show")["state"] == "left" and "enrollment_of_another" in lab.log
    assert lab.ask("trust.show")["anchors"] == []
    with pytest.raises(Refused, match="enrollment_ended"):
        lab.ask("lease.grant", {}, [{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**10}])


def test_a_file_that_was_lost(own_lab: Lab) -> None:
    """A node that has lost its key is another one, and is not enrolled as the one that it was."""
    lab = own_lab
    issuer = Issuer(lab)
    finish(lab, answer(lab.ask("enroll.begin", {"anchor": thumbprint(SEED)}), policy(5), [issuer.anchor()]))
    was = lab.ask("status")["node"]
    lab.stop()
    lab.start()
    assert lab.ask("enroll.show")["state"] == "enrolled"
    lab.stop()
    (lab.dir / "state" / "node.key").unlink()
    lab.start()
    assert lab.ask("status")["node"] != was and lab.ask("enroll.show")["state"] == "left"
    assert "enrollment_of_another" in lab.log


# ---- reports -----------------------------------------------------------------------------------------------

CHALLENGE = "5f" * 32


def signed_report(lab: Lab, *words: object) -> pathlib.Path:
    path = lab.dir / "node.report"
    lab.cli("node", "report", "--sign", "--out", path, *words)
    return path


def report_refused(lab: Lab, path: pathlib.Path, *words: object) -> str:
    done = lab.try_cli("node", "report", "--verify", path, *words)
    assert done.returncode == 1, done
    return json.loads(done.stderr)["error"]["code"]


@pytest.mark.parametrize("kept", ["pkcs11", "file"])
def test_a_report_is_the_nodes(node: Node, kept: str) -> None:
    """Checked by its name alone, without daemon or root; fresh for whoever drew the challenge, and for whom it was made."""
    lab = node.lab
    if kept == "pkcs11":
        node.start()
    else:
        lab.start()
    lab.push(policy())
    (lease,) = lab.cli("lease", "grant", A, "--endpoint", "web", "--ttl", "300s")["leases"]
    shown = node.identity()
    assert shown["kept"] == kept
    path = signed_report(lab, "--challenge", CHALLENGE, "--for", "cp.example")
    anybody = lab.dir / "for-anybody.report"
    anybody.write_bytes(path.read_bytes())
    lab.stop()
    mine = ("--node", shown["node"], "--challenge", CHALLENGE, "--for", "cp.example")
    done = lab.try_cli("node", "report", "--verify", anybody, *mine)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    facts = [said[each] for each in ("node", "epoch", "epoch_key", "for", "challenge")]
    assert facts == [shown["node"], shown["epoch"], shown["epoch_key"], "cp.example", CHALLENGE]
    page = said["report"]["inventory"][0]
    assert (page["node"], page["leases"], page["state"]["name"]) == (shown["node"], 1, "active")
    tenants = {each["name"]: each["leases"] for part in said["report"]["inventory"] for each in part.get("tenants", [])}
    assert tenants[A] == 1 and lease["id"] not in done.stdout
    assert said["report"]["status"]["policy"]["generation"] == 1
    for whose in (shown["key"], shown["node"]):
        assert lab.try_cli("node", "report", "--verify", anybody, "--node", whose).returncode == 0

    assert lab.try_cli("node", "report", "--verify", anybody, *mine, "--epoch", shown["epoch"]).returncode == 0
    assert report_refused(lab, anybody, *mine, "--epoch", shown["epoch"] + 1) == "stale_epoch"
    other = "ni:///sha-256;" + independent.to_text(bytes(32))
    assert report_refused(lab, anybody, "--node", other) == "wrong_node"
    assert report_refused(lab, anybody, "--node", shown["node"], "--challenge", "5e" * 32) == "wrong_challenge"
    assert report_refused(lab, anybody, "--node", shown["node"], "--for", "another") == "wrong_audience"
    made = anybody.read_bytes()
    for damaged in (made[:-1] + bytes([made[-1] ^ 1]), made[:-70] + bytes([made[-70] ^ 1]) + made[-69:]):
        path.write_bytes(damaged)
        assert report_refused(lab, path, *mine) == "bad_signature"
    path.write_bytes(made[:-1])
    assert report_refused(lab, path, *mine) == "malformed_signed"
    # The other implementation says the same.
    report, is_by = independent.take_signed(made, "report", (1, 2, 9))
    key, epoch = independent.epoch_key_of(report["private"][9], shown["node"])
    assert is_by(key) and (report["private"][1], report["audience"]) == (epoch, "cp.example")


def test_who_may_have_a_report(lab: Lab) -> None:
    """Reading it is, and it takes a challenge and whom it is for."""
    for args, code in (
        ({}, "missing_key"), ({"challenge": bytes(31), "for": "x"}, ""), ({"challenge": bytes(32)}, "missing_key"),
        ({"challenge": bytes(32), "for": ""}, "bad_audience"), ({"challenge": bytes(32), "for": "x" * 257}, "bad_audience"),
        ({"challenge": bytes(32), "for": "x", "more": 1}, "unknown_key"),
    ):  # fmt: skip
        with pytest.raises(Refused) as error:
            lab.ask("node.report", args)
        assert code in ("", error.value.code), (args, error.value)
    assert lab.ask("node.report", {"challenge": bytes(32), "for": "x" * 256})["report"]
    with Control(lab.socket_path, uid=4001) as stranger:
        for verb, args in (("node.report", {"challenge": bytes(32), "for": "x"}), ("node.identity", {})):
            with pytest.raises(Refused, match="not_in_group"):
                stranger.call(verb, args)
    # Who the node is may be known to whoever may ask for one tenant's things; what it has, to who may ask for all.
    trust(lab, anchor(tenants=[A], verbs=["node.identity", "node.report"]))
    with connect(lab) as bounded:
        assert bounded.call("node.identity", {})["node"] == lab.ask("status")["node"]
        with pytest.raises(Refused, match="tenant_not_allowed"):
            bounded.call("node.report", {"challenge": bytes(32), "for": "x"})
    trust(lab, anchor(verbs=["node.report"]))
    with connect(lab) as control_plane:
        assert control_plane.call("node.report", {"challenge": bytes(32), "for": "cp.example"})["report"]
