"""Signed requests: believed for the key that signed them, on one connection, once; whoever brings them.

Covers G10 (verify before parse), G11 and L5 (replay), L10, G13, A1. Requests are made by tests/unit/token/independent.py
and by `holdfast --sign-key`. Each refusal stands beside its control, and is counted by its reason.
"""

import json
import os
import random

import pytest
from control import SIGNED_REQUEST, Control, Refused, encode
from issuer import Issuer, as_uid, trust
from lab import A, B, Lab, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, STRANGER, USER, Signing, anchor, connect, thumbprint
from watcher import Watcher

pytestmark = pytest.mark.usefixtures("believed")

WEB_A, WEB_B = Probe("client", "tenant-a", syn()), Probe("client", "tenant-b", syn())
CHANGING = (
    "lease.grant", "lease.renew", "lease.release", "lease.revoke", "tenant.disable", "tenant.enable", "bundle.push",
    "trust.revoke", "trust.restore", "trust.rotate",
)  # fmt: skip


def numbers(lab: Lab) -> dict:
    return lab.ask("status")["signed_requests"]


def refused(lab: Lab, control: Control, code: str, verb: str = "status", args: dict | None = None, told: str = "") -> None:
    before = numbers(lab)["refused"].get(code, 0)
    with pytest.raises(Refused) as error:
        control.call(verb, args)
    assert error.value.code == (told or code)
    assert numbers(lab)["refused"][code] == before + 1


def test_it_is_the_key_that_may(lab: Lab) -> None:
    """L6, A1: who connects is nobody here; what its key signs is done, and packets pass by it."""
    trust(lab, anchor(tenants=[A]))
    with Control(lab.socket_path, uid=USER) as nobody, pytest.raises(Refused, match="not_operator"):
        nobody.grant(A, "web")
    denied(lab, WEB_A, "no_lease", "from_uplink")
    before = numbers(lab)["good"]
    with connect(lab) as control:
        lease = control.grant(A, "web")
        passes(lab, WEB_A)
        (told,) = [each for each in lab.ask("status")["peers"] if each["uid"] == USER]
        assert told["role"] == "none" and told["signer"]["name"] == "cp.example", told
        assert told["signer"]["tenants"] == [A] and told["signer"]["verbs"] == ["*"] and told["grants"] == []
        assert f"cp.example (uid {USER}) may * for {A}" in lab.cli_text("status")
        assert control.renew(lease["id"], 200)["generation"] == lease["generation"] + 1
        assert list(control.leases_of(A)) == [lease["id"]]
        control.revoke(lease["id"])
    assert numbers(lab)["good"] == before + 4
    denied(lab, WEB_A, "no_lease", "from_uplink")
    assert "signer=cp.example" in lab.log


def test_it_is_put_down_to_the_key(lab: Lab) -> None:
    """A1: who watches is told whose signature it was, and by whose hands it came; without one only the latter."""
    trust(lab, anchor())
    with Watcher(lab.socket_path, kinds=["lease", "trust"]) as watcher:
        watcher.snapshot()
        with connect(lab) as control:
            lease = control.grant(A, "web")
            control.renew(lease["id"], 200)
            control.revoke(lease["id"])
            control.call("trust.revoke", {"what": "holder:uid:4711"})
        lab.ask("trust.restore", {"what": "holder:uid:4711"})
        watcher.until_named("trust.restore")
        asked = {event["event"]: (event.get("actor_uid"), event.get("signer")) for event in watcher.events}
    signed = dict.fromkeys(("lease.grant", "lease.renew", "lease.forced_teardown", "trust.revoke"), (USER, "cp.example"))
    assert asked == signed | {"trust.restore": (0, None), "lease.torndown": (None, None)}


def test_operators_who_sign_may_what_the_key_may(lab: Lab) -> None:
    """A1: root's own rights are not added to those of the key."""
    trust(lab, anchor(verbs=["lease.list"]))
    with connect(lab, uid=0) as control:
        control.call("lease.list", {"tenant": A})
        with pytest.raises(Refused, match="verb_not_allowed"):
            control.grant(A, "web")
        with pytest.raises(Refused, match="not_root"):
            control.call("node.detach")


def test_verbs_that_an_anchor_does_not_list(lab: Lab) -> None:
    """A7: every verb by itself, allowed and not."""
    for allowed in ("lease.grant", "lease.revoke", "tenant.disable"):
        trust(lab, anchor(verbs=[allowed]))
        with connect(lab) as control:
            for verb in (*CHANGING, "status", "trust.show", "drops.read"):
                with pytest.raises(Refused) as error:
                    control.call(verb, {"nonsense": 1})
                assert (error.value.code == "verb_not_allowed") == (verb != allowed), (verb, error.value)


def test_another_tenants_things(lab: Lab) -> None:
    """G13, L5: for each verb; and of another's lease not even its existence is told."""
    trust(lab, anchor(tenants=[A]), anchor(STRANGER, issuer="other.example", tenants=[B]))
    with connect(lab) as mine, connect(lab, seed=STRANGER) as theirs:
        lease = theirs.grant(B, "web")
        with pytest.raises(Refused, match="tenant_not_allowed"):
            mine.grant(B, "web@10.2.0.2:8080")
        for verb, args in (
            ("lease.show", {}), ("lease.revoke", {}), ("lease.release", {}), ("lease.renew", {"ttl_ns": 10**11}),
            ("lease.revoke", {"token": b""}), ("lease.release", {"signed": True}),
        ):  # fmt: skip
            codes = set()
            for lease_id in (lease["id"], "0" * 32):
                with pytest.raises(Refused) as error:
                    mine.call(verb, {"id": lease_id} | args)
                codes.add(error.value.code)
            assert codes == {"no_such_lease"}
        for verb in ("tenant.disable", "tenant.enable"):
            with pytest.raises(Refused, match="tenant_not_allowed"):
                mine.call(verb, {"name": B})
        for verb, args in (
            ("lease.list", {}), ("lease.list", {"tenant": B}), ("flows.list", {}), ("status", {}), ("bundle.show", {}),
            ("trust.show", {}), ("trust.revoke", {"what": "issuer:other.example"}),
            ("trust.rotate", {"old": "0" * 64, "new": "1" * 64}), ("explain", {}), ("drops.follow", {}),
            ("bundle.push", {}), ("bundle.push", {"signed": False}), ("status", {"token": b""}),
        ):  # fmt: skip
            with pytest.raises(Refused, match="tenant_not_allowed"):
                mine.call(verb, args)
        assert [each["name"] for each in mine.call("tenant.list")["tenants"]] == [A]
        # Neither whether a tenant is there nor what it has.
        for tenant, endpoint in ((B, "web"), (B, "nothing"), ("no/such/tenant", "web")):
            item = {"tenant": tenant, "endpoints": [endpoint], "ttl_ns": 10**11, "each": True}
            with pytest.raises(Refused, match="tenant_not_allowed"):
                mine.call("lease.grant", {}, encode([item]))
        with pytest.raises(Refused, match="malformed_cbor"):
            mine.call("lease.grant", {}, encode([{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**11}]) + b"\0")
        passes(lab, WEB_B)
        # A batch with one of another's is refused whole.
        items = [{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**11}, {"tenant": B, "endpoints": ["echo"], "ttl_ns": 10**11}]
        with pytest.raises(Refused, match="tenant_not_allowed"):
            mine.call("lease.grant", {}, encode(items))
        denied(lab, WEB_A, "no_lease", "from_uplink")
        theirs.revoke(lease["id"])


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("wrong_audience", {"node": "ni:///sha-256;AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
        ("stale_epoch", {"epoch": 1}),
        ("wrong_challenge", {"challenge": bytes(32)}),
        ("old_sequence", {"sequence": 0}),
        ("wrong_time", {"issued": 1_700_000_000}),
        ("wrong_time", {"issued": 4_000_000_000}),
        ("unknown_key", {"seed": STRANGER}),
        ("wrong_purpose", {"purpose": "bundle"}),
        ("malformed_signed", {"sequence": -1}),
    ],
)
def test_what_is_wrong_before_the_signature(lab: Lab, code: str, wrong: dict) -> None:
    """G10, L10: told to operators; to others it is denied, and all see it counted."""
    trust(lab, anchor())
    with connect(lab, uid=0, **wrong) as operator, connect(lab, **wrong) as user:
        refused(lab, operator, code)
        refused(lab, user, code, told="denied")
        operator.seal = Signing(operator)
        user.seal = Signing(user)
        for control in (operator, user):
            assert control.call("status")["node"] == control.hello["node"], "the connection goes on"


def test_keys_that_may_not(lab: Lab) -> None:
    """L14: what a key may not sign any more, or never could."""
    for changes, code in (
        ({"state": "verify_only"}, "key_not_live"),
        ({"state": "revoked"}, "key_not_live"),
        ({"uses": ["token"], "verbs": None}, "key_not_for_requests"),
        ({"uses": ["bundle"], "verbs": None}, "key_not_for_requests"),
    ):
        trust(lab, anchor(**changes))
        with connect(lab, uid=0) as control:
            refused(lab, control, code)
    trust(lab, anchor(state="retiring"))
    with connect(lab) as control:
        control.call("lease.list", {"tenant": A})


def test_a_revoked_key(lab: Lab) -> None:
    """G5, L5: its connection stays, and says nothing any more; what it granted is down, what others did is not."""
    trust(lab, anchor(), anchor(STRANGER, issuer="other.example"))
    with connect(lab, uid=0) as control, connect(lab, seed=STRANGER) as other:
        granted = [control.grant(A, "web"), other.grant(B, "web")]
        passes(lab, WEB_A)
        key = thumbprint(SEED)
        assert lab.cli("trust", "revoke", f"key:{key}")["leases_ended"] == 1
        refused(lab, control, "key_not_live")
        wait_until(lambda: granted[0]["id"] not in lab.leases(), 10, "the lease is torn down")
        denied(lab, WEB_A, "no_lease", "from_uplink")
        passes(lab, WEB_B)
        # Renewed by another key, a lease is that one's.
        mine = other.grant(A, "web")
        lab.cli("trust", "restore", f"key:{key}")
        control.renew(mine["id"], 100)
        assert lab.cli("trust", "revoke", f"key:{key}")["leases_ended"] == 1
        lab.cli("trust", "restore", f"key:{key}")
        other.revoke(granted[1]["id"])


def test_replays(lab: Lab) -> None:
    """G11, L5: recorded, and sent again: on the same connection, on another, after a crash and with the clock as it was."""
    trust(lab, anchor())
    with connect(lab, uid=0) as control:
        lease = control.grant(A, "web")
        recorded = control.seal.last
        control.revoke(lease["id"])
        for number in range(2):
            with pytest.raises(Refused, match="old_sequence"):
                control.send(SIGNED_REQUEST, recorded)
        # One that was not sent yet, overtaken by a later one.
        request = encode({"verb": "lease.grant", "args": {}, "body": encode([{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**11}])})
        held_back = control.seal(request)
        control.call("status")
        with pytest.raises(Refused, match="old_sequence"):
            control.send(SIGNED_REQUEST, held_back)
    with Control(lab.socket_path) as thief:
        for each in (recorded, held_back):
            with pytest.raises(Refused, match="wrong_challenge"):
                thief.send(SIGNED_REQUEST, each)
    lab.kill()
    lab.start()
    with Control(lab.socket_path) as thief:
        for each in (recorded, held_back):
            with pytest.raises(Refused, match="wrong_challenge"):
                thief.send(SIGNED_REQUEST, each)
    denied(lab, WEB_A, "no_lease", "from_uplink")
    with connect(lab) as control:
        lease = control.grant(A, "web")
        passes(lab, WEB_A)
        control.revoke(lease["id"])


def test_damaged_requests(lab: Lab) -> None:
    """G10: some truncations and flipped bits of one; tests/unit/token/signed_test.cpp has them all."""
    trust(lab, anchor())
    request = encode({"verb": "tenant.disable", "args": {"name": A}})
    with connect(lab, uid=0) as control:
        good = control.seal(request)
        before = numbers(lab)
        sizes = random.Random(1).sample(range(len(good)), 40)
        for size in sizes:
            with pytest.raises(Refused, match="malformed_signed"):
                control.send(SIGNED_REQUEST, good[:size])
        bits = random.Random(2).sample(range(8 * len(good)), 200)
        codes = {"malformed_signed": 40}
        for bit in bits:
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Refused) as error:
                control.send(SIGNED_REQUEST, bytes(damaged))
            codes[error.value.code] = codes.get(error.value.code, 0) + 1
        after = numbers(lab)
        assert {code: after["refused"][code] - before["refused"].get(code, 0) for code in codes} == codes
        assert after["good"] == before["good"] and codes["bad_signature"] > 40
        assert all(each["state"] == "enabled" for each in lab.cli("tenant", "ls")["tenants"])
        control.send(SIGNED_REQUEST, good)
        lab.cli("tenant", "enable", A)


def test_signed_nonsense(lab: Lab) -> None:
    """What is behind a good signature may still be wrong: a request that is none ends the connection."""
    trust(lab, anchor())
    for content in (b"", b"\xff", encode([]), encode({"verb": "status"}), encode({"verb": "status", "args": {}}) + b"\0"):
        with connect(lab) as control:
            with pytest.raises(Refused, match=r"malformed_(cbor|request)"):
                control.send(SIGNED_REQUEST, control.seal(content))
            with pytest.raises(ConnectionError):
                control.read_frame()


def test_the_command_line_signs(lab: Lab, issuer: Issuer) -> None:
    """`--sign-key`: of a user in no group, large ones packed; its key file has to be nobody else's."""
    trust(lab, issuer.anchor(uses=["request"], verbs=["*"], tenants=["*"]))
    key = lab.dir / "signer.pem"
    key.write_bytes(issuer.key.read_bytes())
    key.chmod(0o400)
    os.chown(key, USER, USER)
    words = ("lease", "grant", A, "--endpoint", "web")
    done = lab.try_cli(*words, prefix=as_uid(USER))
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "not_operator"
    done = lab.try_cli(*words, "--sign-key", key, prefix=as_uid(USER))
    assert done.returncode == 0, done.stderr
    (lease,) = json.loads(done.stdout)["leases"]
    passes(lab, WEB_A)
    assert lease["holder"] == f"uid:{USER}"
    # Over 512 KiB it would come in a memfd, which is taken from operators only; packed it does not.
    items = lab.dir / "many.json"
    line = {"tenant": A, "endpoints": ["nothing-that-is-there-and-a-long-name-for-it"], "ttl": "60s"}
    items.write_text("\n".join([json.dumps(line)] * 20_000))
    done = lab.try_cli("lease", "grant", "--from", items, "--sign-key", key, prefix=as_uid(USER))
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "no_such_endpoint", done
    key.chmod(0o440)
    done = lab.try_cli("status", "--sign-key", key, prefix=as_uid(USER))
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "key_exposed"
    lab.cli("lease", "revoke", lease["id"])
