"""Two layers that each enforce alone: with the eBPF side emptied nft denies, with nft emptied eBPF denies.

    client ---- uplink0 [eBPF] [nft forward] [eBPF] ta ---- tenant-a        (topology and addresses: lab.py)

Covers G1, G2, L2 ("and, independently, as an nft element timeout"). The daemon stands still meanwhile, so that it
mends nothing; thawed, it has to mend both.
"""

import time

import pytest
from foreign import attached_programs
from lab import A, ECHO, HOSTS, SILENCE_S, SLOW, Lab, wait_until
from packets import PACKETS, Probe, deliver, denied, dropped_by_nft, passes, send_to_be_judged, udp, watching

TENANT_A = HOSTS["tenant-a"]
TERM = f"{4 * SLOW:g}s"  # long enough to take a layer away and see a packet pass


def empty_the_ebpf_side(lab: Lab) -> None:
    """No program of ours is left on any interface; maps and programs stay, so that the daemon finds its own."""
    links = next(lab.pin_dir.glob("v*")) / "links"
    for pin in links.iterdir():
        pin.unlink()
    for interface in ("ta", "tb", "uplink0"):
        lab.run("node", ["tc", "qdisc", "del", "dev", interface, "clsact"], check=False)
    wait_until(lambda: not attached(lab), what="nothing is attached any more")


def attached(lab: Lab) -> set[str]:
    return set().union(*(attached_programs(lab, interface) for interface in ("ta", "tb", "uplink0")))


def whole(lab: Lab) -> bool:
    """Every interface has its programs, and the clock its link."""
    if not (next(lab.pin_dir.glob("v*")) / "links" / "clock_leap").exists():
        return False
    ports = all(attached_programs(lab, interface) == {"from_tenant", "to_tenant"} for interface in ("ta", "tb"))
    return ports and attached_programs(lab, "uplink0") in ({"uplink_xdp"}, {"uplink_tc"})


@pytest.mark.parametrize("version", [4, 6])
def test_nft_alone(both_hooks: Lab, version: int) -> None:
    """eBPF emptied: the leased packet passes, the unleased and then the expired one is dropped by nft."""
    lab = both_hooks
    leased, shut = Probe("client", "tenant-a", udp(), version), Probe("client", "tenant-b", udp(), version)
    passes_first = lab.grant(A, "echo", ttl=TERM)
    end = time.monotonic() + passes_first["remaining_ns"] / 1e9
    lab.freeze()
    assert whole(lab)
    empty_the_ebpf_side(lab)
    with watching(lab, leased) as capture:
        deliver(lab, "client", [leased.frame()] * PACKETS, capture.count)  # by nft
    assert time.monotonic() < end
    dropped_by_nft(lab, shut, "no_lease")
    # nft's clock is the jiffy's: it may end a tick early, and a garbage collection late it never is.
    wait_until(lambda: time.monotonic() > end + 0.05)
    dropped_by_nft(lab, leased, "no_lease")
    lab.thaw()
    wait_until(lambda: whole(lab), 15, "the daemon puts its programs back")
    wait_until(lambda: lab.leases() == {})
    denied(lab, leased, "no_lease", "from_uplink")
    lab.grant(A, "echo")
    passes(lab, leased)


@pytest.mark.parametrize("version", [4, 6])
def test_ebpf_alone(both_hooks: Lab, version: int) -> None:
    """The nft table deleted: the leased packet passes, the unleased and then the expired one is dropped by eBPF."""
    lab = both_hooks
    leased, shut = Probe("client", "tenant-a", udp(), version), Probe("client", "tenant-b", udp(), version)
    lease = lab.grant(A, "echo", ttl=TERM)
    end = time.monotonic() + lease["remaining_ns"] / 1e9
    before = lab.counters()
    lab.freeze()
    lab.nft("delete", "table", "inet", "holdfast")
    with watching(lab, leased) as capture, watching(lab, shut) as strangers:
        lab.send("client", [shut.frame()] * PACKETS)
        deliver(lab, "client", [leased.frame()] * PACKETS, capture.count)  # by eBPF
        assert time.monotonic() < end
        wait_until(lambda: time.monotonic() > end)
        send_to_be_judged(lab, "client", [leased.frame()] * PACKETS)
        lab.thaw()
        after = lab.counters()
        assert capture.count() == PACKETS and strangers.count() == 0
    rose = {key: after[key] - before.get(key, 0) for key in after}
    assert rose["from_uplink", "lease_expired"] == PACKETS
    assert rose["from_uplink", "no_lease"] == PACKETS
    wait_until(lambda: "holdfast" in lab.nft("list", "tables"), 15, "the daemon puts its table back")
    wait_until(lambda: lab.leases() == {})
    lab.grant(A, "echo")
    passes(lab, leased)
    assert lab.udp("client", TENANT_A.address(version), ECHO)


def test_a_flushed_rule_set_comes_back(lab: Lab) -> None:
    """Another's `nft flush ruleset` opens nothing, is told in the log, and live leases pass again by themselves."""
    leased, shut = Probe("client", "tenant-a", udp()), Probe("client", "tenant-b", udp())
    lab.grant(A, "echo")
    passes(lab, leased)
    lab.nft("flush", "ruleset")
    denied(lab, shut, "no_lease", "from_uplink")
    wait_until(lambda: "holdfast" in lab.nft("list", "tables"), 15, "the daemon puts its table back")
    wait_until(lambda: "nft_changed_by_another" in lab.log)
    wait_until(lambda: lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S), 10, "the lease passes both layers again")
    denied(lab, shut, "no_lease", "from_uplink")


def test_pins_removed_under_a_running_daemon(lab: Lab) -> None:
    """Root may take our programs off: nft denies what is not leased, until the daemon has put them back, and the one
    that suspend needs."""
    shut = Probe("client", "tenant-b", udp())
    lab.freeze()
    empty_the_ebpf_side(lab)
    dropped_by_nft(lab, shut, "no_lease")
    assert not whole(lab)
    lab.thaw()
    wait_until(lambda: whole(lab), 15, "the programs are back")
    denied(lab, shut, "no_lease", "from_uplink")
