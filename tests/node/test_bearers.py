"""Bearer tokens of the node, for reading only, shown by users who are in no group of ours.

Covers H11, P5 (scopes), L4 (tenants), G16 (only a digest is kept), and H5 where guessing is abuse.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest
from control import ERROR, HEADER, REQUEST, Control, Refused, encode
from issuer import as_uid, trust
from lab import A, B, SLOW, Lab, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, anchor, connect, thumbprint
from watcher import EVENT

READER, STRANGER = 61030, 61031
WEB_A = Probe("client", "tenant-a", syn())
ALL = "status,lease.list,lease.show,route.list,tenant.list,bundle.show,drops.read,drops.follow,flows.list,explain,trust.show,watch," \
    "peer.list,bearer.list,enroll.show"  # fmt: skip
NEEDS = {
    "lease.show": {"id": "00" * 16},
    "explain": {"source": "192.0.2.10", "destination": "10.1.0.2", "protocol": "tcp", "destination_port": 8080},
}


@pytest.fixture(autouse=True)
def none_left(lab: Lab) -> Iterator[None]:
    yield
    if lab.daemon is not None:
        for each in lab.cli("bearer", "ls")["bearers"]:
            lab.cli("bearer", "revoke", each["name"])
        lab.ask("peer.resume", {"all": True})


def create(lab: Lab, scope: str = "status,lease.list", name: str = "reader", ttl: str = "1h", **more: object) -> dict:
    options = [word for key, value in more.items() for word in (f"--{key}", str(value))]
    return lab.cli("bearer", "create", "--name", name, "--env", "prod", "--scope", scope, "--ttl", ttl, *options)


def showing(lab: Lab, token: str, uid: int = READER) -> Control:
    control = Control(lab.socket_path, uid=uid)
    try:
        control.call("session.bearer", {"token": token})
    except BaseException:
        control.__exit__()
        raise
    return control


def begin_stream(control: Control) -> None:
    control.last_id += 1
    encoded = encode({"verb": "watch", "args": {}})
    control.socket.sendall(HEADER.pack(b"HLDF", 1, REQUEST, 0, len(encoded), control.last_id) + encoded)
    kind, _, _, body = control.read_frame()
    assert (kind, body["type"]) == (EVENT, "snapshot")


def told_at_its_end(control: Control) -> str:
    """The code with which the daemon ends this connection."""
    while True:
        kind, _, number, body = control.read_frame()
        if kind == ERROR and number == 0:
            return body["code"]


def in_file(lab: Lab, token: str, uid: int = READER, mode: int = 0o400) -> pathlib.Path:
    path = lab.dir / "bearer"
    path.unlink(missing_ok=True)
    path.write_text(token + "\n")
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


def code_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    return json.loads(done.stderr)["error"]["code"]


def test_a_user_in_no_group_reads_with_it(lab: Lab) -> None:
    """H11, P5: what its scope says and nothing else; without it the same user reads nothing."""
    lab.grant(A, "web")
    made = create(lab)
    token = made["token"]
    assert re.fullmatch(r"hf_prod_[A-Za-z0-9_-]{43}", token) and made["scope"] == ["status", "lease.list"]
    file = in_file(lab, token)
    assert code_of(lab.try_cli("lease", "ls", prefix=as_uid(READER))) == "not_in_group"
    done = lab.try_cli("lease", "ls", "--bearer-file", file, prefix=as_uid(READER))
    assert done.returncode == 0 and [lease["tenant"] for lease in json.loads(done.stdout)["leases"]] == [A], done
    by_environment = [*as_uid(READER), "env", f"HOLDFAST_BEARER_FILE={file}"]
    assert lab.try_cli("status", prefix=by_environment).returncode == 0
    for words in (("tenant", "ls"), ("tenant", "disable", A), ("bearer", "ls"), ("node", "drain")):
        assert code_of(lab.try_cli(*words, "--bearer-file", file, prefix=as_uid(READER))) == "bearer_scope", words
    passes(lab, WEB_A)
    # It takes rights away from whoever has more: an operator who shows it reads, too.
    with showing(lab, token, uid=0) as root:
        root.call("status")
        with pytest.raises(Refused, match="bearer_scope"):
            root.call("tenant.disable", {"name": A})
        with pytest.raises(Refused, match="bearer_shown"):
            root.call("session.bearer", {"token": token})


def test_only_a_digest_is_kept_and_it_is_told_once(lab: Lab) -> None:
    """H11, G16."""
    token = create(lab)["token"]
    path = lab.dir / "state" / "bearers"
    assert path.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()
    secret = token.removeprefix("hf_prod_")
    for told in (path.read_text(), lab.log, json.dumps(lab.cli("bearer", "ls")), json.dumps(lab.cli("status"))):
        assert secret not in told
    (listed,) = [each for each in lab.cli("bearer", "ls")["bearers"] if each["state"] == "live"]
    assert listed["name"] == "reader" and listed["by_uid"] == 0 and "token" not in listed
    text = lab.cli_text("bearer", "create", "--name", "plain", "--env", "test", "--scope", "status")
    assert re.fullmatch(r"hf_test_[A-Za-z0-9_-]{43}\n", text)
    assert "plain" in lab.cli_text("bearer", "ls")


def test_every_reading_verb_can_be_in_its_scope(lab: Lab) -> None:
    """H11: and each that is there is answered, or refused for what it asks about."""
    token = create(lab, ALL)["token"]
    for verb in ALL.split(","):
        with showing(lab, token) as reader:
            if verb == "watch":
                begin_stream(reader)
                continue
            if verb == "drops.follow":
                continue  # it says nothing until something is dropped
            try:
                reader.call(verb, NEEDS.get(verb))
            except Refused as refused:
                assert (verb, refused.code) == ("lease.show", "no_such_lease"), refused  # noqa: PT017
            with pytest.raises(Refused, match="bearer_scope"):
                reader.call("no.verb")


def test_only_about_its_tenants(lab: Lab) -> None:
    """L4, P5: as keys of a tenant are answered."""
    lab.grant(A, "web")
    other = lab.grant(B, "web")
    token = create(lab, "lease.list,lease.show,tenant.list,status,watch", tenant=A)["token"]
    with showing(lab, token) as reader:
        assert {lease["tenant"] for lease in reader.leases_of(A).values()} == {A}
        assert [each["name"] for each in reader.call("tenant.list")["tenants"]] == [A]
        for verb, args in (("lease.list", {}), ("lease.list", {"tenant": B}), ("status", {}), ("watch", {})):
            with pytest.raises(Refused, match="tenant_not_allowed"):
                reader.call(verb, args)
        with pytest.raises(Refused, match="no_such_lease"):
            reader.call("lease.show", {"id": other["id"]})


def test_revoking_one_ends_what_it_opened(lab: Lab) -> None:
    """H11, G5: connections and streams that have shown it, and no others; also over a restart."""
    token, kept = create(lab, "watch,status")["token"], create(lab, name="kept")["token"]
    with showing(lab, token) as reader, showing(lab, token, STRANGER) as stream, showing(lab, kept) as other:
        begin_stream(stream)
        reader.call("status")
        shown = {each["bearer"] for each in lab.ask("status")["peers"]}
        assert {"reader", "kept"} <= shown
        assert lab.cli("bearer", "revoke", "reader")["state"] == "revoked"
        for ended in (reader, stream):
            assert told_at_its_end(ended) == "bearer_over"
            with pytest.raises(ConnectionError):
                ended.read_frame()
        other.call("status")
    with pytest.raises(Refused, match="bearer_revoked"):
        showing(lab, token)
    lab.kill()
    lab.start()
    with pytest.raises(Refused, match="bearer_revoked"):
        showing(lab, token)
    with showing(lab, kept) as other:
        other.call("lease.list")


def test_one_that_expires_ends(lab: Lab) -> None:
    """H11: on connections that are open, and for new ones."""
    token = create(lab, ttl=f"{round(3 * SLOW)}s")["token"]
    with showing(lab, token) as reader:
        reader.call("status")
        assert told_at_its_end(reader) == "bearer_over"  # nobody asks, and it comes
    with pytest.raises(Refused, match="bearer_expired"):
        showing(lab, token)
    assert {each["name"]: each["state"] for each in lab.cli("bearer", "ls")["bearers"]}["reader"] == "expired"


def test_what_is_no_token_of_this_node(lab: Lab) -> None:
    """H11, H5: refused by name, counted, and an offence."""
    token = create(lab)["token"]
    before = lab.ask("status")
    wrong = (token[:-1], token + "A", token.replace("prod", "test"), "", "hf_prod_", "x" * 5000)
    for each in wrong:
        with pytest.raises(Refused, match="unknown_bearer"):
            showing(lab, each, STRANGER)
    with Control(lab.socket_path, uid=STRANGER) as stranger:
        for args in ({}, {"token": b"x"}, {"token": token, "more": 1}):
            with pytest.raises(Refused):
                stranger.call("session.bearer", args)
        with pytest.raises(Refused, match="not_in_group"):
            stranger.call("status")  # a failed try gives nothing
    after = lab.ask("status")
    refused = after["bearers"]["refused"]["unknown_bearer"] - before["bearers"]["refused"].get("unknown_bearer", 0)
    assert refused == len(wrong)
    assert after["abuse"]["offences"]["proof"] - before["abuse"]["offences"].get("proof", 0) == len(wrong) + 3
    (told,) = [each for each in lab.cli("peer", "ls")["peers"] if each["uid"] == STRANGER]
    assert told["offences"]["proof"] >= len(wrong)
    file = in_file(lab, token, mode=0o444)
    done = lab.try_cli("status", "--bearer-file", file, prefix=as_uid(READER))
    assert code_of(done) == "bearer_exposed"
    assert code_of(lab.try_cli("status", "--bearer-file", lab.dir / "none")) == "file_missing"
    done = lab.try_cli("status", "--bearer-file", in_file(lab, token), "--sign-key", "x")
    assert done.returncode == 2


def states(lab: Lab) -> dict[str, str]:
    return {each["name"]: each["state"] for each in lab.cli("bearer", "ls")["bearers"]}


def test_who_makes_them(lab: Lab) -> None:
    """H11, H10, L13: operators; where what widens has to be signed, by a key, and it ends with that key."""
    with Control(lab.socket_path, uid=STRANGER) as stranger:
        for verb, args in (("bearer.create", {}), ("bearer.revoke", {"name": "x"})):
            with pytest.raises(Refused, match="not_operator"):
                stranger.call(verb, args)
    args = {"name": "signed", "environment": "prod", "scope": ["lease.list"], "ttl_ns": 10**12}
    try:
        trust(lab, anchor(verbs=["bearer.create", "lease.list"]), unsigned="tighten")
        with Control(lab.socket_path) as root, pytest.raises(Refused, match="step_up_required"):
            root.call("bearer.create", args)
        with connect(lab) as signer:
            with pytest.raises(Refused, match="verb_not_allowed"):
                signer.call("bearer.create", args | {"scope": ["status"]})
            token = signer.call("bearer.create", args)["token"]
        # Its key has to be one that could ask for it now.
        for less in ({"verbs": ["bearer.create"]}, {"tenants": [A]}, {"uses": ["bundle"], "verbs": None}):
            trust(lab, anchor(**{"verbs": ["bearer.create", "lease.list"]} | less))
            with pytest.raises(Refused, match="bearer_key_not_live"):
                showing(lab, token)
            assert states(lab)["signed"] == "key_not_live"
            assert lab.ask("status")["bearers"]["live"] == list(states(lab).values()).count("live")
        trust(lab, anchor(verbs=["bearer.create", "lease.list"]), unsigned="tighten")
        assert states(lab)["signed"] == "live"
        with showing(lab, token) as reader:
            reader.call("lease.list")
            lab.cli("trust", "revoke", f"key:{thumbprint(SEED)}")
            assert told_at_its_end(reader) == "bearer_over"
        with pytest.raises(Refused, match="bearer_key_not_live"):
            showing(lab, token)
    finally:
        trust(lab)
        lab.cli("trust", "restore", f"key:{thumbprint(SEED)}")
    lab.cli("node", "quarantine")
    try:
        with pytest.raises(Refused, match="node_quarantined"):
            lab.ask("bearer.create", args)
    finally:
        lab.cli("node", "release")


def test_signed_requests_on_its_connection_are_their_signers(lab: Lab) -> None:
    """H11: a bearer token adds nothing to a signature, and takes nothing from it."""
    token = create(lab)["token"]
    try:
        trust(lab, anchor(verbs=["lease.grant"]))
        with connect(lab) as control:
            seal, control.seal = control.seal, None
            control.call("session.bearer", {"token": token})
            control.call("lease.list")
            control.seal = seal
            with pytest.raises(Refused, match="verb_not_allowed"):
                control.call("lease.list")
            control.grant(A, "web")
            passes(lab, WEB_A)
            control.seal = None
            with pytest.raises(Refused, match="bearer_scope"):
                control.call("lease.release", {"id": next(iter(control.leases()))})
    finally:
        trust(lab)
    wait_until(lambda: not lab.leases(), 10, "the lease ended with its signer")
    denied(lab, WEB_A, "no_lease", "from_uplink")


def test_damage_and_limits(lab: Lab) -> None:
    """H11: with a damaged file none is good; and the command line refuses what makes no sense."""
    for words, code in (
        (("--scope", "lease.grant"), "bearer_scope"),
        (("--scope", "status", "--env", "Prod"), "bearer_environment"),
        (("--scope", "status", "--ttl", "91d"), ""),
        (("--scope", "status", "--ttl", "10ms"), "bearer_life"),
    ):
        argv = ["--env", "prod", *words] if "--env" not in words else list(words)
        done = lab.try_cli("bearer", "create", "--name", "x", *argv)
        assert done.returncode == 1 and (not code or code_of(done) == code), (words, done.stderr)
    token = create(lab)["token"]
    assert code_of(lab.try_cli("bearer", "create", "--name", "reader", "--env", "prod", "--scope", "status")) == "bearer_exists"
    lab.stop()
    path = lab.dir / "state" / "bearers"
    path.write_bytes(path.read_bytes().replace(b"scope status,lease.list", b"scope status,trust.show"))
    lab.start()
    with pytest.raises(Refused, match="unknown_bearer"):
        showing(lab, token)
    assert lab.cli("bearer", "ls")["bearers"] == []
    with showing(lab, create(lab)["token"]) as reader:
        reader.call("status")
