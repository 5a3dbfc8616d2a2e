"""Tokens bound to a key: whoever proved it, once on its connection, is its holder, and nobody else is.

Covers G10 and L5 (theft, replay), L13. Proofs are made by tests/unit/token/independent.py and by `holdfast`. Each
refusal stands beside its control.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from control import Control, Refused
from issuer import Issuer, as_uid
from lab import A, HOSTS, Lab, wait_until
from packets import Probe, denied, passes, syn
from verify_sock import Check, VerifySock, take_apart

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "unit" / "token"))
import independent

USER, OTHER = 4001, 4002
SEED, THIEF = bytes([3]) * 32, bytes([4]) * 32
HOLDER = "key:" + independent.thumbprint(independent.public_of(SEED)).hex()
RESOURCE = f"web@{HOSTS['tenant-a'].v4}:8080"
WEB = Probe("client", "tenant-a", syn())


def key_files(lab: Lab, seed: bytes, owner: int) -> tuple[pathlib.Path, pathlib.Path]:
    """A secret key that only OWNER may read, and its public one, as openssl writes them."""
    secret = lab.dir / f"holder-{seed[0]}-{owner}.pem"
    public = secret.with_suffix(".pub")
    if not secret.exists():
        pkcs8 = bytes.fromhex("302e020100300506032b657004220420") + seed
        made = ["openssl", "pkey", "-inform", "DER", "-out", str(secret)]
        subprocess.run(made, input=pkcs8, check=True, capture_output=True)
        made = ["openssl", "pkey", "-in", str(secret), "-pubout", "-out", str(public)]
        subprocess.run(made, check=True, capture_output=True)
        os.chown(secret, owner, owner)
        secret.chmod(0o400)
    return secret, public


def bound(lab: Lab, issuer: Issuer, *words: object, **options: object) -> pathlib.Path:
    """A token for the holder of SEED."""
    _, public = key_files(lab, SEED, USER)
    words = words or (A, "--endpoint", "web", "--operation", "connect")
    return issuer.issue(*words, "--holder-key", public, **options)


def present(lab: Lab, token: pathlib.Path, seed: bytes | None = SEED, uid: int = USER, verb: str = "grant") -> subprocess.CompletedProcess:
    proof = [] if seed is None else ["--holder-key", key_files(lab, seed, uid)[0]]
    return lab.try_cli("lease", verb, "--token", token, *proof, prefix=as_uid(uid))


def granted(lab: Lab, token: pathlib.Path, **options: object) -> dict:
    done = present(lab, token, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(lab: Lab, code: str, done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == code, done


def asking(lab: Lab, uid: int = USER) -> VerifySock:
    return VerifySock(lab.dir / "run" / "verify.sock", uid)


def proof_for(hello: dict, seed: bytes = SEED) -> bytes:
    return independent.make_proof(seed, hello["node"], hello["epoch"], hello["challenge"])


def test_a_key_holds_a_lease(lab: Lab, issuer: Issuer) -> None:
    """L5: not the user who has the token, but the one who proves its key; root neither."""
    token = bound(lab, issuer)
    before = lab.ask("status")["tokens"]["refused"].get("wrong_holder", 0)
    refused(lab, "wrong_holder", present(lab, token, seed=None))
    refused(lab, "wrong_holder", present(lab, token, seed=THIEF))
    refused(lab, "wrong_holder", present(lab, token, seed=None, uid=0))
    assert lab.ask("status")["tokens"]["refused"]["wrong_holder"] == before + 3
    denied(lab, WEB, "no_lease", "from_uplink")

    lease = granted(lab, token)
    assert lease["holder"] == HOLDER
    passes(lab, WEB)
    # It is the key's and not the user's: another user with the key finds it, the same user without it does not.
    assert granted(lab, token, uid=OTHER)["id"] == lease["id"]
    refused(lab, "not_holder", lab.try_cli("lease", "release", lease["id"], prefix=as_uid(USER)))
    secret, _ = key_files(lab, SEED, USER)
    done = lab.try_cli("lease", "release", lease["id"], "--holder-key", secret, prefix=as_uid(USER))
    assert done.returncode == 0, done.stderr
    denied(lab, WEB, "no_lease", "from_uplink")


def test_renewing_takes_the_key_too(lab: Lab, issuer: Issuer) -> None:
    lease = granted(lab, bound(lab, issuer))
    words = (A, "--lease", lease["id"], "--generation", lease["generation"], "--ttl", "100s")
    # One for whoever presents it serves the lease's holder only.
    for_anybody = issuer.issue(*words, kind="renew")
    refused(lab, "wrong_holder", present(lab, for_anybody, seed=None, verb="renew"))
    token = bound(lab, issuer, *words, kind="renew")
    refused(lab, "wrong_holder", present(lab, token, seed=THIEF, verb="renew"))
    renewed = granted(lab, token, verb="renew")
    assert renewed["generation"] > lease["generation"] and renewed["holder"] == HOLDER
    lab.cli("lease", "revoke", lease["id"])


def test_use_tokens_are_bound_to_the_key(lab: Lab, issuer: Issuer) -> None:
    """L13: on verify.sock by the proof of who asks, or by the thumbprint that a relying service names."""
    lease = granted(lab, bound(lab, issuer))
    shown = lab.dir / "use-token"
    shown.write_text(lease["token"])
    shown.chmod(0o444)
    claims = lab.cli("token", "inspect", shown)["claims"]
    assert "key:" + claims["holder_key"] == HOLDER and "holder" not in claims
    check = Check(lease["token"], "connect", RESOURCE)
    with asking(lab) as peer:
        assert peer.reason(check) == "wrong_holder"
        assert peer.prove(proof_for(peer.hello)).hex() == HOLDER.removeprefix("key:")
        assert peer.reason(check) == "good"
    with asking(lab) as thief:
        thief.prove(proof_for(thief.hello, THIEF))
        assert thief.reason(check) == "wrong_holder"
    with asking(lab, uid=0) as service:
        named = [Check(lease["token"], "connect", RESOURCE, name) for name in (HOLDER, f"uid:{USER}", "key:" + "0" * 64)]
        assert [service.reason(each) for each in named] == ["good", "wrong_holder", "wrong_holder"]
    verify = ("token", "verify", shown, "--operation", "connect", "--resource", RESOURCE)
    secret, _ = key_files(lab, SEED, USER)
    done = lab.try_cli(*verify, "--holder-key", secret, prefix=as_uid(USER))
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "good", done
    done = lab.try_cli(*verify, prefix=as_uid(USER))
    assert done.returncode == 1 and json.loads(done.stdout)["reason"] == "wrong_holder", done
    lab.cli("lease", "revoke", lease["id"])


def test_a_revoked_key_shows_nothing(lab: Lab, issuer: Issuer) -> None:
    """Not even a token that anybody may show; another key is none of it."""
    lease = granted(lab, bound(lab, issuer))
    words = ("--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect")
    check = Check(issuer.issue(A, "--endpoint", "web", *words, kind="use").read_text(), "connect", RESOURCE)
    other = HOLDER.replace("72", "73", 1)
    with asking(lab) as peer:
        peer.prove(proof_for(peer.hello))
        assert lab.cli("trust", "revoke", f"holder:{other}")["leases_ended"] == 0
        assert peer.reason(check) == "good"
        assert lab.cli("trust", "revoke", f"holder:{HOLDER}")["leases_ended"] == 1
        assert peer.reason(check) == "revoked"
    for name in (HOLDER, other):
        lab.cli("trust", "restore", f"holder:{name}")


@pytest.fixture
def cgroup() -> Iterator[pathlib.Path]:
    """A workload's cgroup, with one below it, as a service has them."""
    mounts = [line.split()[1] for line in open("/proc/self/mounts") if line.split()[2] == "cgroup2"]
    mount = next(path for path in mounts if pathlib.Path(path, "cgroup.procs").exists())  # nothing is mounted over it
    path = pathlib.Path(mount) / f"hf-test-{os.getpid()}"
    (path / "below").mkdir(parents=True)
    yield path
    wait_until(lambda: not (path / "below" / "cgroup.procs").read_text(), what="the processes in it have ended")
    (path / "below").rmdir()
    path.rmdir()


def test_a_workload_holds_a_lease(lab: Lab, issuer: Issuer, cgroup: pathlib.Path) -> None:
    """L5: whoever is in the cgroup, or in one below it, and nobody else of the same user. From Linux 6.5 on; before that
    such a token serves nobody, and doctor says so."""
    holder = f"cgroup:{cgroup.stat().st_ino}"
    token = issuer.issue(A, "--endpoint", "web", "--operation", "connect", "--holder", f"cgroup:{cgroup}")
    enter = f"echo $$ > {cgroup / 'below' / 'cgroup.procs'} && exec \"$@\""
    inside = ["sh", "-c", enter, "sh", *as_uid(USER)]
    refused(lab, "wrong_holder", present(lab, token, seed=None))
    done = lab.try_cli("lease", "grant", "--token", token, prefix=inside)
    (row,) = [row for row in lab.cli("doctor")["features"] if row["feature"] == "holders by cgroup"]
    if row["verdict"] == "refused":
        assert tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5) and "6.5" in row["next_step"]
        return refused(lab, "wrong_holder", done)
    assert done.returncode == 0, done.stderr
    lease = json.loads(done.stdout)
    assert lease["holder"] == holder
    passes(lab, WEB)
    shown = lab.dir / "workloads-token"
    shown.write_text(lease["token"])
    shown.chmod(0o444)
    verify = ("token", "verify", shown, "--operation", "connect", "--resource", RESOURCE)
    for prefix, verdict in ((inside, "good"), (as_uid(USER), "refused")):
        assert json.loads(lab.try_cli(*verify, prefix=prefix).stdout)["verdict"] == verdict
    refused(lab, "not_holder", lab.try_cli("lease", "release", lease["id"], prefix=as_uid(USER)))
    # Revoked as a holder it is denied what is anybody's, too.
    anybodys = issuer.issue(A, "--endpoint", "echo")
    assert lab.cli("trust", "revoke", f"holder:{holder}")["leases_ended"] == 1
    denied(lab, WEB, "no_lease", "from_uplink")
    assert json.loads(lab.try_cli(*verify, prefix=inside).stdout)["reason"] == "revoked"
    refused(lab, "revoked", lab.try_cli("lease", "grant", "--token", token, prefix=inside))
    refused(lab, "revoked", lab.try_cli("lease", "grant", "--token", anybodys, prefix=inside))
    lab.cli("trust", "restore", f"holder:{holder}")
    assert lab.try_cli("lease", "grant", "--token", anybodys, prefix=inside).returncode == 0


def test_a_cgroup_that_is_not_known(lab: Lab, issuer: Issuer, cgroup: pathlib.Path) -> None:
    """One as deep as nobody needs it costs the daemon nothing; and who is in it shows nothing that is anybody's while a
    cgroup is revoked, since it might be that one."""
    deep = cgroup / "/".join(["below", *("d" * 40)])
    deep.mkdir(parents=True)
    inside = ["sh", "-c", f"echo $$ > {deep / 'cgroup.procs'} && exec \"$@\"", "sh", *as_uid(USER)]
    try:
        anybodys = issuer.issue(A, "--endpoint", "web")
        lab.cli("trust", "revoke", "holder:cgroup:1")
        refused(lab, "revoked", lab.try_cli("lease", "grant", "--token", anybodys, prefix=inside))
        lab.cli("trust", "restore", "holder:cgroup:1")
        done = lab.try_cli("lease", "grant", "--token", anybodys, prefix=inside)
        assert done.returncode == 0, done.stderr
    finally:
        wait_until(lambda: not (deep / "cgroup.procs").read_text(), what="the processes in it have ended")
        while deep.parent != cgroup:
            deep.rmdir()
            deep = deep.parent


def test_a_proof_serves_its_own_connection_only(lab: Lab) -> None:
    """L5: recorded on one connection it proves nothing on another, on neither socket."""
    control, verify = lab.dir / "run" / "control.sock", lab.dir / "run" / "verify.sock"
    with Control(control) as first, Control(control) as second:
        assert first.hello["challenge"] != second.hello["challenge"]
        proof = proof_for(first.hello)
        with pytest.raises(Refused, match="wrong_challenge"):
            second.call("holder.prove", {"proof": proof})
        assert first.call("holder.prove", {"proof": proof}) == {"holder": HOLDER}
        with pytest.raises(Refused, match="already_proved"):
            first.call("holder.prove", {"proof": proof})
        # A wrong one changed nothing: the right one is still taken.
        assert second.call("holder.prove", {"proof": proof_for(second.hello)}) == {"holder": HOLDER}
        with Control(control) as third:
            last = proof_for(third.hello)
            for wrong, code in (
                ({"proof": b""}, "malformed_proof"),
                ({"proof": last[:-1] + bytes([last[-1] ^ 1])}, "bad_signature"),
                ({}, "missing_key"),
            ):
                with pytest.raises(Refused, match=code):
                    third.call("holder.prove", wrong)
        with VerifySock(verify) as peer:
            with pytest.raises(Refused, match="wrong_challenge"):
                peer.prove(proof)
            with pytest.raises(ConnectionError):
                peer.read()
    with VerifySock(verify) as peer:
        peer.prove(proof_for(peer.hello))
        with pytest.raises(Refused, match="already_proved"):
            peer.prove(proof_for(peer.hello))


def test_claims_are_no_proof(lab: Lab, issuer: Issuer) -> None:
    """Of another purpose, by the very key: not taken."""
    token = issuer.issue(A, "--endpoint", "web").read_text()
    with Control(lab.dir / "run" / "control.sock") as peer:
        with pytest.raises(Refused, match="malformed_proof"):
            peer.call("holder.prove", {"proof": take_apart(token).claims})


def test_no_proof_for_a_strangers_socket(lab: Lab) -> None:
    """What listens there could pass the proof on, and be taken for the holder: none is made."""
    script = (
        "import socket, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import frames\n"
        "listening = socket.socket(socket.AF_UNIX)\n"
        "listening.bind(sys.argv[1])\n"
        "listening.listen()\n"
        "print(flush=True)\n"
        "peer = listening.accept()[0]\n"
        "hello = frames.cbor({'node': 'ni:///sha-256;x', 'epoch': 1, 'challenge': bytes(32)})\n"
        "peer.sendall(frames.HEADER.pack(frames.MAGIC, 1, frames.HELLO, 0, len(hello), 0) + hello)\n"
        "print(len(peer.recv(4096)))\n"
    )
    place = lab.dir / "stranger"
    place.mkdir()
    os.chown(place, OTHER, OTHER)
    place.chmod(0o755)
    path = place / "control.sock"
    here = str(pathlib.Path(__file__).parent)
    stranger = subprocess.Popen(
        [*as_uid(OTHER), "/usr/bin/python3", "-B", "-c", script, str(path), here], stdout=subprocess.PIPE, text=True
    )
    try:
        assert stranger.stdout.readline() == "\n"
        path.chmod(0o666)
        secret, _ = key_files(lab, SEED, USER)
        done = subprocess.run(
            [*as_uid(USER), str(lab.holdfast), "--socket", str(path), "--json",
             "lease", "release", "0" * 32, "--holder-key", str(secret)],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1 and "not_the_node" in done.stderr, done
        assert stranger.stdout.readline() == "0\n", "it was sent nothing"
    finally:
        stranger.kill()
        stranger.wait()
