"""What a node cannot enforce: it refuses, or goes on without what the operator named, and says so all the time.

    client ---- uplink0 [XDP of another] [node, with or without nftables] ta ---- tenant-a   (lab.py)

Covers G1, G6, H5: nothing is enforced silently less.
"""

import errno
import json
from collections.abc import Callable

import pytest
from foreign import ATTACH_XDP, XDP_PASS, attached
from lab import A, HOSTS, SYS, Lab, policy, refusing, wait_until
from packets import Probe, denied, dropped_by_nft, passes, udp

TENANT_A = HOSTS["tenant-a"]
AF_NETLINK, NETLINK_NETFILTER = 16, 12
# As on a kernel that was built without it: no socket of that protocol.
NO_NFTABLES = refusing(SYS["socket"], errno.EPROTONOSUPPORT, a0=AF_NETLINK, a2=NETLINK_NETFILTER)


def unenforced(lab: Lab) -> list[tuple[str, str]]:
    return [(row["what"], row["interface"]) for row in lab.cli("status")["unenforced"]]


def early(lab: Lab, probe: Probe) -> None:
    denied(lab, probe, "no_lease", "from_uplink")


def by_nft(lab: Lab, probe: Probe) -> None:
    """Which stands before the tenant's port."""
    dropped_by_nft(lab, probe, "no_lease")


def leases_work(lab: Lab, is_denied: Callable[[Lab, Probe], None]) -> None:
    """The same packet passes under a lease, and is denied before and after."""
    probe = Probe("client", "tenant-a", udp())
    is_denied(lab, probe)
    lease = lab.grant(A, "echo")
    passes(lab, probe)
    lab.renew(lease, "100s")
    passes(lab, probe)
    lab.revoke(lease)
    is_denied(lab, probe)


def test_without_nftables(own_lab: Lab) -> None:
    """A kernel without nf_tables: refused with exit code 3 and what to do; with consent eBPF enforces alone."""
    lab = own_lab
    assert unenforced(lab) == []
    assert lab.ask("node.detach")["removed"]
    assert lab.daemon is not None and lab.daemon.wait(10) == 0
    lab.daemon = None
    done = lab.try_start(NO_NFTABLES)
    assert done.returncode == 3 and "--unenforced nftables" in done.stderr, done
    lab.start(NO_NFTABLES, unenforced="nftables")
    lab.push(policy())
    assert unenforced(lab) == [("nftables", "")]
    assert "nftables unenforced" in lab.try_cli("status", json_output=False).stdout
    assert lab.nft("list", "tables") == ""
    leases_work(lab, early)
    lease = lab.grant(A, "echo", ttl="100s")
    lab.kill()
    lab.start(NO_NFTABLES, unenforced="nftables")
    assert set(lab.leases()) == {lease["id"]} and unenforced(lab) == [("nftables", "")]
    passes(lab, Probe("client", "tenant-a", udp()))
    # Back on a kernel that has it, consent changes nothing: what can be enforced is.
    lab.kill()
    lab.start(unenforced="nftables")
    assert unenforced(lab) == [] and "holdfast" in lab.nft("list", "tables")
    passes(lab, Probe("client", "tenant-a", udp()))
    assert lab.ask("node.detach")["removed"]
    assert lab.daemon is not None and lab.daemon.wait(10) == 0
    lab.daemon = None


def test_an_uplink_that_is_anothers() -> None:
    """Another's XDP on the uplink: refused by name; with consent it stays, and nftables and the ports judge."""
    with Lab(daemon=False) as lab:
        lab.start()
        with attached(lab, "uplink0", ATTACH_XDP, XDP_PASS):
            assert "foreign" in lab.push_refused(policy())
        lab.stop()
        lab.start(unenforced="uplinks")
        with attached(lab, "uplink0", ATTACH_XDP, XDP_PASS):
            lab.push(policy())
            assert unenforced(lab) == [("uplinks", "uplink0")]
            assert "foreign" in lab.cli("status")["unenforced"][0]["cause"]
            leases_work(lab, by_nft)
            assert unenforced(lab) == [("uplinks", "uplink0")]
        wait_until(lambda: unenforced(lab) == [], 15, "the hook is put in place when there is room for it")
        leases_work(lab, early)


@pytest.mark.parametrize("what", ["nftables,uplinks,suspend", "suspend"])
def test_consent_that_is_not_needed(what: str) -> None:
    """What can be enforced is, whatever may go unenforced."""
    with Lab(daemon=False) as lab:
        lab.start(unenforced=what)
        lab.push(policy())
        assert unenforced(lab) == []
        leases_work(lab, early)


def test_io_uring_refused_by_seccomp(lab: Lab) -> None:
    """doctor tells, and what enforces leases is not touched by it."""
    done = lab.try_cli("doctor", prefix=refusing(SYS["io_uring_setup"], errno.EPERM))
    assert done.returncode == 0, done
    (row,) = [row for row in json.loads(done.stdout)["features"] if row["feature"] == "io_uring"]
    assert row["verdict"] == "fallback" and "seccomp" in row["detail"] and not row["essential"], row
