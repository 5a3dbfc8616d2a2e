"""Interfaces that go and come back: dark until they are guarded, then as before.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers G1, G7's spirit at the port, and section 4: forwarding only through armed interface indexes, never names.
"""

import pathlib

import pytest
from lab import A, B, ECHO, GATEWAYS, HOSTS, SILENCE_S, SLOW, Lab, end_process, policy, wait_until
from packets import PACKETS, Probe, arrives, denied, dropped, passes, syn, udp

TENANT_A = HOSTS["tenant-a"]


def unplug(lab: Lab, role: str) -> int:
    """Deletes the cable; returns the index that its node end had."""
    index = lab.ifindex("node", HOSTS[role].interface)
    lab.run("node", ["ip", "link", "del", HOSTS[role].interface])
    return index


def plug_in_elsewhere(lab: Lab, role: str, old_index: int) -> None:
    """A new cable of the same name. Its index is another one, since the kernel counts on."""
    lab.plug_in(role)
    assert lab.ifindex("node", HOSTS[role].interface) != old_index


@pytest.mark.parametrize("version", [4, 6])
def test_a_tenant_port_comes_back(both_hooks: Lab, version: int) -> None:
    """Its leases live on; until its hooks are in place nothing passes, afterwards what is leased, and no more."""
    lab = both_hooks
    address = TENANT_A.address(version)
    lab.grant(A, "echo", ttl="200s")
    lab.grant(B, "echo", ttl="200s")
    leased, shut = Probe("client", "tenant-a", udp(), version), Probe("client", "tenant-a", syn(), version)
    passes(lab, leased)
    index = unplug(lab, "tenant-a")
    wait_until(lambda: not present(lab, A), 15, "the daemon notices")
    passes(lab, Probe("client", "tenant-b", udp(), version))

    lab.freeze()
    plug_in_elsewhere(lab, "tenant-a", index)
    # Nobody guards it yet. Not the leased packet, not the other one, and nothing from inside either.
    inside = Probe("tenant-a", "client", udp(), version)
    with (
        lab.capture("tenant-a", leased.marker) as passed,
        lab.capture("tenant-a", shut.marker) as strangers,
        lab.capture("client", inside.marker) as escaped,
    ):
        lab.send("client", [leased.frame(), shut.frame()] * 10)
        lab.send("tenant-a", [inside.frame()] * 10)
        passes(lab, Probe("client", "tenant-b", udp(), version))
        assert (passed.count(), strangers.count(), escaped.count()) == (0, 0, 0)
    lab.thaw()
    wait_until(lambda: lab.udp("client", address, ECHO, SILENCE_S), 15, "the lease passes on the new port")
    passes(lab, leased)
    denied(lab, shut, "no_lease", "from_uplink")
    denied(lab, inside, "no_egress_lease", "from_tenant")


def present(lab: Lab, tenant: str) -> bool:
    row = next(each for each in lab.cli("tenant", "ls")["tenants"] if each["name"] == tenant)
    return row["ports"][0]["present"]


def test_an_uplink_comes_back(both_hooks: Lab) -> None:
    """Without its early drop the tenant ports deny by themselves; then the uplink is guarded again."""
    lab = both_hooks
    lab.grant(A, "echo", ttl="200s")
    leased, shut = Probe("client", "tenant-a", udp()), Probe("client", "tenant-a", syn())
    passes(lab, leased)
    index = unplug(lab, "client")
    lab.freeze()
    plug_in_elsewhere(lab, "client", index)
    with lab.capture("tenant-a", shut.marker) as strangers:
        lab.send("client", [shut.frame()] * 10)
        lab.thaw()
        wait_until(lambda: lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S), 15, "the uplink is armed again")
        assert strangers.count() == 0
    denied(lab, shut, "no_lease", "from_uplink")
    passes(lab, leased)


def test_pushes_while_interfaces_come_and_go(own_lab: Lab) -> None:
    """P9: a dump that the kernel calls inconsistent is asked for again, not an error of the push."""
    lab = own_lab
    lab.ip("node", *(f"link add many{n} type veth peer name peer{n}" for n in range(round(200 / SLOW))))
    churn = lab.dir / "churn"
    churn.write_text("link add churn0 type veth peer name churn1\nlink del churn0\n" * 100_000)
    churning = lab.popen("node", ["ip", "-batch", str(churn)])
    for _ in range(10):
        lab.push(policy())
    assert churning.poll() is None
    end_process(churning)


def test_a_missing_port_at_start(lab: Lab) -> None:
    """A policy in force outlives its interfaces: the daemon starts without one, and takes it when it comes."""
    index = unplug(lab, "tenant-a")
    lab.kill()
    lab.start()
    lab.grant(B, "echo", ttl="200s")
    passes(lab, Probe("client", "tenant-b", udp()))
    lab.grant(A, "echo", ttl="200s")
    plug_in_elsewhere(lab, "tenant-a", index)
    wait_until(lambda: lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S), 15, "the port is guarded and its lease passes")
    denied(lab, Probe("client", "tenant-a", syn()), "no_lease", "from_uplink")


def test_a_renamed_interface_is_not_the_port(own_lab: Lab) -> None:
    """A name is not an identity: what takes the port's name is guarded anew, what lost it is no tenant port."""
    lab = own_lab
    lab.serve_all()
    lab.grant(A, "echo", ttl="200s")
    lab.run("node", ["ip", "link", "set", "ta", "down"])
    lab.run("node", ["ip", "link", "set", "ta", "name", "old0"])
    wait_until(lambda: not present(lab, A), 15, "the daemon notices")
    lab.run("node", ["ip", "link", "set", "old0", "up"])
    probe = Probe("tenant-a", "client", udp())
    with lab.capture("client", probe.marker) as escaped:
        lab.send("tenant-a", [probe.frame()] * 10)
        lab.grant(B, "echo")
        passes(lab, Probe("client", "tenant-b", udp()))
        assert escaped.count() == 0


def test_a_port_put_into_a_bridge_stays_shut(own_both: Lab) -> None:
    """G1: in a bridge, tenants' frames would pass beside nftables and routing. The gate stays where it is, and shut,
    whether the daemon runs, restarts, or is told again; out of the bridge the port comes back."""
    lab = own_both
    lab.serve_all()
    lab.grant(A, "echo", ttl="200s")
    shut = Probe("tenant-a", "tenant-b", udp())
    frame = shut.packet()
    frame["Ether"].dst = HOSTS["tenant-b"].mac
    lab.run("node", ["ip", "link", "add", "br0", "type", "bridge"])
    lab.run("node", ["ip", "link", "set", "br0", "up"])
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        if pathlib.Path("/proc/sys/net/bridge", name).exists():
            lab.sysctl("node", f"bridge/{name}", 0)
    for name in ("ta", "tb"):
        lab.run("node", ["ip", "link", "set", name, "master", "br0"])
    wait_until(lambda: dark(lab) == {"ta": "port_has_master", "tb": "port_has_master"}, 15, "the daemon notices")
    for restart in (False, True):
        if restart:
            lab.kill()
            lab.start()
        dropped(lab, "tenant-a", "tenant-b", [bytes(frame)] * PACKETS, shut.marker, "unknown_port", "from_tenant")
    for name in ("ta", "tb"):
        lab.run("node", ["ip", "link", "set", name, "nomaster"])
    wait_until(lambda: dark(lab) == {}, 15, "both ports come back")
    passes(lab, Probe("client", "tenant-a", udp()))
    # The control: without enforcement the bridge does hand the frame over.
    for name in ("ta", "tb"):
        lab.run("node", ["ip", "link", "set", name, "master", "br0"])
    lab.cli("node", "detach", "--yes")
    lab.daemon.wait(10)
    lab.daemon = None
    arrives(lab, "tenant-a", "tenant-b", [bytes(frame)] * PACKETS, shut.marker)


def dark(lab: Lab) -> dict[str, str]:
    return {each["interface"]: each["code"] for each in lab.cli("status")["dark"]}


def rename(lab: Lab, old: str, new: str) -> None:
    """Before 6.2 the kernel renames only what is down."""
    words = ["ip", "link", "set", old, "name", new]
    if lab.run("node", words, check=False).returncode != 0:
        lab.run("node", ["ip", "link", "set", old, "down"])
        lab.run("node", words)
        lab.run("node", ["ip", "link", "set", new, "up"])


def test_a_renamed_port_does_not_become_the_nodes_own_cable(own_both: Lab) -> None:
    """G1, P3: the tenant reaches neither the node nor anybody else by it; with its name it gets its traffic back."""
    lab = own_both  # where a rename takes it down first, the port loses its IPv6 addresses
    lab.serve_all()
    lab.grant(A, "echo", ttl="200s")
    to_node = Probe("tenant-a", "tenant-a", syn(22), destination=GATEWAYS["tenant-a"].v4)
    denied(lab, to_node, "host", "from_tenant")
    rename(lab, "ta", "tz")
    wait_until(lambda: dark(lab) == {"ta": "interface_missing"}, 15, "the daemon notices")
    denied(lab, to_node, "unknown_port", "from_tenant")
    rename(lab, "tz", "ta")
    wait_until(lambda: dark(lab) == {}, 15, "the port comes back")
    passes(lab, Probe("client", "tenant-a", udp()))
