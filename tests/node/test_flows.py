"""What travels with a flow: ICMP errors, path MTU discovery, fragments.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers G1, G5, P7 (too-big is never blocked) and section 4's parser: ICMP errors pass only about live endpoints and
flows; redirects never; fragments share the first one's verdict.
"""

import secrets
import socket

import pytest
from lab import A, ANSWER_S, ECHO, FILES, GATEWAYS, HOSTS, SILENCE_S, WEB, Lab, wait_until
from packets import Probe, arrives, denied, dropped, fresh_port, ip, passes, udp
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

CLIENT, TENANT_A = HOSTS["client"], HOSTS["tenant-a"]


def error_about(version: int, kind: str, quoted: Packet) -> Packet:
    """An ICMP error from outside to tenant-a about a packet it sent."""
    message = {
        (4, "too big"): ICMP(type=3, code=4, nexthopmtu=1300),
        (4, "unreachable"): ICMP(type=3, code=3),
        (4, "time exceeded"): ICMP(type=11),
        (4, "redirect"): ICMP(type=5, gw="192.0.2.66"),
        (6, "too big"): ICMPv6PacketTooBig(mtu=1300),
        (6, "unreachable"): ICMPv6DestUnreach(code=4),
        (6, "time exceeded"): ICMPv6TimeExceeded(),
        (6, "redirect"): ICMPv6ND_Redirect(tgt="2001:db8:1::66", dst=CLIENT.v6),
    }[version, kind]
    head = Ether(src=CLIENT.mac, dst=GATEWAYS["client"].mac)
    return head / ip(version, CLIENT.address(version), TENANT_A.address(version)) / message / quoted


def sent_by_tenant(version: int, source_port: int, destination_port: int, marker: bytes) -> Packet:
    datagram = UDP(sport=source_port, dport=destination_port) / Raw(marker)
    return ip(version, TENANT_A.address(version), CLIENT.address(version)) / datagram


ERRORS = [(version, kind) for version in (4, 6) for kind in ("too big", "unreachable", "time exceeded")]


@pytest.mark.parametrize("version, kind", ERRORS)
def test_errors_about_an_endpoint(both_hooks: Lab, version: int, kind: str) -> None:
    """G1: about an answer of a leased endpoint they pass; once its lease has gone, or about nothing, they do not."""
    lab = both_hooks
    marker, peer = secrets.token_bytes(4), fresh_port()
    about = bytes(error_about(version, kind, sent_by_tenant(version, ECHO, peer, marker)))
    nothing = bytes(error_about(version, kind, sent_by_tenant(version, 1234, peer, marker)))
    dropped(lab, "client", "tenant-a", [about] * 3, marker, "no_lease", "from_uplink")
    lease = lab.grant(A, "echo")
    passes(lab, Probe("client", "tenant-a", udp(source_port=peer), version))  # what the errors are about
    arrives(lab, "client", "tenant-a", [about] * 3, marker)
    dropped(lab, "client", "tenant-a", [nothing] * 3, marker, "icmp_unrelated", "from_uplink")
    lab.revoke(lease)
    dropped(lab, "client", "tenant-a", [about] * 3, marker, "no_lease", "from_uplink")


@pytest.mark.parametrize("version, kind", ERRORS)
def test_errors_about_a_flow(both_hooks: Lab, version: int, kind: str) -> None:
    """G1, G5: about what the tenant began under its egress lease they pass, and not after its revocation."""
    lab = both_hooks
    marker = secrets.token_bytes(4)
    here, there = fresh_port(), fresh_port()
    lease = lab.grant(A, egress="a0")
    about = bytes(error_about(version, kind, sent_by_tenant(version, here, there, marker)))
    dropped(lab, "client", "tenant-a", [about] * 3, marker, "icmp_unrelated", "from_uplink")
    passes(lab, Probe("tenant-a", "client", udp(there, source_port=here), version))
    arrives(lab, "client", "tenant-a", [about] * 3, marker)
    lab.revoke(lease)
    dropped(lab, "client", "tenant-a", [about] * 3, marker, "icmp_unrelated", "from_uplink")
    lab.grant(A, egress="a0")
    dropped(lab, "client", "tenant-a", [about] * 3, marker, "lease_revoked", "from_uplink")


def test_redirects_never_pass(both_hooks: Lab) -> None:
    """G13: nobody outside tells a tenant where to send, live flow or not."""
    lab = both_hooks
    marker, peer = secrets.token_bytes(4), fresh_port()
    lab.grant(A, "echo")
    passes(lab, Probe("client", "tenant-a", udp(source_port=peer)))
    quoted = sent_by_tenant(4, ECHO, peer, marker)
    arrives(lab, "client", "tenant-a", [bytes(error_about(4, "unreachable", quoted))], marker)
    redirect = bytes(error_about(4, "redirect", quoted))
    dropped(lab, "client", "tenant-a", [redirect] * 3, marker, "icmp_unrelated", "from_uplink")


@pytest.mark.parametrize("version", [4, 6])
def test_a_closed_port_answers_unreachable(own_both: Lab, version: int) -> None:
    """The kernels' own errors: both a leased endpoint's and a remote server's "port unreachable" arrive."""
    lab = own_both  # without servers
    lab.grant(A, egress="a0")
    with lab.socket("tenant-a", version, socket.SOCK_DGRAM) as client:
        client.connect((CLIENT.address(version), 7777))
        client.settimeout(ANSWER_S)
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
    lab.grant(A, "echo")
    with lab.socket("client", version, socket.SOCK_DGRAM) as client:
        client.connect((TENANT_A.address(version), ECHO))
        client.settimeout(ANSWER_S)
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


@pytest.mark.parametrize("direction", ["endpoint", "egress"])
@pytest.mark.parametrize("version", [4, 6])
def test_path_mtu_discovery(own_both: Lab, version: int, direction: str) -> None:
    """P7: behind a narrower route a tenant's bulk transfer adapts, because the node's "too big" reaches it."""
    lab = own_both
    lab.serve_all()
    route = [f"{CLIENT.address(version)}/{32 if version == 4 else 128}", "dev", "uplink0", "mtu", "lock", "1300"]
    lab.run("node", ["ip", "route", "add", *route])
    wanted = 300_000
    before = lab.counter("icmp_error", "to_tenant")
    if direction == "endpoint":
        lab.grant(A, "files")
        with lab.connect("client", TENANT_A.address(version), FILES) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            received = 0
            while received < wanted:
                chunk = connection.recv(65536)
                assert chunk
                received += len(chunk)
    else:
        lab.grant(A, egress="a0")
        with lab.connect("tenant-a", CLIENT.address(version), WEB) as connection:
            data = bytes(4096)
            for _ in range(wanted // len(data)):
                connection.sendall(data)
                left = len(data)
                while left:
                    left -= len(connection.recv(left))
    assert lab.counter("icmp_error", "to_tenant") > before, "the path was narrower and the tenant was told"


@pytest.mark.parametrize("version", [4, 6])
def test_a_fragmented_datagram(both_hooks: Lab, version: int) -> None:
    """Both directions of a 4000-byte echo, cut by the kernels; unleased, each fragment is dropped with its reason."""
    lab = both_hooks
    payload = secrets.token_bytes(4000)

    def talk(timeout_s: float) -> bool:
        with lab.socket("client", version, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout_s)
            client.sendto(payload, (TENANT_A.address(version), ECHO))
            try:
                return client.recv(65536) == payload
            except TimeoutError:
                return False

    before = lab.counters()
    assert not talk(SILENCE_S)
    after = lab.counters()
    rose = {key[1]: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}
    assert rose["no_lease"] == 1 and rose["fragment_orphan"] == 2, rose
    lease = lab.grant(A, "echo")
    assert talk(ANSWER_S)
    lab.revoke(lease)
    assert not talk(SILENCE_S)


def fragments(version: int, marker: bytes) -> list[bytes]:
    """One datagram to the leased endpoint in three fragments, each with the marker in it."""
    datagram = UDP(sport=40000, dport=ECHO) / Raw(marker * 700)
    head = Ether(src=CLIENT.mac, dst=GATEWAYS["client"].mac)
    if version == 4:
        whole = IP(src=CLIENT.v4, dst=TENANT_A.v4, id=secrets.randbits(16) | 1) / datagram
        pieces = fragment(whole, 1000)
    else:
        fragment_header = IPv6ExtHdrFragment(id=secrets.randbits(32))
        pieces = fragment6(IPv6(src=CLIENT.v6, dst=TENANT_A.v6) / fragment_header / datagram, 1080)
    assert len(pieces) >= 3
    return [bytes(head / piece) for piece in pieces[:3]]


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_follow_their_first(both_hooks: Lab, version: int) -> None:
    """G5: later fragments pass after the first, not before it, not twice, and not after the revocation."""
    lab = both_hooks
    lease = lab.grant(A, "echo")
    passes(lab, Probe("client", "tenant-a", udp(), version))
    marker = secrets.token_bytes(4)
    # At the tenant's own hook: the node reassembles nothing, so what the uplink passes arrives cut.
    first, second, third = fragments(version, marker)
    dropped(lab, "client", "tenant-a", [second], marker, "fragment_orphan", "from_uplink")
    lab.send("client", [first, second])
    wait_until(lambda: lab.counter("fragment", "from_uplink") >= 1)
    dropped(lab, "client", "tenant-a", [second], marker, "fragment_overlap", "from_uplink")
    lab.revoke(lease)
    dropped(lab, "client", "tenant-a", [third], marker, "lease_revoked", "from_uplink")
    lab.grant(A, "echo")
    dropped(lab, "client", "tenant-a", [third], marker, "lease_revoked", "from_uplink")


def test_a_first_fragment_too_short_for_its_ports(both_hooks: Lab) -> None:
    """RFC 1858: the ports must stand in the first fragment, or nobody could judge it."""
    lab = both_hooks
    lab.grant(A, "web")
    marker = secrets.token_bytes(4)
    head = Ether(src=CLIENT.mac, dst=GATEWAYS["client"].mac)
    whole = IP(src=CLIENT.v4, dst=TENANT_A.v4, id=77) / TCP(sport=40000, dport=WEB, flags="S") / Raw(marker * 4)
    tiny = head / IP(src=CLIENT.v4, dst=TENANT_A.v4, id=77, flags="MF", proto=6) / Raw(bytes(whole[TCP])[:8])
    dropped(lab, "client", "tenant-a", [bytes(tiny)] * 3, marker, "fragment_overlap", "from_uplink")
    syn = head / IP(src=CLIENT.v4, dst=TENANT_A.v4) / TCP(
        sport=40000, dport=WEB, flags="S", seq=int.from_bytes(marker, "big")
    )
    arrives(lab, "client", "tenant-a", [bytes(syn)] * 3, marker)
    denied(lab, Probe("client", "tenant-a", udp()), "no_lease", "from_uplink")
