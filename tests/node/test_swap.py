"""G4: a thousand policy swaps under traffic, and every packet is judged by one of the two policies.

    client ---- uplink0 [node] ta ---- tenant-a        (topology: lab.py; besides:)
                           tb ---- tenant-b
                           tc                          a port that only P names
                           td                          a port that only Q names

tools/swap_traffic sends rounds of numbered frames from the client and both tenants while P and Q alternate through one
control connection. Three kinds of streams, each over IPv4 and IPv6, to and from tenants, first packets and established:

    both   P and Q allow it, by the same lease, or P by an endpoint's and Q by an egress lease: none may be missing
    never  P and Q deny it for different reasons, in different tables and layers: none may arrive
    P      only P allows it: it arrives only while P may be in force, and always while P must be

What arrived is counted by AF_PACKET sockets at the receivers' ends; what did not is in the counters by reason.
Addresses of the probes are on no interface behind the cables, so no stack answers them.

Arrivals and counters do not tell which policy's lease or table it was. So every verdict that can be had whole has its
tag judged, of reason, bank, slot and incarnation: tools/verdict_tags asks the loaded `explain` all the while,
through the same maps, about each stream's frame at each hook that it can come by; and it meets the drop events of the
probes themselves. Each stream says below what P and Q prescribe at each hook. A tag has to be one policy's as a whole,
of one that may have been in force just then: P's reason with Q's bank, slot or lease is a failure (verdict_tags.py).
Two hooks make two verdicts, and a swap may come between them. A probe that passes leaves no tag of its own: for it
stands `explain`, which is the same functions.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import Control
from lab import A, B, GATEWAYS, HOSTS, LOOPS, MANY, Lab, build_dir, end_process, policy
from packets import Probe, denied, passes, udp
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from verdict_tags import LEASED, Prescribed, Question, Tags

C, D = "initech/mail/prod", "hooli/search/prod"
FLOWS = 262144  # of tenant A: its new flows must not push out the established ones

# What the probes call themselves.
CLIENT = {4: "192.0.2.50", 6: "2001:db8:1::50"}
A_MAIN = {4: "10.1.0.50", 6: "fd00:1::50"}
A_MORE = {4: "10.1.0.60", 6: "fd00:1::60"}  # A's in P only
B_MAIN = {4: "10.2.0.50", 6: "fd00:2::50"}
C_MAIN = {4: "10.3.0.50", 6: "fd00:3::50"}  # C's in P, nobody's in Q
NODE_OWN = {4: "198.51.100.99", 6: "2001:db8:99::99"}  # C's in P, only the node's in Q

WEB, ECHO, LATERAL = 8080, 9000, 9001
NEVER_SENT = 19999  # a source port below those of the streams that take another each round
P_DECLARED, Q_DECLARED, P_LEASED, HANDOVER, OVER_FLOW, UNLEASED = 7001, 7002, 9300, 9301, 7100, 7200


def both(addresses: dict[int, str]) -> list[str]:
    return [addresses[4], addresses[6]]


def endpoint(name: str, port: str, protocol: str, listen: int | str | None = None, addresses: list[str] | None = None) -> dict:
    made = {"name": name, "port": port, "protocol": protocol, "listen": listen, "addresses": addresses}
    return {key: value for key, value in made.items() if value is not None}


def tenant(number: int, name: str, port: str, interface: str, mac: str, addresses: list[str], endpoints: list[dict], **more: object) -> dict:
    ports = [{"name": port, "interface": interface, "mac": mac, "addresses": addresses}]
    return {"id": number, "name": name, "ports": ports, "endpoints": endpoints} | more


def policies(rebuilt: bool) -> dict[str, str]:
    """P, Q, and the policy both begin from, in which the flows of OVER_FLOW are begun.

    `rebuilt`: the swap also moves hooks from one interface to another, and replaces nft's rules.
    """
    main = both(A_MAIN)
    stay_a = [
        endpoint("web", "a0", "tcp", WEB, main),
        endpoint("echo", "a0", "udp", ECHO, main),
        endpoint("ping", "a0", "icmp_echo", None, main),
    ]
    stay_b = [endpoint("lateral", "b0", "udp", LATERAL)]
    only_p = [
        endpoint("p-declared", "a0", "udp", P_DECLARED, main),
        endpoint("p-declared-tcp", "a0", "tcp", P_DECLARED, main),
        endpoint("p-leased", "a0", "udp", P_LEASED, main),
        endpoint("handover", "a0", "udp", HANDOVER, main),
        endpoint("unleased", "a0", "udp", UNLEASED, both(A_MORE)),
    ]
    over_flow = [endpoint("over-flow", "a0", "udp", OVER_FLOW, both(A_MORE))]
    only_q = [
        endpoint("q-declared", "a0", "udp", Q_DECLARED, main),
        endpoint("q-declared-tcp", "a0", "tcp", Q_DECLARED, main),
    ]
    bulk_p = [endpoint("bulk", "a0", "udp", "40000-40199", [A_MAIN[4]])]
    bulk_q = [endpoint("bulk", "d0", "udp", "30000-30999"), endpoint("bulk-tcp", "d0", "tcp", "4000-4199")]
    mac_a, mac_b = HOSTS["tenant-a"].mac, HOSTS["tenant-b"].mac
    limits = {"limits": {"flows": FLOWS}}

    def a(addresses: list[str], endpoints: list[dict]) -> dict:
        return tenant(1, A, "a0", "ta", mac_a, addresses, endpoints, **limits)

    def b(addresses: list[str]) -> dict:
        return tenant(2, B, "b0", "tb", mac_b, addresses, stay_b)

    wide = main + both(A_MORE)
    c = tenant(3, C, "c0", "tc", "02:00:00:00:00:0c", both(C_MAIN) + both(NODE_OWN), [endpoint("c", "c0", "udp", ECHO)])
    d = tenant(4, D, "d0", "td" if rebuilt else "tc", "02:00:00:00:00:0d", [f"10.4.0.{n}" for n in range(1, 9)], bulk_q)
    common = {"version": 1, "uplinks": ["uplink0"], "limits": {"leases": 4096}}
    p = common | {"generation": 1, "tenants": [c, b(both(B_MAIN)), a(wide, only_p + over_flow + bulk_p + stay_a)]}
    host = {"failsafe_ports": [22, 2222], "listeners": [{"protocol": "tcp", "port": 9999}]} if rebuilt else {}
    q = common | host | {
        "generation": 2,
        "tenants": [d, a(main, stay_a + only_q), b([*both(B_MAIN), "10.2.0.77"])],
    }
    begin = common | {"generation": 3, "tenants": [a(wide, stay_a), b(both(B_MAIN))]}
    return {"P": json.dumps(p), "Q": json.dumps(q), "begin": json.dumps(begin)}


def resources() -> dict[str, str]:
    """What the verdicts' slots belong to, as tools/verdict_tags wants it."""
    found = {"egress": "egress,ta"}
    for v in (4, 6):
        for name, address, port, protocol in (
            ("web", A_MAIN, WEB, "tcp"),
            ("echo", A_MAIN, ECHO, "udp"),
            ("ping", A_MAIN, 0, "icmp_echo"),
            ("lateral", B_MAIN, LATERAL, "udp"),
            ("p-declared", A_MAIN, P_DECLARED, "udp"),
            ("p-declared-tcp", A_MAIN, P_DECLARED, "tcp"),
            ("q-declared", A_MAIN, Q_DECLARED, "udp"),
            ("q-declared-tcp", A_MAIN, Q_DECLARED, "tcp"),
            ("over-flow", A_MORE, OVER_FLOW, "udp"),
            ("unleased", A_MORE, UNLEASED, "udp"),
            ("p-leased", A_MAIN, P_LEASED, "udp"),
            ("handover", A_MAIN, HANDOVER, "udp"),
        ):
            found[f"{name}-{v}"] = f"{address[v]},{port},{protocol}"
    return found


def on_both(lease: dict, *endpoints: str) -> dict[str, str]:
    """By resource: the id of a lease on endpoints, each with an IPv4 and an IPv6 address."""
    return {f"{name}-{v}": lease["id"] for name in endpoints for v in (4, 6)}


@dataclasses.dataclass
class Stream:
    name: str
    kind: str  # both, never, P, leased-P, handover
    sender: str
    receiver: str
    p: Prescribed  # what the two policies say of it, at the hooks where it can come by
    q: Prescribed
    frame: bytes = b""
    port_offset: int = 0  # of the source port, if each round takes another

    @property
    def hook(self) -> str:
        return "from_uplink" if self.sender == "client" else "from_tenant"

    def questions(self) -> Iterator[Question]:
        """Its frame, at the hooks that it can come by."""
        frame = self.frame
        if self.port_offset:
            # From a port that no round takes: it never has a flow yet.
            at = self.port_offset
            frame = frame[:at] + NEVER_SENT.to_bytes(2, "big") + frame[at + 2 :]
        for hook in self.p:
            host = self.receiver if hook == "to_tenant" else self.sender
            said = {"P": self.p[hook], "Q": self.q.get(hook)}
            yield Question(self.name, hook, HOSTS[host].interface, self.port_offset != 0, frame, said)


def l3(version: int, source: str, destination: str) -> Packet:
    return IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)


def frame_of(version: int, sender: str, source: str, destination: str, l4: Packet) -> bytes:
    return bytes(Ether(src=HOSTS[sender].mac, dst=GATEWAYS[sender].mac) / l3(version, source, destination) / l4)


def inward(reason: str, resource: str | None = None) -> Prescribed:
    return {"from_uplink": (reason, resource), "to_tenant": (reason, resource)}


def outward(reason: str, resource: str | None = None) -> Prescribed:
    return {"from_tenant": (reason, resource)}


class Plan:
    """Every stream of the test, numbered as swap_traffic wants them."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        for version in (4, 6):
            self.version = version
            self.both_allow()
            self.both_deny()
            self.only_p()

    def add(
        self,
        name: str,
        kind: str,
        way: tuple[str, str],
        addresses: tuple[str, str],
        l4: Packet,
        p: Prescribed,
        q: Prescribed,
        new: bool = False,
    ) -> None:
        number, port = len(self.streams), getattr(l4, "sport", 0)
        stamp = b"HFSW" + number.to_bytes(2, "big") + (~port & 0xFFFF).to_bytes(2, "big") + bytes(4) + b"\xff" * 4
        frame = frame_of(self.version, way[0], *addresses, l4 / Raw(stamp))
        offset = (14 + (20 if self.version == 4 else 40)) if new else 0
        self.streams.append(Stream(f"{name}-{self.version}", kind, *way, p, q, frame, offset))

    def both_allow(self) -> None:
        v, client, a, b = self.version, CLIENT[self.version], A_MAIN[self.version], B_MAIN[self.version]

        def to_a(name: str, l4: Packet, reason: str, resource: str, new: bool = False) -> None:
            said = inward(reason, resource)
            self.add(name, "both", ("client", "tenant-a"), (client, a), l4, said, said, new)

        def from_a(name: str, l4: Packet, reason: str, resource: str, new: bool = False) -> None:
            said = outward(reason, resource)
            self.add(name, "both", ("tenant-a", "client"), (a, client), l4, said, said, new)

        web, echo, ping, lateral = f"web-{v}", f"echo-{v}", f"ping-{v}", f"lateral-{v}"
        to_a("syn-in", TCP(sport=20000, dport=WEB, flags="S", seq=7), "endpoint", web, new=True)
        to_a("udp-in-new", UDP(sport=20000, dport=ECHO), "endpoint", echo, new=True)
        to_a("udp-in", UDP(sport=5000, dport=ECHO), "endpoint", echo)
        from_a("udp-in-reply", UDP(sport=ECHO, dport=5000), "endpoint", echo)
        to_a("tcp-in", TCP(sport=5001, dport=WEB, flags="PA", seq=101, ack=201), "endpoint", web)
        from_a("tcp-in-reply", TCP(sport=WEB, dport=5001, flags="PA", seq=201, ack=101), "endpoint", web)
        from_a("syn-out", TCP(sport=20000, dport=443, flags="S", seq=7), "egress", "egress", new=True)
        from_a("udp-out-new", UDP(sport=20000, dport=53), "egress", "egress", new=True)
        from_a("udp-out", UDP(sport=5002, dport=53), "flow", "egress")
        to_a("udp-out-reply", UDP(sport=53, dport=5002), "flow", "egress")
        from_a("tcp-out", TCP(sport=5003, dport=443, flags="PA", seq=101, ack=201), "flow", "egress")
        to_a("tcp-out-reply", TCP(sport=443, dport=5003, flags="PA", seq=201, ack=101), "flow", "egress")
        to_a("ping", ICMP(type=8, id=9) if v == 4 else ICMPv6EchoRequest(id=9), "endpoint", ping)
        from_a("ping-reply", ICMP(type=0, id=9) if v == 4 else ICMPv6EchoReply(id=9), "endpoint", ping)
        there = {"from_tenant": ("flow", "egress"), "to_tenant": ("endpoint", lateral)}
        back = {"from_tenant": ("endpoint", lateral), "to_tenant": ("flow", "egress")}
        self.add("lateral", "both", ("tenant-a", "tenant-b"), (a, b), UDP(sport=5004, dport=LATERAL), there, there)
        self.add("lateral-reply", "both", ("tenant-b", "tenant-a"), (b, a), UDP(sport=LATERAL, dport=5004), back, back)

    def both_deny(self) -> None:
        v, client = self.version, CLIENT[self.version]
        a, more, c, node = A_MAIN[v], A_MORE[v], C_MAIN[v], NODE_OWN[v]

        def to_a(name: str, l4: Packet, p: Prescribed, q: Prescribed, to: str = a, new: bool = False) -> None:
            self.add(name, "never", ("client", "tenant-a"), (client, to), l4, p, q, new)

        def from_a(name: str, source: str, destination: str, l4: Packet, p: Prescribed, q: Prescribed) -> None:
            self.add(name, "never", ("tenant-a", "client"), (source, destination), l4, p, q)

        # P: declared and unleased. Q: not an endpoint. And the other way round.
        for name, flags in (("declared", None), ("declared-tcp", "S")):
            for policy, port in (("p", P_DECLARED), ("q", Q_DECLARED)):
                unleased, none = inward("no_lease", f"{policy}-{name}-{v}"), inward("no_endpoint")
                said = (unleased, none) if policy == "p" else (none, unleased)
                l4 = TCP(sport=20000, dport=port, flags=flags) if flags else UDP(sport=20000, dport=port)
                to_a(f"{policy}-{name}", l4, *said, new=True)
        # What is addressed to nobody in Q leaves the uplink, and falls at the port, whatever flow there was.
        at_the_port = {"from_uplink": ("not_ours", None), "to_tenant": ("wrong_port", None)}
        # P: an unleased endpoint, at the gate alone, for nft sees the reply of a flow. Q: nobody's address.
        to_a("over-flow", UDP(sport=53, dport=OVER_FLOW), inward("no_lease", f"over-flow-{v}"), at_the_port, more)
        # P: no endpoint, dropped on the uplink.
        ping = ICMP(type=8, id=9) if v == 4 else ICMPv6EchoRequest(id=9)
        to_a("ping-more", ping, inward("no_endpoint"), at_the_port, more)
        lateral, spoofed = outward("lateral", "egress"), outward("spoofed_address")
        # P: another tenant's address. Q: not the sender's own source any more, and the destination nobody's.
        from_a("to-c", more, c, UDP(sport=5005, dport=ECHO), lateral, spoofed)
        # P: another tenant's address. Q: the node's own.
        from_a("to-node", a, node, UDP(sport=5006, dport=ECHO), lateral, outward("host"))
        # P: out of an unleased endpoint. Q: spoofed.
        from_a("from-unleased", more, client, UDP(sport=UNLEASED, dport=5007), outward("no_lease", f"unleased-{v}"), spoofed)

    def only_p(self) -> None:
        v, client, a, more = self.version, CLIENT[self.version], A_MAIN[self.version], A_MORE[self.version]
        there, back = ("tenant-a", "client"), ("client", "tenant-a")
        # The egress lease lives in both, and so does the flow; the address does not.
        out_more, flow = UDP(sport=5008, dport=53), inward("flow", "egress")
        self.add("out-more", "P", there, (more, client), out_more, outward("flow", "egress"), outward("spoofed_address"))
        at_the_port = {"from_uplink": ("not_ours", None), "to_tenant": ("wrong_port", None)}
        self.add("out-more-reply", "P", back, (client, more), UDP(sport=53, dport=5008), flow, at_the_port)
        leased, none = inward(LEASED, f"p-leased-{v}"), inward("no_endpoint")
        self.add("p-leased", "leased-P", back, (client, a), UDP(sport=5009, dport=P_LEASED), leased, none)
        # In P by the endpoint's lease, once that is granted; in Q by the egress lease and its flow.
        handover = f"handover-{v}"
        out, leased = UDP(sport=HANDOVER, dport=53), outward(LEASED, handover)
        self.add("handover-out", "handover", there, (a, client), out, leased, outward("flow", "egress"))
        into, leased = UDP(sport=53, dport=HANDOVER), inward(LEASED, handover)
        self.add("handover-in", "handover", back, (client, a), into, leased, flow)

    def openings(self) -> Iterator[tuple[str, bytes]]:
        """What establishes the established ones, in this order: (sender, frame)."""
        for v in (4, 6):
            client, a = CLIENT[v], A_MAIN[v]
            for sender, source, destination, sport, dport in (("client", client, a, 5001, WEB), ("tenant-a", a, client, 5003, 443)):
                peer = "tenant-a" if sender == "client" else "client"
                yield sender, frame_of(v, sender, source, destination, TCP(sport=sport, dport=dport, flags="S", seq=100))
                yield peer, frame_of(v, peer, destination, source, TCP(sport=dport, dport=sport, flags="SA", seq=200, ack=101))
                yield sender, frame_of(v, sender, source, destination, TCP(sport=sport, dport=dport, flags="A", seq=101, ack=201))
            for near, port in ((a, 5002), (a, HANDOVER), (A_MORE[v], 5008), (A_MORE[v], OVER_FLOW)):
                yield "tenant-a", frame_of(v, "tenant-a", near, client, UDP(sport=port, dport=53) / Raw(b"begin"))
                yield "client", frame_of(v, "client", client, near, UDP(sport=53, dport=port) / Raw(b"begin"))
            yield "tenant-a", frame_of(v, "tenant-a", a, B_MAIN[v], UDP(sport=5004, dport=LATERAL) / Raw(b"begin"))

    def text(self, lab: Lab) -> str:
        lines = [f"path {role} /run/netns/{lab.ns[role]} eth0" for role in ("client", "tenant-a", "tenant-b")]
        for s in self.streams:
            must = "must" if s.kind == "both" else "may"
            lines.append(f"stream {s.name} {s.sender} {s.receiver} {must} {s.port_offset} {s.frame.hex()}")
        return "\n".join(lines) + "\n"


class Outcome:
    """What swap_traffic wrote."""

    def __init__(self, path: pathlib.Path) -> None:
        self.begin: list[int] = []
        self.end: list[int] = []
        self.runs: dict[str, list[tuple[int, int, int]]] = {}
        self.strays: dict[str, int] = {}
        for line in path.read_text().splitlines():
            kind, *words = line.split()
            if kind == "round":
                self.begin.append(int(words[0]))
                self.end.append(int(words[1]))
            elif kind == "run":
                self.runs.setdefault(words[0], []).append((int(words[1]), int(words[2]), int(words[3])))
            else:
                self.strays[words[0]] = int(words[1])

    def missing(self, name: str) -> list[tuple[int, int]]:
        return [(first, last) for first, last, count in self.runs[name] if count == 0]

    def arrived(self, name: str) -> list[tuple[int, int]]:
        return [(first, last) for first, last, count in self.runs[name] if count != 0]

    def lost(self, name: str) -> int:
        return sum(last - first + 1 for first, last in self.missing(name))

    def inside(self, rounds: tuple[int, int], span: tuple[int, int]) -> bool:
        """Whether one of the rounds began and ended within the span of time."""
        first = max(rounds[0], bisect.bisect_left(self.begin, span[0]))
        return first <= rounds[1] and self.begin[first] < span[1] and self.end[first] <= span[1]

    def outside(self, rounds: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
        """Whether one of the rounds did not touch any of the spans, which are in order and apart.

        Round by round: where the sender was held up, one run of rounds may reach from one span into the next.
        """
        edges = [0, *itertools.chain.from_iterable(spans), 1 << 63]
        return any(self.inside(rounds, gap) for gap in zip(edges[::2], edges[1::2], strict=True))


@pytest.fixture
def swap_lab() -> Iterator[Lab]:
    with Lab(push={"version": 1, "uplinks": ["uplink0"], "tenants": []}) as lab:
        commands = []
        for name in ("tc", "td"):
            commands.append(f"link add {name} type veth peer name {name}-peer")
            commands += [f"link set {end} up" for end in (name, f"{name}-peer")]
        for v in (4, 6):
            for interface, role, addresses in (
                ("uplink0", "client", [CLIENT]),
                ("ta", "tenant-a", [A_MAIN, A_MORE]),
                ("tb", "tenant-b", [B_MAIN]),
            ):
                for address in addresses:
                    commands.append(f"neigh replace {address[v]} lladdr {HOSTS[role].mac} nud permanent dev {interface}")
            bits = {4: 32, 6: 128}[v]
            commands.append(f"route add {C_MAIN[v]}/{bits} dev tc")
            commands.append(f"neigh replace {C_MAIN[v]} lladdr 02:00:00:00:00:0c nud permanent dev tc")
            commands.append(f"addr add {NODE_OWN[v]}/{bits} dev lo")
        lab.ip("node", *commands)
        yield lab


def forget_after(lab: Lab, udp_s: int, syn_s: int) -> None:
    """When conntrack does. Soon, for probes with a port of their own, which are meant to be new when their turn comes again."""
    for name, timeout_s in (("udp_timeout", udp_s), ("tcp_timeout_syn_sent", syn_s)):
        lab.sysctl("node", f"netfilter/nf_conntrack_{name}", timeout_s)


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def tool(name: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get("HOLDFAST_TEST_TOOLS") or build_dir() / "tests" / "node" / "tools") / name
    assert path.exists(), f"{path} is not built: run scripts/build"
    return path


class Swapper:
    """Pushes P and Q in turn, and notes when which may be and must be in force."""

    def __init__(self, control: Control, texts: dict[str, str], leases: list[dict], tags: Tags) -> None:
        self.control, self.texts, self.leases, self.tags = control, texts, leases, tags
        self.renewed_s = time.monotonic()
        self.p_may: list[tuple[int, int]] = []
        self.p_must: list[tuple[int, int]] = []
        self.leased_must: list[tuple[int, int]] = []
        self.unleased_may: list[tuple[int, int]] = []  # of the handover: P without its lease

    def cycle(self, dwell_s: float) -> None:
        self.tags.pushing()
        asked_p = boot_ns()
        self.control.push(self.texts["P"])
        got_p = boot_ns()
        self.tags.pushed("P")
        lease = self.control.grant(A, "p-leased", "handover")
        leased = boot_ns()
        self.tags.granted(on_both(lease, "p-leased", "handover"))
        time.sleep(dwell_s)
        self.tags.pushing()
        asked_q = boot_ns()
        answer = self.control.push(self.texts["Q"])
        got_q = boot_ns()
        self.tags.pushed("Q")
        assert answer["leases_ended"] > 0, answer
        time.sleep(dwell_s)
        self.p_may.append((asked_p, got_q))
        self.p_must.append((got_p, asked_q))
        self.leased_must.append((leased, asked_q))
        self.unleased_may.append((asked_p, leased))
        if time.monotonic() - self.renewed_s > 30:
            self.renewed_s = time.monotonic()
            for lease in self.leases:
                self.control.renew(lease["id"], 300)


@pytest.mark.slow
@pytest.mark.parametrize("rebuilt", [False, True], ids=["tables", "tables-hooks-rules"])
def test_a_thousand_swaps(swap_lab: Lab, rebuilt: bool) -> None:
    """G1 and G4, see above: five hundred cycles from P to Q and back, half of them with other hooks and host rules."""
    lab, plan, texts = swap_lab, Plan(), policies(rebuilt)
    plan_file, result_file = lab.dir / "plan", lab.dir / "result"
    plan_file.write_text(plan.text(lab))
    with Control(lab.socket_path) as control:
        control.push(texts["begin"])
        leases = [
            control.grant(A, "web", "echo", "ping", ttl_s=300),
            control.grant(A, egress=["a0"], ttl_s=300),
            grant_lateral(control, 4),
            grant_lateral(control, 6),
        ]
        forget_after(lab, udp_s=30, syn_s=120)  # as usual, for these have to last until the traffic begins
        for sender, frame in plan.openings():
            lab.send(sender, [frame])
        web, egress, lateral_4, lateral_6 = leases
        kept = on_both(web, "web", "echo", "ping") | {"egress": egress["id"]}
        kept |= {"lateral-4": lateral_4["id"], "lateral-6": lateral_6["id"]}
        control.push(texts["Q"])
        questions = [question for stream in plan.streams for question in stream.questions()]
        tags = Tags(lab, tool("verdict_tags"), questions, resources(), kept)
        tags.pushed("Q")
        swapper = Swapper(control, texts, leases, tags)
        before = drops_by_hook(lab)
        forget_after(lab, udp_s=2, syn_s=2)
        argv = [str(tool("swap_traffic")), str(plan_file), str(result_file)]
        traffic = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert traffic.stdout.readline() == "ready\n", traffic.communicate()[1]
            for cycle in range(max(1, LOOPS // 4)):
                # Mostly as fast as the daemon can, and now and then long enough for a teardown to end in between.
                swapper.cycle(0 if cycle % 4 else 0.03)
            traffic.send_signal(signal.SIGTERM)
            _, errors = traffic.communicate(timeout=120)
            assert traffic.returncode == 0, errors
        finally:
            end_process(traffic)
        seen = tags.finish()
        drops = {hook: count - before[hook] for hook, count in drops_by_hook(lab).items()}
    outcome = Outcome(result_file)
    took_s = (outcome.end[-1] - outcome.begin[0]) / 1e9
    asked, met = (sum(tag.count for tag in seen if tag.how == how) for how in ("asked", "met"))
    print(f"{2 * len(swapper.p_may)} swaps and {len(outcome.begin)} rounds of {len(plan.streams)} streams in {took_s:.1f} s")
    print(f"{asked} verdicts of {len(tags.questions)} kinds asked for and {met} drops met, with {len(seen)} different tags")
    wrong = judge(plan, outcome, swapper) + judge_counters(plan, outcome, drops, rebuilt) + tags.judge(seen)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dropped", [0, 1], ids=["the-first", "the-second"])
def test_a_push_that_drops_half_a_lease(lab: Lab, dropped: int) -> None:
    """A lease is one thing: when the policy takes one of its resources away, all of it ends, and what ended is shut."""
    shut = [Probe("client", "tenant-a", udp(MANY + port)) for port in (0, 1)]
    kept = Probe("client", "tenant-a", udp())
    lease, other = lab.grant(A, *(f"many@{HOSTS['tenant-a'].v4}:{MANY + port}" for port in (0, 1))), lab.grant(A, "echo")
    for probe in (*shut, kept):
        passes(lab, probe)
    smaller = policy()
    many = smaller["tenants"][0]["endpoints"].pop()
    smaller["tenants"][0]["endpoints"].append(many | {"listen": MANY + 1 - dropped})
    assert lab.push(smaller)["leases_ended"] == 1
    assert set(lab.leases()) == {other["id"]}
    denied(lab, shut[dropped], "no_endpoint", "from_uplink")
    denied(lab, shut[1 - dropped], "no_lease", "from_uplink")
    passes(lab, kept)
    assert "no_such_lease" in lab.try_cli("lease", "revoke", lease["id"]).stderr


def grant_lateral(control: Control, version: int) -> dict:
    """B's endpoint at one address, for A alone: across a tenant boundary a lease has to name its peer."""
    address, bits = B_MAIN[version], {4: 32, 6: 128}[version]
    return control.grant(B, f"lateral@{address}", ttl_s=300, peer=f"{A_MAIN[version]}/{bits}")


# The reasons for which a probe of this test can fall; the tenants' own stacks send a little, which falls for others.
REASONS = {"no_endpoint", "no_lease", "lateral", "host", "spoofed_address", "wrong_port"}


def drops_by_hook(lab: Lab) -> dict[str, int]:
    """Packets dropped for REASONS, by eBPF hook; and by nft's forward path, which keeps its counters with its rules."""
    counted = dict.fromkeys(("from_tenant", "to_tenant", "from_uplink"), 0)
    for (hook, reason), count in lab.counters().items():
        if reason in REASONS:
            counted[hook] += count
    listed = json.loads(lab.nft("-j", "-t", "list", "table", "inet", "holdfast"))["nftables"]
    rules = [each["rule"] for each in listed if each.get("rule", {}).get("comment") in REASONS]
    expressions = [expression for rule in rules if not rule["chain"].startswith("input") for expression in rule["expr"]]
    return counted | {"nft": sum(e["counter"]["packets"] for e in expressions if "counter" in e)}


def describe(outcome: Outcome, rounds: tuple[int, int], spans: list[tuple[int, int]]) -> str:
    """The rounds, and when they were on their way, measured from the beginning of the span that should hold them."""
    begin, end = max((span for span in spans if span[0] <= outcome.end[rounds[0]]), default=spans[0])
    times = (outcome.begin[rounds[0]], outcome.begin[rounds[1]], outcome.end[rounds[1]], end)
    first, last, arrived, over = ((at - begin) / 1e6 for at in times)
    return f"{rounds}: sent from {first:.3f} to {last:.3f} ms, the last there by {arrived:.3f} ms, allowed until {over:.3f} ms"


def judge(plan: Plan, outcome: Outcome, swapper: Swapper) -> list[str]:
    wrong: list[str] = []
    for stream in plan.streams:
        name, missing, arrived = stream.name, outcome.missing(stream.name), outcome.arrived(stream.name)
        if stream.kind == "both" and missing:
            wrong.append(f"{name}: both policies allow it, and {outcome.lost(name)} are missing: rounds {missing[:5]}")
        if stream.kind == "never" and arrived:
            wrong.append(f"{name}: both policies deny it, and these rounds arrived: {arrived[:5]}")
        if stream.kind in ("P", "leased-P"):
            must = swapper.p_must if stream.kind == "P" else swapper.leased_must
            late = [describe(outcome, rounds, swapper.p_may) for rounds in arrived if outcome.outside(rounds, swapper.p_may)]
            gaps = [rounds for rounds in missing for span in must if outcome.inside(rounds, span)]
            if late or not arrived:
                wrong.append(f"{name}: arrived while only Q can have been in force: rounds {late[:5]}")
            if gaps or not missing:
                wrong.append(f"{name}: missing while P was in force: rounds {gaps[:5]}")
        if stream.kind == "handover":
            gaps = [rounds for rounds in missing if outcome.outside(rounds, swapper.unleased_may)]
            if gaps or not missing or not arrived:
                wrong.append(f"{name}: missing although one lease or the other carried it: rounds {gaps[:5]}")
        if any(count > 1 for _, _, count in outcome.runs[name]) or name in outcome.strays:
            wrong.append(f"{name}: arrived twice, or elsewhere")
    return wrong


def judge_counters(plan: Plan, outcome: Outcome, drops: dict[str, int], rebuilt: bool) -> list[str]:
    """Each probe that did not arrive was counted once, by the hook where it fell or by nft."""
    lost = {hook: sum(outcome.lost(s.name) for s in plan.streams if s.hook == hook) for hook in ("from_tenant", "from_uplink")}
    if not rebuilt:
        exact = sum(drops.values()) == sum(lost.values())
        return [] if exact else [f"{sum(lost.values())} probes did not arrive, counted were {drops}"]
    # With the rules their counters go. These streams can fall in nft alone: while it is narrow, or where the address is gone.
    in_nft = ("out-more", "over-flow", "ping-more", "p-leased")
    wrong = []
    for hook, counted in (("from_tenant", drops["from_tenant"]), ("from_uplink", drops["from_uplink"] + drops["to_tenant"])):
        spared = sum(outcome.lost(s.name) for s in plan.streams if s.hook == hook and s.name.startswith(in_nft))
        if not lost[hook] - spared <= counted <= lost[hook]:
            wrong.append(f"{hook}: {lost[hook]} probes did not arrive, counted were {drops}")
    return wrong
