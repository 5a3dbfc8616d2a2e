"""Packets as the node tests send them: built by scapy, put on the wire raw, recognised by a marker.

A Probe is one packet from one place of the lab to another. The two questions every test asks of it:

    passes(lab, probe)                             all of them arrive
    denied(lab, probe, "no_lease", "from_uplink")  none arrives, and exactly that reason counts exactly them
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import struct
from collections.abc import Callable, Sequence

logging.getLogger("scapy").setLevel(logging.ERROR)  # it warns about the host's routes, which nobody uses here

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

from bpf import values_of  # noqa: E402
from lab import ECHO, GATEWAYS, HOSTS, WEB, Capture, Lab, wait_until  # noqa: E402

REASON_COUNTER_BYTES = 40  # of bpf/abi.h, for each CPU; the packets come first
PACKETS = 5  # of each probe; few enough for the neighbour queue of a first packet

Layer = Callable[[int, bytes], Packet]  # of a version and a marker


def own_port(marker: bytes) -> int:
    """A source port or echo identifier of this probe's own, so that no other test's flow is meant by it."""
    return 32768 + int.from_bytes(marker[:2], "big") // 2


def fresh_port() -> int:
    return own_port(secrets.token_bytes(2))


def udp(port: int = ECHO, source_port: int = 0) -> Layer:
    return lambda version, marker: UDP(sport=source_port or own_port(marker), dport=port) / Raw(marker)


def syn(port: int = WEB, source_port: int = 0) -> Layer:
    # The marker is the sequence number, which no other packet carries.
    def build(version: int, marker: bytes) -> Packet:
        return TCP(sport=source_port or own_port(marker), dport=port, flags="S", seq=int.from_bytes(marker, "big"))

    return build


def echo_request() -> Layer:
    def build(version: int, marker: bytes) -> Packet:
        number = own_port(marker)
        return (ICMP(type=8, id=number) if version == 4 else ICMPv6EchoRequest(id=number)) / Raw(marker)

    return build


def echo_reply() -> Layer:
    def build(version: int, marker: bytes) -> Packet:
        number = own_port(marker)
        return (ICMP(type=0, id=number) if version == 4 else ICMPv6EchoReply(id=number)) / Raw(marker)

    return build


PROTOCOLS: dict[str, tuple[Layer, str]] = {
    # protocol -> a packet that begins something there, and the lab policy's endpoint that takes it
    "tcp": (syn(), "web"),
    "udp": (udp(), "echo"),
    "ping": (echo_request(), "ping"),
}


def ip(version: int, source: str, destination: str, **fields: object) -> Packet:
    return IP(src=source, dst=destination, **fields) if version == 4 else IPv6(src=source, dst=destination, **fields)


@dataclasses.dataclass
class Probe:
    """A packet of `layer` from `sender` to `receiver`; each field that is not given is the honest one."""

    sender: str
    receiver: str
    layer: Layer
    version: int = 4
    source: str | None = None
    destination: str | None = None
    source_mac: str | None = None
    interface: str = "eth0"

    def __post_init__(self) -> None:
        self.marker = secrets.token_bytes(4)  # in every frame of this probe, and in no other

    def packet(self) -> Packet:
        source = self.source or HOSTS[self.sender].address(self.version)
        destination = self.destination or HOSTS[self.receiver].address(self.version)
        head = Ether(src=self.source_mac or HOSTS[self.sender].mac, dst=GATEWAYS[self.sender].mac)
        return head / ip(self.version, source, destination) / self.layer(self.version, self.marker)

    def frame(self) -> bytes:
        return bytes(self.packet())


def ports_of(frames: Sequence[bytes]) -> set[int]:
    """Where IPv4 frames of UDP or TCP go to."""
    return {int.from_bytes(frame[36:38], "big") for frame in frames}


def watching(lab: Lab, probe: Probe) -> contextlib.AbstractContextManager[Capture]:
    """Counts what arrives of a probe. By length too: an ICMP error about an answer quotes the marker as well."""
    return lab.capture(probe.receiver, probe.marker, probe.interface, {len(probe.frame())})


def passes(lab: Lab, probe: Probe, packets: int = PACKETS) -> None:
    """All packets of the probe arrive at its receiver."""
    arrives(lab, probe.sender, probe.receiver, [probe.frame()] * packets, probe.marker, probe.interface)


def denied(lab: Lab, probe: Probe, reason: str, hook: str, packets: int = PACKETS) -> None:
    """None arrives, and the counter of `reason` at `hook` rises by exactly the packets sent."""
    dropped(lab, probe.sender, probe.receiver, [probe.frame()] * packets, probe.marker, reason, hook)


def deliver(lab: Lab, sender: str, frames: Sequence[bytes], judged: Callable[[], int]) -> None:
    """Sends each frame when the one before was judged, which is when `judged` has risen by one.

    Frames of one new connection that meet in conntrack at once make it drop some as a clash, by no rule of ours.
    """
    for frame in frames:
        wanted = judged() + 1
        lab.send(sender, [frame])
        wait_until(lambda wanted=wanted: judged() >= wanted, 3)


def counted_in_kernel(lab: Lab) -> list[int]:
    """Packets by hook and reason, in the maps' order: for when the daemon cannot be asked."""
    (pin,) = lab.pin_dir.glob("v*/maps/reason_counters")
    return [sum(struct.unpack_from("=Q", value, at)[0] for at in range(0, len(value), REASON_COUNTER_BYTES)) for value in values_of(pin)]


def send_to_be_judged(lab: Lab, sender: str, frames: Sequence[bytes]) -> None:
    """Returns when as many packets were counted for one reason."""
    before = counted_in_kernel(lab)
    lab.send(sender, frames)
    wait_until(
        lambda: max(now - then for now, then in zip(counted_in_kernel(lab), before, strict=True)) >= len(frames),
        what="each is judged",
    )


def arrives(
    lab: Lab, sender: str, receiver: str, frames: Sequence[bytes], marker: bytes, interface: str = "eth0"
) -> None:
    with lab.capture(receiver, marker, interface, {len(frame) for frame in frames}) as capture:
        try:
            deliver(lab, sender, frames, capture.count)
        except TimeoutError:
            drops = {key: count for key, count in lab.counters().items() if count}
            raise AssertionError(
                f"{capture.count()} of {len(frames)} packets arrived at {receiver}; counters: {drops}"
            ) from None
        assert capture.count() == len(frames)


def dropped(
    lab: Lab, sender: str, receiver: str, frames: Sequence[bytes], marker: bytes, reason: str, hook: str
) -> None:
    with lab.capture(receiver, marker) as capture:
        before = lab.counters()
        lab.send(sender, frames)
        # veth hands over within the sender's call or its softirq; the counter tells when all were judged.
        try:
            wait_until(lambda: lab.counter(reason, hook) - before.get((hook, reason), 0) >= len(frames), 3)
        except TimeoutError:
            after = lab.counters()
            rose = {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}
            raise AssertionError(
                f"{hook} did not count {len(frames)} packets as {reason}; {capture.count()} arrived; "
                f"these counters rose: {rose}"
            ) from None
        assert lab.counter(reason, hook) - before.get((hook, reason), 0) == len(frames)
        assert capture.count() == 0, f"{hook} counted {reason}, and yet packets arrived at {receiver}"


def dropped_by_nft(lab: Lab, probe: Probe, reason: str, packets: int = PACKETS) -> None:
    """None arrives, and it is nftables that counts them."""
    with lab.capture(probe.receiver, probe.marker) as capture:
        before = lab.nft_counters()
        lab.send(probe.sender, [probe.frame()] * packets)
        try:
            wait_until(lambda: lab.nft_counter(reason) - before[reason] >= packets, 3)
        except TimeoutError:
            rose = lab.nft_counters() - before
            raise AssertionError(f"nft did not count {packets} packets as {reason}, but {dict(rose)}; {capture.count()} arrived") from None
        assert lab.nft_counters() - before == {reason: packets}
        assert capture.count() == 0
