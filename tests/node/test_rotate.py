"""Keys rotate without anyone noticing: what trust show tells of each, and trust rotate.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

What is under a lease passes throughout, the old key's tokens stand until their end and count no more behind its time,
the new key's count all along. Covers G10, G11, L13, H5. Each refusal stands beside its control.
"""

import contextlib
import datetime
import json
import threading
import time
from collections.abc import Iterator

import pytest
import signing
from control import Control, Refused
from issuer import Issuer, as_bytes, as_uid, trust
from lab import A, B, SLOW, Lab, policy, wait_until
from packets import Probe, denied, passes, syn, udp, watching
from signing import SEED, STRANGER, USER, anchor, bundle, connect, thumbprint
from verify_sock import Check, VerifySock
from watcher import Watcher

ROTATED = thumbprint(bytes([7]) * 32)
WEB_A = Probe("client", "tenant-a", syn())
# What a rotation may take in a test: its tokens are signed and presented in that time.
AFTER_S = round(4 * SLOW) + 4


def anchors(lab: Lab) -> dict[str, dict]:
    return {each["key"]: each for each in lab.cli("trust", "show")["anchors"]}


def one(issuer: Issuer, tenant: str = A, *words: object, **options: object) -> str:
    (token,) = issuer.tokens(tenant, "--endpoint", "web", "--operation", "connect", *words, **options)
    return token


def granted(lab: Lab, token: str) -> dict:
    return lab.ask("lease.grant", {"token": as_bytes(token)})


def renewed(lab: Lab, issuer: Issuer, lease: dict) -> dict:
    words = (A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect")
    (token,) = issuer.tokens(*words, kind="renew", life="300s")
    return lab.ask("lease.renew", {"token": as_bytes(token)})


def refused(lab: Lab, token: str, code: str) -> None:
    with pytest.raises(Refused) as error:
        granted(lab, token)
    assert error.value.code == code, error.value


def rotate(lab: Lab, old: str, new: str, after_s: int = AFTER_S, **more: object) -> dict:
    return lab.ask("trust.rotate", {"old": old, "new": new, "after_s": after_s} | more)


def retired(lab: Lab, key: str) -> None:
    wait_until(lambda: anchors(lab)[key]["state"] == "verify_only", AFTER_S + 5 * SLOW, "its time is over")


@pytest.fixture
def pair(lab: Lab, believed: None) -> tuple[Issuer, Issuer]:
    """A control plane's old key and its new one; both count."""
    new = Issuer(lab)
    new.key = new.key.rename(lab.dir / "next.pem")
    old = Issuer(lab)
    trust(lab, old.anchor(), new.anchor())
    return old, new


@contextlib.contextmanager
def nothing_lost(lab: Lab, probe: Probe) -> Iterator[None]:
    """A packet each few ms meanwhile, of which every one arrives."""
    stop, sent = threading.Event(), 0

    def send() -> None:
        nonlocal sent
        while not stop.wait(0.005 * SLOW):
            lab.send("client", [probe.frame()])
            capture.drain()  # what nobody takes is lost on the way
            sent += 1

    with watching(lab, probe) as capture:
        sender = threading.Thread(target=send)
        sender.start()
        counted = 0
        try:
            yield
        finally:
            stop.set()
            sender.join()
        wait_until(lambda: capture.count() >= sent, 3, "what was sent arrives")
        counted = capture.count()
    assert counted == sent > 100, f"{counted} of {sent}"


def test_without_anyone_noticing(lab: Lab, pair: tuple[Issuer, Issuer]) -> None:
    """A lease that is renewed by the old key's tokens, and then by the new one's, does not lose a packet."""
    old, new = pair
    old_key, new_key = old.thumbprint(), new.thumbprint()
    echo = Probe("client", "tenant-a", udp())
    (token,) = old.tokens(A, "--endpoint", "echo", "--operation", "connect", "--ttl", "300s", life="300s")
    lease = granted(lab, token)
    before = one(old, A, "--ttl", f"{round(2 * SLOW)}s", life="300s")
    with nothing_lost(lab, echo):
        lease = renewed(lab, old, lease)
        told = rotate(lab, old_key, new_key)
        shown = anchors(lab)
        assert shown[old_key]["state"] == "retiring" and shown[old_key]["until"] == told["until"]
        assert shown[new_key]["state"] == "current" and shown[new_key]["until"] is None
        # What was signed before, and what is signed now, counts until then; a lease by it stands to its own end.
        short = granted(lab, before)
        passes(lab, WEB_A)
        wait_until(lambda: short["id"] not in lab.leases(), 10, "its term is over")
        lease = renewed(lab, old, lease)
        lease = renewed(lab, new, lease)
        retired(lab, old_key)
        late = one(old)
        refused(lab, late, "key_not_live")
        lease = renewed(lab, new, lease)
        with pytest.raises(Refused, match="key_not_live"):
            renewed(lab, old, lease)
    granted(lab, one(new))
    passes(lab, WEB_A)
    # Who asks without any right is told nothing.
    path = old.keep(late)
    done = lab.try_cli("lease", "grant", "--token", path, prefix=as_uid(USER))
    assert json.loads(done.stderr)["error"]["code"] == "denied"


def test_a_lease_that_nobody_renews_by_the_new_key(lab: Lab, pair: tuple[Issuer, Issuer]) -> None:
    """It ends with the old key, and is no other's: one by the new key and one by an operator go on. verify.sock, too."""
    old, new = pair
    old_key, new_key = old.thumbprint(), new.thumbprint()
    lease = granted(lab, one(old, A, "--ttl", "300s", life="300s"))
    other = granted(lab, one(new, B, "--ttl", "300s", life="300s"))
    by_operator = lab.grant(A, "echo")
    words = (B, "--lease", other["id"], "--generation", other["generation"])
    uses = [one(each, *words, kind="use", life="300s") for each in (old, new)]

    def answers() -> list[str]:
        with VerifySock(lab.dir / "run" / "verify.sock") as service:
            return [service.reason(Check(use, "connect", other["resources"][0], "uid:0")) for use in uses]

    with Watcher(lab.socket_path, kinds=["trust"]) as watcher:
        watcher.snapshot()
        rotate(lab, old_key, new_key)
        assert answers() == ["good", "good"]
        event = watcher.until_named("trust.rotate")
        assert (event["old"], event["new"], event["actor_uid"]) == (old_key, new_key, 0)
        passes(lab, WEB_A)
        retired(lab, old_key)
        event = watcher.until_named("trust.retired")
        assert (event["key"], event["issuer"], event["leases_ended"]) == (old_key, old.name, 1)
    wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")
    assert set(lab.leases()) == {other["id"], by_operator["id"]}
    assert answers() == ["key_not_live", "good"]


def test_what_show_tells(lab: Lab, pair: tuple[Issuer, Issuer]) -> None:
    """Verified: when the key last decided something, whatever that was. Where it is from, and whether it can retire."""
    old, new = pair
    old_key, new_key = old.thumbprint(), new.thumbprint()
    shown = anchors(lab)
    for each in shown.values():
        assert (each["source"], each["verified"], each["last_used"], each["pending"]) == ("file", False, None, False), each
        assert each["rotatable"] and each["until"] is each["left"] is None, each
    with pytest.raises(Refused):
        granted(lab, one(old)[:-4] + "AAAA")
    assert not anchors(lab)[old_key]["verified"], "nothing of it was believed"
    granted(lab, one(old))
    shown = anchors(lab)
    used = datetime.datetime.fromisoformat(shown[old_key]["last_used"].replace("Z", "+00:00")).timestamp()
    assert shown[old_key]["verified"] and abs(used - time.time()) < 10 * SLOW and not shown[new_key]["verified"]
    # On verify.sock.
    lease = granted(lab, one(old, B))
    use = one(new, B, "--lease", lease["id"], "--generation", lease["generation"], kind="use")
    with VerifySock(lab.dir / "run" / "verify.sock") as service:
        assert service.reason(Check(use, "connect", lease["resources"][0], "uid:0")) == "good"
    assert anchors(lab)[new_key]["verified"]
    # A signed request, and nobody else by it.
    trust(lab, anchor(), anchor(STRANGER))
    assert not any(each["verified"] for each in anchors(lab).values())
    with connect(lab) as signer:
        signer.call("lease.list")
    assert {key for key, each in anchors(lab).items() if each["verified"]} == {thumbprint(SEED)}
    # What is read anew is the same key still.
    trust(lab, anchor(), anchor(STRANGER, state="verify_only"))
    shown = anchors(lab)
    assert shown[thumbprint(SEED)]["verified"] and not shown[thumbprint(SEED)]["rotatable"], "its successor is gone"
    assert not shown[thumbprint(STRANGER)]["rotatable"], "it may sign nothing that would be missed"
    trust(lab, anchor(), anchor(STRANGER))
    rotate(lab, thumbprint(SEED), thumbprint(STRANGER), 200)
    text = lab.try_cli("trust", "show", json_output=False).stdout
    assert "retiring, 3m" in text and "left" in text and "ROTATABLE" in text, text


def test_an_end_that_something_else_comes_upon(lab: Lab, pair: tuple[Issuer, Issuer]) -> None:
    """Whatever changes trust at the moment of the end: the leases end, the end is told, once."""
    old, new = pair
    old_key, new_key = old.thumbprint(), new.thumbprint()
    lease = granted(lab, one(old, A, "--ttl", "300s", life="300s"))
    with Control(lab.socket_path) as control, Watcher(lab.socket_path, kinds=["trust"]) as watcher:
        watcher.snapshot()
        with pytest.raises(Refused) as error:
            while True:
                control.call("trust.rotate", {"old": old_key, "new": new_key, "after_s": 2})
        assert error.value.code == "key_not_live"
        assert watcher.until_named("trust.retired")["leases_ended"] == 1
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        lab.cli("trust", "revoke", "holder:uid:4242")
        lab.cli("trust", "restore", "holder:uid:4242")
        watcher.until_named("trust.restore")
        assert sum(event["event"] == "trust.retired" for event in watcher.events) == 1


WIDE = {
    "uses": ["token", "request", "bundle", "operator", "schedule"], "verbs": ["lease.grant", "lease.list"], "operations": ["connect", "read"],
    "tenants": ["*"], "life": "2m",
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"uses": ["request", "bundle", "operator", "schedule"]}, "the use token"),
        ({"uses": ["token", "bundle", "operator", "schedule"]}, "the use request"),
        ({"uses": ["token", "request", "operator", "schedule"]}, "the use bundle"),
        ({"uses": ["token", "request", "bundle", "schedule"]}, "the use operator"),
        ({"uses": ["token", "request", "bundle", "operator"]}, "the use schedule"),
        ({"tenants": [A], "uses": ["token", "request", "operator", "schedule"]}, "the use bundle, tenant *"),
        ({"operations": ["connect"]}, "operation read"),
        ({"operations": ["connect"], "verbs": ["lease.list"]}, "operation read, verb lease.grant"),
        ({"life": "119s"}, "a life of 2m"),
        ({"issuer": "other.example"}, "the issuer cp.example"),
        ({"state": "retiring"}, "retires itself"),
        ({}, None),
        ({"operations": ["*"], "verbs": ["*"], "life": "5m"}, None),
    ],
)  # fmt: skip
def test_one_that_is_not_as_wide(lab: Lab, believed: None, changes: dict, said: str | None) -> None:
    """not_rotatable, and it says what would be missing; show says so, too. As wide or wider is the control."""
    old, new = thumbprint(SEED), thumbprint(STRANGER)
    trust(lab, anchor(**WIDE), anchor(STRANGER, **(WIDE | changes)))
    shown = lab.ask("trust.show")
    assert anchors(lab)[old]["rotatable"] == (said is None)
    if said is None:
        assert rotate(lab, old, new, dry_run=True)["dry_run"] and lab.ask("trust.show") == shown
        rotate(lab, old, new)
        assert anchors(lab)[old]["state"] == "retiring"
        return
    with pytest.raises(Refused) as error:
        rotate(lab, old, new)
    assert error.value.code == "not_rotatable" and said in str(error.value), error.value
    assert lab.ask("trust.show") == shown


def test_mistakes(lab: Lab, pair: tuple[Issuer, Issuer]) -> None:
    """Each a typed reply, and nothing changed. A later time puts no end off; restore takes it back."""
    old, new = pair
    old_key, new_key = old.thumbprint(), new.thumbprint()
    own = lab.ask("status")["node"]
    assert own.startswith("ni:")
    shown = lab.ask("trust.show")
    for args, code in (
        ({"old": old_key, "new": old_key}, "not_rotatable"), ({"old": old_key, "new": ROTATED}, "no_such_anchor"),
        ({"old": ROTATED, "new": new_key}, "no_such_anchor"), ({"old": old_key[:-1], "new": new_key}, "bad_key"),
        ({"old": old_key, "new": new_key.upper()}, "bad_key"), ({"old": old_key}, "missing_key"),
        ({"old": old_key, "new": new_key, "after_s": 0}, "out_of_range"), ({"old": old_key, "new": new_key, "after_s": 331}, "out_of_range"),
        ({"old": old_key, "new": new_key, "more": 1}, "unknown_key"), ({"old": old_key, "new": new_key, "dry_run": 1}, None),
    ):  # fmt: skip
        with pytest.raises(Refused) as error:
            lab.ask("trust.rotate", args)
        assert code in (None, error.value.code), (args, error.value)
        assert lab.ask("trust.show") == shown
    for name in ("revoke", "restore"):
        with pytest.raises(Refused):
            lab.ask(f"trust.{name}", {"what": f"retire:{old_key}"})
    done = lab.try_cli("trust", "rotate", old_key, new_key, prefix=as_uid(USER))
    assert json.loads(done.stderr)["error"]["code"] == "not_operator"
    lab.ask("trust.revoke", {"what": f"key:{new_key}"})
    with pytest.raises(Refused, match="key_not_live"):
        rotate(lab, old_key, new_key)
    lab.ask("trust.restore", {"what": f"key:{new_key}"})

    first = lab.cli("trust", "rotate", old_key, new_key, "--after", "100s")
    assert lab.cli("trust", "rotate", old_key, new_key, "--after", "200s")["until"] == first["until"]
    assert lab.cli("trust", "rotate", old_key, new_key, "--after", "50s")["until"] < first["until"]
    with pytest.raises(Refused, match="not_rotatable"):
        rotate(lab, new_key, old_key)  # one that goes takes nobody's place
    lab.cli("trust", "restore", f"retire:{old_key}")
    assert anchors(lab)[old_key]["state"] == "current" and anchors(lab)[old_key]["until"] is None
    assert "is believed until" in lab.cli_text("trust", "rotate", old_key, new_key)


def test_by_signature(lab: Lab, believed: None) -> None:
    """It tightens: root may where what widens is signed; a key may if it has the verb and all tenants."""
    old, new = thumbprint(SEED), thumbprint(STRANGER)
    args = {"old": old, "new": new, "after_s": 100}
    trust(lab, anchor(verbs=["lease.list"]), anchor(STRANGER, verbs=["lease.list", "trust.rotate"]), unsigned="tighten")
    with connect(lab) as signer, pytest.raises(Refused, match="verb_not_allowed"):
        signer.call("trust.rotate", args)
    with connect(lab, seed=STRANGER) as signer:
        assert signer.call("trust.rotate", args)["old"] == old
    lab.ask("trust.rotate", args | {"after_s": 10})
    with pytest.raises(Refused, match="step_up_required"):
        lab.ask("trust.restore", {"what": f"retire:{old}"})


def test_leases_by_signed_requests(lab: Lab, believed: None) -> None:
    """One that is renewed in the new key's name goes on; one that its holder renews by itself still stands on the old key."""
    old, new = thumbprint(SEED), thumbprint(STRANGER)
    trust(lab, anchor(), anchor(STRANGER))
    with connect(lab) as signer:
        taken, left = signer.grant(A, "web"), signer.grant(B, "web", holder=f"uid:{USER}")
    rotate(lab, old, new)
    with connect(lab, seed=STRANGER) as signer, Control(lab.socket_path, uid=USER) as holder, nothing_lost(lab, WEB_A):
        signer.renew(taken["id"], 250)
        holder.renew(left["id"], 290)
        retired(lab, old)
        signer.renew(taken["id"], 290)
    wait_until(lambda: set(lab.leases()) == {taken["id"]}, 10, "the other one is torn down")
    passes(lab, WEB_A)


def test_over_a_crash(own_lab: Lab) -> None:
    """Killed behind the answer it retires still, in its time, also if that comes while nobody is there."""
    lab = own_lab
    old, new = thumbprint(SEED), thumbprint(STRANGER)
    trust(lab, anchor(), anchor(STRANGER))
    with connect(lab) as signer:
        lease = signer.grant(A, "web")
    told = rotate(lab, old, new)
    lab.kill()
    lab.start()
    assert anchors(lab)[old]["state"] == "retiring" and anchors(lab)[old]["until"] == told["until"]
    assert lease["id"] in lab.leases()
    # Written anew by its owner it retires all the same.
    trust(lab, anchor(), anchor(STRANGER))
    assert anchors(lab)[old]["until"] == told["until"]
    lab.stop()
    until = datetime.datetime.fromisoformat(told["until"].replace("Z", "+00:00")).timestamp()
    time.sleep(max(0.0, until - time.time()) + 1)
    lab.start()
    assert anchors(lab)[old]["state"] == "verify_only" and lease["id"] not in lab.leases()
    with connect(lab) as signer, pytest.raises(Refused):
        signer.call("lease.list")
    with connect(lab, seed=STRANGER) as signer:
        signer.call("lease.list")


def test_a_signer_of_bundles(own_lab: Lab) -> None:
    """What its bundle named would end with it: first the successor signs one. Then its own key does not serve again."""
    lab = own_lab
    old, new, named = thumbprint(SEED), thumbprint(STRANGER), bytes([7]) * 32
    root = {"uses": ["bundle"], "operations": ["*"], "issuer": "root.example", "verbs": ["*"]}
    trust(lab, anchor(**root), anchor(STRANGER, **root))
    node = lab.ask("status")["node"]

    def push(generation: int, seed: bytes) -> None:
        made = bundle(node, policy(generation), [anchor(named, issuer="cp.example")], seed=seed)
        with Control(lab.socket_path) as control:
            control.call("bundle.push", {"signed": True}, made)

    push(5, SEED)
    assert anchors(lab)[thumbprint(named)]["source"] == "bundle" and anchors(lab)[old]["verified"]
    assert not anchors(lab)[old]["rotatable"] and anchors(lab)[new]["rotatable"]
    with pytest.raises(Refused, match="the signature of the bundle in force"):
        rotate(lab, old, new)
    push(6, STRANGER)
    rotate(lab, old, new, 3)
    with connect(lab, seed=named) as signer:
        lease = signer.grant(A, "web")
    retired(lab, old)
    assert anchors(lab)[thumbprint(named)]["state"] == "current" and lease["id"] in lab.leases()
    with pytest.raises(Refused, match="key_not_live"):
        push(7, SEED)
    push(7, STRANGER)


def test_a_key_that_retired_is_no_root(own_lab: Lab) -> None:
    """L5: nor does it come back by an enrollment; its successor may."""
    lab = own_lab
    root = {"uses": ["bundle"], "operations": ["*"], "issuer": "root.example"}
    trust(lab, anchor(**root), anchor(STRANGER, **root))
    rotate(lab, thumbprint(SEED), thumbprint(STRANGER), 300)
    for seed, code in ((SEED, "key_not_live"), (STRANGER, None)):
        asked = lab.ask("enroll.begin", {"anchor": thumbprint(seed)})
        private = {6: bytes.fromhex(asked["nonce"]), 7: signing.independent.public_of(seed)}
        made = bundle(asked["node"], policy(asked["generation_floor"] + 5), seed=seed, purpose="enrollment", private=private)
        with Control(lab.socket_path) as control:
            if code is None:
                assert control.call("enroll.finish", {}, made)["applied"]
            else:
                with pytest.raises(Refused, match=code):
                    control.call("enroll.finish", {}, made)


def test_a_root_that_is_waited_for(own_lab: Lab) -> None:
    """Pending, until its request is answered or given up."""
    lab = own_lab
    lab.ask("enroll.begin", {"anchor": thumbprint(SEED)})
    (shown,) = anchors(lab).values()
    assert (shown["state"], shown["key"], shown["pending"], shown["source"]) == ("pending", thumbprint(SEED), True, "enrollment")
    assert not shown["verified"] and not shown["rotatable"]
    lab.ask("enroll.end")
    assert anchors(lab) == {}
