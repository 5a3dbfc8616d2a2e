"""What a scheduler signs: leases that have to end, with a grace in which their holder saves its work, and tokens it admits.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)
                               tb ---- tenant-b

Covers L9 (preemption and admission carry the scheduler's signature), G5, G13 (another tenant's), L5 (replay), P16 (what
tightens always works), and the states of DESIGN.md section 3: revoke_warning, grace_running, checkpoint_reported.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from base64 import urlsafe_b64encode

import pytest
from control import SIGNED_REQUEST, Control, Refused, encode
from issuer import Issuer, as_bytes, as_uid, trust
from lab import A, B, Lab, nanoseconds, policy, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, STRANGER, USER, anchor, bundle, connect, independent, thumbprint
from watcher import Watcher

pytestmark = pytest.mark.usefixtures("believed")

WEB_A = Probe("client", "tenant-a", syn())
SCHEDULER = {"issuer": "sched.example", "uses": ["schedule"], "verbs": None}
REASON = "job 17 comes first"
HOLDER = 61000
# What the whole life of a lease may do, event for event.
GRACE = ["lease.preempted", "lease.revoke_warning", "lease.grace_running"]
DOWN = ["lease.forced_teardown", "lease.torndown"]


def scheduler(**changes: object) -> dict:
    return anchor(**SCHEDULER | changes)


def made(lab: Lab, purpose: str, said: dict, seed: bytes = SEED, /, **wrong: object) -> bytes:
    """What a scheduler signs for a node. Each part of it can be made wrong."""
    now = int(time.time())
    parts = {"node": lab.ask("status")["node"], "issued": now, "expires": now + 60, "purpose": purpose, "content": encode(said)} | wrong
    return independent.make_signed(
        seed, parts["purpose"], parts["node"], parts["issued"], parts.get("private", {}), parts["content"], parts["expires"]
    )


def preempt(lab: Lab, lease: dict, seed: bytes = SEED, grace: str | None = None, said: dict | None = None, **wrong: object) -> bytes:
    plain = {"lease": bytes.fromhex(lease["id"]), "generation": lease["generation"], "reason": REASON}
    if grace is not None:
        plain["grace_ns"] = nanoseconds(grace)
    return made(lab, "preempt", plain | (said or {}), seed, **wrong)


def admission(lab: Lab, token: bytes, seed: bytes = SEED, said: dict | None = None, **wrong: object) -> bytes:
    plain = {"token": leaf_of(lab, token), "tenant": A, "reason": REASON}
    return made(lab, "admission", plain | (said or {}), seed, **wrong)


def leaf_of(lab: Lab, token: bytes) -> bytes:
    path = lab.dir / "shown"
    path.write_text(urlsafe_b64encode(token).rstrip(b"=").decode())
    return bytes.fromhex(lab.cli("token", "inspect", path)["leaf"])


def events_of(watcher: Watcher, lease: dict, last: str) -> list[dict]:
    watcher.until_named(last, lease=lease["id"])
    return [event for event in watcher.events if event.get("lease") == lease["id"]]


def names(events: list[dict]) -> list[str]:
    return [event["event"] for event in events]


# ---- preempt -----------------------------------------------------------------------------------------------


def test_a_preempt_ends_the_lease_whoever_brings_it(lab: Lab) -> None:
    """L9, G5: by a user in no group; what the scheduler signed stands in the event, whole."""
    trust(lab, scheduler())
    lease, other = lab.grant(A, "web"), lab.grant(A, "echo")
    passes(lab, WEB_A)
    signed = preempt(lab, lease, grace="0s")
    with Watcher(lab.socket_path) as watcher, Control(lab.socket_path, uid=USER) as user:
        watcher.snapshot()
        assert user.call("lease.preempt", {"preempt": signed}) == {"id": lease["id"], "state": "torndown"}
        denied(lab, WEB_A, "no_lease", "from_uplink")
        assert list(lab.leases()) == [other["id"]]
        seen = events_of(watcher, lease, "lease.torndown")
        assert names(seen) == ["lease.preempted", *DOWN]
        told = seen[0]
        assert told["tenant"] == A and told["generation"] == lease["generation"] and told["actor_uid"] == USER
        assert (told["scheduler"], told["scheduler_key"], told["reason"]) == ("sched.example", thumbprint(SEED), REASON)
        assert as_bytes(told["preempt"]) == signed
        # Again, perhaps because the answer was lost: the outcome, and nothing more happens.
        seen = len(watcher.events)
        assert user.call("lease.preempt", {"preempt": signed})["state"] == "torndown"
        again = lab.grant(A, "web")
        assert user.call("lease.preempt", {"preempt": signed})["state"] == "torndown"
        watcher.until_named("lease.grant", lease=again["id"])
        assert names(watcher.events[seen:]) == ["lease.grant"]
        passes(lab, WEB_A)


def test_a_preempt_with_a_grace(lab: Lab) -> None:
    """G2: the lease goes on for its grace, never past its end; the holder sees when that is; nobody renews it."""
    trust(lab, scheduler())
    lease = lab.grant(A, "web", ttl="60s")
    with Watcher(lab.socket_path) as watcher, Control(lab.socket_path, uid=USER) as user:
        watcher.snapshot()
        signed = preempt(lab, lease, grace="30s")
        told = user.call("lease.preempt", {"preempt": signed})
        assert told["state"] == "grace_running" and told["remaining_ns"] <= nanoseconds("30s")
        assert told["grace_ends_at"][:19] == told["expires_at"][:19]
        shown = lab.cli("lease", "show", lease["id"])
        assert shown["state"] == "grace_running" and shown["grace_ends_at"][:18] == told["grace_ends_at"][:18]
        assert "grace ends" in lab.cli_text("lease", "show", lease["id"])
        passes(lab, WEB_A)
        # The same again moves nothing, also where the daemon does not remember that it was asked.
        assert user.call("lease.preempt", {"preempt": signed})["remaining_ns"] <= told["remaining_ns"]
        assert names(events_of(watcher, lease, "lease.grace_running")) == GRACE
        with pytest.raises(Refused, match="being_revoked"):
            lab.renew(lease, "60s")
    lab.kill()
    lab.start()
    with Control(lab.socket_path, uid=USER) as user:
        again = user.call("lease.preempt", {"preempt": signed})
        assert again["state"] == "grace_running" and again["remaining_ns"] <= told["remaining_ns"]
        # Another one draws its end nearer, and a longer grace does not put it off.
        now = lab.leases()[lease["id"]]
        longer = user.call("lease.preempt", {"preempt": preempt(lab, now, grace="200s")})
        assert longer["remaining_ns"] <= again["remaining_ns"]
        sooner = preempt(lab, lab.leases()[lease["id"]], grace="1s")
        assert user.call("lease.preempt", {"preempt": sooner})["remaining_ns"] <= nanoseconds("1s")
        wait_until(lambda: lab.leases() == {}, 10, "its grace has ended")
        assert user.call("lease.preempt", {"preempt": sooner})["state"] == "expired"
    denied(lab, WEB_A, "no_lease", "from_uplink")


def test_without_a_grace_the_leases_own_counts(lab: Lab) -> None:
    """As with revoke: its own grace where the preempt does not say, and never past the lease's end."""
    trust(lab, scheduler())
    with Control(lab.socket_path) as control:
        for own, said, most in (("5s", None, "5s"), ("5s", "2s", "2s"), ("0s", "300s", "20s")):
            lease = lab.grant(A, "web", ttl="20s", grace_ns=nanoseconds(own))
            told = control.call("lease.preempt", {"preempt": preempt(lab, lease, grace=said)})
            assert told["state"] == "grace_running" and told["remaining_ns"] <= nanoseconds(most), (own, said, told)
            lab.ask("lease.revoke", {"id": lease["id"], "grace_ns": 0})


def test_preempts_that_are_none(lab: Lab) -> None:
    """L5, G10, G13: wrong in every part, each refused by its name and to strangers by none; the lease goes on."""
    trust(lab, scheduler(tenants=[A]), anchor(STRANGER, issuer="cp.example", uses=["request", "bundle", "operator", "token"]))
    lease, foreign = lab.grant(A, "web"), lab.grant(B, "web")
    now, node = int(time.time()), lab.ask("status")["node"]
    nobody = {"id": "00" * 16, "generation": 1}
    with Control(lab.socket_path) as control, Control(lab.socket_path, uid=USER) as user:
        for code, signed in (
            ("wrong_audience", preempt(lab, lease, node=node[:-4] + "AAAA")),
            ("issued_in_future", preempt(lab, lease, issued=now + 1000, expires=now + 1100)),
            ("expired", preempt(lab, lease, issued=now - 200, expires=now - 1)),
            ("life_too_long", preempt(lab, lease, issued=now, expires=now + 302)),
            ("unknown_key", preempt(lab, lease, bytes([9]) * 32)),
            ("key_not_for_schedules", preempt(lab, lease, STRANGER)),
            ("wrong_purpose", preempt(lab, lease, purpose="admission")),
            ("malformed_signed", preempt(lab, lease)[:-1]),
            ("malformed_signed", preempt(lab, lease) + bytes(4096)),
            ("malformed_signed", preempt(lab, lease, private={4: 1})),
            ("bad_signature", preempt(lab, lease)[:-1] + bytes([preempt(lab, lease)[-1] ^ 1])),
        ):
            for asking, told in ((control, code), (user, "denied")):
                with pytest.raises(Refused) as error:
                    asking.call("lease.preempt", {"preempt": signed})
                assert error.value.code == told, (code, error.value)
        # Signed well, and wrong: whoever brings it may know.
        for code, signed in (
            ("malformed_preempt", preempt(lab, lease, content=encode({"lease": b"x"}))),
            ("malformed_preempt", preempt(lab, lease, said={"reason": "x" * 257})),
            ("malformed_preempt", preempt(lab, lease, grace="301s")),
            ("no_such_lease", preempt(lab, nobody)),
            ("no_such_lease", preempt(lab, foreign)),
            ("generation_mismatch", preempt(lab, lease, said={"generation": lease["generation"] + 1})),
        ):
            for asking in (control, user):
                with pytest.raises(Refused) as error:
                    asking.call("lease.preempt", {"preempt": signed})
                assert error.value.code == code, (code, error.value)
        for args in ({}, {"preempt": "text"}, {"preempt": b"", "id": lease["id"]}):
            with pytest.raises(Refused) as error:
                control.call("lease.preempt", args)
            assert error.value.error["class"] == "invalid", error.value
    assert {each["state"] for each in lab.leases().values()} == {"active"} and len(lab.leases()) == 2
    passes(lab, WEB_A)
    assert not re.search(rf"lease.preempted\b.*{lease['id']}", lab.log)


def test_a_preempt_is_of_one_generation(lab: Lab) -> None:
    """G11: a recorded one says nothing of the lease once that was renewed, and the refusal names the generation there is."""
    trust(lab, scheduler())
    lease = lab.grant(A, "web", ttl="60s")
    stale = preempt(lab, lease)
    renewed = lab.renew(lease, "90s")
    with Control(lab.socket_path, uid=USER) as user:
        with pytest.raises(Refused, match=f"generation_mismatch: .* at generation {renewed['generation']}, not {lease['generation']}"):
            user.call("lease.preempt", {"preempt": stale})
        passes(lab, WEB_A)
        assert user.call("lease.preempt", {"preempt": preempt(lab, renewed)})["state"] == "torndown"


def test_a_schedulers_key_that_counts_no_more(lab: Lab) -> None:
    """L14: revoked, verify_only, or with all its issuer had issued; for one tenant, where that was said."""
    trust(lab, scheduler())
    lease = lab.grant(A, "web")
    signed = preempt(lab, lease)
    with Control(lab.socket_path) as control:
        lab.cli("trust", "revoke", f"key:{thumbprint(SEED)}")
        with pytest.raises(Refused, match="key_not_live"):
            control.call("lease.preempt", {"preempt": signed})
        lab.cli("trust", "restore", f"key:{thumbprint(SEED)}")
        for state in ("verify_only", "revoked"):
            trust(lab, scheduler(state=state))
            with pytest.raises(Refused, match="key_not_live"):
                control.call("lease.preempt", {"preempt": signed})
        trust(lab, scheduler(state="retiring"))
        time.sleep(1.1)
        for words in (["--tenant", A], []):
            lab.cli("trust", "revoke", "issuer:sched.example", *words)
            with pytest.raises(Refused, match="revoked"):
                control.call("lease.preempt", {"preempt": signed})
            lab.cli("trust", "restore", "issuer:sched.example", *words)
        assert control.call("lease.preempt", {"preempt": signed})["state"] == "torndown"


def test_what_tightens_needs_nothing_more(lab: Lab) -> None:
    """P16: also where what widens has to be signed, and on a node that drains."""
    trust(lab, scheduler(), unsigned="tighten")
    with connect(lab, uid=0) as control, pytest.raises(Refused, match="key_not_for_requests"):
        control.call("status")
    trust(lab, scheduler())
    lease = lab.grant(A, "web")
    trust(lab, scheduler(), unsigned="tighten")
    lab.cli("node", "drain")
    with Control(lab.socket_path, uid=USER) as user:
        assert user.call("lease.preempt", {"preempt": preempt(lab, lease)})["state"] == "torndown"
    trust(lab, scheduler())
    lab.cli("node", "resume")


def test_purposes_are_kept_apart(lab: Lab) -> None:
    """L5: a scheduler's object in another's place, and another's in its place, for every pair."""
    uses = ["request", "bundle", "operator", "schedule", "token"]
    other = Issuer(lab, "other.example")
    trust(lab, anchor(uses=uses, operations=["*"]), other.anchor())
    lease, node, now = lab.grant(A, "web"), lab.ask("status")["node"], int(time.time())
    grant = {"key": independent.public_of(STRANGER), "name": "ann", "verbs": ["*"], "tenants": ["*"]}
    token = as_bytes(other.tokens(A, "--endpoint", "echo")[0])
    objects = {
        "preempt": preempt(lab, lease),
        "admission": admission(lab, token),
        "bundle": bundle(node, policy(99)),
        "operator-grant": independent.make_signed(SEED, "operator-grant", node, now, {}, encode(grant), now + 60),
    }
    with connect(lab, uid=0) as control, Control(lab.socket_path) as plain:
        objects["request"] = control.seal(encode({"verb": "status", "args": {}}))
        places = {
            "preempt": lambda each: plain.call("lease.preempt", {"preempt": each}),
            "admission": lambda each: plain.call("lease.grant", {"token": token, "admission": each}),
            "request": lambda each: plain.send(SIGNED_REQUEST, each),
            "bundle": lambda each: plain.call("bundle.push", {"signed": True, "dry_run": True}, each),
            "operator-grant": lambda each: plain.call("operator.present", {"grant": each}),
        }
        for is_one, each in objects.items():
            for place, put in places.items():
                if is_one != place:
                    with pytest.raises(Refused, match="wrong_purpose"):
                        put(each)
        assert lab.leases()[lease["id"]]["state"] == "active"
        places["preempt"](objects["preempt"])
        assert lab.leases() == {}
        assert places["admission"](objects["admission"])["tenant"] == A


def test_preempts_by_the_command_line(lab: Lab) -> None:
    """Signed and brought at once; or signed in one place, without the daemon, and brought from another."""
    sched = Issuer(lab, "sched.example")
    trust(lab, sched.anchor(uses=["schedule"]))
    (row,) = lab.cli("trust", "show")["anchors"]
    assert row["uses"] == ["schedule"]
    lease = lab.grant(A, "web")
    told = lab.cli("lease", "preempt", lease["id"], "--reason", REASON, "--key", sched.key)
    assert told["state"] == "torndown"
    lease = lab.grant(A, "web")
    file = lab.dir / "job.preempt"
    words = [
        "lease", "preempt", lease["id"], "--reason", REASON, "--grace", "20s", "--generation", lease["generation"],
        "--node", lab.ask("status")["node"], "--key", sched.key, "--out",
    ]  # fmt: skip
    offline = [str(lab.holdfast), "--socket", "/nonexistent", *map(str, words)]
    subprocess.run([*offline, str(file)], check=True, capture_output=True)
    assert subprocess.run([*offline, "-"], check=True, capture_output=True).stdout[:1] == b"\x84"
    done = lab.try_cli("lease", "preempt", "--file", file, prefix=as_uid(USER), json_output=False)
    assert done.returncode == 0 and "grace_running: its grace ends in" in done.stdout, done
    stale = lab.try_cli("lease", "preempt", lease["id"], "--reason", REASON, "--generation", 99, "--key", sched.key)
    assert stale.returncode == 1 and json.loads(stale.stderr)["error"]["code"] == "generation_mismatch"
    lab.revoke(lease)


# ---- checkpoint --------------------------------------------------------------------------------------------


def checkpoint(lab: Lab, lease: dict, uid: int = HOLDER, **args: object) -> dict:
    with Control(lab.socket_path, uid=uid) as holder:
        return holder.call("lease.checkpoint", {"id": lease["id"]} | args)


def test_a_holder_reports_its_checkpoint(lab: Lab) -> None:
    """DESIGN.md 3: in its grace, with a note that everybody sees; the rest of the grace is not needed."""
    lease = lab.grant(A, "web", holder=f"uid:{HOLDER}")
    with Watcher(lab.socket_path) as watcher:
        watcher.snapshot()
        lab.ask("lease.revoke", {"id": lease["id"], "grace_ns": nanoseconds("60s")})
        passes(lab, WEB_A)
        assert checkpoint(lab, lease, note="sha256:00ff") == {"id": lease["id"], "state": "torndown"}
        denied(lab, WEB_A, "no_lease", "from_uplink")
        seen = events_of(watcher, lease, "lease.torndown")
        assert names(seen) == ["lease.revoke_warning", "lease.grace_running", "lease.checkpoint_reported", *DOWN]
        told = seen[2]
        assert told["note"] == "sha256:00ff" and told["holder"] == f"uid:{HOLDER}" and told["tenant"] == A
        assert told["actor_uid"] == HOLDER


def test_a_checkpoint_that_keeps_its_grace(lab: Lab) -> None:
    """The lease goes on, is shown so, over a restart too, and ends when its grace does or its holder says so."""
    trust(lab, scheduler())
    lease = lab.grant(A, "web", holder=f"uid:{HOLDER}")
    with Control(lab.socket_path, uid=USER) as user:
        before = user.call("lease.preempt", {"preempt": preempt(lab, lease, grace="60s")})
    kept = checkpoint(lab, lease, keep_grace=True)
    assert kept["state"] == "checkpoint_reported" and kept["grace_ends_at"][:18] == before["grace_ends_at"][:18]
    assert checkpoint(lab, lease, keep_grace=True)["state"] == "checkpoint_reported"
    assert len(re.findall(f"lease.checkpoint_reported lease={lease['id']}", lab.log)) == 1, "it is told once"
    lab.kill()
    lab.start()
    assert lab.leases()[lease["id"]]["state"] == "checkpoint_reported"
    passes(lab, WEB_A)
    with pytest.raises(Refused, match="being_revoked"):
        lab.renew(lease, "60s")
    # To revoke it with a grace does not take the report back.
    assert lab.ask("lease.revoke", {"id": lease["id"], "grace_ns": nanoseconds("30s")})["state"] == "checkpoint_reported"
    done = lab.try_cli("lease", "checkpoint", lease["id"], "--note", "again", prefix=as_uid(HOLDER), json_output=False)
    assert done.returncode == 0 and "torn down" in done.stdout, done
    denied(lab, WEB_A, "no_lease", "from_uplink")


def test_checkpoints_that_are_none(lab: Lab) -> None:
    """Outside its grace, of another's lease, or with a note of any length: refused, and the lease goes on."""
    lease = lab.grant(A, "web", holder=f"uid:{HOLDER}")
    with pytest.raises(Refused, match="not_in_grace"):
        checkpoint(lab, lease)
    lab.ask("lease.revoke", {"id": lease["id"], "grace_ns": nanoseconds("60s")})
    for code, args, uid in (
        ("not_holder", {}, USER),
        ("note_too_long", {"note": "x" * 257}, HOLDER),
        ("unknown_key", {"keep": True}, HOLDER),
        ("wrong_type", {"keep_grace": 1}, HOLDER),
        ("no_such_lease", {"id": "00" * 16}, HOLDER),
    ):
        with pytest.raises(Refused) as error:
            checkpoint(lab, lease, uid, **args)
        assert error.value.code == code, error.value
    assert lab.leases()[lease["id"]]["state"] == "grace_running"
    passes(lab, WEB_A)
    assert checkpoint(lab, lease, note="x" * 256)["state"] == "torndown"


# What becomes of a lease in each state by each that is asked of it: the state afterwards, or the refusal.
ASKED = {
    "renew": ("lease.renew", {"ttl_ns": nanoseconds("90s")}),
    "revoke": ("lease.revoke", {"grace_ns": 0}),
    "revoke with grace": ("lease.revoke", {"grace_ns": nanoseconds("30s")}),
    "release": ("lease.release", {}),
    "preempt": ("lease.preempt", {"grace": "0s"}),
    "preempt with grace": ("lease.preempt", {"grace": "30s"}),
    "checkpoint": ("lease.checkpoint", {}),
    "checkpoint, keeping": ("lease.checkpoint", {"keep_grace": True}),
}
STATES = {
    "active": [],
    "grace_running": ["revoke with grace"],
    "checkpoint_reported": ["revoke with grace", "checkpoint, keeping"],
    "torndown": ["revoke"],
}
BECOMES = {
    #                       active           grace_running          checkpoint_reported    torndown
    "renew":               ("active",        "being_revoked",       "being_revoked",       "no_such_lease"),
    "revoke":              ("torndown",      "torndown",            "torndown",            "no_such_lease"),
    "revoke with grace":   ("grace_running", "grace_running",       "checkpoint_reported", "no_such_lease"),
    "release":             ("torndown",      "torndown",            "torndown",            "no_such_lease"),
    "preempt":             ("torndown",      "torndown",            "torndown",            "no_such_lease"),
    "preempt with grace":  ("grace_running", "grace_running",       "checkpoint_reported", "no_such_lease"),
    "checkpoint":          ("not_in_grace",  "torndown",            "torndown",            "no_such_lease"),
    "checkpoint, keeping": ("not_in_grace",  "checkpoint_reported", "checkpoint_reported", "no_such_lease"),
}  # fmt: skip


def test_every_state_and_what_is_asked_in_it(lab: Lab) -> None:
    """DESIGN.md 3: no other way leads from one state to another."""
    trust(lab, scheduler())
    with Control(lab.socket_path) as control:

        def ask(what: str, lease: dict) -> str:
            verb, args = ASKED[what]
            if verb == "lease.preempt":
                there = lab.leases().get(lease["id"], lease)
                args = {"preempt": preempt(lab, there, **args)}
            else:
                args = args | {"id": lease["id"]}
            try:
                return control.call(verb, args)["state"]
            except Refused as refused:
                return refused.code

        for what, row in BECOMES.items():
            for (state, way), becomes in zip(STATES.items(), row, strict=True):
                lease = lab.grant(A, "web", ttl="100s")
                for step in way:
                    ask(step, lease)
                assert lab.leases().get(lease["id"], {"state": "torndown"})["state"] == state
                assert ask(what, lease) == becomes, (state, what)
                there = lab.leases().get(lease["id"])
                if there is not None:
                    assert there["state"] == (becomes if becomes in STATES else state), (state, what)
                    lab.revoke(lease)


# ---- admission ---------------------------------------------------------------------------------------------


@pytest.fixture
def issuer(lab: Lab) -> Issuer:
    """Of tokens, on a node where A's take a scheduler's admission and B's do not."""
    document = policy()
    for tenant in document["tenants"]:
        if tenant["name"] == A:
            tenant["admission"] = "required"
    issuer = Issuer(lab)
    trust(lab, issuer.anchor(), scheduler())
    lab.push(document)
    return issuer


def token_of(issuer: Issuer, tenant: str = A, *more: str) -> bytes:
    return as_bytes(issuer.tokens(tenant, "--endpoint", "web", *more)[0])


def test_an_admitted_token(lab: Lab, issuer: Issuer) -> None:
    """L9: with the admission of its id; that stands in the grant's event. Another tenant's needs none."""
    with Watcher(lab.socket_path) as watcher, Control(lab.socket_path, uid=USER) as user:
        watcher.snapshot()
        token = token_of(issuer)
        with pytest.raises(Refused, match="admission_required"):
            user.call("lease.grant", {"token": token})
        denied(lab, WEB_A, "no_lease", "from_uplink")
        signed = admission(lab, token)
        lease = user.call("lease.grant", {"token": token, "admission": signed})
        passes(lab, WEB_A)
        event = watcher.until_named("lease.grant", lease=lease["id"])
        assert (event["scheduler"], event["scheduler_key"], event["reason"]) == ("sched.example", thumbprint(SEED), REASON)
        assert as_bytes(event["admission"]) == signed
        # Asked again, with or without: the same lease.
        assert user.call("lease.grant", {"token": token})["id"] == lease["id"]
        free = user.call("lease.grant", {"token": token_of(issuer, B)})
        assert "admission" not in watcher.until_named("lease.grant", lease=free["id"])
        # What an operator grants by name takes none.
        lab.revoke(lease)
        lab.grant(A, "web")


def test_admissions_that_are_none(lab: Lab, issuer: Issuer) -> None:
    """G10, G13: wrong in every part, and for another token; the token stays unused."""
    token, other = token_of(issuer), token_of(issuer)
    now, node = int(time.time()), lab.ask("status")["node"]
    with Control(lab.socket_path) as control, Control(lab.socket_path, uid=USER) as user:
        for code, signed in (
            ("wrong_audience", admission(lab, token, node=node[:-4] + "AAAA")),
            ("expired", admission(lab, token, issued=now - 200, expires=now - 1)),
            ("life_too_long", admission(lab, token, issued=now, expires=now + 302)),
            ("unknown_key", admission(lab, token, STRANGER)),
            ("wrong_purpose", admission(lab, token, purpose="preempt")),
            ("malformed_signed", admission(lab, token)[:-1]),
            ("bad_signature", admission(lab, token)[:-1] + bytes([admission(lab, token)[-1] ^ 1])),
        ):
            for asking, told in ((control, code), (user, "denied")):
                with pytest.raises(Refused) as error:
                    asking.call("lease.grant", {"token": token, "admission": signed})
                assert error.value.code == told, (code, error.value)
        for code, signed in (
            ("malformed_admission", admission(lab, token, content=encode({"token": b"x"}))),
            ("wrong_admission", admission(lab, other)),
            ("wrong_admission", admission(lab, token, said={"tenant": B})),
        ):
            with pytest.raises(Refused) as error:
                user.call("lease.grant", {"token": token, "admission": signed})
            assert error.value.code == code, (code, error.value)
        trust(lab, issuer.anchor(), scheduler(tenants=[B]))
        with pytest.raises(Refused, match="tenant_not_allowed"):
            user.call("lease.grant", {"token": token, "admission": admission(lab, token)})
        # Where none is needed, one that is brought has to be good all the same.
        with pytest.raises(Refused, match="wrong_admission"):
            user.call("lease.grant", {"token": token_of(issuer, B), "admission": admission(lab, token, said={"tenant": B})})
        assert lab.leases() == {}
        trust(lab, issuer.anchor(), scheduler(tenants=[A]))
        user.call("lease.grant", {"token": token, "admission": admission(lab, token)})
        passes(lab, WEB_A)


def test_admission_by_the_command_line(lab: Lab, issuer: Issuer) -> None:
    """token admit, and lease grant --admission; of a grant token only."""
    sched = Issuer(lab, "sched.example")
    trust(lab, issuer.anchor(), sched.anchor(uses=["schedule"]))
    token = issuer.issue(A, "--endpoint", "web")
    words = lab.holdfast_argv("token", "admit", token, "--reason", REASON, "--key", sched.key)
    admitted = lab.dir / "admission"
    admitted.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
    admitted.chmod(0o444)
    done = lab.try_cli("lease", "grant", "--token", token, prefix=as_uid(HOLDER))
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "admission_required"
    done = lab.try_cli("lease", "grant", "--token", token, "--admission", admitted, prefix=as_uid(HOLDER))
    assert done.returncode == 0, done.stderr
    lease = json.loads(done.stdout)
    renewal = issuer.issue(A, "--lease", lease["id"], "--generation", lease["generation"], kind="renew")
    done = lab.try_cli("token", "admit", renewal, "--reason", REASON, "--key", sched.key)
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "no_grant_token"
