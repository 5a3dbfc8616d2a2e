"""Other links than veth: network cards with their real drivers, and VLANs.

    client [virtio] ---- qemu's hub, or a bridge ---- [virtio or e1000e] uplink0 [node] ta ---- tenant-a

Covers G1, G2, P4, H5: enforcement never opens, and comes back by itself.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import pytest
from lab import A, ECHO, GATEWAYS, HOSTS, WEB, Lab, wait_until
from packets import PROTOCOLS, Probe, denied, passes, watching

pytestmark = pytest.mark.xdist_group("links")  # there is one of each card

PCI = pathlib.Path("/sys/bus/pci")
# As kernels/machines.toml places them.
CLIENT = "0000:00:10.0"
UPLINKS = {"virtio": "0000:00:11.0", "e1000e": "0000:00:12.0"}
FAST_CLIENT, FAST = "0000:00:13.0", "0000:00:14.0"
TENANT_A = HOSTS["tenant-a"]


def interface_of(card: str) -> str | None:
    """Its name, while it is in the machine's own network namespace."""
    device = PCI / "devices" / card
    return next((path.name for pattern in ("net/*", "virtio*/net/*") for path in device.glob(pattern)), None)


class CardLab(Lab):
    """The client's cable is between two cards."""

    def __init__(self, card: str, mtu: int = 1500, client: str = CLIENT) -> None:
        super().__init__()
        self.card, self.mtu, self.client = card, mtu, client

    def plug_in(self, *roles: str) -> None:
        super().plug_in(*(role for role in roles if role != "client"))
        if "client" not in roles:
            return
        host, gateway = HOSTS["client"], GATEWAYS["client"]
        self.take(self.client, "client", "eth0", host)
        self.ip("client", f"route add default via {gateway.v4}", f"route add default via {gateway.v6}")
        self.take(self.card, "node", gateway.interface, gateway)

    def take(self, card: str, role: str, name: str, host) -> None:
        found = wait_until(lambda: interface_of(card), 10, f"the card {card} is there")
        self.sh(["ip", "link", "set", found, "down"])
        self.sh(["ip", "link", "set", found, "netns", self.ns[role], "name", name])
        self.ip(
            role,
            f"link set {name} address {host.mac} mtu {self.mtu}",
            f"addr add {host.v4}/24 dev {name}",
            f"addr add {host.v6}/64 dev {name}",
            f"link set {name} up",
        )


class TaggedLab(Lab):
    """The client's cable carries VLANs: `tags` are (protocol, id), the outermost first."""

    def __init__(self, tags: list[tuple[str, int]]) -> None:
        super().__init__()
        self.tags = tags

    def plug_in(self, *roles: str) -> None:
        super().plug_in(*roles)
        if "client" not in roles:
            return
        gateway = GATEWAYS["client"]
        self.put_under_tags("client", "eth0", HOSTS["client"])
        self.ip("client", f"route add default via {gateway.v4}", f"route add default via {gateway.v6}")
        self.put_under_tags("node", "uplink0", GATEWAYS["client"])

    def put_under_tags(self, role: str, name: str, host) -> None:
        """The cable is wire0 from now on, and `name` the innermost VLAN on it."""
        words = [f"addr flush dev {name}", f"link set {name} down", f"link set {name} name wire0", "link set wire0 up"]
        below = "wire0"
        for number, (protocol, tag) in enumerate(self.tags, 1):
            vlan = name if number == len(self.tags) else f"vlan{number}"
            words += [f"link add link {below} name {vlan} type vlan protocol {protocol} id {tag}", f"link set {vlan} up"]
            below = vlan
        words += [f"addr add {host.v4}/24 dev {name}", f"addr add {host.v6}/64 dev {name}"]
        self.ip(role, *words)


def uplink_hook(lab: Lab) -> str:
    (uplink,) = lab.cli("status")["hooks"]["uplinks"]
    return uplink["hook"]


def enforces(lab: Lab) -> None:
    """Denied, leased, denied: raw frames and real conversations, in both versions."""
    for protocol, version in (("udp", 4), ("tcp", 6)):
        layer, endpoint = PROTOCOLS[protocol]
        probe = Probe("client", "tenant-a", layer, version)
        denied(lab, probe, "no_lease", "from_uplink")
        lease = lab.grant(A, endpoint)
        passes(lab, probe)
        assert lab.talk(protocol, "client", TENANT_A.address(version))
        lab.revoke(lease)
        denied(lab, probe, "no_lease", "from_uplink")


@pytest.mark.parametrize(
    "driver, mtu, hook",
    [
        ("virtio", 1500, "xdp"),
        ("virtio", 1280, "xdp"),
        ("virtio", 9000, "tc"),  # native XDP takes no frame that is larger than a page
        ("e1000e", 1500, "tc"),  # the driver has no native XDP
        ("e1000e", 9000, "tc"),
    ],
)
def test_an_uplink_by_its_driver(driver: str, mtu: int, hook: str) -> None:
    """The hook that the driver allows, and frames as large as the link takes."""
    with CardLab(UPLINKS[driver], mtu) as lab:
        lab.serve("tenant-a", f"tcp:{WEB}", f"udp:{ECHO}")
        assert uplink_hook(lab) == hook
        enforces(lab)
        lab.run("tenant-a", ["ip", "link", "set", "eth0", "mtu", str(mtu)])
        lab.run("node", ["ip", "link", "set", "ta", "mtu", str(mtu)])
        lab.grant(A, "ping")
        largest = ["ping", "-n", "-q", "-c3", "-i0.2", "-W5", "-M", "do", "-s", str(mtu - 28), TENANT_A.v4]
        assert " 0% packet loss" in lab.run("client", largest).stdout
        lab.grant(A, "web")
        says_much(lab)


def says_much(lab: Lab) -> None:
    """More than a segment at once, each way."""
    with lab.connect("client", TENANT_A.v4, WEB) as connection:
        data, got = bytes(range(256)) * 2000, b""
        for begin in range(0, len(data), 60_000):
            connection.sendall(data[begin : begin + 60_000])
            while len(got) < min(begin + 60_000, len(data)):
                got += connection.recv(1 << 20)
        assert got == data


@pytest.mark.parametrize("mtu, hook", [(1500, "xdp"), (9000, "tc")])
def test_an_uplink_of_two_queues(mtu: int, hook: str) -> None:
    """A program on each queue, by two CPUs at once: whatever flow, the verdict is right, and the counters are exact.
    Super-packets come in whole, as they do where another machine of the same host sends them; XDP has the card cut them.
    """
    with CardLab(FAST, mtu, client=FAST_CLIENT) as lab:
        lab.serve("tenant-a", f"tcp:{WEB}", f"udp:{ECHO}")
        assert uplink_hook(lab) == hook
        enforces(lab)
        before = interrupts(FAST)
        assert len(before) == 2
        flows = [Probe("client", "tenant-a", PROTOCOLS["udp"][0]) for _ in range(32)]
        no_lease = lab.counter("no_lease", "from_uplink")
        lab.send("client", [flow.frame() for flow in flows] * 2)
        wait_until(lambda: lab.counter("no_lease", "from_uplink") == no_lease + 64, what="each of 64 is counted")
        lab.grant(A, "echo")
        for flow in flows:
            passes(lab, flow, 1)
        assert all(now > then for now, then in zip(interrupts(FAST), before, strict=True)), "both queues had some of it"
        lab.run("tenant-a", ["ip", "link", "set", "eth0", "mtu", str(mtu)])
        lab.run("node", ["ip", "link", "set", "ta", "mtu", str(mtu)])
        lease = lab.grant(A, "web")
        lab.run("node", ["ethtool", "-K", "uplink0", "gro", "off"])  # the kernel makes none out of what came in
        with largest_frame(lab, "uplink0") as largest:
            says_much(lab)
            length = largest()
            assert (length > 2 * mtu) == (hook == "tc"), f"a frame of {length} bytes"
        lab.revoke(lease)
        denied(lab, Probe("client", "tenant-a", PROTOCOLS["tcp"][0]), "no_lease", "from_uplink")


def interrupts(card: str) -> list[int]:
    """How often each receive queue of a virtio card had something, over all CPUs."""
    (virtio,) = (path.name for path in (PCI / "devices" / card).glob("virtio*"))
    rows = (line.split() for line in pathlib.Path("/proc/interrupts").read_text().splitlines())
    return [sum(int(word) for word in row if word.isdigit()) for row in rows if row[-1].startswith(f"{virtio}-input.")]


@contextlib.contextmanager
def largest_frame(lab: Lab, interface: str) -> Iterator[Callable[[], int]]:
    """Of what came in there on the node since, the length."""
    with lab.receiving("node", interface) as receiver:

        def largest() -> int:
            lengths = [0]
            with contextlib.suppress(BlockingIOError):
                while True:
                    lengths.append(len(receiver.recv(1 << 17)))
            return max(lengths)

        yield largest


@pytest.mark.parametrize("driver", list(UPLINKS))
def test_an_uplink_is_unplugged_and_comes_back(driver: str) -> None:
    """Without its card there is nothing to reach; a new one is shut until it is guarded, and leases go on."""
    with CardLab(UPLINKS[driver]) as lab:
        lab.serve("tenant-a", f"udp:{ECHO}")
        lease = lab.grant(A, "echo", ttl="300s")
        leased = Probe("client", "tenant-a", PROTOCOLS["udp"][0])
        shut = Probe("client", "tenant-a", PROTOCOLS["tcp"][0])
        passes(lab, leased)
        hook = uplink_hook(lab)
        with watching(lab, shut) as capture:
            (PCI / "devices" / UPLINKS[driver] / "remove").write_text("1")
            wait_until(lambda: dark(lab) == {"uplink0": "interface_missing"}, 15, "the daemon notices")
            lab.send("client", [shut.frame()] * 5)
            (PCI / "rescan").write_text("1")
            lab.take(UPLINKS[driver], "node", "uplink0", GATEWAYS["client"])
            while dark(lab):
                lab.send("client", [shut.frame()] * 5)
            assert capture.count() == 0
        assert uplink_hook(lab) == hook
        assert set(lab.leases()) == {lease["id"]}
        wait_until(lambda: lab.udp("client", TENANT_A.v4, ECHO), 10, "the link is up again")
        passes(lab, leased)
        denied(lab, shut, "no_lease", "from_uplink")


def dark(lab: Lab) -> dict[str, str]:
    return {row["interface"]: row["code"] for row in lab.ask("status")["dark"]}


@pytest.mark.parametrize("tags", [[("802.1Q", 100)], [("802.1ad", 200), ("802.1Q", 100)]], ids=["vlan", "qinq"])
def test_an_uplink_that_is_a_vlan(tags: list[tuple[str, int]]) -> None:
    """The VLAN's device is the uplink; what comes beside it, on the same cable, is not."""
    with TaggedLab(tags) as lab:
        lab.serve("tenant-a", f"tcp:{WEB}", f"udp:{ECHO}")
        assert uplink_hook(lab) == "tc"
        enforces(lab)
        lab.grant(A, "echo")
        probe = Probe("client", "tenant-a", PROTOCOLS["udp"][0])
        passes(lab, probe)
        with watching(lab, probe) as capture:
            lab.send("client", [probe.frame()] * 5, interface="wire0")
            passes(lab, Probe("client", "tenant-a", PROTOCOLS["udp"][0]))
            assert capture.count() == 0, "untagged, it came in by another interface"


PRIORITY_TAGS = {"8021q": b"\x81\x00\xa0\x00", "8021ad": b"\x88\xa8\xa0\x00", "both": b"\x88\xa8\xa0\x00\x81\x00\xa0\x00"}


@pytest.mark.parametrize("tag", list(PRIORITY_TAGS))
def test_priority_tags(tag: str) -> None:
    """TRAPS: id 0 means no VLAN, and the stack takes such a frame like an untagged one; so does the gate."""
    with Lab() as lab:
        probe = Probe("client", "tenant-a", PROTOCOLS["udp"][0])
        frame = probe.frame()[:12] + PRIORITY_TAGS[tag] + probe.frame()[12:]
        before = lab.counter("no_lease", "from_uplink")
        with watching(lab, probe) as capture:
            for number in range(1, 6):
                lab.send("client", [frame])
                wait_until(lambda number=number: lab.counter("no_lease", "from_uplink") == before + number)
            assert capture.count() == 0
            lab.grant(A, "echo")
            for number in range(1, 6):
                lab.send("client", [frame])
                wait_until(lambda number=number: capture.count() == number, what="the leased frame arrives")
