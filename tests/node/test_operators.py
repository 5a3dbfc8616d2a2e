"""Persons who act in their own name: with keys of OpenSSH's, grants for some hours, and a proof of the last five minutes.

Covers H10 (step-up), A1, A7, P16 (what tightens always works), L5. SSH keys are ssh-keygen's own; the security key is one in
software, written from PROTOCOL.u2f.
"""

import base64
import hashlib
import json
import os
import pathlib
import signal
import struct
import subprocess
import time

import pytest
from control import SIGNED_REQUEST, Control, Refused, encode
from issuer import Issuer, trust
from lab import A, B, Lab, policy, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, STRANGER, USER, anchor, bundle, connect, independent, thumbprint

pytestmark = pytest.mark.usefixtures("believed")

WEB_A = Probe("client", "tenant-a", syn())
PERSON = bytes([9]) * 32
ROOT = {"issuer": "root.example", "uses": ["operator"], "tenants": ["*"], "verbs": ["*"]}
SSH = -65538  # the algorithm's number in a header


def restrict(lab: Lab, *anchors: dict) -> None:
    """What widens has to be signed from here on."""
    trust(lab, *anchors, unsigned="tighten")


@pytest.fixture
def ssh_key(lab: Lab) -> pathlib.Path:
    path = lab.dir / "id_ed25519"
    path.unlink(missing_ok=True)
    made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann@laptop", "-f", str(path)]
    subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
    return path


def ssh_line(path: pathlib.Path) -> str:
    return path.with_suffix(".pub").read_text().strip()


def grant_for(lab: Lab, seed: bytes = PERSON, by: bytes = SEED, **wrong: object) -> bytes:
    """An operator grant. Each part of it can be made wrong."""
    now = int(time.time())
    parts = {
        "purpose": "operator-grant", "node": lab.ask("status")["node"], "issued": now, "expires": now + 3600, "name": "ann",
        "verbs": ["lease.grant", "lease.list"], "tenants": [A],
    } | wrong  # fmt: skip
    content = {"key": independent.public_of(seed), "name": parts["name"], "verbs": parts["verbs"], "tenants": parts["tenants"]}
    made = parts.get("content", encode(content))
    return independent.make_signed(by, parts["purpose"], parts["node"], parts["issued"], {}, made, parts["expires"])


def test_what_widens_has_to_be_signed(lab: Lab) -> None:
    """H10, P16: by root too; what tightens does not, and reading neither."""
    restrict(lab, anchor())
    with Control(lab.socket_path) as root, connect(lab) as signer:
        for verb, args in (
            ("lease.grant", {}), ("tenant.enable", {"name": A}), ("bundle.push", {}), ("trust.restore", {"what": "uid:1"}),
        ):  # fmt: skip
            with pytest.raises(Refused, match="step_up_required"):
                root.call(verb, args, b"\x80")
        lease = signer.grant(A, "web")
        passes(lab, WEB_A)
        with pytest.raises(Refused, match="not_holder"):
            root.renew(lease["id"], 250)  # it would live on by nobody's signature
        root.revoke(lease["id"])
        denied(lab, WEB_A, "no_lease", "from_uplink")
        root.call("tenant.disable", {"name": A})
        assert root.call("status")["tokens"]["unsigned_may"] == "tighten"
        signer.call("tenant.enable", {"name": A})
    done = lab.try_cli("tenant", "enable", A)
    assert done.returncode == 4 and json.loads(done.stderr)["error"]["class"] == "step_up_required"


def test_a_key_of_openssh(lab: Lab, ssh_key: pathlib.Path) -> None:
    """H10: stock ssh-keygen signs, with a key in a file or in ssh-agent; another's key does not serve."""
    restrict(lab, anchor(key=None, ssh_key=ssh_line(ssh_key), issuer="ann"))
    words = ("lease", "grant", A, "--endpoint", "web")
    done = lab.try_cli(*words, "--sign-key", ssh_key)  # root's, since ssh-keygen wants a user with a name
    assert done.returncode == 0, done.stderr
    (lease,) = json.loads(done.stdout)["leases"]
    passes(lab, WEB_A)
    assert "signer=ann" in lab.log
    lab.cli("lease", "revoke", lease["id"])
    # In an agent: the file with the secret is not needed any more.
    agent = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    variables = dict(line.split(";")[0].split("=", 1) for line in agent.splitlines() if "=" in line)
    try:
        with_agent = os.environ | variables
        subprocess.run(["ssh-add", "-q", str(ssh_key)], check=True, env=with_agent, stdin=subprocess.DEVNULL)
        public = lab.dir / "agent.pub"
        public.write_text(ssh_line(ssh_key) + "\n")
        argv = ["env", *(f"{name}={value}" for name, value in variables.items())]
        ssh_key.unlink()
        done = lab.try_cli(*words, "--sign-key", public, prefix=argv)
        assert done.returncode == 0, done.stderr
        lab.cli("lease", "revoke", json.loads(done.stdout)["leases"][0]["id"])
    finally:
        os.kill(int(variables["SSH_AGENT_PID"]), 15)
    other = lab.dir / "id_other"
    other.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True, stdin=subprocess.DEVNULL)
    done = lab.try_cli(*words, "--sign-key", other)
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "unknown_key"
    rsa = lab.dir / "id_rsa"
    rsa.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(rsa)], check=True, stdin=subprocess.DEVNULL)
    done = lab.try_cli(*words, "--sign-key", rsa)
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "key_syntax"


def string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def security_line(seed: bytes, application: str = "ssh:") -> str:
    kind = b"sk-ssh-ed25519@openssh.com"
    blob = string(kind) + string(independent.public_of(seed)) + string(application.encode())
    return f"{kind.decode()} {base64.b64encode(blob).decode()} ann@key"


def by_security_key(seed: bytes, message: bytes, flags: int = 1, counter: int = 7, application: str = "ssh:") -> bytes:
    wrapped = b"SSHSIG" + string(b"holdfast") + string(b"") + string(b"sha512") + string(hashlib.sha512(message).digest())
    tail = struct.pack(">BI", flags, counter)
    signed = hashlib.sha256(application.encode()).digest() + tail + hashlib.sha256(wrapped).digest()
    return independent.sign(seed, signed) + tail


def sealed_by_security_key(control: Control, seed: bytes, request: bytes, sequence: int, **how: object) -> bytes:
    hello = control.hello
    private = {1: hello["epoch"], 2: hello["challenge"], 3: sequence}
    header = independent.encode(
        {
            1: SSH,
            4: independent.thumbprint(independent.public_of(seed)),
            15: {3: hello["node"], 6: int(time.time())},
            16: "application/holdfast-request+cose",
            -65537: private,
        }
    )
    message = independent.encode(["Signature1", header, b"holdfast request v1", request])
    return independent.encode([header, {}, request, by_security_key(seed, message, **how)])


def test_a_security_key(lab: Lab) -> None:
    """H10: it has to have been touched, for this application; and its key signs in no other way."""
    restrict(lab, anchor(key=None, ssh_key=security_line(PERSON), issuer="ann"))
    request = encode({"verb": "tenant.enable", "args": {"name": A}})
    with Control(lab.socket_path) as control:
        good = sealed_by_security_key(control, PERSON, request, 1)
        control.send(SIGNED_REQUEST, good)
        for how in ({"flags": 0}, {"flags": 4}, {"application": "ssh:other"}):
            with pytest.raises(Refused, match="bad_signature"):
                control.send(SIGNED_REQUEST, sealed_by_security_key(control, PERSON, request, 2, **how))
        control.send(SIGNED_REQUEST, sealed_by_security_key(control, PERSON, request, 2, flags=5))
    with connect(lab, uid=0, seed=PERSON) as control, pytest.raises(Refused, match="bad_signature"):
        control.call("status")
    # As an anchor of tokens it would never sign any.
    path = lab.dir / "config" / "anchors.yaml"
    kept = path.read_text()
    path.write_text(kept.replace('"uses": ["request"]', '"uses": ["request", "token"]'))
    lab.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "a security key signs no tokens" in lab.log, what="the anchors are refused")


def test_an_operator_grant(lab: Lab) -> None:
    """A1, A7: for some verbs about some tenants, on the connection where it was shown, until it expires."""
    restrict(lab, anchor(**ROOT))
    with connect(lab, seed=PERSON) as ann:
        with pytest.raises(Refused, match="denied"):
            ann.grant(A, "web")
        seal, ann.seal = ann.seal, None
        told = ann.call("operator.present", {"grant": grant_for(lab)})
        assert told["operator"] == "ann"
        ann.seal = seal
        lease = ann.grant(A, "web")
        passes(lab, WEB_A)
        with pytest.raises(Refused, match="tenant_not_allowed"):
            ann.grant(B, "web")
        with pytest.raises(Refused, match="verb_not_allowed"):
            ann.revoke(lease["id"])
        with pytest.raises(Refused, match="verb_not_allowed"):
            ann.call("watch")  # a stream would outlive the grant
        # Who granted has less from now on, and so has she.
        restrict(lab, anchor(**ROOT | {"verbs": ["lease.list"]}))
        with pytest.raises(Refused, match="verb_not_allowed"):
            ann.grant(A, "echo")
        restrict(lab, anchor(**ROOT))
        with connect(lab, seed=PERSON) as elsewhere, pytest.raises(Refused, match="denied"):
            elsewhere.call("lease.list", {"tenant": A})
        # What she granted stands on both keys, hers and that of who granted her. Reading the anchors anew ends it not.
        restrict(lab, anchor(**ROOT))
        passes(lab, WEB_A)
        assert lab.cli("trust", "revoke", f"key:{thumbprint(PERSON)}")["leases_ended"] == 1
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        denied(lab, WEB_A, "no_lease", "from_uplink")
        with pytest.raises(Refused, match="denied"):
            ann.call("lease.list", {"tenant": A})
        restrict(lab, anchor(**ROOT), anchor(STRANGER, issuer="cp.example"))
        with connect(lab, seed=STRANGER) as other:
            other.call("trust.restore", {"what": f"key:{thumbprint(PERSON)}"})
        ann.grant(A, "web")
        passes(lab, WEB_A)
        assert lab.cli("trust", "revoke", f"key:{thumbprint(SEED)}")["leases_ended"] == 1
        with pytest.raises(Refused, match="denied"):
            ann.call("lease.list", {"tenant": A})


def test_an_operator_grant_makes_no_bearer_token(lab: Lab) -> None:
    """A1, H11: it would outlive the grant's hours."""
    restrict(lab, anchor(**ROOT))
    args = {"name": "x", "environment": "prod", "scope": ["status"], "ttl_ns": 10**12}
    with connect(lab, seed=PERSON) as ann:
        seal, ann.seal = ann.seal, None
        ann.call("operator.present", {"grant": grant_for(lab, verbs=["*"], tenants=["*"])})
        ann.seal = seal
        ann.call("status")
        with pytest.raises(Refused, match="outlives an operator grant"):
            ann.call("bearer.create", args)
    assert "x" not in {each["name"] for each in lab.ask("bearer.list")["bearers"]}


def flipped(signed: bytes) -> bytes:
    """With another bit at the end of its signature."""
    return signed[:-1] + bytes([signed[-1] ^ 1])


def test_operator_grants_that_are_none(lab: Lab) -> None:
    """A1, G10: wrong in every part; and a signer hands on no more than it has."""
    restrict(lab, anchor(**ROOT | {"verbs": ["lease.list"], "tenants": [A]}), anchor(STRANGER, issuer="cp.example"))
    now = int(time.time())
    node = lab.ask("status")["node"]
    with Control(lab.socket_path) as control, Control(lab.socket_path, uid=USER) as user:
        for code, made in (
            ("wrong_audience", grant_for(lab, node=node[:-4] + "AAAA")),
            ("issued_in_future", grant_for(lab, issued=now + 1000, expires=now + 2000)),
            ("expired", grant_for(lab, issued=now - 1000, expires=now - 1)),
            ("life_too_long", grant_for(lab, expires=now + 90000)),
            ("unknown_key", grant_for(lab, by=PERSON)),
            ("key_not_for_operators", grant_for(lab, by=STRANGER)),
            ("wrong_purpose", grant_for(lab, purpose="bundle")),
            ("malformed_grant", grant_for(lab, content=encode({"name": "ann"}))),
            ("malformed_grant", grant_for(lab, verbs=[])),
            ("malformed_signed", grant_for(lab)[:-1]),
            ("bad_signature", flipped(grant_for(lab))),
        ):
            with pytest.raises(Refused) as error:
                control.call("operator.present", {"grant": made})
            assert error.value.code == code, (code, error.value)
            with pytest.raises(Refused) as error:
                user.call("operator.present", {"grant": made})
            assert error.value.code == (code if code == "malformed_grant" else "denied"), (code, error.value)
        wide = grant_for(lab, verbs=["*"], tenants=["*"])
        control.call("operator.present", {"grant": wide})
    with connect(lab, seed=PERSON) as ann:
        seal, ann.seal = ann.seal, None
        ann.call("operator.present", {"grant": wide})
        ann.seal = seal
        ann.call("lease.list", {"tenant": A})
        with pytest.raises(Refused, match="verb_not_allowed"):
            ann.grant(A, "web")
        with pytest.raises(Refused, match="tenant_not_allowed"):
            ann.call("lease.list", {"tenant": B})
        ann.seal = None
        for seed in range(20, 23):
            ann.call("operator.present", {"grant": grant_for(lab, seed=bytes([seed]) * 32)})
        with pytest.raises(Refused, match="delegations_max"):
            ann.call("operator.present", {"grant": grant_for(lab, seed=bytes([23]) * 32)})


def test_what_is_revoked_of_grants(lab: Lab) -> None:
    """L5, L14: a person's key that the anchors file calls dead, and all that an issuer had granted by some time."""
    old = {"uses": ["request"], "verbs": ["status"], "issuer": "ann.example"}
    restrict(lab, anchor(**ROOT), anchor(PERSON, **old))
    grant = grant_for(lab)
    with connect(lab, seed=PERSON) as ann:
        seal, ann.seal = ann.seal, None
        ann.call("operator.present", {"grant": grant})
        ann.seal = seal
        lease = ann.grant(A, "web")
        assert lab.cli("trust", "revoke", f"key:{thumbprint(PERSON)}")["leases_ended"] == 1, "though an anchor has it too"
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        trust(lab, anchor(**ROOT), anchor(PERSON, **old))
        lab.cli("trust", "restore", f"key:{thumbprint(PERSON)}")
        restrict(lab, anchor(**ROOT), anchor(PERSON, **old | {"state": "revoked"}))
        with pytest.raises(Refused, match="denied"):
            ann.call("lease.list", {"tenant": A})
        restrict(lab, anchor(**ROOT))
        ann.call("lease.list", {"tenant": A})
        time.sleep(1.1)
        lab.cli("trust", "revoke", "issuer:root.example")
        with pytest.raises(Refused, match="denied"):
            ann.call("lease.list", {"tenant": A})
    with Control(lab.socket_path) as control, pytest.raises(Refused, match="revoked"):
        control.call("operator.present", {"grant": grant})


def test_the_command_line(lab: Lab, ssh_key: pathlib.Path) -> None:
    """operator grant, --grant and --sign-key, one after the other."""
    root = Issuer(lab, "root")
    restrict(lab, root.anchor(uses=["operator"], verbs=["*"]))
    argv = lab.holdfast_argv(
        "operator", "grant", "ann", "--public-key", ssh_key.with_suffix(".pub"), "--verb", "lease.grant", "--tenant", A,
        "--life", "1h", "--key", root.key,
    )  # fmt: skip
    grant = lab.dir / "ann.grant"
    grant.write_bytes(subprocess.run(argv, check=True, capture_output=True).stdout)
    grant.chmod(0o444)
    words = ("lease", "grant", A, "--endpoint", "web", "--sign-key", ssh_key)
    done = lab.try_cli(*words)
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "unknown_key"
    done = lab.try_cli(*words, "--grant", grant)
    assert done.returncode == 0, done.stderr
    passes(lab, WEB_A)
    lab.cli("lease", "revoke", json.loads(done.stdout)["leases"][0]["id"])


def test_purposes_are_kept_apart(lab: Lab) -> None:
    """A1, L5: an object of one purpose in another's place, for every pair."""
    node = lab.ask("status")["node"]
    trust(lab, anchor(uses=["request", "bundle", "operator"], operations=["*"]))
    with connect(lab, uid=0) as control, Control(lab.socket_path) as plain:
        objects = {
            "request": control.seal(encode({"verb": "status", "args": {}})),
            "bundle": bundle(node, policy(99)),
            "grant": grant_for(lab),
        }
        places = {
            "request": lambda made: control.send(SIGNED_REQUEST, made),
            "bundle": lambda made: plain.call("bundle.push", {"signed": True, "dry_run": True}, made),
            "grant": lambda made: plain.call("operator.present", {"grant": made}),
        }
        for is_one in objects:
            for place in places:
                if is_one == place:
                    places[place](objects[is_one])
                else:
                    with pytest.raises(Refused, match="wrong_purpose"):
                        places[place](objects[is_one])
