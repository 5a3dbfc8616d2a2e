"""What a tenant may not do, with or without leases: spoof, cross over, reach the node, begin unasked.

    client ---- uplink0 [node] ta ---- tenant-a
                               tb ---- tenant-b         (topology and addresses: lab.py)

Covers G1, G13, L4, P1, P3 (only its own addresses; no host, metadata or lateral traffic). Each tenant here holds
an egress lease: what is denied is denied although it may send.
"""

import pytest
from lab import A, B, ECHO, GATEWAYS, HOSTS, SILENCE_S, WEB, Lab, says, wait_until
from packets import PROTOCOLS, Probe, arrives, denied, dropped, echo_request, fresh_port, passes, syn, udp
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

CLIENT, TENANT_A, TENANT_B = HOSTS["client"], HOSTS["tenant-a"], HOSTS["tenant-b"]
GATEWAY = GATEWAYS["tenant-a"]
CASES = [(protocol, version) for protocol in PROTOCOLS for version in (4, 6)]
MARKER = b"\xc0\xde\xc0\xde"


# ---- egress ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, version", CASES)
def test_no_lease_no_egress(both_hooks: Lab, protocol: str, version: int) -> None:
    """G1: a tenant begins nothing without an egress lease, and nothing any more after its end."""
    lab = both_hooks
    probe = Probe("tenant-a", "client", PROTOCOLS[protocol][0], version)
    denied(lab, probe, "no_egress_lease", "from_tenant")
    lease = lab.grant(A, egress="a0")
    passes(lab, probe)
    denied(lab, Probe("tenant-b", "client", PROTOCOLS[protocol][0], version), "no_egress_lease", "from_tenant")
    lab.revoke(lease)
    denied(lab, probe, "no_egress_lease", "from_tenant")


@pytest.mark.parametrize("version", [4, 6])
def test_an_egress_lease_serves_conversations_and_opens_nothing(both_hooks: Lab, version: int) -> None:
    """G1, G5: replies come in, strangers do not; revoking cuts the flow, and a new lease does not revive it."""
    lab = both_hooks
    client = CLIENT.address(version)
    lease = lab.grant(A, egress="a0")
    assert lab.tcp("tenant-a", client, WEB)
    assert lab.udp("tenant-a", client, ECHO)
    assert lab.ping("tenant-a", client)
    denied(lab, Probe("client", "tenant-a", syn(), version), "no_lease", "from_uplink")
    here, there = fresh_port(), fresh_port()
    begun = Probe("tenant-a", "client", udp(there, source_port=here), version)
    reply = Probe("client", "tenant-a", udp(here, source_port=there), version)
    denied(lab, reply, "no_endpoint", "from_uplink")
    passes(lab, begun)
    passes(lab, reply)
    lab.revoke(lease)
    denied(lab, reply, "no_endpoint", "from_uplink")
    lab.grant(A, egress="a0")
    denied(lab, reply, "lease_revoked", "from_uplink")
    passes(lab, begun)  # it may begin anew
    passes(lab, reply)


@pytest.mark.parametrize("version", [4, 6])
def test_revoking_egress_cuts_an_established_connection(both_hooks: Lab, version: int) -> None:
    """G5: the tenant's own connection ends with its lease, on the next packet."""
    lab = both_hooks
    lease = lab.grant(A, egress="a0")
    with lab.connect("tenant-a", CLIENT.address(version), WEB) as connection:
        assert says(connection)
        flows = lab.cli("flows")["flows"]
        assert any(flow["protocol"] == "tcp" and flow["state"] == "live" for flow in flows), flows
        lab.revoke(lease)
        connection.settimeout(SILENCE_S)
        assert not says(connection)
        revoked = lab.counter("lease_revoked", "from_tenant")
        lab.grant(A, egress="a0")
        assert not says(connection), "what an earlier lease began, a new one does not take up"
        assert lab.counter("lease_revoked", "from_tenant") > revoked


def test_egress_is_metered(lab: Lab) -> None:
    """P11: bytes and packets of each tenant, exactly."""

    def row() -> dict:
        return next(tenant for tenant in lab.cli("tenant", "ls")["tenants"] if tenant["name"] == A)

    lab.grant(A, egress="a0")
    probe = Probe("tenant-a", "client", udp(fresh_port()))
    passes(lab, probe, 1)  # a flow is there
    # What a neighbour asks or answers is metered too, and comes when it likes: then once more.
    for _ in range(10):
        neighbours, before = lab.counter("neighbour", "from_tenant"), row()["from_tenant"]
        passes(lab, probe, 100)
        after = row()["from_tenant"]
        if lab.counter("neighbour", "from_tenant") == neighbours:
            break
    assert after["packets"] - before["packets"] == 100
    assert after["bytes"] - before["bytes"] == 100 * len(probe.frame())


# ---- lateral -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, version", CASES)
def test_lateral_traffic_needs_a_lease_that_names_the_peer(both_hooks: Lab, protocol: str, version: int) -> None:
    """P3, G13: two tenants with egress and open endpoints are strangers until a lease names the peer."""
    lab = both_hooks
    layer, endpoint = PROTOCOLS[protocol]
    lab.grant(A, egress="a0")
    lease = lab.grant(B, endpoint)
    across = Probe("tenant-a", "tenant-b", layer, version)
    passes(lab, Probe("client", "tenant-b", layer, version))
    denied(lab, across, "lateral", "from_tenant")
    lab.revoke(lease)
    peer = f"{TENANT_A.v4}/32" if version == 4 else f"{TENANT_A.v6}/128"
    named = lab.grant(B, endpoint, peer=peer)
    passes(lab, across)
    assert lab.talk(protocol, "tenant-a", TENANT_B.address(version))
    denied(lab, Probe("tenant-b", "tenant-a", layer, version), "no_egress_lease", "from_tenant")
    lab.revoke(named)
    denied(lab, across, "lateral", "from_tenant")
    assert not lab.talk(protocol, "tenant-a", TENANT_B.address(version), SILENCE_S)


# ---- spoofing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_that_is_not_the_ports(both_hooks: Lab, version: int) -> None:
    """P3: neither the neighbour's address, nor one of its own net, nor another MAC."""
    lab = both_hooks
    lab.grant(A, egress="a0")
    honest = Probe("tenant-a", "client", udp(), version)
    passes(lab, honest)
    for source in (TENANT_B.address(version), {4: "10.1.0.3", 6: "fd00:1::3"}[version], CLIENT.address(version)):
        denied(lab, Probe("tenant-a", "client", udp(), version, source=source), "spoofed_address", "from_tenant")
    other_mac = Probe("tenant-a", "client", udp(), version, source_mac=TENANT_B.mac)
    denied(lab, other_mac, "spoofed_mac", "from_tenant")
    passes(lab, honest)


@pytest.mark.parametrize("version", [4, 6])
def test_a_tenants_source_from_outside(both_hooks: Lab, version: int) -> None:
    """P3: what claims on the uplink to come from a tenant is dropped there, leased destination or not."""
    lab = both_hooks
    lab.grant(B, "echo")
    passes(lab, Probe("client", "tenant-b", udp(), version))
    claim = Probe("client", "tenant-b", udp(), version, source=TENANT_A.address(version))
    denied(lab, claim, "spoofed_address", "from_uplink")


def arp(**fields: str) -> Packet:
    return Ether(src=TENANT_A.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(**fields) / Raw(MARKER)


def neighbour(message: Packet, source: str, destination: str = "ff02::1") -> Packet:
    return Ether(src=TENANT_A.mac, dst="33:33:00:00:00:01") / IPv6(src=source, dst=destination, hlim=255) / message


NEIGHBOURS = {
    # what tenant-a claims on its own wire -> the frame, and whether it may
    "ARP for the gateway": (arp(op=1, hwsrc=TENANT_A.mac, psrc=TENANT_A.v4, pdst=GATEWAY.v4), True),
    "ARP probe for its own address": (arp(op=1, hwsrc=TENANT_A.mac, psrc="0.0.0.0", pdst=TENANT_A.v4), True),
    "ARP with the gateway's address": (arp(op=2, hwsrc=TENANT_A.mac, psrc=GATEWAY.v4, pdst=GATEWAY.v4), False),
    "ARP with the other tenant's": (arp(op=2, hwsrc=TENANT_A.mac, psrc=TENANT_B.v4, pdst=GATEWAY.v4), False),
    "ARP with another MAC inside": (arp(op=2, hwsrc=TENANT_B.mac, psrc=TENANT_A.v4, pdst=GATEWAY.v4), False),
    "ND for its own address": (
        neighbour(
            ICMPv6ND_NA(tgt=TENANT_A.v6, R=0) / ICMPv6NDOptDstLLAddr(lladdr=TENANT_A.mac), TENANT_A.v6
        ),
        True,
    ),
    "ND solicitation": (
        neighbour(ICMPv6ND_NS(tgt=GATEWAY.v6) / ICMPv6NDOptSrcLLAddr(lladdr=TENANT_A.mac), TENANT_A.v6), True
    ),
    "ND for the gateway's address": (
        neighbour(ICMPv6ND_NA(tgt=GATEWAY.v6) / ICMPv6NDOptDstLLAddr(lladdr=TENANT_A.mac), TENANT_A.v6), False
    ),
    "ND for the other tenant's": (
        neighbour(ICMPv6ND_NA(tgt=TENANT_B.v6) / ICMPv6NDOptDstLLAddr(lladdr=TENANT_A.mac), TENANT_B.v6), False
    ),
    "ND with another MAC inside": (
        neighbour(ICMPv6ND_NA(tgt=TENANT_A.v6) / ICMPv6NDOptDstLLAddr(lladdr=TENANT_B.mac), TENANT_A.v6), False
    ),
    "a router advertisement": (neighbour(ICMPv6ND_RA(), TENANT_A.link_local), False),
    "a DHCP server's answer": (
        Ether(src=TENANT_A.mac, dst=GATEWAY.mac)
        / IP(src=TENANT_A.v4, dst=CLIENT.v4)
        / UDP(sport=67, dport=68)
        / Raw(b"offer"),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(NEIGHBOURS))
def test_neighbour_claims(both_hooks: Lab, case: str) -> None:
    """P3, G13: on its own wire a tenant speaks for its own addresses and is nobody's router or DHCP server."""
    lab = both_hooks
    lab.grant(A, egress="a0")
    assert lab.ping("tenant-a", CLIENT.v4) and lab.ping("tenant-a", CLIENT.v6)
    frame, allowed = NEIGHBOURS[case]
    reason = "neighbour" if allowed else "spoofed_neighbour"
    before = lab.counter(reason, "from_tenant")
    lab.send("tenant-a", [bytes(frame)] * 3)
    # The tenant's kernel may ask for neighbours too meanwhile, but it claims nothing false.
    wait_until(lambda: lab.counter(reason, "from_tenant") - before >= 3, what="each is counted")
    rose = lab.counter(reason, "from_tenant") - before
    assert rose >= 3 if allowed else rose == 3
    table = lab.run("node", ["ip", "neigh", "show"]).stdout.lower()
    assert f"{TENANT_B.v4} dev ta" not in table and f"{TENANT_B.v6} dev ta" not in table
    assert f"{TENANT_A.v4} dev ta lladdr {TENANT_B.mac}" not in table


# ---- forbidden destinations --------------------------------------------------------------------------------

DESTINATIONS = [
    # from a tenant with an egress lease -> the reason
    ("the gateway", 4, GATEWAY.v4, "host"),
    ("the gateway", 6, GATEWAY.v6, "host"),
    ("the node's address outside", 4, GATEWAYS["client"].v4, "host"),
    ("the node's address outside", 6, GATEWAYS["client"].v6, "host"),
    ("the gateway of the other tenant", 4, GATEWAYS["tenant-b"].v4, "host"),
    ("a metadata service", 4, "169.254.169.254", "metadata"),
    ("a metadata service", 6, "fd00:ec2::254", "metadata"),
    ("Google's, IPv6", 6, "fd20:ce::254", "metadata"),
    ("Azure's WireServer", 4, "168.63.129.16", "metadata"),
    ("Alibaba's", 4, "100.100.100.200", "metadata"),
    ("credentials of an ECS task", 4, "169.254.170.2", "metadata"),
    ("credentials of an EKS pod", 4, "169.254.170.23", "metadata"),
    ("credentials of an EKS pod", 6, "fd00:ec2::23", "metadata"),
    ("loopback", 4, "127.0.0.1", "destination_denied"),
    ("loopback", 6, "::1", "destination_denied"),
    ("link-local", 4, "169.254.1.1", "destination_denied"),
    ("link-local", 6, "fe80::1", "destination_denied"),
    ("multicast", 4, "224.0.0.251", "destination_denied"),
    ("multicast", 6, "ff02::fb", "destination_denied"),
    ("broadcast", 4, "255.255.255.255", "destination_denied"),
    ("the unspecified address", 4, "0.0.0.0", "destination_denied"),
]


@pytest.mark.parametrize("what, version, destination, reason", DESTINATIONS)
def test_destinations_no_tenant_reaches(lab: Lab, what: str, version: int, destination: str, reason: str) -> None:
    """P3, R2: no host, no metadata, no broadcast; the control is the same packet to the client."""
    lab.grant(A, egress="a0")
    passes(lab, Probe("tenant-a", "client", udp(), version))
    for layer in (udp(), echo_request()):
        denied(lab, Probe("tenant-a", "client", layer, version, destination=destination), reason, "from_tenant")


def test_a_real_client_does_not_reach_the_node(own_lab: Lab) -> None:
    """R2, P3, G15: the node's servers are out of a tenant's reach; the client reaches the failsafe port."""
    lab = own_lab
    lab.serve("node", "tcp:22", "tcp:2222")
    lab.grant(A, egress="a0")
    assert lab.tcp("client", GATEWAYS["client"].v4, 22) and lab.tcp("client", GATEWAYS["client"].v6, 22)
    assert not lab.tcp("client", GATEWAYS["client"].v4, 2222, SILENCE_S), "a port that is not declared"
    for address in (GATEWAY.v4, GATEWAY.v6, GATEWAYS["client"].v4, GATEWAYS["client"].v6):
        for port in (22, 2222):
            assert not lab.tcp("tenant-a", address, port, SILENCE_S)


# ---- malformed ---------------------------------------------------------------------------------------------


def ether(payload: Packet) -> Packet:
    return Ether(src=TENANT_A.mac, dst=GATEWAY.mac) / payload


def to_client(**fields: object) -> Packet:
    return IP(src=TENANT_A.v4, dst=CLIENT.v4, **fields)


DATAGRAM = UDP(sport=1, dport=2) / Raw(MARKER)
MALFORMED = {
    "a VLAN tag": (ether(Dot1Q(vlan=5) / to_client() / DATAGRAM), "vlan"),
    "a VLAN tag with id 0": (ether(Dot1Q(vlan=0) / to_client() / DATAGRAM), "vlan"),
    "three VLAN tags with id 0": (
        ether(Dot1Q(vlan=0) / Dot1Q(vlan=0) / Dot1Q(vlan=0) / to_client() / DATAGRAM), "vlan"
    ),
    "an EtherType of its own": (
        Ether(src=TENANT_A.mac, dst=GATEWAY.mac, type=0x88B5) / Raw(MARKER * 12), "ethertype"
    ),
    "IPv4 options": (ether(to_client(options=[b"\x94\x04\x00\x00"]) / DATAGRAM), "ip_options"),
    "an IPv6 routing header": (
        ether(
            IPv6(src=TENANT_A.v6, dst=CLIENT.v6) / IPv6ExtHdrRouting(addresses=[CLIENT.v6], segleft=1) / DATAGRAM
        ),
        "ip_options",
    ),
    "another protocol": (ether(to_client(proto=47) / Raw(MARKER * 8)), "protocol"),
    "a fragment without a first": (ether(to_client(id=9, frag=100, proto=17) / Raw(MARKER * 8)), "fragment_orphan"),
    "a header that lies about its length": (ether(to_client(len=2000) / DATAGRAM), "truncated"),
    "version 5": (ether(to_client(version=5) / DATAGRAM), "ip_header"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MALFORMED))
def test_malformed_packets_fail_closed(both_hooks: Lab, case: str) -> None:
    """G1: what the parser does not follow to its end does not pass; the plain packet does."""
    lab = both_hooks
    lab.grant(A, egress="a0")
    frame, reason = MALFORMED[case]
    arrives(lab, "tenant-a", "client", [bytes(ether(to_client() / DATAGRAM))] * 3, MARKER)
    dropped(lab, "tenant-a", "client", [bytes(frame)] * 3, MARKER, reason, "from_tenant")
