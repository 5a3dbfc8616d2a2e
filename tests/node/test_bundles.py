"""Signed bundles: a node's policy and anchors, believed for the key that signed them and delivered by anybody.

Covers G4, G10, G11 and L5 (replay), G12, R6 (the key before the content), A2, A3. Bundles are made by
tests/unit/token/independent.py and by `holdfast bundle sign`. Each refusal stands beside its control, and changes nothing.
"""

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import ERROR, HEADER, SIGNED_REQUEST, Control, Refused, encode
from issuer import Issuer, as_uid, trust
from lab import A, B, Lab, policy, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, STRANGER, USER, anchor, bundle, connect, public_line, thumbprint

WEB_A, WEB_B = Probe("client", "tenant-a", syn()), Probe("client", "tenant-b", syn())
ROOT = anchor(issuer="root.example", uses=["bundle"], operations=["*"])


@pytest.fixture
def node(own_lab: Lab) -> Iterator[Lab]:
    """One that takes bundles signed by SEED's key, and has one of generation 5 in force."""
    own_lab.serve_all()
    trust(own_lab, ROOT)
    assert push(own_lab, bundle(name(own_lab), policy(5)))["applied"]
    yield own_lab


def name(lab: Lab) -> str:
    return lab.ask("status")["node"]


def push(lab: Lab, made: bytes, uid: int = USER, **args: object) -> dict:
    with Control(lab.socket_path, uid=uid) as control:
        return control.call("bundle.push", {"signed": True} | args, made)


def in_force(lab: Lab) -> dict:
    return lab.ask("bundle.show")


def refused(lab: Lab, made: bytes, code: str, told: str = "") -> None:
    """Not put in force. `told`: what somebody hears who is no operator, if that is something else."""
    before = in_force(lab)
    for uid, expected in ((0, code), (USER, told or code)):
        with pytest.raises(Refused) as error:
            push(lab, made, uid)
        assert error.value.code == expected, error.value
    assert in_force(lab) == before


def without_web_b(generation: int) -> dict:
    made = policy(generation)
    del made["tenants"][1]["endpoints"][0]
    return made


def without_b(generation: int) -> dict:
    made = policy(generation)
    del made["tenants"][1]
    return made


def test_delivered_by_anybody(node: Lab) -> None:
    """A2, G11: it is the signature that counts; from then on no file is taken unsigned, root's neither."""
    lab = node
    lab.grant(A, "web")
    lease = lab.grant(B, "web")
    passes(lab, WEB_A)
    passes(lab, WEB_B)
    made = bundle(name(lab), without_web_b(6))
    assert push(lab, made, uid=0, dry_run=True)["leases_ended"] == 1 and in_force(lab)["generation"] == 5
    answer = push(lab, made)
    assert answer["applied"] and answer["signer"] == "root.example" and answer["leases_ended"] == 1
    wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
    denied(lab, WEB_B, "no_endpoint", "from_uplink")
    passes(lab, WEB_A)
    shown = in_force(lab)
    assert shown["signed"]["generation"] == 6 and shown["signed"]["bundle"] == answer["bundle"]

    with pytest.raises(Refused, match="signature_required"), Control(lab.socket_path) as root:
        root.push(json.dumps(policy(7)))
    lab.policy_file.write_text(json.dumps(policy(7)))
    lab.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in lab.log, what="the file is not read")
    assert in_force(lab) == shown
    lab.policy_file.unlink()
    # The same again is no change, and a dry run no push.
    assert push(lab, made)["changes"] == []
    # Once no key signs bundles any more, files are taken again.
    trust(lab)
    with Control(lab.socket_path) as root:
        assert root.push(json.dumps(policy(7)))["applied"]
    assert in_force(lab)["signed"] is None
    # And what was before these is not in force again because it was once.
    trust(lab, ROOT)
    refused(lab, made, "old_generation")


def test_what_is_wrong_before_the_signature(node: Lab) -> None:
    """G10: told to operators; others are denied."""
    lab, here = node, name(node)
    other = here[:-4] + "AAAA"
    for code, made in (
        ("wrong_audience", bundle(other, policy(6))),
        ("issued_in_future", bundle(here, policy(6), issued=4_000_000_000, expires=4_000_000_100)),
        ("expired", bundle(here, policy(6), issued=1_700_000_000, expires=1_700_000_100)),
        ("life_too_long", bundle(here, policy(6), expires=4_000_000_000)),
        ("unknown_key", bundle(here, policy(6), seed=STRANGER)),
        ("malformed_signed", bundle(here, policy(6), generation=-1)),
        ("malformed_signed", b"\x84"),
    ):
        refused(lab, made, code, told="denied")
    with connect(lab) as control:
        request = control.seal(encode({"verb": "bundle.push", "args": {}, "body": b"x"}))
    refused(lab, request, "wrong_purpose", told="denied")
    for changes, code in (({"uses": ["request"]}, "key_not_for_bundles"), ({"state": "verify_only"}, "key_not_live")):
        trust(lab, ROOT | {"verbs": ["*"]} | changes)
        refused(lab, bundle(here, policy(6)), code, told="denied")
    trust(lab, ROOT)
    good = bundle(here, policy(6))
    for size in random.Random(3).sample(range(len(good)), 30):
        refused(lab, good[:size], "malformed_signed", told="denied")
    codes = set()
    for bit in random.Random(4).sample(range(8 * len(good)), 100):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused) as error:
            push(lab, bytes(damaged), uid=0)
        codes.add(error.value.code)
    assert "bad_signature" in codes and in_force(lab)["generation"] == 5
    assert push(lab, good)["applied"]


def test_what_is_wrong_behind_the_signature(node: Lab) -> None:
    """G14, A2: its signer hears it, and nothing is half done; the generation can be used again."""
    lab, here = node, name(node)
    for code, made in (
        ("malformed_bundle", bundle(here, policy(6), content=b"")),
        ("malformed_bundle", bundle(here, policy(6), content=encode({"policy": "x", "more": 1}))),
        ("bad_packing", bundle(here, policy(6), private={5: 100})),
        ("policy_invalid", bundle(here, "version: 1\nnonsense: 1\n", generation=6)),
        ("generation_differs", bundle(here, policy(6), generation=7)),
        ("anchors_syntax", bundle(here, policy(6), anchors=[{"issuer": "x"}])),
    ):
        refused(lab, made, code)
    # What the kernel cannot be made to enforce: nothing was put in force, and the floor is where it was.
    broken = policy(6)
    broken["tenants"][0]["ports"][0]["interface"] = "lo"
    with pytest.raises(Refused):
        push(lab, bundle(here, broken))
    assert push(lab, bundle(here, policy(6)))["applied"]


def test_replays(node: Lab) -> None:
    """G12, G11, L5: an older one is refused for ever, and of one generation there is one bundle."""
    lab, here = node, name(node)
    fifth, sixth = bundle(here, policy(5)), bundle(here, without_b(6))
    push(lab, sixth)
    refused(lab, fifth, "old_generation")
    refused(lab, bundle(here, policy(6)), "generation_used")
    for end in (lab.kill, lab.stop):
        end()
        lab.start()
        assert in_force(lab)["signed"]["generation"] == 6
        refused(lab, fifth, "old_generation")
        refused(lab, bundle(here, policy(6)), "generation_used")
        assert push(lab, sixth)["changes"] == []
    # A record that is not what was written is not guessed at.
    lab.stop()
    record = lab.dir / "state" / "bundle"
    kept = record.read_bytes()
    record.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    done = lab.try_start()
    assert done.returncode == 1 and "bundle_record_damaged" in done.stderr, done
    record.write_bytes(kept)
    lab.start()
    refused(lab, fifth, "old_generation")


def test_a_signer_hands_on_what_it_has(node: Lab) -> None:
    """A2, G13: no anchor of a bundle is wider than its signer, then and later; a bundle is of all tenants or none."""
    lab, here = node, name(node)
    mine = anchor(STRANGER, issuer="cp.example", uses=["request"], verbs=["lease.grant"], life="60s")
    narrow = ROOT | {"operations": ["connect"], "verbs": ["lease.grant", "lease.list"], "life": "60s"}
    trust(lab, narrow)
    for wide in (
        {"operations": ["*"]}, {"uses": ["bundle"]}, {"uses": ["operator"]}, {"life": "61s"}, {"verbs": ["*"]},
        {"verbs": ["lease.revoke"]},
    ):  # fmt: skip
        refused(lab, bundle(here, policy(6), anchors=[mine | wide]), "anchor_too_wide")
    assert push(lab, bundle(here, policy(6), anchors=[mine]))["applied"]
    with connect(lab, seed=STRANGER) as control:
        with pytest.raises(Refused, match="life_too_long"):
            control.grant(A, "web", ttl_s=61)
        lease = control.grant(A, "web", ttl_s=60)
        passes(lab, WEB_A)
        # The signer has less from now on, and so has whom it named: its lease ends, and it asks in vain.
        trust(lab, narrow | {"verbs": ["lease.list"]})
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        with pytest.raises(Refused, match="denied"):
            control.grant(A, "web", ttl_s=60)
    path = lab.dir / "config" / "anchors.yaml"
    path.write_text(json.dumps({"version": 1, "anchors": [ROOT | {"tenants": [A]}]}))
    lab.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "a bundle is the policy of all tenants" in lab.log, what="the anchors are refused")


@pytest.mark.parametrize("how", ["revoked", "issuer revoked", "gone"])
def test_a_signer_that_is_believed_no_more(node: Lab, how: str) -> None:
    """G5, L5: what a stolen key planted goes with it, over a restart too: its keys, their leases, their streams."""
    lab, here = node, name(node)
    planted = anchor(STRANGER, issuer="thief.example")
    trust(lab, ROOT | {"verbs": ["*"]})
    push(lab, bundle(here, policy(6), anchors=[planted]))
    held_back = bundle(here, policy(7), anchors=[planted])
    honest = anchor(bytes([7]) * 32, issuer="honest.example")
    trust(lab, ROOT | {"verbs": ["*"]}, honest)
    with connect(lab, seed=STRANGER) as thief, connect(lab, seed=STRANGER) as watcher, connect(lab, seed=bytes([7]) * 32) as other:
        lease = thief.grant(A, "web")
        for each in (watcher, other):
            each.socket.sendall(watcher_request(each))
            assert each.read_frame()[3]["type"] == "snapshot"
        passes(lab, WEB_A)
        if how == "gone":
            trust(lab, honest)
        else:
            time.sleep(1.1)  # what is revoked is what was issued before this second
            what = f"key:{thumbprint(SEED)}" if how == "revoked" else "issuer:root.example"
            assert lab.cli("trust", "revoke", what)["leases_ended"] == 1
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        denied(lab, WEB_A, "no_lease", "from_uplink")
        with pytest.raises(Refused, match="denied"):
            thief.grant(A, "web")
        while (frame := watcher.read_frame())[0] != ERROR:
            pass
        assert frame[3]["code"] == "trust_changed"
        # Who is still believed goes on, and is told of it.
        while not any("lease.forced_teardown" == each["event"] for each in other.read_frame()[3].get("events", [])):
            pass
    lab.kill()
    lab.start()
    with connect(lab, seed=STRANGER) as thief, pytest.raises(Refused, match="denied"):
        thief.grant(A, "web")
    code = {"revoked": "key_not_live", "issuer revoked": "revoked", "gone": "unknown_key"}[how]
    refused(lab, held_back, code, told="denied")


def watcher_request(control: Control) -> bytes:
    made = control.seal(encode({"verb": "watch", "args": {}}))
    return HEADER.pack(b"HLDF", 1, SIGNED_REQUEST, 0, len(made), 1) + made


def test_a_crash_between_record_and_policy(node: Lab) -> None:
    """G4, G12: policy and anchors are of one bundle, and the floor is the later one's."""
    lab, here = node, name(node)
    trust(lab, ROOT | {"verbs": ["*"]})
    push(lab, bundle(here, policy(6), anchors=[anchor(STRANGER, issuer="sixth.example")]))
    stored = lab.dir / "state" / "policy.json"
    sixth = stored.read_bytes()
    seventh = bundle(here, without_web_b(7), anchors=[anchor(bytes([7]) * 32, issuer="seventh.example")])
    push(lab, seventh)
    lab.kill()
    stored.write_bytes(sixth)  # as if it had been killed before that was replaced
    lab.start()
    shown = in_force(lab)
    assert (shown["generation"], shown["signed"]["generation"], shown["floor"]) == (6, 6, 7)
    assert {each["issuer"] for each in lab.cli("trust", "show")["anchors"]} == {"root.example", "sixth.example"}
    refused(lab, bundle(here, policy(6)), "old_generation")
    assert push(lab, seventh)["applied"]
    # Without its record the policy in force is a floor all the same.
    lab.kill()
    (lab.dir / "state" / "bundle").unlink()
    lab.start()
    refused(lab, bundle(here, policy(6)), "old_generation")
    refused(lab, bundle(here, policy(7)), "generation_used")
    assert push(lab, bundle(here, policy(8)))["applied"]


def test_who_only_delivers_is_told_little(node: Lab) -> None:
    """G13: not what a push changes for others, and not before it is one; the same again costs nothing."""
    lab, here = node, name(node)
    made = bundle(here, without_web_b(6))
    with pytest.raises(Refused, match="not_in_group"):
        push(lab, made, dry_run=True)
    assert push(lab, made, uid=0, dry_run=True)["changes"]
    assert push(lab, made)["changes"] == []
    before = lab.log.count("policy.apply")
    for _ in range(20):
        assert not push(lab, made)["applied"]
    assert lab.log.count("policy.apply") == before
    lab.grant(B, "echo")
    with pytest.raises(Refused, match="tenant_has_leases: the bundle was not put in force whole"):
        push(lab, bundle(here, without_b(7)))
    with pytest.raises(Refused, match="holds 1 live leases"):
        push(lab, bundle(here, without_b(7)), uid=0)


def test_a_quarantined_node_takes_no_keys(node: Lab) -> None:
    """P16: nothing that a bundle brings releases it."""
    lab, here = node, name(node)
    trust(lab, ROOT | {"verbs": ["*"]})
    lab.cli("node", "quarantine")
    made = bundle(here, policy(6), anchors=[anchor(STRANGER, issuer="cp.example", verbs=["node.release"])])
    refused(lab, made, "node_quarantined")
    lab.cli("node", "release")
    assert push(lab, made)["applied"]


def test_anchors_come_and_go_with_the_bundle(node: Lab) -> None:
    """A3: keys rotate with an overlap; when one goes its leases end, over a restart too."""
    lab, here = node, name(node)
    old = anchor(STRANGER, issuer="cp.example")
    new = anchor(bytes([7]) * 32, issuer="cp.example")
    trust(lab, ROOT | {"verbs": ["*"]})
    with pytest.raises(Refused, match="denied"), connect(lab, seed=STRANGER) as control:
        control.grant(A, "web")
    push(lab, bundle(here, policy(6), anchors=[old]))
    with connect(lab, seed=STRANGER) as control:
        first = control.grant(A, "web")
    passes(lab, WEB_A)
    push(lab, bundle(here, policy(7), anchors=[old | {"state": "retiring"}, new]))
    lab.kill()
    lab.start()
    with connect(lab, seed=STRANGER) as control, connect(lab, seed=bytes([7]) * 32) as rotated:
        control.renew(first["id"], 200)
        second = rotated.grant(B, "web")
    passes(lab, WEB_A)
    passes(lab, WEB_B)
    # The overlap is over.
    push(lab, bundle(here, policy(8), anchors=[old | {"state": "verify_only"}, new]))
    wait_until(lambda: first["id"] not in lab.leases(), 10, "the old key's lease is torn down")
    denied(lab, WEB_A, "no_lease", "from_uplink")
    passes(lab, WEB_B)
    assert {each["state"] for each in lab.cli("trust", "show")["anchors"]} == {"verify_only", "current"}
    # A key of the anchors file stays what that says, whatever a bundle says of it.
    push(lab, bundle(here, policy(9), anchors=[anchor(SEED, issuer="root.example")]))
    with pytest.raises(Refused, match="key_not_for_requests"), connect(lab, uid=0) as control:
        control.call("status")
    wait_until(lambda: second["id"] not in lab.leases(), 10, "that of a key that is gone, too")


def test_the_command_line(node: Lab) -> None:
    """bundle sign, check, diff and push; one as large as a policy gets, by a user who may pass no memfd."""
    lab = node
    root = Issuer(lab, "root")
    trust(lab, root.anchor(uses=["bundle"], operations=["*"]))
    document = policy(6)
    document["tenants"][0]["endpoints"] += [
        {"name": f"extra-{number}", "port": "a0", "protocol": "tcp", "listen": 20000 + number} for number in range(12000)
    ]
    path = lab.write_policy(document)
    anchors = lab.dir / "bundled.yaml"
    anchors.write_text(json.dumps({"version": 1, "anchors": [root.anchor(issuer="cp", key=public_line(STRANGER))]}))
    made = lab.dir / "node.bundle"
    argv = lab.holdfast_argv("bundle", "sign", path, "--key", root.key, "--anchors", anchors)
    made.write_bytes(subprocess.run(argv, check=True, capture_output=True).stdout)
    made.chmod(0o444)
    assert path.stat().st_size > 1 << 20 > made.stat().st_size
    checked = lab.cli("bundle", "check", made)
    assert checked["generation"] == 6 and checked["node"] == name(lab) and checked["anchors"] == 1
    assert "generation 6, 2 tenants, 1 anchor" in lab.cli_text("bundle", "check", made)
    assert in_force(lab)["generation"] == 5
    # Nothing of it is too large to be told: what changes in part, the policy itself in pieces.
    told = lab.cli("bundle", "diff", made)
    done = lab.try_cli("bundle", "push", made, prefix=as_uid(USER))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signer"] == root.name
    assert len(told["changes"]) == 1000 and told["changes_more"] > 10_000
    shown = lab.cli("bundle", "show")
    assert shown["generation"] == 6 and len(shown["policy"]["tenants"][0]["endpoints"]) > 12_000
    assert in_force(lab)["signed"]["generation"] == 6
    assert "cp" in {each["issuer"] for each in lab.cli("trust", "show")["anchors"]}
    made.chmod(0o644)
    made.write_bytes(made.read_bytes()[:-1])
    assert "no COSE_Sign1" in lab.cli_refused("bundle", "check", made)
