"""What a lease opens and when it closes, with both ways of attaching (tcx and XDP; clsact and tc).

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers G1 (default deny), G2 (expiry), G3 (300 s), G5 (revocation), L1, L2, L7 (network part), L17, P16.
Every denial stands beside its control: the same packet passes under a live lease.
"""

import json
import re
import socket
import time
from collections.abc import Callable

import frames
import pytest
from control import Control, Refused
from lab import (
    A,
    ANSWER_S,
    B,
    CLOSED,
    ECHO,
    FILES,
    HOSTS,
    MANY,
    PERF,
    SILENCE_S,
    SLOW,
    WEB,
    CommandFailed,
    Lab,
    TooSlow,
    in_time,
    says,
    wait_until,
)
from packets import PROTOCOLS, Probe, denied, echo_reply, passes, syn, udp, watching

CASES = [(protocol, version) for protocol in PROTOCOLS for version in (4, 6)]
TENANT_A, CLIENT = HOSTS["tenant-a"], HOSTS["client"]


def probe_of(protocol: str, version: int) -> tuple[Probe, str]:
    layer, endpoint = PROTOCOLS[protocol]
    return Probe("client", "tenant-a", layer, version), endpoint


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ends_s(lease: dict) -> float:
    return boot_s() + lease["remaining_ns"] / 1e9


@pytest.mark.parametrize("protocol, version", CASES)
def test_granted_revoked_granted_again(both_hooks: Lab, protocol: str, version: int) -> None:
    """G1, G5, L1: denied before the grant, after the revoke, and open exactly in between."""
    lab = both_hooks
    probe, endpoint = probe_of(protocol, version)
    denied(lab, probe, "no_lease", "from_uplink")
    for _ in range(2):
        lease = lab.grant(A, endpoint)
        assert list(lab.leases()) == [lease["id"]]
        passes(lab, probe)
        lab.revoke(lease)
        denied(lab, probe, "no_lease", "from_uplink")
        assert lab.leases() == {}


@pytest.mark.parametrize("protocol, version", CASES)
def test_real_clients(both_hooks: Lab, protocol: str, version: int) -> None:
    """G1, L1: a conversation, both ways, with the kernel's own TCP, UDP and ping."""
    lab = both_hooks
    address = TENANT_A.address(version)
    assert not lab.talk(protocol, "client", address, SILENCE_S)
    lease = lab.grant(A, PROTOCOLS[protocol][1])
    assert lab.talk(protocol, "client", address)
    lab.revoke(lease)
    assert not lab.talk(protocol, "client", address, SILENCE_S)


@pytest.mark.parametrize("protocol, version", CASES)
def test_a_lease_opens_only_what_it_names(both_hooks: Lab, protocol: str, version: int) -> None:
    """G1, L4: the other endpoints, the other tenant and ports nobody published stay shut."""
    lab = both_hooks
    probe, endpoint = probe_of(protocol, version)
    lab.grant(A, endpoint)
    passes(lab, probe)
    for other in PROTOCOLS:
        if other != protocol:
            denied(lab, probe_of(other, version)[0], "no_lease", "from_uplink")
    neighbour = Probe("client", "tenant-b", PROTOCOLS[protocol][0], version)
    denied(lab, neighbour, "no_lease", "from_uplink")
    unpublished = Probe("client", "tenant-a", syn(CLOSED), version)
    denied(lab, unpublished, "no_endpoint", "from_uplink")


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("version", [4, 6])
def test_one_address_of_an_endpoint(both_hooks: Lab, version: int) -> None:
    """G1: a lease on web@ADDRESS opens that address and not the endpoint's other one."""
    lab = both_hooks
    for named in (f"web@{TENANT_A.address(version)}", f"web@{bracketed(TENANT_A.address(version))}:{WEB}"):
        lease = lab.grant(A, named)
        passes(lab, Probe("client", "tenant-a", syn(), version))
        denied(lab, Probe("client", "tenant-a", syn(), 10 - version), "no_lease", "from_uplink")
        lab.revoke(lease)


def test_one_port_of_a_range(both_hooks: Lab) -> None:
    """G1: of a thousand ports under one endpoint, the leased one."""
    lab = both_hooks
    lab.grant(A, f"many@{TENANT_A.v4}:{MANY + 7}")
    passes(lab, Probe("client", "tenant-a", udp(MANY + 7)))
    denied(lab, Probe("client", "tenant-a", udp(MANY + 8)), "no_lease", "from_uplink")


@pytest.mark.parametrize("protocol, version", CASES)
def test_expires_on_time(both_hooks: Lab, protocol: str, version: int) -> None:
    """G2, L2: it passes until shortly before its deadline and is denied from the deadline on."""
    lab = both_hooks
    probe, endpoint = probe_of(protocol, version)

    def attempt(term_s: float) -> None:
        lease = lab.grant(A, endpoint, ttl=f"{term_s:g}s")
        end = ends_s(lease)
        try:
            passes(lab, probe)
        except (AssertionError, TimeoutError):
            if boot_s() < end:
                raise
        seen_s = boot_s()
        wait_until(lambda: boot_s() >= end, 2 * term_s)
        wait_until(lambda: lab.leases() == {}, what="the expired lease is no longer listed")
        if seen_s >= end:
            raise TooSlow

    in_time(attempt, 1)
    denied(lab, probe, "no_lease", "from_uplink")


@pytest.mark.parametrize("version", [4, 6])
def test_renewal_has_no_gap(both_hooks: Lab, version: int) -> None:
    """G2, L2: renewed ten times over three terms, no packet at 1000 a second is lost; then it ends."""
    lab = both_hooks
    address = TENANT_A.address(version)

    def attempt(term_s: float) -> None:
        lease = lab.grant(A, "echo", ttl=f"{5 * term_s:g}s")
        end, kept = ends_s(lease), True
        assert lab.udp("client", address, ECHO)
        with lab.probing("client", address, ECHO) as tally:
            for ttl_s in [term_s] * 10 + [2 * term_s]:
                try:
                    lease = lab.renew(lease, f"{ttl_s:g}s")
                except Refused:
                    if boot_s() < end:
                        raise
                kept, end = kept and boot_s() < end, ends_s(lease)
                time.sleep(0.3 * term_s)
        kept = kept and boot_s() < end
        wait_until(lambda: not lab.leases(), 5 * term_s)
        if not kept:
            raise TooSlow
        assert tally["sent"] > 1000 / SLOW and tally["lost"] == []

    in_time(attempt, SLOW)
    wait_until(lambda: not lab.leases())
    denied(lab, Probe("client", "tenant-a", udp(), version), "no_lease", "from_uplink")


@pytest.mark.parametrize("version", [4, 6])
def test_revoking_cuts_an_established_connection(both_hooks: Lab, version: int) -> None:
    """G5: on its next packet; another connection, under another lease, goes on."""
    lab = both_hooks
    address = TENANT_A.address(version)
    web, other = lab.grant(A, "web"), lab.grant(B, "web")
    with (
        lab.connect("client", address, WEB) as cut,
        lab.connect("client", HOSTS["tenant-b"].address(version), WEB) as control,
    ):
        assert says(cut) and says(control)
        lab.revoke(web)
        before = lab.counter("no_lease", "from_uplink")
        cut.settimeout(SILENCE_S)
        assert not says(cut)
        assert lab.counter("no_lease", "from_uplink") > before
        assert says(control)
        # A new lease is a new lease: the endpoint is open again, for old connections too, until it ends.
        again = lab.grant(A, "web")
        cut.settimeout(2 * ANSWER_S)
        assert cut.recv(100) == b"hello", "TCP's own retransmission of what was lost"
        lab.revoke(again)
        lab.revoke(other)


@pytest.mark.parametrize("version", [4, 6])
def test_revoking_cuts_a_download(own_both: Lab, version: int) -> None:
    """G5: curl stops receiving within the moment, while the server would go on for ever."""
    lab = own_both
    lab.serve("tenant-a", f"patient:{FILES}")
    address = TENANT_A.address(version)
    lease = lab.grant(A, "files")
    target = lab.dir / "download"
    lab.popen("client", ["curl", "-s", "-o", str(target), f"http://{bracketed(address)}:{FILES}/"])
    size = lambda: target.stat().st_size if target.exists() else 0  # noqa: E731
    wait_until(lambda: size() > 1_000_000, what="the download runs")
    lab.revoke(lease)
    drops = lab.counter("no_lease", "from_tenant")
    # What curl had received already it writes at once; from then on, nothing more.
    wait_until(lambda: lab.counter("no_lease", "from_tenant") > drops, what="the server's segments are dropped")
    stopped = settled(size)
    # The server tries again after twice the time each time: the next one may take as long as all before.
    again = lab.counter("no_lease", "from_tenant")
    wait_until(lambda: lab.counter("no_lease", "from_tenant") > again, 15, "the server tries again")
    assert size() == stopped


def settled(value, still_s: float = 0.3 * SLOW) -> int:
    """The value, once it has not moved for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < still_s:
        if (now := value()) != last:
            last, since = now, time.monotonic()
        time.sleep(0.01)
    return last


@pytest.mark.parametrize("version", [4, 6])
def test_peer_prefix(both_hooks: Lab, version: int) -> None:
    """L4: a lease for one network is shut for another, also inside a flow."""
    lab = both_hooks
    inside, outside = {4: ("192.0.2.8/29", "192.0.2.128/25"), 6: ("2001:db8:1::/64", "2001:db8:2::/64")}[version]
    probe = Probe("client", "tenant-a", udp(), version)
    lease = lab.grant(A, "echo", peer=outside)
    denied(lab, probe, "peer_not_leased", "from_uplink")
    lab.revoke(lease)
    lab.grant(A, "echo", peer=inside)
    passes(lab, probe)
    assert lab.udp("client", TENANT_A.address(version), ECHO)


@pytest.mark.parametrize("version", [4, 6])
def test_an_endpoint_answers_but_does_not_begin(both_hooks: Lab, version: int) -> None:
    """G1: a leased TCP endpoint sends no SYN, a leased ping no request nobody made."""
    lab = both_hooks
    lab.grant(A, "web", "ping")
    begins = Probe("tenant-a", "client", syn(9999, source_port=WEB), version)
    denied(lab, begins, "no_egress_lease", "from_tenant")
    # The control: the same SYN under an egress lease.
    lab.grant(A, egress="a0")
    passes(lab, begins)


@pytest.mark.parametrize("disabled", [A, B])
def test_a_disabled_tenant_goes_dark_at_once(both_hooks: Lab, disabled: str) -> None:
    """G5, P16: 900 leases end with one store; the other tenant notices nothing; enabling revives nothing."""
    lab = both_hooks
    role, other = ("tenant-a", "tenant-b") if disabled == A else ("tenant-b", "tenant-a")
    requests = [
        {"tenant": tenant, "endpoints": [f"many@{HOSTS[where].v4}:{MANY + n}"], "ttl": "120s"}
        for tenant, where in ((A, "tenant-a"), (B, "tenant-b"))
        for n in range(900)
    ]
    assert lab.grant_many(requests)["granted"] == 1800
    mine = [Probe("client", role, udp(MANY + n)) for n in (0, 450, 899)]
    theirs = Probe("client", other, udp(MANY + 450))
    for probe in [*mine, theirs]:
        passes(lab, probe)
    lab.cli("tenant", "disable", disabled)
    wait_until(lambda: len(lab.leases()) == 900, 20, "the teardown is done")
    for probe in mine:
        denied(lab, probe, "no_lease", "from_uplink")
    passes(lab, theirs)
    assert "disabled" in lab.cli_refused("lease", "grant", disabled, "--endpoint", "web", "--ttl", "60s")
    lab.cli("tenant", "enable", disabled)
    for probe in mine:
        denied(lab, probe, "no_lease", "from_uplink")
    lab.grant(disabled, f"many@{HOSTS[role].v4}:{MANY + 450}")
    passes(lab, mine[1])


@pytest.mark.parametrize("version", [4, 6])
def test_release_is_for_holder_and_operator(lab: Lab, version: int) -> None:
    """L17: the holder gives its lease back; another user may not."""
    lease = lab.grant(A, "echo", holder="uid:61000")
    probe = Probe("client", "tenant-a", udp(), version)
    passes(lab, probe)
    stranger = ["setpriv", "--reuid=61001", "--regid=61001", "--clear-groups"]
    holder = ["setpriv", "--reuid=61000", "--regid=61000", "--clear-groups"]
    refused = lab.try_cli("lease", "release", lease["id"], prefix=stranger, json_output=False)
    assert refused.returncode == 1 and "not yours" in refused.stdout + refused.stderr
    passes(lab, probe)
    done = lab.try_cli("lease", "release", lease["id"], prefix=holder)
    assert done.returncode == 0, done.stderr
    denied(lab, probe, "no_lease", "from_uplink")


REFUSED = {
    # what is asked for -> exit code, what the answer says
    "no term": (["--endpoint", "web", "--ttl", "0s"], r"300 ?s"),
    "301 seconds": (["--endpoint", "web", "--ttl", "301s"], r"300 ?s"),
    "a negative term": (["--endpoint", "web", "--ttl", "-5s"], r"ttl|duration|300 ?s"),
    "no resource": (["--ttl", "60s"], r"endpoint|egress"),
    "unknown endpoint": (["--endpoint", "wbe", "--ttl", "60s"], r"\bwbe\b"),
    "unknown port": (["--egress", "z9", "--ttl", "60s"], r"\bz9\b"),
    "another's address": (["--endpoint", f"web@{HOSTS['tenant-b'].v4}", "--ttl", "60s"], r"10\.2\.0\.2"),
    "host bits in the peer": (["--endpoint", "web", "--peer", "10.0.0.1/8", "--ttl", "60s"], r"10\.0\.0"),
    "unknown holder": (["--endpoint", "web", "--holder", "alice", "--ttl", "60s"], r"alice"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_bad_grants_are_refused_whole(lab: Lab, case: str) -> None:
    """G3, G14, L2: each with words that say what to do; nothing is granted, and the longest term still is."""
    words, pattern = REFUSED[case]
    done = lab.try_cli("lease", "grant", A, *words, json_output=False)
    assert done.returncode in (1, 2), done
    assert re.search(pattern, done.stdout + done.stderr), done.stdout + done.stderr
    assert lab.leases() == {}
    control = lab.grant(A, "web", ttl="300s")
    assert control["remaining_ns"] <= 300_000_000_000


def test_unknown_tenants_and_leases(lab: Lab) -> None:
    """L17: NotFound is an answer, not a success."""
    assert "nobody/at/all" in lab.cli_refused("lease", "grant", "nobody/at/all", "--endpoint", "web", "--ttl", "60s")
    assert "nobody/at/all" in lab.cli_refused("tenant", "disable", "nobody/at/all")
    lease = lab.grant(A, "web")
    lab.revoke(lease)
    for verb in (["lease", "revoke"], ["lease", "release"], ["lease", "show"]):
        assert lease["id"] in lab.cli_refused(*verb, lease["id"])
    assert lease["id"] in lab.cli_refused("lease", "renew", lease["id"], "--ttl", "60s")


def test_a_bulk_grant_is_all_or_nothing(lab: Lab) -> None:
    """G14: one bad line among many, and none of them is granted."""
    good = [{"tenant": A, "endpoints": [f"many@{TENANT_A.v4}:{MANY + n}"], "ttl": "60s"} for n in range(20)]
    path = lab.dir / "bad.json"
    for bad in (
        good + [{"tenant": A, "endpoints": ["nothing"], "ttl": "60s"}],
        good + [good[3]],
        good + [{"tenant": A, "endpoints": ["web"], "ttl": "301s"}],
        good + [{"tenant": A, "endpoints": ["web"], "ttl": "60s", "surprise": 1}],
    ):
        path.write_text(json.dumps(bad))
        lab.cli_refused("lease", "grant", "--from", path)
        assert lab.leases() == {}
        denied(lab, Probe("client", "tenant-a", udp(MANY + 3)), "no_lease", "from_uplink")
    assert lab.grant_many(good)["granted"] == 20
    passes(lab, Probe("client", "tenant-a", udp(MANY + 3)))


def test_grace_lets_connections_finish_and_ends_in_the_kernel(both_hooks: Lab) -> None:
    """G2, G5: for its grace a revoked lease goes on, and then ends, although the daemon is stopped."""
    lab = both_hooks
    lease = lab.grant(A, "web", ttl="60s")
    probe = Probe("client", "tenant-a", syn())
    grace_s = round(2 * SLOW)
    lab.cli("lease", "revoke", lease["id"], "--grace", f"{grace_s}s")
    end = time.monotonic() + grace_s + 0.1
    assert lab.leases()[lease["id"]]["state"] == "grace_running"
    assert lab.leases()[lease["id"]]["remaining_ns"] <= grace_s * 1_000_000_000
    lab.freeze()
    lab.send("client", [probe.frame()])
    with watching(lab, probe) as capture:
        lab.send("client", [probe.frame()])
        wait_until(lambda: capture.count() == 1, what="it passes within its grace")
        wait_until(lambda: time.monotonic() > end)
        lab.send("client", [probe.frame()] * 3)
        lab.thaw()
        wait_until(lambda: lab.leases() == {})
        assert capture.count() == 1
    denied(lab, probe, "no_lease", "from_uplink")


def answered_without_a_table(lab: Lab, verb: str, args: dict) -> dict:
    """What a daemon says whose nft table another has just taken away, before it knows."""
    lab.freeze()
    lab.nft("delete", "table", "inet", "holdfast")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.connect(str(lab.socket_path))
        connection = frames.Connection(raw)
        connection.send(frames.request(verb, args))
        lab.thaw()
        answers = [connection.read(), connection.read()]
    assert answers[0] and answers[0][0] == frames.HELLO and answers[1], answers
    assert answers[1][0] == frames.REPLY, answers[1]
    return answers[1][2]


def test_a_revoke_with_grace_does_not_need_nft(own_lab: Lab) -> None:
    """G5: with our table gone, the gate ends with the grace and not with the old term."""
    lab = own_lab
    lease = lab.grant(A, "web", ttl="200s")
    answer = answered_without_a_table(lab, "lease.revoke", {"id": lease["id"], "grace_ns": 2_000_000_000})
    assert answer["state"] == "grace_running"
    left = lab.leases().get(lease["id"], {"remaining_ns": 0, "state": "grace_running"})
    assert left["remaining_ns"] <= 2_000_000_000 and left["state"] == "grace_running", left
    wait_until(lambda: lab.leases() == {}, what="it ended")
    denied(lab, Probe("client", "tenant-a", syn()), "no_lease", "from_uplink")


def test_disabling_a_tenant_does_not_need_nft(own_lab: Lab) -> None:
    """L2: with our table gone, its leases end all the same, and none of them comes back."""
    lab = own_lab
    lab.grant(A, "web", ttl="200s")
    assert answered_without_a_table(lab, "tenant.disable", {"name": A})["state"] == "disabled"
    wait_until(lambda: lab.leases() == {}, what="its leases ended")
    wait_until(lambda: "lease.torndown" in lab.log, what="and are torn down")
    wait_until(lambda: "holdfast" in lab.nft("list", "tables"), 15, "the table is back")
    lab.cli("tenant", "enable", A)
    denied(lab, Probe("client", "tenant-a", syn()), "no_lease", "from_uplink")
    lab.grant(A, "web")
    passes(lab, Probe("client", "tenant-a", syn()))


def test_leases_that_end_together_are_each_in_the_log(own_lab: Lab) -> None:
    """L17: a disabled tenant's three leases are three lines, not one."""
    lab = own_lab
    ids = [lab.grant(A, f"many@{TENANT_A.v4}:{MANY + n}")["id"] for n in range(3)]
    lab.cli("tenant", "disable", A)
    for event in ("lease.forced_teardown", "lease.torndown"):
        for number in ids:
            wait_until(lambda e=event, n=number: re.search(rf"{e}\b.*{n}", lab.log), what=f"{event} {number}")


def test_a_list_for_a_tenant_is_paged(lab: Lab) -> None:
    """Only that tenant's; a page of nothing is refused, since it would never end."""
    with Control(lab.socket_path) as control:
        mine = [lab.grant(A, f"many@{TENANT_A.v4}:{MANY + n}")["id"] for n in range(3)]
        lab.grant(B, "web")
        found, cursor = [], 0
        while cursor is not None:
            page = control.call("lease.list", {"tenant": A, "limit": 2, "cursor": cursor})
            found += [lease["id"] for lease in page["leases"]]
            cursor = page["next"]
        assert sorted(found) == sorted(mine)
        with pytest.raises(Refused, match="limit"):
            control.call("lease.list", {"limit": 0})


def test_a_renewal_names_its_generation(lab: Lab) -> None:
    """L3: whoever renews what somebody else changed meanwhile is told so."""
    lease = lab.grant(A, "web", ttl="60s")
    renewed = lab.cli("lease", "renew", lease["id"], "--ttl", "90s", "--generation", lease["generation"])
    assert renewed["generation"] > lease["generation"]
    with pytest.raises(CommandFailed):
        lab.cli("lease", "renew", lease["id"], "--ttl", "90s", "--generation", lease["generation"])
    assert lab.leases()[lease["id"]]["generation"] == renewed["generation"]


def test_iperf_stops_at_revocation(own_lab: Lab) -> None:
    """G5: with iperf3 as the client, its reports fall to nothing."""
    lab = own_lab
    server = lab.popen("tenant-a", ["iperf3", "-s", "-1", "-p", str(PERF)])
    lease = lab.grant(A, "perf")
    wait_until(lambda: listening(lab, "tenant-a", PERF), what="iperf3 listens")
    report = lab.dir / "iperf3"
    argv = ["iperf3", "-c", TENANT_A.v4, "-p", str(PERF), "-t", "60", "-i", "0.5", "-f", "m", "--forceflush"]
    with report.open("w") as output:
        client = lab.popen("client", argv, stdout=output)
    rates: Callable[[], list[float]] = lambda: [  # noqa: E731
        float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec", report.read_text())
    ]
    wait_until(lambda: len(rates()) >= 2, 10, "iperf3 measures")
    assert rates()[-1] > 1, "megabits a second while the lease lives"
    lab.revoke(lease)
    seen = len(rates())
    wait_until(lambda: len(rates()) >= seen + 3, 10, "three further intervals")
    assert rates()[-1] == 0.0
    assert server.poll() is None and client.poll() is None


def listening(lab: Lab, role: str, port: int) -> bool:
    return f":{port}" in lab.run(role, ["ss", "-Hltn", f"sport = :{port}"]).stdout


def test_a_stray_echo_reply_is_nobodys(both_hooks: Lab) -> None:
    """G1: a leased ping takes requests; a reply that the tenant never asked for is denied."""
    lab = both_hooks
    lab.grant(A, "ping")
    passes(lab, probe_of("ping", 4)[0])
    denied(lab, Probe("client", "tenant-a", echo_reply()), "no_endpoint", "from_uplink")
