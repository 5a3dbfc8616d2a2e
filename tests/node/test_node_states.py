"""The node's own states: active, draining, disabled, quarantined (claims P16, P18; DESIGN.md section 8).

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)
                               tb ---- tenant-b

Each refusal stands beside the same packet under a live lease. Then the daemon is killed at every system call of each
verb, and what was acknowledged holds.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from control import Control, Refused
from issuer import Issuer, trust
from kills import calls_of, killed_at, sample
from lab import A, B, LOOPS, Lab, policy
from packets import Probe, denied, passes, syn, udp
from signing import STRANGER, USER, anchor, bundle, connect
from watcher import Watcher

from test_kill_sweep import dump

TO_A = Probe("client", "tenant-a", udp())
NARROWER = ("drain", "disable", "quarantine")
NAMES = {"drain": "draining", "disable": "disabled", "quarantine": "quarantined", "resume": "active", "release": "active"}
NO_GRANT = {"drain": "node_draining", "disable": "node_disabled", "quarantine": "node_quarantined"}
BACK = {"drain": "resume", "disable": "resume", "quarantine": "release"}


def state(lab: Lab) -> dict:
    return lab.ask("status")["state"]


def refused_code(lab: Lab, verb: str, args: dict | None = None, body: object = None) -> str:
    with pytest.raises(Refused) as refused:
        lab.ask(verb, args, body)
    return refused.value.code


def grant_refused(lab: Lab) -> str:
    return refused_code(lab, "lease.grant", body=[{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**10}])


def test_draining(own_lab: Lab) -> None:
    """No new lease, named and counted; what runs goes on, is renewed, and ends as it would."""
    lab = own_lab
    lease = lab.grant(A, "echo")
    passes(lab, TO_A)
    assert lab.cli("node", "drain") == {"version": 1, "state": "draining", "leases": 1, "leases_ended": 0, "epoch": state_epoch(lab)}
    assert grant_refused(lab) == "node_draining"
    said = lab.cli_refused("lease", "grant", A, "--endpoint", "web")
    assert "draining" in said and "holdfast node resume" in said
    assert state(lab)["refused"] == 2 and state(lab)["by_uid"] == 0
    passes(lab, TO_A)
    lab.renew(lease, "150s")
    passes(lab, TO_A)
    assert "takes no new leases" in lab.cli_text("status")
    lab.revoke(lease)
    denied(lab, TO_A, "no_lease", "from_uplink")
    lab.cli("node", "resume")
    lab.grant(A, "echo")
    passes(lab, TO_A)


def state_epoch(lab: Lab) -> int:
    return lab.ask("status")["epoch"]


@pytest.mark.parametrize("verb", ["disable", "quarantine"])
def test_no_lease_at_all(own_both: Lab, verb: str) -> None:
    """The same packet passes under a live lease, and is dropped and counted from the answer on; so for a flow."""
    lab = own_both
    from_a = Probe("tenant-a", "client", syn(9999))
    leases = [lab.grant(A, "echo", egress="a0"), lab.grant(B, "echo")]
    to_b = Probe("client", "tenant-b", udp())
    for probe in (TO_A, to_b, from_a):
        passes(lab, probe)
    answer = lab.ask(f"node.{verb}")
    assert (answer["state"], answer["leases"], answer["leases_ended"]) == (NAMES[verb], 0, 2)
    for probe in (TO_A, to_b):
        denied(lab, probe, "no_lease", "from_uplink")
    denied(lab, from_a, "no_egress_lease", "from_tenant")
    assert lab.leases() == {}
    assert grant_refused(lab) == NO_GRANT[verb]
    assert refused_code(lab, "lease.renew", {"id": leases[0]["id"], "ttl_ns": 10**10}) == NO_GRANT[verb]
    assert state(lab)["refused"] == 2
    lab.push(policy())  # which opens nothing
    denied(lab, TO_A, "no_lease", "from_uplink")
    before = state_epoch(lab)
    lab.ask(f"node.{BACK[verb]}")
    assert state(lab)["name"] == "active"
    assert (state_epoch(lab) > before) == (verb == "quarantine")
    denied(lab, TO_A, "no_lease", "from_uplink")  # nothing revives
    lab.grant(A, "echo")
    passes(lab, TO_A)


def test_narrower_never_widens(own_lab: Lab) -> None:
    lab = own_lab
    for verb in NARROWER:
        for first in NARROWER[: NARROWER.index(verb) + 1]:
            lab.ask(f"node.{verb}")
            assert lab.ask(f"node.{first}")["state"] == NAMES[verb]
        assert state(lab)["name"] == NAMES[verb]
    assert refused_code(lab, "node.resume") == "node_quarantined"
    assert lab.ask("node.release")["state"] == "active"
    assert refused_code(lab, "node.release") == "not_quarantined"
    lab.ask("node.drain")
    assert refused_code(lab, "node.release") == "not_quarantined"
    assert lab.ask("node.resume")["state"] == lab.ask("node.resume")["state"] == "active"


def test_quarantine_lets_nothing_be_opened(own_lab: Lab) -> None:
    """No push that opens anything, no verb that widens; what narrows works."""
    lab = own_lab
    listener = {"protocol": "tcp", "port": 7070}
    lab.push(policy(listeners=[listener]))
    lab.ask("node.quarantine")
    ports_less = policy(listeners=[listener])
    ports_less["tenants"].pop()
    opens = {
        "a listener": policy(listeners=[listener, {"protocol": "tcp", "port": 7071}]),
        "a failsafe port": policy(listeners=[listener], failsafe_ports=[22, 2222]),
        "an interface let go": ports_less,
        "an uplink let go": policy(listeners=[listener], uplinks=["uplink9"]),
    }
    for name, document in opens.items():
        said = lab.push_refused(document)
        assert "quarantined" in said and "holdfast node release" in said, (name, said)
    assert lab.ask("bundle.show")["generation"] == lab.generation
    lab.push(policy())  # without the listener
    lab.ask("tenant.disable", {"name": A})
    assert refused_code(lab, "tenant.enable", {"name": A}) == "node_quarantined"
    lab.ask("trust.revoke", {"what": "holder:uid:4711"})
    assert refused_code(lab, "trust.restore", {"what": "holder:uid:4711"}) == "node_quarantined"
    assert refused_code(lab, "node.detach") == "node_quarantined"
    assert grant_refused(lab) == "node_quarantined"
    lab.kill()
    lab.start()
    assert grant_refused(lab) == "node_quarantined"
    assert "quarantined" in lab.push_refused(policy(listeners=[listener]))
    lab.ask("node.release")
    lab.push(policy(listeners=[listener]))
    lab.ask("tenant.enable", {"name": A})
    lab.grant(A, "echo")
    passes(lab, TO_A)


def test_operators_only(own_lab: Lab) -> None:
    prefix = ["setpriv", "--reuid=61001", "--regid=61001", "--clear-groups"]
    for verb in (*NARROWER, "resume", "release"):
        done = own_lab.try_cli("node", verb, prefix=prefix, json_output=False)
        assert done.returncode == 1 and "holdfast-operator" in done.stderr, (verb, done)
    assert state(own_lab)["name"] == "active"


def test_tokens_meet_it_too(lab: Lab, issuer: Issuer) -> None:
    """A grant token is refused while draining, and not used up; a quarantine's release makes it void."""
    token = issuer.issue(A, "--endpoint", "echo", "--ttl", "100s", life="200s")
    try:
        lab.ask("node.drain")
        assert "node_draining" in refused_by_token(lab, token)
        lab.ask("node.resume")
        lease = lab.cli("lease", "grant", "--token", token)
        passes(lab, TO_A)
        other = issuer.issue(A, "--endpoint", "web", "--ttl", "100s", life="200s")
        lab.ask("node.quarantine")
        assert lease["id"] not in lab.leases()
        denied(lab, TO_A, "no_lease", "from_uplink")
        assert "node_quarantined" in refused_by_token(lab, other)
        lab.ask("node.release")
        assert "stale_epoch" in refused_by_token(lab, other)
    finally:
        for verb in ("release", "resume"):
            with contextlib.suppress(Refused):
                lab.ask(f"node.{verb}")


def test_signed_bundles_and_requests_meet_it_too(own_lab: Lab) -> None:
    """A signed bundle that opens something is refused under quarantine and raises no floor; a key drains, if it may."""
    lab, listener = own_lab, {"protocol": "tcp", "port": 7070}
    trust(lab, anchor(issuer="root.example", uses=["bundle"], operations=["*"]), anchor(STRANGER, verbs=["node.drain", "status"]))
    node = lab.ask("status")["node"]

    def push(document: dict) -> dict:
        with Control(lab.socket_path, uid=USER) as control:
            return control.call("bundle.push", {"signed": True}, bundle(node, document))

    assert push(policy(50))["applied"]
    lab.grant(A, "echo")
    passes(lab, TO_A)
    with connect(lab, seed=STRANGER) as control:
        assert control.call("node.drain")["state"] == "draining"
        with pytest.raises(Refused) as refused:
            control.call("node.resume")
        assert refused.value.code == "verb_not_allowed"
    assert grant_refused(lab) == "node_draining"
    lab.ask("node.quarantine")
    denied(lab, TO_A, "no_lease", "from_uplink")
    with pytest.raises(Refused) as refused:
        push(policy(60, listeners=[listener]))
    assert refused.value.code == "node_quarantined"
    assert push(policy(55))["applied"]
    lab.ask("node.release")
    assert push(policy(60, listeners=[listener]))["applied"]


def refused_by_token(lab: Lab, token: os.PathLike) -> str:
    done = lab.try_cli("lease", "grant", "--token", token)
    assert done.returncode == 1, done
    return done.stderr


# ---- over restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", NARROWER)
def test_outlives_the_daemon(own_lab: Lab, verb: str) -> None:
    """SIGKILL right behind the answer, and SIGTERM: the state is what was answered; watch and status say so."""
    lab = own_lab
    lab.grant(A, "echo")
    lab.ask(f"node.{verb}")
    before = state(lab)
    for end in (lab.kill, lab.stop):
        end()
        lab.start()
        assert state(lab) == before | {"refused": 0}
        assert grant_refused(lab) == NO_GRANT[verb]
        with Watcher(lab.socket_path, kinds=["node"]) as watcher:
            assert watcher.snapshot().node["state"]["name"] == NAMES[verb]
            lab.ask(f"node.{BACK[verb]}")
            back = watcher.until_named(f"node.{BACK[verb]}")
            assert back["state"] == "active" and back["before"] == NAMES[verb] and back["actor_uid"] == 0
            lab.ask(f"node.{verb}")
            watcher.until_named(f"node.{verb}", state=NAMES[verb])
            before = state(lab)
    (passes if verb == "drain" else lambda *a: denied(*a, "no_lease", "from_uplink"))(lab, TO_A)


def test_a_lease_that_outlived_the_order_to_end_ends_at_the_start(own_lab: Lab) -> None:
    """Written, and killed before the gates were closed: nothing is adopted."""
    lab = own_lab
    lab.ask("node.disable")
    disabled = (lab.dir / "state" / "node_state").read_bytes()
    lab.ask("node.resume")
    lab.grant(A, "echo")
    passes(lab, TO_A)
    lab.kill()
    (lab.dir / "state" / "node_state").write_bytes(disabled)
    lab.start()
    assert lab.leases() == {}
    denied(lab, TO_A, "no_lease", "from_uplink")


def test_a_damaged_file_is_a_quarantine(own_lab: Lab) -> None:
    lab = own_lab
    lab.grant(A, "echo")
    lab.ask("node.drain")
    lab.kill()
    path = lab.dir / "state" / "node_state"
    path.write_bytes(path.read_bytes().replace(b"draining", b"active"))
    lab.start()
    assert state(lab)["name"] == "quarantined" and "node_state_damaged" in lab.log
    denied(lab, TO_A, "no_lease", "from_uplink")
    assert lab.ask("node.release")["state"] == "active"
    lab.grant(A, "echo")
    passes(lab, TO_A)


def test_state_that_cannot_be_written(own_lab: Lab) -> None:
    """Narrower holds all the same, and the answer says that it would not outlive a restart; wider does not happen."""
    lab = own_lab
    lab.grant(A, "echo")
    state_dir, shadow = lab.dir / "state", lab.dir / "shadow"
    state_dir.rename(shadow)  # the daemon has no directory to write into
    assert refused_code(lab, "node.disable") == "state_write"
    assert state(lab)["name"] == "disabled"
    denied(lab, TO_A, "no_lease", "from_uplink")
    assert refused_code(lab, "node.resume") == "state_write"
    assert state(lab)["name"] == "disabled"
    shadow.rename(state_dir)
    assert lab.ask("node.disable")["state"] == "disabled"  # asked again, it is written
    lab.kill()
    lab.start()
    assert state(lab)["name"] == "disabled"


# ---- SIGKILL at every step ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*NARROWER, "resume", "release"])
def test_killed_at_every_step(own_lab: Lab, verb: str) -> None:
    """An answered state holds; without an answer it is the old one or the new, whole, and no lease is in between."""
    lab = own_lab
    was = {"resume": "disable", "release": "quarantine"}.get(verb)

    def prepare() -> str | None:
        now = state(lab)["name"]
        if now == "quarantined":
            lab.ask("node.release")
        elif now != "active":
            lab.ask("node.resume")
        if was:
            lab.ask(f"node.{was}")
            return None
        return next((name for name, lease in lab.leases().items() if "echo" in lease["resources"][0]), None) or lab.grant(A, "echo", ttl="250s")["id"]

    prepare()
    steps = calls_of(lab, lambda: lab.ask(f"node.{verb}"))
    seen: set[tuple[bool, str]] = set()
    for step in sample(steps):
        lease = prepare()
        before = state(lab)["name"]
        answered = killed_at(lab, step, lambda: lab.ask(f"node.{verb}"))
        lab.start()
        now = state(lab)["name"]
        assert now == NAMES[verb] if answered else now in (before, NAMES[verb]), (step, now)
        seen.add((answered, now))
        listed = lease is not None and lease in lab.leases()
        if now in ("disabled", "quarantined") or lease is None:
            assert not listed
        if verb == "drain":
            assert listed  # nothing of draining ends one
        if listed:
            passes(lab, TO_A, 1)
        else:
            denied(lab, TO_A, "no_lease", "from_uplink", 1)
        open_gates = sum(int.from_bytes(slot[:8], "little") >> 24 != 0 for slot in dump(lab, "slots")) if LOOPS > 100 else None
        assert open_gates is None or (open_gates > 0) == listed
    print(f"{verb}: {len(sample(steps))} of {len(steps)} steps, {sorted(seen)}")
