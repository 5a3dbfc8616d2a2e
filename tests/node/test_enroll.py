"""Enrollment: a node comes under a root that its operator knows by a fingerprint, once, and leaves it again.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers P6, A2, A6, R3 (a pending node denies all and reports), R6 (the pinned key before the content), H10, H12, G8, G10 to
G12. Answers are made by tests/unit/token/independent.py and by `holdfast bundle sign --enroll`. Each refusal stands beside its
control, and changes nothing.
"""

import base64
import json
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import Control, Refused, encode
from issuer import Issuer, as_bytes, trust
from kills import daemon_ended, killed_at, thread_of, traced
from lab import A, B, GATEWAYS, SLOW, Lab, policy, wait_until
from packets import Probe, denied, passes, syn, watching
from signing import SEED, STRANGER, USER, anchor, bundle, connect, independent, thumbprint
from test_bundles import watcher_request
from watcher import Watcher

WEB_A = Probe("client", "tenant-a", syn())
OPERATOR_KEY = bytes([9]) * 32
DELEGATE = bytes([7]) * 32


@pytest.fixture
def node() -> Iterator[Lab]:
    """One that was never given a policy or a key."""
    with Lab(daemon=False) as lab:
        lab.start()
        lab.serve_all()
        yield lab


def begin(lab: Lab, seed: bytes = SEED, **args: object) -> dict:
    return lab.ask("enroll.begin", {"anchor": thumbprint(seed)} | args)


def answer(request: dict, document: dict | str, anchors: list[dict] | None = None, seed: bytes = SEED, **wrong: object) -> bytes:
    """What a control plane makes of a request. Each part of it can be made wrong."""
    parts = {"purpose": "enrollment", "nonce": bytes.fromhex(request["nonce"]), "root": independent.public_of(seed)} | wrong
    private = {6: parts.pop("nonce"), 7: parts.pop("root")}
    node = parts.pop("node", request["node"])
    return bundle(node, document, anchors, seed, private=private, **parts)


def damaged(made: bytes) -> bytes:
    return made[:-40] + bytes([made[-40] ^ 1]) + made[-39:]


def finish(lab: Lab, made: bytes) -> dict:
    with Control(lab.socket_path) as control:
        return control.call("enroll.finish", {}, made)


def push(lab: Lab, made: bytes) -> dict:
    with Control(lab.socket_path, uid=USER) as control:
        return control.call("bundle.push", {"signed": True}, made)


def state(lab: Lab) -> str:
    shown = lab.ask("enroll.show")
    assert lab.ask("status")["enrollment"] == shown
    return shown["state"]


def standing(lab: Lab) -> tuple:
    shown = lab.ask("bundle.show")
    return shown["digest"], shown["floor"], lab.ask("enroll.show"), lab.ask("trust.show")["anchors"]


def refused(lab: Lab, made: bytes, code: str) -> None:
    before = standing(lab)
    with pytest.raises(Refused) as error:
        finish(lab, made)
    assert error.value.code == code, error.value
    assert standing(lab) == before


def by_token(lab: Lab, issuer: Issuer, tenant: str = A) -> dict:
    token = issuer.issue(tenant, "--endpoint", "web", "--operation", "connect", "--ttl", "100s", life="250s")
    return lab.ask("lease.grant", {"token": as_bytes(token.read_text())})


def enrolled(lab: Lab, issuer: Issuer, generation: int = 5) -> None:
    finish(lab, answer(begin(lab), policy(generation), [issuer.anchor()]))


def nothing_passes(lab: Lab) -> None:
    with watching(lab, WEB_A) as capture:
        lab.send("client", [WEB_A.frame()] * 5)
        assert lab.tcp("client", GATEWAYS["client"].v4, 22, 1.0 * SLOW) is False
        assert capture.count() == 0


def test_from_nothing_to_a_lease(node: Lab) -> None:
    """P6, R3, R6: pending it denies and says so; once answered, what a key that the root names signs is a lease."""
    lab, issuer = node, Issuer(node)
    assert state(lab) == "unenrolled"
    with Watcher(lab.socket_path, kinds=["enroll"]) as watcher:
        watcher.snapshot()
        request = begin(lab)
        shown = lab.ask("enroll.show")
        assert (shown["state"], shown["root"], shown["tenants"]) == ("pending", thumbprint(SEED), ["*"])
        assert "pending until" in lab.cli_text("status") and not shown["expired"]
        nothing_passes(lab)
        document = policy(5)
        for refuse in (
            lambda: lab.push(document), lambda: push(lab, bundle(request["node"], document)), lambda: lab.grant(A, "web"),
        ):  # fmt: skip
            with pytest.raises(Refused, match="enrollment_pending"):
                refuse()
        lab.policy_file.write_text(json.dumps(document))
        lab.daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload_refused" in lab.log, what="the file is not read")
        # Over a restart it is pending still, and the file is no first policy.
        lab.kill()
        lab.start()
        assert state(lab) == "pending" and lab.ask("bundle.show")["generation"] == 0
        lab.policy_file.unlink()

    with Watcher(lab.socket_path, kinds=["enroll"]) as watcher:
        assert watcher.snapshot().node["enrollment"]["state"] == "pending"
        made = answer(request, document, [issuer.anchor()])
        done = finish(lab, made)
        assert done["applied"] and done["enrollment"]["state"] == "enrolled" == state(lab)
        event = watcher.until(lambda event: event["event"] == "enroll.finish")
        assert event["root"] == thumbprint(SEED) and event["generation"] == 5
    shown = lab.ask("bundle.show")
    assert shown["signed"]["key"] == thumbprint(SEED) and shown["generation"] == 5
    assert {each["issuer"] for each in lab.ask("trust.show")["anchors"]} == {"root", issuer.name}
    denied(lab, WEB_A, "no_lease", "from_uplink")
    lease = by_token(lab, issuer)
    passes(lab, WEB_A)

    # G11: the nonce is spent, now and after a restart; the lease and the keys are there as before.
    refused(lab, made, "enroll_spent")
    lab.kill()
    lab.start()
    refused(lab, made, "enroll_spent")
    assert state(lab) == "enrolled" and lease["id"] in lab.leases()
    passes(lab, WEB_A)
    with pytest.raises(Refused, match="already_enrolled"):
        begin(lab)

    # From here on the root's bundles, and nothing else.
    with pytest.raises(Refused, match="signature_required: this node is enrolled"):
        lab.push(policy(6))
    assert push(lab, bundle(request["node"], policy(6), [issuer.anchor()]))["applied"]
    passes(lab, WEB_A)
    with pytest.raises(Refused, match="denied"):
        push(lab, bundle(request["node"], policy(7), seed=STRANGER))


def test_what_is_on_disk_counts_for_nothing(node: Lab) -> None:
    """R6: the keys of anchors.yaml are not those of an enrolled node, which says so; afterwards they are again."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    path = lab.dir / "config" / "anchors.yaml"
    path.write_text(json.dumps({"version": 1, "anchors": [anchor(STRANGER, issuer="local.example")]}))
    lab.policy_file.write_text(json.dumps(policy(9)))
    lab.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "counts for nothing: this node is enrolled" in lab.log, what="it says so")
    lab.kill()
    before = len(lab.log)
    lab.start()
    assert "anchors_not_read" in lab.log[before:]
    assert {each["issuer"] for each in lab.ask("trust.show")["anchors"]} == {"root", issuer.name}
    assert lab.ask("bundle.show")["generation"] == 5
    with pytest.raises(Refused, match="denied"), connect(lab, seed=STRANGER) as control:
        control.call("status")
    # A file that could not be read would not count either.
    path.write_text("nonsense: 1")
    lab.kill()
    lab.start()
    assert state(lab) == "enrolled"
    path.write_text(json.dumps({"version": 1, "anchors": [anchor(STRANGER, issuer="local.example")]}))
    lab.daemon.send_signal(signal.SIGHUP)
    lab.ask("enroll.end")
    assert {each["issuer"] for each in lab.ask("trust.show")["anchors"]} == {"local.example"}


def test_each_refusal_by_name(node: Lab) -> None:
    """P6, G10, G14: another key, nonce, node or time, and what a root may not say; nothing changes, and the right one is taken."""
    lab, document = node, policy(5)
    refused(lab, answer({"nonce": "00" * 32, "node": "x"}, document), "not_pending")
    former = begin(lab)
    request = begin(lab, tenants=[A])
    here = request["node"]
    only_a = policy(5)
    del only_a["tenants"][1]
    mine = anchor(STRANGER, issuer="cp.example", tenants=[A])
    for code, made in (
        ("malformed_signed", b"\x84"),
        ("wrong_purpose", bundle(here, only_a)),
        ("malformed_signed", bundle(here, only_a, purpose="enrollment")),
        ("wrong_root", answer(request, only_a, seed=STRANGER)),
        ("wrong_root", answer(request, only_a, root=independent.public_of(STRANGER))),
        ("wrong_nonce", answer(request, only_a, nonce=bytes(32))),
        ("wrong_nonce", answer(former, only_a)),
        ("wrong_audience", answer(request, only_a, node=here[:-4] + "AAAA")),
        ("expired", answer(request, only_a, issued=1_700_000_000, expires=1_700_000_100)),
        ("issued_in_future", answer(request, only_a, issued=4_000_000_000, expires=4_000_000_100)),
        ("life_too_long", answer(request, only_a, expires=4_000_000_000)),
        ("bad_signature", damaged(answer(request, only_a))),
        ("malformed_bundle", answer(request, only_a, content=b"")),
        ("policy_invalid", answer(request, "nonsense: 1\n", generation=5)),
        ("generation_differs", answer(request, only_a, generation=7)),
        ("tenant_not_enrolled", answer(request, document)),
        ("anchors_syntax", answer(request, only_a, [{"issuer": "x"}])),
        ("anchor_too_wide", answer(request, only_a, [mine | {"uses": ["bundle"], "tenants": ["*"]}])),
        ("anchor_too_wide", answer(request, only_a, [mine | {"tenants": [A, B]}])),
    ):
        refused(lab, made, code)
    # What the kernel cannot be made to enforce: nothing was put in force, and the request is good still.
    broken = json.loads(json.dumps(only_a))
    broken["tenants"][0]["ports"][0]["interface"] = "lo"
    with pytest.raises(Refused):
        finish(lab, answer(request, broken))
    assert state(lab) == "pending"
    # No unsigned thing, and nobody who is no operator.
    with pytest.raises(Refused, match="not_operator"), Control(lab.socket_path, uid=USER) as control:
        control.call("enroll.finish", {}, answer(request, only_a))
    assert finish(lab, answer(request, only_a, [mine]))["enrollment"]["tenants"] == [A]
    # A2: policy for others is refused from then on, too.
    with pytest.raises(Refused, match="tenant_not_enrolled"):
        push(lab, bundle(here, policy(6)))
    assert push(lab, bundle(here, only_a | {"generation": 6}))["applied"]


def test_a_request_expires(node: Lab) -> None:
    """P6: at most 24 h, and then it is useless, with the node pending as before until somebody begins anew, or gives it up."""
    lab = node
    for life in (0, 24 * 3600 + 1):
        with pytest.raises(Refused, match="out_of_range|bad_request|life_s"):
            begin(lab, life_s=life)
    own = base64.urlsafe_b64decode(lab.ask("status")["node"].removeprefix("ni:///sha-256;") + "=").hex()
    for wrong, code in ((own, "own_key"), (own[:-1], "bad_fingerprint"), (own[:-1] + "G", "bad_fingerprint")):
        with pytest.raises(Refused, match=code):
            lab.ask("enroll.begin", {"anchor": wrong})
    for tenants in ([], [A, A], [""], [7], "x"):
        with pytest.raises(Refused, match="bad_tenants"):
            begin(lab, tenants=tenants)
    assert state(lab) == "unenrolled"
    request = begin(lab, life_s=1)
    assert request["expires_s"] <= time.time() + 2
    made = answer(request, policy(5))
    wait_until(lambda: lab.ask("enroll.show")["expired"], 5, "its time is over")
    refused(lab, made, "enroll_expired")
    assert "the request expired at" in lab.cli_text("enroll", "show")
    with pytest.raises(Refused, match="enrollment_pending"):
        lab.push(policy(5))
    lab.ask("enroll.end")
    assert state(lab) == "unenrolled"
    refused(lab, made, "not_pending")
    assert lab.push(policy())["applied"]


def test_who_may_ask_for_it(own_lab: Lab) -> None:
    """H10: root only; and with a fresh signature, where what widens has to be signed."""
    lab = own_lab
    args = {"anchor": thumbprint(SEED)}
    for verb in ("enroll.begin", "enroll.end"):
        with pytest.raises(Refused, match="not_root"), Control(lab.socket_path, uid=USER) as control:
            control.call(verb, args)
    trust(lab, anchor(OPERATOR_KEY, issuer="ann"), anchor(DELEGATE, issuer="bob", verbs=["enroll.end"]), unsigned="tighten")
    with Control(lab.socket_path) as root:
        for verb in ("enroll.begin", "enroll.finish", "enroll.end"):
            with pytest.raises(Refused, match="step_up_required"):
                root.call(verb, args, b"")
    with connect(lab, seed=OPERATOR_KEY) as user, pytest.raises(Refused, match="not_root"):
        user.call("enroll.begin", args)
    with connect(lab, uid=0, seed=DELEGATE) as bob, pytest.raises(Refused, match="verb_not_allowed"):
        bob.call("enroll.begin", args)
    with connect(lab, uid=0, seed=OPERATOR_KEY) as ann:
        request = ann.call("enroll.begin", args)
        lab.ask("node.quarantine")
        with pytest.raises(Refused, match="node_quarantined"):
            ann.call("enroll.finish", {}, answer(request, policy(50)))
        ann.call("node.release")
    # A quarantine's end begins an epoch: connect anew.
    with connect(lab, uid=0, seed=OPERATOR_KEY) as ann:
        assert ann.call("enroll.finish", {}, answer(request, policy(50)))["applied"]
    # The operators of before count for nothing now; root may end it unless the bundle says otherwise.
    with connect(lab, uid=0, seed=OPERATOR_KEY) as ann, pytest.raises(Refused, match="denied|unknown_key"):
        ann.call("enroll.end")
    assert state(lab) == "enrolled"
    lab.ask("enroll.end")


def test_a_managed_node_comes_under_a_root(own_lab: Lab) -> None:
    """P6, L5: leases of before run out, are not renewed, and those on keys of before end when the answer is in force."""
    lab, issuer = own_lab, Issuer(own_lab)
    lab.serve_all()
    trust(lab, issuer.anchor())
    old = by_token(lab, issuer)
    own = lab.grant(B, "web")
    passes(lab, WEB_A)
    request = begin(lab)
    passes(lab, WEB_A)
    for lease in (old, own):
        with pytest.raises(Refused, match="enrollment_pending"):
            lab.renew(lease, "200s")
    new = Issuer(lab, "new.example")
    finish(lab, answer(request, policy(100), [new.anchor()]))
    wait_until(lambda: old["id"] not in lab.leases(), 10, "the old key's lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")
    assert own["id"] in lab.leases()
    by_token(lab, new)
    passes(lab, WEB_A)


@pytest.mark.parametrize("now", [False, True], ids=["at-term", "now"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "killed"])
def test_leaving(node: Lab, now: bool, restart: bool) -> None:
    """A6, P6: no sync, no stream and no renewal from that moment; leases end at their term, or at once. Floors stay."""
    lab, issuer = node, Issuer(node)
    signer = anchor(DELEGATE, issuer="cp.example", verbs=["*"])
    request = begin(lab)
    made = answer(request, policy(5), [issuer.anchor(), signer])
    finish(lab, made)
    here = request["node"]
    next_bundle = bundle(here, policy(6), [issuer.anchor()])
    lease = by_token(lab, issuer)
    renew = issuer.issue(
        A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect", "--ttl", "200s", kind="renew"
    )
    passes(lab, WEB_A)
    lab.ask("trust.revoke", {"what": f"key:{thumbprint(STRANGER)}"})
    with connect(lab, seed=DELEGATE) as streaming, connect(lab, seed=DELEGATE) as asking, Watcher(lab.socket_path) as watcher:
        streaming.socket.sendall(watcher_request(streaming))
        assert streaming.read_frame()[3]["type"] == "snapshot"
        watcher.snapshot()
        text = lab.cli_text("enroll", "end", *(["--now"] if now else []))
        assert ("1 lease ended" if now else "1 lease left") in text
        while (frame := streaming.read_frame()[3]).get("code") != "trust_changed":
            assert "type" in frame
        with pytest.raises(Refused, match="denied|unknown_key"):
            asking.call("status")
        assert watcher.until(lambda event: event["event"] == "enroll.end")["root"] == thumbprint(SEED)
    assert state(lab) == "left"
    if restart:
        lab.kill()
        lab.start()
        assert state(lab) == "left"
    if now:
        wait_until(lambda: not lab.leases(), 10, "the lease is torn down")
        denied(lab, WEB_A, "no_lease", "from_uplink")
    else:
        passes(lab, WEB_A)
        assert lease["id"] in lab.leases()
        # SIGHUP believes the file's keys; those that left still have their term.
        trust(lab, anchor(STRANGER, issuer="local.example"))
        assert lease["id"] in lab.leases()
        for args in ({"token": as_bytes(renew.read_text())}, {"id": lease["id"], "ttl_ns": 10**11}):
            with pytest.raises(Refused, match="enrollment_ended"):
                lab.ask("lease.renew", args)
    for refuse in (lambda: lab.grant(B, "web"), lambda: by_token(lab, issuer)):
        with pytest.raises(Refused, match="enrollment_ended"):
            refuse()
    with pytest.raises(Refused, match="denied"):
        push(lab, next_bundle)
    refused(lab, made, "enroll_spent")
    shown = lab.ask("bundle.show")
    assert shown["floor"] == 5 and shown["generation"] == 5
    assert f"key:{thumbprint(STRANGER)}" in {each["what"] for each in lab.ask("trust.show")["revocations"]}
    # G12: who comes again does not come with less than was.
    again = begin(lab)
    assert again["generation_floor"] == 5
    refused(lab, answer(again, policy(5)), "generation_used")
    refused(lab, answer(again, policy(4)), "old_generation")
    # Given up, it has left as before; until this machine has a policy of its own.
    lab.ask("enroll.end")
    assert state(lab) == "left"
    lab.push(policy(7))
    assert state(lab) == "unenrolled"
    wait_until(lambda: not lab.leases(), 10, "what stood on a key that left has ended")
    lab.grant(A, "web")
    passes(lab, WEB_A)


def test_a_revoked_root_opens_nothing(node: Lab) -> None:
    """L13, P16: to revoke takes no signature, so it must not lift what signatures are needed for; nor is anything leased."""
    lab, issuer = node, Issuer(node)
    keys = {"version": 1, "unsigned": "tighten", "anchors": [issuer.anchor()]}
    content = encode({"policy": json.dumps(policy(5)), "anchors": json.dumps(keys)})
    finish(lab, answer(begin(lab), policy(5), content=content))
    by_token(lab, issuer)
    passes(lab, WEB_A)
    root = {"what": f"key:{thumbprint(SEED)}"}
    what_widens = (
        ("lease.grant", {"tenant": A, "endpoints": ["web"], "ttl_ns": 10**11}), ("trust.restore", root), ("enroll.end", {}),
        ("bearer.create", {"name": "x", "environment": "prod", "scope": ["status"], "ttl_ns": 10**12}),
    )  # fmt: skip
    for revoked in (False, True):
        for verb, args in what_widens:
            with pytest.raises(Refused, match="step_up_required"):
                lab.ask(verb, args)
        if not revoked:
            assert lab.ask("trust.revoke", root)["leases_ended"] == 1, "that of a key which the root named"
    with pytest.raises(Refused):
        by_token(lab, issuer)
    wait_until(lambda: not lab.leases(), 10, "the lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")


def test_operators_lease_nothing_under_a_revoked_root(node: Lab) -> None:
    lab = node
    enrolled(lab, Issuer(lab))
    lab.revoke(lab.grant(A, "web"))
    lab.ask("trust.revoke", {"what": "issuer:root", "issued_before_s": int(time.time()) + 2})
    with pytest.raises(Refused, match="root_revoked"):
        lab.grant(A, "web")
    lab.ask("trust.restore", {"what": "issuer:root"})
    lab.grant(A, "web")


def test_the_file_counts_as_it_is_when_the_node_leaves(node: Lab) -> None:
    """P6: keys that were taken out of it meanwhile do not come back, and one that cannot be read is mended first."""
    lab, issuer = node, Issuer(node)
    trust(lab, anchor(STRANGER, issuer="local.example"), anchor(SEED, issuer="root.example", uses=["bundle"]))
    enrolled(lab, issuer)
    path = lab.dir / "config" / "anchors.yaml"
    path.write_text("nonsense: 1")
    with pytest.raises(Refused, match="anchors_syntax"):
        lab.ask("enroll.end")
    assert state(lab) == "enrolled"
    path.unlink()
    lab.ask("enroll.end")
    assert state(lab) == "left" and lab.ask("trust.show")["anchors"] == []
    # A root that the file names as well has its own bundles taken, and the keys of the one that was left are gone.
    trust(lab, anchor(SEED, issuer="root.example", uses=["bundle"]))
    assert {each["issuer"] for each in lab.ask("trust.show")["anchors"]} == {"root.example"}


def test_a_lost_record_is_a_node_that_left(node: Lab) -> None:
    """G12: lost state must not open what the state forbade."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lab.kill()
    (lab.dir / "state" / "enrollment").unlink()
    lab.start()
    assert state(lab) == "left" and "enrollment_lost" in lab.log
    for refuse in (lambda: lab.grant(B, "web"), lambda: by_token(lab, issuer)):
        with pytest.raises(Refused, match="enrollment_ended"):
            refuse()
    lab.push(policy(7))
    assert state(lab) == "unenrolled"
    lab.grant(B, "web")


def test_asking_anew_after_leaving(node: Lab) -> None:
    """A6: leases keep their term, a request that is given up changes nothing, and revoking the root that was left ends them."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lease = by_token(lab, issuer)
    lab.ask("enroll.end")
    begin(lab, STRANGER)
    assert lab.ask("trust.revoke", {"what": "holder:uid:4711"})["leases_ended"] == 0
    lab.kill()
    lab.start()
    assert lease["id"] in lab.leases()
    lab.ask("enroll.end")
    assert state(lab) == "left" and lab.ask("enroll.show")["root"] == thumbprint(SEED)
    passes(lab, WEB_A)
    assert lab.ask("trust.revoke", {"what": f"key:{thumbprint(SEED)}"})["leases_ended"] == 1
    wait_until(lambda: not lab.leases(), 10, "the lease is torn down")


@pytest.mark.parametrize("how", ["end --now", "revoked"])
def test_leaving_in_two_steps(node: Lab, how: str) -> None:
    """A6, L13: who has left at term may still have the leases end at once; so does revoking the root."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lease = by_token(lab, issuer)
    lab.ask("enroll.end")
    assert lease["id"] in lab.leases()
    with pytest.raises(Refused, match="not_enrolled"):
        lab.ask("enroll.end")
    if how == "revoked":
        assert lab.ask("trust.revoke", {"what": f"key:{thumbprint(SEED)}"})["leases_ended"] == 1
    else:
        assert lab.ask("enroll.end", {"now": True})["leases_ended"] == 1
    wait_until(lambda: not lab.leases(), 10, "the lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")


@pytest.mark.parametrize("call, number", [("openat", 1), ("rename", 1), ("fsync", 2), ("sendto", 2)])
def test_killed_while_it_leaves(node: Lab, call: str, number: int) -> None:
    """A6, G8: it is enrolled with its lease, or has left without any; never something between."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lease = by_token(lab, issuer)
    # The first that is sent is the hello.
    with traced(lab, "-e", f"inject={call}:signal=KILL:when={number}", "-p", thread_of(lab, in_loop=True)):
        with pytest.raises(ConnectionError):
            lab.ask("enroll.end", {"now": True})
        assert daemon_ended(lab, 5)
    lab.start()
    if state(lab) == "enrolled":
        assert lease["id"] in lab.leases()
        passes(lab, WEB_A)
    else:
        assert state(lab) == "left"
        wait_until(lambda: not lab.leases(), 10, "what was to end at once has ended")
        denied(lab, WEB_A, "no_lease", "from_uplink")


@pytest.mark.parametrize("what", ["issuer:cp.example", "issuer:root"])
def test_an_issuer_is_revoked_after_leaving(node: Lab, what: str) -> None:
    """L13: what runs out to its term ends with its issuer, or with the root; and the revocation stands for whoever comes again."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lease, by_operator = by_token(lab, issuer), lab.grant(B, "web")
    token = issuer.issue(A, "--endpoint", "echo", "--operation", "connect", life="250s")
    lab.ask("enroll.end")
    assert lab.ask("trust.revoke", {"what": "issuer:other.example"})["leases_ended"] == 0
    of_root = what == "issuer:root"
    assert lab.ask("trust.revoke", {"what": what})["leases_ended"] == (2 if of_root else 1)
    wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")
    assert (by_operator["id"] in lab.leases()) != of_root
    time.sleep(1.1)  # of the second in which it was revoked nothing is good
    finish(lab, answer(begin(lab), policy(6), [issuer.anchor()]))
    if not of_root:
        with pytest.raises(Refused, match="revoked"):
            lab.ask("lease.grant", {"token": as_bytes(token.read_text())})
    by_token(lab, issuer)


def test_a_record_that_was_put_back(node: Lab) -> None:
    """A6: of before the answer, with the answer's policy in force: it denies, until that answer comes again."""
    lab, issuer = node, Issuer(node)
    request = begin(lab)
    record = lab.dir / "state" / "enrollment"
    pending = record.read_bytes()
    made = answer(request, policy(5), [issuer.anchor()])
    finish(lab, made)
    lab.kill()
    record.write_bytes(pending)
    lab.start()
    assert state(lab) == "pending"
    with pytest.raises(Refused, match="enrollment_pending"):
        by_token(lab, issuer)
    refused(lab, damaged(made), "bad_signature")
    lab.ask("node.quarantine")
    refused(lab, made, "node_quarantined")
    lab.ask("node.release")
    assert finish(lab, made)["enrollment"]["state"] == "enrolled" == state(lab)
    refused(lab, made, "enroll_spent")
    lab.kill()
    lab.start()
    assert state(lab) == "enrolled"
    by_token(lab, issuer)
    passes(lab, WEB_A)


def test_a_revoked_root_does_not_come_back(node: Lab) -> None:
    """L5, L13: revoked, its keys and leases go; nor does another enrollment make it good."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lease = by_token(lab, issuer)
    lab.ask("trust.revoke", {"what": f"key:{thumbprint(SEED)}"})
    wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
    lab.ask("enroll.end")
    refused(lab, answer(begin(lab), policy(6)), "key_not_live")


def test_a_policy_that_is_not_the_roots(node: Lab) -> None:
    """R6: with another policy in its place an enrolled node grants nothing, and says why; the root's next one mends it."""
    lab, issuer = node, Issuer(node)
    enrolled(lab, issuer)
    lab.grant(A, "web")
    lab.stop()
    stored = lab.dir / "state" / "policy.json"
    stored.write_text(stored.read_text().replace('"generation":5', '"generation":8'))
    lab.start()
    assert lab.ask("bundle.show")["generation"] == 8
    with pytest.raises(Refused, match="policy_not_of_root"):
        lab.grant(B, "web")
    assert push(lab, bundle(lab.ask("status")["node"], policy(9)))["applied"]
    lab.grant(B, "web")
    # A record that is not what was written is not guessed at.
    lab.stop()
    record = lab.dir / "state" / "enrollment"
    kept = record.read_bytes()
    record.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    done = lab.try_start()
    assert done.returncode == 1 and "enrollment_damaged" in done.stderr, done
    record.write_bytes(kept)
    lab.start()
    assert state(lab) == "enrolled"


PLACES = re.compile(r'"[^"]*/state/(enrollment|bundle|policy\.json)')


@pytest.mark.slow
def test_killed_at_every_step_of_finish(node: Lab) -> None:
    """P6, G4, G8: afterwards it is pending with what was in force before, or enrolled with all of the answer."""
    lab, issuer = node, Issuer(node)
    lab.push(policy(1))
    document = policy(5)

    def prepared() -> tuple[dict, bytes]:
        request = begin(lab)
        generation = request["generation_floor"] + 1
        return document | {"generation": generation}, answer(request, document | {"generation": generation}, [issuer.anchor()])

    def leave() -> None:
        if state(lab) != "unenrolled":
            lab.ask("enroll.end", {"now": True})

    _, made = prepared()
    loop = thread_of(lab, in_loop=True)
    with traced(lab, "-f", "-p", loop) as lines:
        assert finish(lab, made)["applied"]
        time.sleep(0.1)
    steps: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    writes = 0
    for line in lines:
        found = re.match(rf"{loop} +(\w+)\(", line)
        if not found:
            continue
        call = found[1]
        counts[call] = counts.get(call, 0) + 1
        ours = PLACES.search(line) or re.search(r"<[^>]*/state(/[^>]*)?>", line)
        if call in ("rename", "fsync", "write") and ours or call == "membarrier" or (call == "sendto" and "HLDF" in line):
            writes += call == "rename"
            steps.append((call, counts[call]))
    assert writes == 4, lines  # bundle, offer, policy, enrolled
    outcomes = set()
    for call, number in steps:
        leave()
        before = lab.ask("bundle.show")["generation"]
        wanted, made = prepared()
        killed_at(lab, (True, call, number), lambda made=made: finish(lab, made))
        lab.start()
        shown, now = lab.ask("bundle.show"), state(lab)
        outcomes.add(now)
        where = f"{call} {number}: {now}, {shown['generation']} of {before} and {wanted['generation']}"
        if now == "pending":
            assert shown["generation"] == before, where
            assert issuer.name not in {each["issuer"] for each in lab.ask("trust.show")["anchors"]}, where
            assert finish(lab, made)["applied"], where
        assert state(lab) == "enrolled" and lab.ask("bundle.show")["signed"]["generation"] == wanted["generation"], where
        refused(lab, made, "enroll_spent")
        by_token(lab, issuer)
        passes(lab, WEB_A)
    assert outcomes == {"pending", "enrolled"}


@pytest.mark.parametrize("ssh", [False, True], ids=["pem", "openssh"])
def test_the_command_line(node: Lab, ssh: bool) -> None:
    """enroll begin, fingerprint, finish, show and end, bundle sign --enroll and bundle check; the CSR is openssl's to read."""
    lab, issuer = node, Issuer(node)
    root = Issuer(lab, "root.example")
    key, public = root.key, lab.dir / "root.pub"
    if ssh:
        key = lab.dir / "id_ed25519"
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
        public = lab.dir / "id_ed25519.pub"
    else:
        public.write_text(lab.sh(["openssl", "pkey", "-in", str(key), "-pubout"]).stdout)
    fingerprint = lab.cli_text("enroll", "fingerprint", public).strip()
    assert lab.cli("enroll", "fingerprint", public)["fingerprint"] == fingerprint
    request = lab.dir / "node.request"
    request.write_text(lab.cli_text("enroll", "begin", "--anchor", fingerprint, "--ttl", "10m", "--tenant", A, "--tenant", B))
    asked = json.loads(request.read_text())
    assert asked["anchor"] == fingerprint and asked["tenants"] == [A, B]
    csr = lab.dir / "node.csr"
    csr.write_text(asked["csr"])
    shown = lab.sh(["openssl", "req", "-in", str(csr), "-verify", "-noout", "-text"])
    assert asked["node"] in shown.stdout and "ED25519" in shown.stdout.upper() and asked["nonce"] in shown.stdout
    # H4: only a hash of the nonce stays, and no secret left.
    assert bytes.fromhex(asked["nonce"]) not in (lab.dir / "state" / "enrollment").read_bytes()
    assert "PRIVATE" not in request.read_text()

    anchors = lab.dir / "bundled.yaml"
    anchors.write_text(json.dumps({"version": 1, "anchors": [issuer.anchor(tenants=[A])]}))
    file = lab.write_policy(policy(3))

    def sign(*more: object, by: pathlib.Path = key, **options: object) -> subprocess.CompletedProcess:
        argv = lab.holdfast_argv("bundle", "sign", file, "--key", by, "--anchors", anchors, *more)
        return subprocess.run(argv, capture_output=True, check=False, **options)

    assert b"wrong_root" not in sign("--enroll", request).stderr
    assert b"the node waits for key" in sign("--enroll", request, by=issuer.key).stderr
    for wrong, said in (
        (asked | {"nonce": "00" * 32}, b"for another request"), (asked | {"node": asked["node"][:-4] + "AAAA"}, b"another node's key"),
        (asked | {"expires_s": 1}, b"was good until"), (asked | {"generation_floor": 3}, b"the node has had 3"),
        (asked | {"tenants": [A]}, b"does not ask for"), (asked | {"more": 1}, b"there is no"), (asked | {"csr": "x"}, b"no PKCS#10"),
    ):  # fmt: skip
        other = lab.dir / "other.request"
        other.write_text(json.dumps(wrong))
        done = sign("--enroll", other)
        assert done.returncode == 1 and said in done.stderr and not done.stdout, done
    made = lab.dir / "node.bundle"
    done = sign("--enroll", request)
    assert done.returncode == 0, done.stderr
    made.write_bytes(done.stdout)
    checked = lab.cli("bundle", "check", made)
    assert checked["enrolls"] and checked["generation"] == 3 and checked["key"] == fingerprint
    assert "the answer to an enrollment" in lab.cli_text("bundle", "check", made)
    assert "enrollment_pending" in lab.try_cli("bundle", "push", made).stderr
    assert f"enrolled under root {fingerprint}" in lab.cli_text("enroll", "finish", made)
    assert lab.cli("enroll", "show")["root"] == fingerprint
    assert f"enrolled under root {fingerprint}, for {A}, {B}" in lab.cli_text("status")
    by_token(lab, issuer)
    passes(lab, WEB_A)
    file = lab.write_policy(policy(4))
    made.write_bytes(sign().stdout)
    assert lab.cli("bundle", "push", made)["applied"]
    assert lab.cli("enroll", "end", "--now")["enrollment"]["state"] == "left"
    assert "left root" in lab.cli_text("enroll", "show")
