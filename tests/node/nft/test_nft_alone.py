"""The nft layer by itself, with real packets: no eBPF program is attached, so every verdict here is nft's.

    client (uplink's far end)            node                     tenants
    192.0.2.10, 2001:db8:1::10 ---- wan [forwards] ta ---- alpha 10.0.1.2, fd00:1::2
                                                  tb ---- beta  10.0.2.2, fd00:2::2

Every denial stands beside the control that shows that the same probe passes when it may.
Needs root. HOLDFAST_BUILD names the build directory (tests/unit/nft/nft_apply in it).
"""

import contextlib
import ctypes
import ipaddress
import os
import pathlib
import socket
import struct
import subprocess
import threading
import time
import uuid

import pytest
from lab import SLOW

BUILD = os.environ.get("HOLDFAST_BUILD", os.path.join(os.path.dirname(__file__), "../../../build/release"))
APPLY = os.path.join(BUILD, "tests/unit/nft/nft_apply")
LONG = 60_000
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces")

ADDRESS = {
    "client": {4: "192.0.2.10", 6: "2001:db8:1::10"},
    "alpha": {4: "10.0.1.2", 6: "fd00:1::2"},
    "beta": {4: "10.0.2.2", 6: "fd00:2::2"},
    "node": {4: "192.0.2.1", 6: "2001:db8:1::1"},
}
GATEWAY = {
    "client": ADDRESS["node"],
    "alpha": {4: "10.0.1.1", 6: "fd00:1::1"},
    "beta": {4: "10.0.2.1", 6: "fd00:2::1"},
}
PORT = {"alpha": "ta", "beta": "tb"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def sh(command, check=True, stdin=""):
    done = subprocess.run(command.split(), input=stdin, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}\n{stdin}{done.stdout}{done.stderr}")
    return done


class Net:
    """Four namespaces; `at(name)` puts the calling thread into one for a while."""

    def __init__(self):
        tag = uuid.uuid4().hex[:6]
        self.name = {role: f"hfn-{tag}-{role}" for role in ("client", "node", "alpha", "beta")}
        self.servers = []

    def build(self):
        sh("ip -batch -", stdin="".join(f"netns add {ns}\n" for ns in self.name.values()))
        cables = {"client": "wan", "alpha": "ta", "beta": "tb"}
        for role in self.name:
            self.sysctl(role, "ipv6/conf/all/accept_dad", 0)
            self.sysctl(role, "ipv6/conf/default/accept_dad", 0)
        self.sysctl("node", "ipv4/ip_forward", 1)
        self.sysctl("node", "ipv6/conf/all/forwarding", 1)
        self.ip("node", "link set lo up", *(line for each in cables.items() for line in self.nodes_end(*each)))
        for role in cables:
            self.ip(
                role,
                "link set lo up",
                *(f"addr add {ADDRESS[role][version]}/{plen} dev eth0" for version, plen in ((4, 24), (6, 64))),
                "link set eth0 up",
                *(f"route add default via {GATEWAY[role][version]}" for version in (4, 6)),
            )

    def nodes_end(self, role, port):
        return [
            f"link add {port} type veth peer name eth0 netns {self.name[role]}",
            *(f"addr add {GATEWAY[role][version]}/{plen} dev {port}" for version, plen in ((4, 24), (6, 64))),
            f"link set {port} up",
        ]

    def sysctl(self, role, name, value):
        with self.at(role):
            pathlib.Path("/proc/sys/net", name).write_text(f"{value}\n")

    def run(self, role, command, check=True, stdin=""):
        with self.at(role):
            return sh(command, check, stdin)

    def ip(self, role, *lines):
        self.run(role, "ip -batch -", stdin="".join(f"{line}\n" for line in lines))

    def apply(self, *words):
        self.run("node", " ".join([APPLY, *words]))

    @contextlib.contextmanager
    def at(self, role):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name[role]}", os.O_RDONLY)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
            os.close(home)
            os.close(there)

    def socket(self, role, version, kind):
        with self.at(role):
            return socket.socket(FAMILY[version], kind)

    def serve_tcp(self, role, port, version=4):
        """Echoes what it is sent, with the port it runs on in front."""
        listener = self.socket(role, version, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS[role][version] if role != "node" else ("0.0.0.0", "", "::")[version - 4], port))
        listener.listen(16)
        self.servers.append(listener)

        def session(connection):
            with contextlib.suppress(OSError), connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    self.servers.append(connection)
                    threading.Thread(target=session, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def serve_udp(self, role, port, version=4):
        server = self.socket(role, version, socket.SOCK_DGRAM)
        server.bind((ADDRESS[role][version], port))
        self.servers.append(server)

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    data, peer = server.recvfrom(4096)
                    if peer is None:  # shut down
                        return
                    server.sendto(data, peer)

        threading.Thread(target=answer, daemon=True).start()

    def connect(self, source, target, port, version=4, timeout=0.7, address=None):
        out = self.socket(source, version, socket.SOCK_STREAM)
        out.settimeout(timeout)
        try:
            out.connect((address or ADDRESS[target][version], port))
        except OSError:
            out.close()
            raise
        return out

    def tcp(self, source, target, port, version=4, timeout=0.7, address=None):
        try:
            with self.connect(source, target, port, version, timeout, address) as connection:
                return says(connection)
        except OSError:
            return False

    def udp(self, source, target, port, version=4, timeout=0.5):
        with self.socket(source, version, socket.SOCK_DGRAM) as out:
            out.settimeout(timeout)
            out.sendto(b"ping", (ADDRESS[target][version], port))
            try:
                return out.recv(100) == b"ping"
            except OSError:
                return False

    def ping(self, source, target, version=4, address=None):
        address = address or ADDRESS[target][version]
        return self.run(source, f"ping -{version} -c1 -W1 {address}", check=False).returncode == 0

    def forget_flows(self):
        """Empties the node's conntrack table (IPCTNL_MSG_CT_DELETE without a tuple)."""
        with self.at("node"):
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        with netlink:
            request, acknowledge = 1, 4
            netlink.send(struct.pack("=LHHLLBBH", 20, 1 << 8 | 2, request | acknowledge, 1, 0, 0, 0, 0))
            assert struct.unpack_from("=i", netlink.recv(4096), 16)[0] == 0

    def counter(self, chain, reason):
        text = self.run("node", f"nft list chain inet holdfast {chain}").stdout
        return sum(
            int(line.split("counter packets ")[1].split()[0])
            for line in text.splitlines()
            if f'comment "{reason}"' in line
        )

    def close(self):
        for each in self.servers:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        sh("ip -force -batch -", check=False, stdin="".join(f"netns del {ns}\n" for ns in self.name.values()))


def says(connection, data=b"hello"):
    """Whether what is sent comes back."""
    try:
        connection.sendall(data)
        return connection.recv(100) == data
    except OSError:
        return False


@pytest.fixture
def net():
    out = Net()
    try:
        out.build()
        out.apply("ensure", "failsafe=22", "listen=tcp,443,192.0.2.0/24", "listen=tcp,444,198.51.100.0/24")
        out.apply("apply", "arm=wan", "arm=ta", "arm=tb", "tenant=ta", "tenant=tb")
        out.apply(
            "apply",
            *(f"own={PORT[t]},{ADDRESS[t][v]}" for t in ("alpha", "beta") for v in (4, 6)),
        )
        yield out
    finally:
        out.close()


def lease(tenant, protocol, port, version=4, peer=None, ttl_ms=LONG, side="a"):
    tail = f",{peer}" if peer else ""
    return f"lease={side},{ttl_ms},{PORT[tenant]},{ADDRESS[tenant][version]},{protocol},{port}{tail}"


def revoke(tenant, protocol, port, version=4, peer=None):
    tail = f",{peer}" if peer else ""
    return f"revoke={PORT[tenant]},{ADDRESS[tenant][version]},{protocol},{port}{tail}"


def egress(tenant, ttl_ms=LONG, side="a"):
    return f"egress={side},{ttl_ms},{PORT[tenant]}"


@pytest.mark.parametrize("version", [4, 6])
def test_an_endpoint_passes_only_under_its_lease(net, version):
    net.serve_tcp("alpha", 8080, version)
    net.serve_tcp("alpha", 8081, version)
    net.serve_udp("alpha", 8080, version)
    assert not net.tcp("client", "alpha", 8080, version)
    assert not net.udp("client", "alpha", 8080, version)
    assert not net.ping("client", "alpha", version)
    assert net.counter("to_tenant", "no_lease") > 0
    net.apply("apply", lease("alpha", "tcp", 8080, version))
    assert net.tcp("client", "alpha", 8080, version)
    assert not net.tcp("client", "alpha", 8081, version), "another port"
    assert not net.udp("client", "alpha", 8080, version), "another protocol"
    net.apply("apply", lease("alpha", "udp", 8080, version), lease("alpha", "icmp_echo", 0, version))
    assert net.udp("client", "alpha", 8080, version)
    assert net.ping("client", "alpha", version)
    net.apply("apply", revoke("alpha", "udp", 8080, version), revoke("alpha", "icmp_echo", 0, version))
    assert not net.udp("client", "alpha", 8080, version)
    assert not net.ping("client", "alpha", version)
    assert net.tcp("client", "alpha", 8080, version)


def test_expiry_cuts_an_established_connection_and_renewing_in_turn_does_not(net):
    net.serve_tcp("alpha", 8080)
    net.serve_tcp("beta", 8080)
    ttl_ms = round(1500 * SLOW)
    net.apply("apply", lease("alpha", "tcp", 8080, ttl_ms=ttl_ms), lease("beta", "tcp", 8080, ttl_ms=ttl_ms))
    short = net.connect("client", "alpha", 8080)
    renewed = net.connect("client", "beta", 8080)
    deadline = time.monotonic() + 1.6 * SLOW
    assert says(short) and says(renewed)
    side = "b"
    while time.monotonic() < deadline:
        net.apply("apply", lease("beta", "tcp", 8080, ttl_ms=ttl_ms, side=side))
        side = "a" if side == "b" else "b"
        assert says(renewed)
        time.sleep(0.1)
    assert not says(short), "nobody touched nft: the lease died in the kernel"
    assert says(renewed)
    short.close()
    renewed.close()


def test_revocation_cuts_an_established_connection_on_its_next_packet(net):
    net.serve_tcp("alpha", 8080)
    net.serve_tcp("alpha", 8081)
    net.apply("apply", lease("alpha", "tcp", 8080), lease("alpha", "tcp", 8081))
    revoked = net.connect("client", "alpha", 8080)
    control = net.connect("client", "alpha", 8081)
    assert says(revoked) and says(control)
    net.apply("apply", revoke("alpha", "tcp", 8080))
    assert not says(revoked)
    assert says(control)


@pytest.mark.parametrize("version", [4, 6])
def test_a_tenant_sends_only_under_an_egress_lease(net, version):
    net.serve_tcp("client", 9090, version)
    net.serve_udp("client", 9090, version)
    assert not net.tcp("alpha", "client", 9090, version)
    assert not net.udp("alpha", "client", 9090, version)
    assert not net.ping("alpha", "client", version)
    assert net.counter("from_tenant_begins", "no_egress_lease") > 0
    net.apply("apply", egress("alpha"))
    assert net.tcp("alpha", "client", 9090, version)
    assert net.udp("alpha", "client", 9090, version)
    assert net.ping("alpha", "client", version)
    assert not net.tcp("beta", "client", 9090, version), "another tenant's egress lease"
    established = net.connect("alpha", "client", 9090, version)
    assert says(established)
    net.apply("apply", "revoke-egress=ta")
    assert not says(established)
    established.close()


def test_an_egress_lease_opens_nothing_towards_the_tenant(net):
    net.serve_tcp("alpha", 8080)
    net.apply("apply", egress("alpha"))
    assert not net.tcp("client", "alpha", 8080)
    net.apply("apply", lease("alpha", "tcp", 8080))
    open_connection = net.connect("client", "alpha", 8080)
    assert says(open_connection)
    net.apply("apply", revoke("alpha", "tcp", 8080))
    assert not says(open_connection), "the egress lease does not carry on a flow begun from outside"


def test_a_forgotten_connection_is_not_taken_up_as_the_tenants_own(net):
    net.serve_tcp("alpha", 8080)
    net.apply("apply", egress("alpha"), lease("alpha", "tcp", 8080))
    client = net.connect("client", "alpha", 8080)
    assert says(client)
    server = net.servers[-1]
    # The control: under the lease conntrack's memory does not matter, and the server may speak first.
    net.forget_flows()
    server.sendall(b"one")
    assert client.recv(100) == b"one"
    net.apply("apply", revoke("alpha", "tcp", 8080))
    net.forget_flows()
    server.sendall(b"two")
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.close()


def test_a_leased_endpoint_may_answer_but_not_begin(net):
    net.serve_tcp("client", 9090)
    net.serve_tcp("alpha", 8080)
    net.apply("apply", lease("alpha", "tcp", 8080))
    assert net.tcp("client", "alpha", 8080)

    def from_endpoint_port():
        with net.socket("alpha", 4, socket.SOCK_STREAM) as out:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            out.bind(("10.0.1.2", 8082))
            out.settimeout(0.7)
            try:
                out.connect((ADDRESS["client"][4], 9090))
                return True
            except OSError:
                return False

    net.apply("apply", lease("alpha", "tcp", 8082))
    assert not from_endpoint_port()
    net.apply("apply", egress("alpha"))
    assert from_endpoint_port()


@pytest.mark.parametrize("version", [4, 6])
def test_lateral_traffic_needs_a_lease_that_names_the_peer(net, version):
    full = {4: 32, 6: 128}[version]
    net.serve_tcp("beta", 8080, version)
    net.apply("apply", egress("alpha"), egress("beta"), lease("beta", "tcp", 8080, version))
    assert net.tcp("client", "beta", 8080, version), "the lease is for the world outside"
    assert not net.tcp("alpha", "beta", 8080, version)
    assert not net.ping("alpha", "beta", version)
    assert net.counter("to_tenant", "lateral") > 0
    alpha = f"{ADDRESS['alpha'][version]}/{full}"
    net.apply("apply", lease("beta", "tcp", 8080, version, peer=alpha))
    connection = net.connect("alpha", "beta", 8080, version)
    assert says(connection)
    net.apply("apply", revoke("beta", "tcp", 8080, version, peer=alpha))
    assert not says(connection), "the plain lease does not carry the answers to another tenant"
    connection.close()


@pytest.mark.parametrize(
    "version, inside, outside",
    [(4, "192.0.2.8/29", "192.0.2.128/25"), (6, "2001:db8:1::/64", "2001:db8:2::/64")],
)
def test_a_peer_prefix_is_honoured(net, version, inside, outside):
    net.serve_tcp("alpha", 8080, version)
    net.apply(
        "apply",
        lease("alpha", "tcp", 8080, version, peer=outside),
        lease("alpha", "icmp_echo", 0, version, peer=outside),
    )
    assert not net.tcp("client", "alpha", 8080, version)
    assert not net.ping("client", "alpha", version)
    net.apply(
        "apply",
        revoke("alpha", "tcp", 8080, version, peer=outside),
        lease("alpha", "tcp", 8080, version, peer=inside),
        lease("alpha", "icmp_echo", 0, version, peer=inside),
    )
    assert net.tcp("client", "alpha", 8080, version)
    assert net.ping("client", "alpha", version)


@pytest.mark.parametrize(
    "version, address",
    [
        (4, "169.254.169.254"),
        (6, "fd00:ec2::254"),
        (6, "fd20:ce::254"),
        (4, "168.63.129.16"),
        (4, "100.100.100.200"),
        (4, "169.254.170.2"),
        (4, "169.254.170.23"),
        (6, "fd00:ec2::23"),
    ],
)
def test_no_tenant_reaches_a_metadata_service(net, version, address):
    """The client stands for it. Beside it, at an address that differs in one bit, is nothing special."""
    beside = str(ipaddress.ip_address(int(ipaddress.ip_address(address)) ^ 1))
    link_local = ipaddress.ip_address(address).is_link_local
    net.apply("apply", egress("alpha"))
    for each in (address, beside):
        net.run("client", f"ip addr add {each}/{32 if version == 4 else 128} dev lo")
        net.run("node", f"ip -{version} route add {each} via {ADDRESS['client'][version]}")
    try:
        # The first answers over IPv6 may be lost to neighbour discovery.
        assert link_local or any(net.ping("alpha", "client", version, beside) for _ in range(5))
        before = net.counter("from_tenant", "metadata")
        assert not net.ping("alpha", "client", version, address)
        assert net.counter("from_tenant", "metadata") > before
    finally:
        for each in (address, beside):
            net.run("client", f"ip addr del {each}/{32 if version == 4 else 128} dev lo")
            net.run("node", f"ip -{version} route del {each}")


def test_a_source_that_is_not_the_ports_is_dropped(net):
    net.serve_udp("client", 9090)
    net.run("alpha", "ip addr add 10.0.1.3/24 dev eth0")
    net.apply("apply", egress("alpha"))

    def from_address(address):
        with net.socket("alpha", 4, socket.SOCK_DGRAM) as out:
            out.bind((address, 0))
            out.settimeout(0.5)
            out.sendto(b"ping", (ADDRESS["client"][4], 9090))
            try:
                return out.recv(100) == b"ping"
            except OSError:
                return False

    assert not from_address("10.0.1.3")
    assert net.counter("from_tenant", "spoofed_address") == 1
    assert from_address("10.0.1.2")
    net.apply("apply", "own=ta,10.0.1.3")
    assert from_address("10.0.1.3")


def test_only_armed_interfaces_forward(net):
    net.serve_tcp("alpha", 8080)
    net.apply("apply", lease("alpha", "tcp", 8080))
    assert net.tcp("client", "alpha", 8080)
    for interface in ("wan", "ta"):
        net.apply("apply", f"disarm={interface}")
        assert not net.tcp("client", "alpha", 8080)
        net.apply("apply", f"arm={interface}")
        assert net.tcp("client", "alpha", 8080)
    assert net.counter("forward", "unknown_port") > 0


def closed_port_answer(net, source, target, port):
    """What a UDP packet to a port nobody listens on is answered with: True if an ICMP error came."""
    with net.socket(source, 4, socket.SOCK_DGRAM) as out:
        out.settimeout(0.5)
        out.connect((ADDRESS[target][4], port))
        out.send(b"ping")
        try:
            out.recv(100)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def test_icmp_errors_pass_about_leased_flows_only(net):
    # Out of the tenant: its port unreachable, about a packet to its leased endpoint.
    net.apply("apply", lease("alpha", "udp", 7000))
    assert closed_port_answer(net, "client", "alpha", 7000)
    # With the lease gone the packet itself no longer reaches it, nor would its error leave.
    net.apply("apply", revoke("alpha", "udp", 7000))
    assert not closed_port_answer(net, "client", "alpha", 7000)
    # Into the tenant: the client's port unreachable, about what the tenant sent under its egress lease.
    assert not closed_port_answer(net, "alpha", "client", 7001)
    net.apply("apply", egress("alpha"))
    assert closed_port_answer(net, "alpha", "client", 7001)
    # Laterally: about a flow a lease names the peer of.
    assert not closed_port_answer(net, "alpha", "beta", 7002)
    net.apply("apply", lease("beta", "udp", 7002, peer="10.0.1.2/32"))
    assert closed_port_answer(net, "alpha", "beta", 7002)


def test_the_host_denies_by_default_and_its_failsafe_port_is_open(net):
    for port in (22, 443, 444, 5000):
        net.serve_tcp("node", port)
    assert net.tcp("client", "node", 22), "failsafe"
    assert net.tcp("client", "node", 443), "a listener that allows this client"
    assert not net.tcp("client", "node", 444), "a listener for others"
    assert not net.tcp("client", "node", 5000), "not declared"
    assert net.counter("input", "host") > 0
    assert net.ping("client", "node") and net.ping("client", "node", 6)
    # Tenants do not reach the host at all, whatever they are leased; neighbour discovery they need.
    net.apply("apply", egress("alpha"))
    for port in (22, 443):
        assert not net.tcp("alpha", "node", port)
        assert not net.tcp("alpha", "node", port, address=GATEWAY["alpha"][4])
    assert not net.ping("alpha", "node", address=GATEWAY["alpha"][4])
    assert "lladdr" in net.run("alpha", f"ip -6 neigh show {GATEWAY['alpha'][6]}", check=False).stdout or (
        net.ping("alpha", "client", 6)
    )
    # The node's own flows get their replies.
    net.serve_tcp("client", 9090)
    assert net.tcp("node", "client", 9090)
    # Other host rules, in place, and the failsafe port answers on an open connection throughout.
    connection = net.connect("client", "node", 22)
    net.apply("ensure", "failsafe=22", "listen=tcp,5000")
    assert says(connection)
    assert net.tcp("client", "node", 5000)
    assert not net.tcp("client", "node", 443)
    connection.close()


def test_the_boot_table_denies_until_ours_is_in_force(net):
    net.serve_tcp("alpha", 8080)
    net.serve_tcp("node", 22)
    net.serve_tcp("node", 443)
    net.apply("remove")
    assert net.tcp("client", "alpha", 8080), "the control: without any table the node forwards"
    boot = os.path.join(os.path.dirname(__file__), "../../../nft/boot-deny.nft")
    net.run("node", f"nft -f {boot}")
    assert not net.tcp("client", "alpha", 8080)
    assert not net.tcp("client", "node", 443)
    assert net.tcp("client", "node", 22)
