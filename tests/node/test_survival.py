"""Leases without their daemon: stopped, killed, restarted. The kernel ends them; nothing opens, nothing drops.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers G1, G2 (expiry belongs to the kernel), G3, section 3's adoption, L2, P15, P16, and "SIGTERM stops serving
and never enforcing".
"""

import datetime
import json
import os
import select
import signal
import time
from collections.abc import Callable

import pytest
from lab import A, B, ECHO, HOSTS, SILENCE_S, SLOW, WEB, Lab, end_process, policy, says, wait_until
from packets import PACKETS, PROTOCOLS, Probe, deliver, denied, passes, send_to_be_judged, udp, watching

CASES = [(protocol, version) for protocol in PROTOCOLS for version in (4, 6)]
TENANT_A = HOSTS["tenant-a"]


def probe_of(protocol: str, version: int) -> tuple[Probe, str]:
    layer, endpoint = PROTOCOLS[protocol]
    return Probe("client", "tenant-a", layer, version), endpoint


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline_s(lease: dict) -> float:
    return boot_s() + lease["remaining_ns"] / 1e9


def expires_alone(lab: Lab, probe: Probe, incapacitate: Callable[[], None], recover: Callable[[], None]) -> None:
    """A fresh lease ends while the daemon cannot act: what comes before its deadline arrives, and nothing behind it."""
    expired = lab.counter("lease_expired", "from_uplink")
    lease = lab.grant(A, probe_endpoint(probe), ttl=f"{2 * SLOW:g}s")
    end = deadline_s(lease)
    incapacitate()
    with watching(lab, probe) as capture:
        deliver(lab, "client", [probe.frame()] * PACKETS, capture.count)  # the lease holds without the daemon
        before = capture.count()
        assert boot_s() < end, "too slow to see it pass in time"
        wait_until(lambda: boot_s() >= end, 5)
        send_to_be_judged(lab, "client", [probe.frame()] * PACKETS)
        recover()
        wait_until(lambda: lab.counter("lease_expired", "from_uplink") - expired >= PACKETS, 5, "each is denied as expired")
        assert (before, capture.count()) == (PACKETS, PACKETS)
    assert lab.counter("lease_expired", "from_uplink") - expired == PACKETS


def probe_endpoint(probe: Probe) -> str:
    return next(endpoint for layer, endpoint in PROTOCOLS.values() if layer is probe.layer)


@pytest.mark.parametrize("protocol, version", CASES)
def test_expires_while_the_daemon_is_stopped(both_hooks: Lab, protocol: str, version: int) -> None:
    """G2: SIGSTOP. At the deadline the kernel denies, and says it was expiry."""
    lab = both_hooks
    probe, _ = probe_of(protocol, version)
    expires_alone(lab, probe, lab.freeze, lab.thaw)
    wait_until(lambda: lab.leases() == {}, what="the thawed daemon tears it down")
    denied(lab, probe, "no_lease", "from_uplink")
    lab.grant(A, probe_endpoint(probe))
    passes(lab, probe)


@pytest.mark.parametrize("protocol, version", [("tcp", 4), ("udp", 6), ("ping", 4)])  # a restart takes seconds
def test_expires_while_the_daemon_is_dead(both_hooks: Lab, protocol: str, version: int) -> None:
    """G2, G3: SIGKILL. The lease holds to its deadline and not longer; the next daemon buries it."""
    lab = both_hooks
    probe, _ = probe_of(protocol, version)
    expires_alone(lab, probe, lab.kill, lab.start)
    wait_until(lambda: lab.leases() == {}, what="the successor does not adopt the dead")
    denied(lab, probe, "no_lease", "from_uplink")
    lab.grant(A, probe_endpoint(probe))
    passes(lab, probe)


@pytest.mark.slow
@pytest.mark.parametrize("how, version", [("kill", 4), ("kill", 6), ("stop", 4)])
def test_a_restart_drops_no_packet(both_hooks: Lab, how: str, version: int) -> None:
    """Adoption: 1000 packets a second and a ping flood run through restarts, and none is lost. Every other one finds
    no digest, as after an upgrade, and replaces the programs.

    G1 stands beside it: what was not leased stays shut before, between and after.
    """
    lab = both_hooks
    address = TENANT_A.address(version)
    lease, pinged, ended = lab.grant(A, "echo", ttl="200s"), lab.grant(A, "ping", ttl="200s"), lab.grant(B, "web")
    lab.revoke(ended)
    shut = Probe("client", "tenant-b", PROTOCOLS["tcp"][0], version)
    assert lab.udp("client", address, ECHO) and lab.ping("client", address)
    ping = lab.popen("client", ["ping", "-n", "-q", "-i", f"{0.002 * SLOW}", "-c", "100000", address])
    with lab.probing("client", address, ECHO) as tally:
        for upgrade in (False, True) * (2 if SLOW == 1 else 1):
            getattr(lab, how)()
            if upgrade:
                remove_digest(lab)
            with watching(lab, shut) as capture:
                lab.send("client", [shut.frame()] * PACKETS)
                lab.start()
                assert capture.count() == 0
            denied(lab, shut, "no_lease", "from_uplink")
            assert set(lab.leases()) == {lease["id"], pinged["id"]}
    ping.send_signal(signal.SIGINT)
    summary = ping.communicate(timeout=10)[0]
    drops = {key: count for key, count in lab.counters().items() if count}
    assert tally["sent"] > 500 / SLOW and tally["lost"] == [], (tally, drops, lab.nft("-t", "list", "table", "inet", "holdfast"))
    assert " 0% packet loss" in summary, summary


@pytest.mark.slow
def test_an_adopted_lease_is_the_same_lease(lab: Lab) -> None:
    """Holder, peer, resources, deadline and generation survive; renew and revoke work on them."""
    granted = [
        lab.grant(A, "echo", "ping", ttl="100s", peer="192.0.2.0/24", holder="uid:4711"),
        lab.grant(A, egress="a0", ttl="50s"),
        lab.grant(B, "web", ttl=f"{4 + 4 * SLOW:g}s"),
    ]
    before = lab.leases()
    assert set(before) == {lease["id"] for lease in granted}
    lab.kill()
    lab.start()
    after = lab.leases()
    for lease in granted:
        was, now = dict(before[lease["id"]]), dict(after[lease["id"]])
        assert now.pop("remaining_ns") < was.pop("remaining_ns")
        for stamp in ("granted_at", "expires_at"):  # wall clock, recomputed: the same second, or its neighbour
            assert abs(seconds_of(now.pop(stamp)) - seconds_of(was.pop(stamp))) <= 1
        assert now == was
    renewed = lab.renew(granted[0], "200s")
    assert renewed["remaining_ns"] > 190e9
    probe = Probe("client", "tenant-a", udp())
    passes(lab, probe)
    lab.revoke(granted[0])
    denied(lab, probe, "no_lease", "from_uplink")
    wait_until(lambda: granted[2]["id"] not in lab.leases(), 12, "the adopted one ends at its term")


def seconds_of(stamp: str) -> float:
    return datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize("version", [4, 6])
def test_connections_outlive_the_daemon(both_hooks: Lab, version: int) -> None:
    """An established connection, either direction, talks on while the daemon is killed, away, and back."""
    lab = both_hooks
    address = TENANT_A.address(version)
    lease, egress = lab.grant(A, "web", ttl="200s"), lab.grant(A, egress="a0", ttl="200s")
    with (
        lab.connect("client", address, WEB) as inward,
        lab.connect("tenant-a", HOSTS["client"].address(version), WEB) as outward,
    ):
        assert says(inward) and says(outward)
        lab.kill()
        assert says(inward) and says(outward)
        lab.start()
        assert says(inward) and says(outward)
        lab.revoke(lease)
        inward.settimeout(SILENCE_S)
        assert not says(inward)
        assert says(outward)
        lab.revoke(egress)
        outward.settimeout(SILENCE_S)
        assert not says(outward)


def test_sigterm_stops_serving_and_nothing_else(both_hooks: Lab) -> None:
    """A stopped daemon's leases go on to their term, everything else stays denied; a second SIGTERM is nothing."""
    lab = both_hooks
    leased, shut = Probe("client", "tenant-a", udp()), Probe("client", "tenant-b", udp())
    lease = lab.grant(A, "echo", ttl=f"{3 * SLOW:g}s")
    end = deadline_s(lease)
    assert lab.daemon is not None
    lab.daemon.send_signal(signal.SIGTERM)
    lab.daemon.send_signal(signal.SIGTERM)
    lab.stop()
    assert not lab.socket_path.exists()
    with watching(lab, leased) as open_, watching(lab, shut) as closed:
        lab.send("client", [shut.frame()] * PACKETS)
        deliver(lab, "client", [leased.frame()] * PACKETS, open_.count)
        wait_until(lambda: boot_s() >= end)
        lab.send("client", [leased.frame(), shut.frame()] * PACKETS)
        lab.start()
        assert (open_.count(), closed.count()) == (PACKETS, 0)
    denied(lab, leased, "no_lease", "from_uplink")


PROGRAMS = ("from_tenant", "to_tenant", "uplink_xdp", "uplink_tc", "clock_leap", "explain")


def pinned(lab: Lab, kind: str, name: str) -> dict:
    """What bpftool says of one pin: programs/NAME, links/NAME, or the map `digest`."""
    (root,) = lab.pin_dir.glob("v*")
    return json.loads(lab.sh(["bpftool", "-j", kind, "show", "pinned", str(root / name)]).stdout)


def program_ids(lab: Lab) -> dict[str, int]:
    return {name: pinned(lab, "prog", f"programs/{name}")["id"] for name in PROGRAMS}


def running_ids(lab: Lab) -> set[int]:
    """The programs that packets meet, as their links say; where hooks are filters of clsact, only the others."""
    (root,) = lab.pin_dir.glob("v*")
    return {pinned(lab, "link", f"links/{pin.name}")["prog_id"] for pin in (root / "links").iterdir()}


def restart(lab: Lab, how: str = "kill") -> None:
    getattr(lab, how)()
    lab.start()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_takes_the_pinned_programs(both_hooks: Lab, how: str) -> None:
    """The same object is not verified again: same programs, same link of the clock, and they enforce."""
    lab = both_hooks
    before, clock = program_ids(lab), pinned(lab, "link", "links/clock_leap")["id"]
    restart(lab, how)
    assert program_ids(lab) == before
    assert pinned(lab, "link", "links/clock_leap")["id"] == clock
    assert running_ids(lab) <= set(before.values())
    lease, probe = lab.grant(A, "echo"), Probe("client", "tenant-a", udp())
    passes(lab, probe)
    assert lab.explain("udp", f"{HOSTS['client'].v4}:4000", f"{TENANT_A.v4}:{ECHO}")["steps"][-1]["reason"] == "endpoint"
    lab.revoke(lease)  # with the proof that `explain` gives
    denied(lab, probe, "no_lease", "from_uplink")


def spoil_digest(lab: Lab) -> None:
    (root,) = lab.pin_dir.glob("v*")
    value = ["0"] * 32
    lab.sh(["bpftool", "map", "update", "pinned", str(root / "digest"), "key", *"0000", "value", *value])


def remove_digest(lab: Lab) -> None:
    (root,) = lab.pin_dir.glob("v*")
    (root / "digest").unlink()


def remove_program(lab: Lab) -> None:
    (root,) = lab.pin_dir.glob("v*")
    (root / "programs" / "explain").unlink()


def remove_map(lab: Lab) -> None:
    """Its successor would be one that the old programs do not know."""
    (root,) = lab.pin_dir.glob("v*")
    (root / "maps" / "clock_readings").unlink()


def open_to_others(lab: Lab) -> None:
    (root,) = lab.pin_dir.glob("v*")
    root.chmod(0o770)


@pytest.mark.parametrize("doubt", [spoil_digest, remove_digest, remove_program, remove_map, open_to_others])
def test_in_doubt_the_programs_are_loaded_anew(lab: Lab, doubt: Callable[[Lab], None]) -> None:
    """Another object's digest, or none, or a set that is not whole: as an upgrade, by link update, without a gap."""
    lease = lab.grant(A, "echo", ttl="100s")
    before = program_ids(lab)
    lab.kill()
    doubt(lab)
    lab.start()
    after = program_ids(lab)
    assert not set(after.values()) & set(before.values())
    assert running_ids(lab) <= set(after.values())
    probe = Probe("client", "tenant-a", udp())
    passes(lab, probe)
    lab.revoke(lease)
    denied(lab, probe, "no_lease", "from_uplink")
    (root,) = lab.pin_dir.glob("v*")
    root.chmod(0o700)
    restart(lab)
    assert program_ids(lab) == after, "the digest of the new set is kept"


def test_a_clock_link_that_was_not_renamed_yet_is_taken(lab: Lab) -> None:
    """A daemon killed between pin and rename leaves the link under the successor's name."""
    (root,) = lab.pin_dir.glob("v*")
    clock = pinned(lab, "link", "links/clock_leap")["id"]
    lab.kill()
    (root / "links" / "clock_leap").rename(root / "links" / "clock_leap_new")
    lab.start()
    assert pinned(lab, "link", "links/clock_leap")["id"] == clock
    assert not (root / "links" / "clock_leap_new").exists()


def test_the_policy_in_force_is_remembered(lab: Lab) -> None:
    """The stored policy is what a restart puts in force, and not what lies in the config directory."""
    lab.write_policy(policy(generation=99, tenants=[]), "config/policy.yaml")
    shown = lab.cli("bundle", "show")
    lab.kill()
    lab.start()
    assert lab.cli("bundle", "show") == shown


def test_a_stopped_daemon_answers_nobody_and_loses_nothing(lab: Lab) -> None:
    """A command against a stopped daemon does not hang for ever; thawed, the daemon serves again."""
    lease = lab.grant(A, "echo", ttl="100s")
    lab.freeze()
    asking = lab.popen("node", lab.holdfast_argv("--json", "lease", "ls"))
    probe = Probe("client", "tenant-a", udp())
    with watching(lab, probe) as capture:
        deliver(lab, "client", [probe.frame()] * PACKETS, capture.count)
    assert asking.poll() is None
    lab.thaw()
    out, errors = asking.communicate(timeout=20)
    assert asking.returncode == 0 and lease["id"] in out, errors


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_leaves_live_elements_alone(lab: Lab, how: str) -> None:
    """G4: adoption must not delete and add again the only live nft element of a lease, for an instant without it
    drops packets (TRAPS). A new lease's element, taken away again, shows that the monitor sees deletions."""
    lab.grant(A, "echo", "ping")
    monitor = lab.popen("node", ["stdbuf", "-oL", "nft", "monitor", "destroy", "elements"])
    getattr(lab, how)()
    lab.start()
    lab.revoke(lab.grant(B, "echo"))
    address = HOSTS["tenant-b"].v4
    seen = ""
    while address not in seen:
        assert select.select([monitor.stdout], [], [], 10)[0], f"no deletion of {address} within 10 s: {seen}"
        seen += os.read(monitor.stdout.fileno(), 65536).decode()
    end_process(monitor)
    assert TENANT_A.v4 not in seen and TENANT_A.v6 not in seen, seen
