"""Changing the policy: whole or not at all, without touching what stays, beside what belongs to others.

    client ---- uplink0 [node] ta ---- tenant-a
                               tb ---- tenant-b         (topology and addresses: lab.py)

Covers G1, G4, G13, G14, P9, P16, R8, section 4's "attaching" (foreign programs, drift) and issue 2's bad input.
"""

import copy
import json
import pathlib
import re
import struct

import foreign
import pytest
from bpf import pinned_map, values_of
from control import Control
from lab import A, B, ECHO, HOSTS, SILENCE_S, WEB, Lab, end_process, policy, says, wait_until
from packets import Probe, denied, passes, syn, udp, watching

TENANT_A, TENANT_B = HOSTS["tenant-a"], HOSTS["tenant-b"]


def without(endpoint: str) -> dict:
    """The lab's policy, tenant A not publishing one endpoint."""
    document = copy.deepcopy(policy())
    tenant = document["tenants"][0]
    tenant["endpoints"] = [each for each in tenant["endpoints"] if each["name"] != endpoint]
    return document


def changed(path: list, value: object) -> dict:
    document = copy.deepcopy(policy())
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


# ---- refused whole -----------------------------------------------------------------------------------------

BAD = {
    # what is pushed -> what the answer names
    "no YAML": ("version: [1\n", r":\d+"),
    "a key twice": ("version: 1\nversion: 1\n", r":2.*twice|duplicate"),
    "an unknown key": (policy(surprise=1), r"surprise"),
    "a second document": ("version: 1\n---\nversion: 1\n", r"document"),
    "two owners of an address": (changed(["tenants", 1, "ports", 0, "addresses"], [TENANT_A.v4]), r"10\.1\.0\.2"),
    "a port that is never published": (changed(["tenants", 0, "endpoints", 0, "listen"], 25), r"\b25\b"),
    "an endpoint on no port": (changed(["tenants", 0, "endpoints", 0, "port"], "zz"), r"\bzz\b"),
    "a multicast address": (changed(["tenants", 0, "ports", 0, "addresses"], ["224.0.0.1"]), r"224\.0\.0\.1"),
    "more leases than there is room for": (policy(limits={"leases": 1048576}), r"1048576"),
    "a missing tenant port": (changed(["tenants", 0, "ports", 0, "interface"], "gone0"), r"gone0"),
    "a missing uplink": (policy(uplinks=["uplink0", "gone1"]), r"gone1"),
    "an uplink as a tenant port": (changed(["tenants", 0, "ports", 0, "interface"], "uplink0"), r"uplink0"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_policy_is_refused_whole(lab: Lab, case: str) -> None:
    """G14, R8: the last good policy stays in force, live leases notice nothing, and the message names the fault."""
    document, pattern = BAD[case]
    lab.grant(A, "echo")
    before = lab.cli("bundle", "show")
    said = lab.push_refused(document)
    assert re.search(pattern, said), said
    assert lab.cli("bundle", "show") == before
    passes(lab, Probe("client", "tenant-a", udp()))
    denied(lab, Probe("client", "tenant-b", udp()), "no_lease", "from_uplink")
    assert lab.cli("status")["dark"] == []


def test_a_policy_beyond_its_size_is_refused(lab: Lab) -> None:
    """G14: bounded before it is parsed."""
    said = lab.push_refused("# " + "x" * (17 << 20) + "\n")
    assert re.search(r"MiB|bytes|large", said), said
    passes_under_a_grant(lab)


def passes_under_a_grant(lab: Lab) -> None:
    lab.grant(A, "echo")
    passes(lab, Probe("client", "tenant-a", udp()))


KINDS = {
    # what the tenant's port is instead -> what is made, and how; the port's interface; what the answer says
    "a bridge member": (
        "br0",
        ["link add br0 type bridge", "link set ta master br0"],
        "ta",
        r"br0",
    ),
    "a macvlan": ("mv0", ["link add mv0 link uplink0 type macvlan"], "mv0", r"macvlan"),
}


@pytest.mark.parametrize("case", list(KINDS))
def test_an_interface_without_a_hook_of_its_own_is_refused(lab: Lab, case: str) -> None:
    """Section 4: bridge members, macvlan and the like are refused with the reason; then the good one is taken."""
    made, commands, interface, pattern = KINDS[case]
    lab.push(policy(tenants=policy()["tenants"][1:]))
    lab.ip("node", *commands)
    document = changed(["tenants", 0, "ports", 0, "interface"], interface)
    said = lab.push_refused(document, exit_code=3)  # not enforceable here
    assert re.search(pattern, said) and interface in said, said
    denied(lab, Probe("client", "tenant-b", udp()), "no_lease", "from_uplink")
    lab.ip("node", f"link del {made}")
    lab.push(policy())
    passes_under_a_grant(lab)


# ---- taken -------------------------------------------------------------------------------------------------


def test_what_a_policy_no_longer_names_ends(both_hooks: Lab) -> None:
    """G1, P9: dropping an endpoint ends its lease at once and no other; publishing it again revives nothing."""
    lab = both_hooks
    lab.grant(A, "echo")
    other = lab.grant(A, "web")
    probe, control = Probe("client", "tenant-a", udp()), Probe("client", "tenant-a", syn())
    passes(lab, probe)
    answer = lab.push(without("echo"))
    assert answer["applied"] and answer["leases_ended"] == 1, answer
    denied(lab, probe, "no_endpoint", "from_uplink")
    passes(lab, control)
    assert set(lab.leases()) == {other["id"]}
    lab.push(policy())
    denied(lab, probe, "no_lease", "from_uplink")
    passes(lab, control)
    wait_until(lambda: lab.grant(A, "echo"))
    passes(lab, probe)


def test_a_tenant_with_leases_is_not_removed(lab: Lab) -> None:
    """L16: first its leases end, then it may go."""
    lab.grant(B, "echo")
    only_a = policy(tenants=policy()["tenants"][:1])
    said = lab.push_refused(only_a)
    assert B in said
    passes(lab, Probe("client", "tenant-b", udp()))
    lab.cli("tenant", "disable", B)
    wait_until(lambda: not lab.leases())
    lab.push(only_a)
    # Nothing of ours is on its interface any more, and nft forwards nothing from an interface that is not armed.
    stranger = Probe("tenant-b", "client", udp())
    with watching(lab, stranger) as capture:
        lab.send("tenant-b", [stranger.frame()] * 5)
        passes_under_a_grant(lab)
        assert capture.count() == 0


def test_dry_run_and_diff_change_nothing(lab: Lab) -> None:
    """Section 8: what a push would do, told and not done."""
    before = lab.cli("bundle", "show")
    path = lab.write_policy(without("echo") | {"generation": lab.generation + 1})
    for words in (["bundle", "push", "--dry-run", path], ["bundle", "diff", path]):
        answer = lab.cli(*words)
        assert not answer["applied"] and any("echo" in line for line in answer["changes"]), answer
    assert lab.cli("bundle", "check", path)["good"] is True
    assert lab.cli("bundle", "show") == before
    passes_under_a_grant(lab)


# ---- what belongs to others --------------------------------------------------------------------------------


def test_a_foreign_xdp_program_is_not_replaced(own_lab: Lab) -> None:
    """Refused, naming it; it stays; the other way to attach is offered, and works."""
    lab = own_lab
    lab.serve_all()
    lab.run("node", ["ip", "link", "add", "up1", "type", "veth", "peer", "name", "up1p"])
    with foreign.attached(lab, "up1", foreign.ATTACH_XDP, foreign.XDP_PASS):
        before = lab.cli("bundle", "show")
        said = lab.push_refused(policy(uplinks=["uplink0", "up1"]))
        assert "up1" in said and foreign.NAME in said and "--uplink-hook" in said, said
        assert lab.cli("bundle", "show") == before
        assert foreign.NAME in lab.run("node", ["bpftool", "prog", "show"]).stdout
        assert "xdp" in lab.run("node", ["ip", "link", "show", "dev", "up1"]).stdout
        lab.stop()
        lab.start(uplink_hook="tc")
        lab.push(policy(uplinks=["uplink0", "up1"]))
        passes_under_a_grant(lab)


@pytest.mark.slow  # a drift check's period, twice
@pytest.mark.parametrize("ingress", [True, False])
def test_a_foreign_program_ahead_of_ours_darkens_the_port(both_hooks: Lab, ingress: bool) -> None:
    """Section 4: ahead of us it could let everything by. nft denies what has no lease, then the port goes dark;
    once the foreigner has gone, it comes back by itself."""
    lab = both_hooks
    lab.grant(A, "echo", ttl="200s")
    lab.grant(B, "echo", ttl="200s")
    leased, shut = Probe("client", "tenant-a", udp()), Probe("client", "tenant-a", syn())
    passes(lab, leased)
    with foreign.ahead(lab, "ta", ingress, foreign.TCX_PASS):
        with lab.capture("tenant-a", shut.marker) as capture:
            lab.send("client", [shut.frame()] * 10)
            dark = wait_until(lambda: lab.cli("status")["dark"], 15, "the daemon notices")
            assert dark[0]["interface"] == "ta" and foreign.NAME in dark[0]["cause"], dark
            lab.send("client", [shut.frame(), leased.frame()] * 10)
            passes(lab, Probe("client", "tenant-b", udp()))
            assert capture.count() == 0
        assert not lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S)
        assert not lab.udp("client", TENANT_A.v6, ECHO, SILENCE_S)
    wait_until(lambda: not lab.cli("status")["dark"], 15, "the port comes back")
    assert lab.udp("client", TENANT_A.v4, ECHO)
    denied(lab, shut, "no_lease", "from_uplink")


@pytest.mark.slow  # a drift check's period, twice
@pytest.mark.parametrize("mode", [foreign.XDP_FLAGS_SKB_MODE, foreign.XDP_FLAGS_DRV_MODE])
def test_a_foreign_xdp_program_on_a_tenant_port_darkens_it(lab: Lab, mode: int) -> None:
    """Section 4: what XDP redirects meets neither tc nor nft. The port goes dark, the status says why and what to
    do; once the foreigner has gone, it comes back by itself."""
    lab.grant(A, "echo", ttl="200s")
    lab.grant(B, "echo", ttl="200s")
    passes(lab, Probe("client", "tenant-a", udp()))
    with foreign.attached(lab, "ta", foreign.ATTACH_XDP, foreign.XDP_PASS, mode):
        dark = wait_until(lambda: lab.cli("status")["dark"], 15, "the daemon notices")
        assert [row["interface"] for row in dark] == ["ta"] and dark[0]["code"] == "foreign_program", dark
        assert foreign.NAME in dark[0]["cause"] and "XDP" in dark[0]["cause"], dark
        passes(lab, Probe("client", "tenant-b", udp()))
        assert not lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S)
    wait_until(lambda: not lab.cli("status")["dark"], 15, "the port comes back")
    assert lab.udp("client", TENANT_A.v4, ECHO)


def test_a_foreign_nft_table_is_not_touched(own_lab: Lab) -> None:
    """Our transactions, restarts and detach leave another's table as it was."""
    lab = own_lab
    lab.serve_all()
    lab.nft("add", "table", "inet", "theirs")
    lab.nft("add", "chain", "inet", "theirs", "watch", "{ type filter hook forward priority 10 ; policy accept ; }")
    lab.nft("add", "rule", "inet", "theirs", "watch", "ip", "daddr", "198.51.100.1", "drop")
    theirs = lab.nft("list", "table", "inet", "theirs")
    lease = lab.grant(A, "echo")
    passes(lab, Probe("client", "tenant-a", udp()))
    lab.push(without("web"))
    lab.revoke(lease)
    lab.kill()
    lab.start()
    assert lab.nft("list", "table", "inet", "theirs") == theirs
    lab.cli("node", "detach", "--yes")
    assert lab.nft("list", "tables").split() == ["table", "inet", "theirs"]
    assert lab.nft("list", "table", "inet", "theirs") == theirs
    assert lab.daemon is not None and lab.daemon.wait(10) == 0
    lab.daemon = None


# ---- what a push may not undo ------------------------------------------------------------------------------------

PHASE_OFFSET, PHASE_FENCED = 116, 3  # bpf/abi.h, lease_record


def fence(lab: Lab, lease: dict) -> None:
    """As a teardown that could not be proved leaves it: the record says so, the gate is shut."""
    lab.revoke(lease)
    lab.kill()
    with pinned_map(pin(lab, "records")) as records:
        for slot, record in records.read().items():
            if "%016x%016x" % struct.unpack_from("=QQ", record) == lease["id"]:
                value = bytearray(record)
                struct.pack_into("=I", value, PHASE_OFFSET, PHASE_FENCED)
                records.write(slot, bytes(value))
    lab.start()


def test_no_bundle_clears_a_fence() -> None:
    """G7: not by dropping the endpoint and naming it again, and not by giving it to another tenant."""
    with Lab(leases_max=4096) as lab:
        lease = lab.grant(A, "echo")
        fence(lab, lease)
        grant = ["lease", "grant", A, "--endpoint", "echo"]
        assert "fenced" in lab.cli_refused(*grant)
        lab.push(without("echo"))
        lab.push(policy())
        assert "fenced" in lab.cli_refused(*grant)
        swapped = copy.deepcopy(policy())
        first, second = swapped["tenants"]
        first["ports"][0]["addresses"], second["ports"][0]["addresses"] = (
            second["ports"][0]["addresses"],
            first["ports"][0]["addresses"],
        )
        for tenant in (first, second):  # the addresses of `many` are written out
            tenant["endpoints"] = [each for each in tenant["endpoints"] if each["name"] != "many"]
        lab.push(swapped)
        assert "fenced" in lab.cli_refused("lease", "grant", B, "--endpoint", f"echo@{TENANT_A.v4}")
        denied(lab, Probe("client", "tenant-a", udp()), "no_lease", "from_uplink")


def test_a_push_that_resizes_flow_tables_keeps_the_flows(lab: Lab) -> None:
    """G4: connections that both policies allow go on."""
    lab.grant(A, egress="a0")
    with lab.connect("tenant-a", HOSTS["client"].v4, WEB) as connection:
        assert says(connection)
        for flows in (512, 65536):
            lab.push(changed(["tenants", 0, "limits"], {"flows": flows}))
            assert says(connection)


def with_tenants(first: int, count: int) -> dict:
    """The lab's policy and more tenants, who have nothing."""
    document = copy.deepcopy(policy())
    numbers = range(first, first + count)
    document["tenants"] += [{"id": each, "name": f"a/b/t{each}", "ports": [], "endpoints": []} for each in numbers]
    return document


def test_tenants_that_are_gone_leave_room_for_others(own_lab: Lab) -> None:
    """G14: a dry run changes nothing; and 4096 tenants are what a node has at a time, not in its life."""
    lab = own_lab
    with Control(lab.socket_path) as control:
        for first in (10_000, 20_000):
            crowd = json.dumps(with_tenants(first, 4094) | {"generation": first})
            control.call("bundle.push", {"file": "tried", "dry_run": True}, crowd.encode())
    lab.push(with_tenants(30_000, 1))
    # As if the node had known as many before: every index is somebody's who is gone.
    lab.kill()
    written = 0
    with pinned_map(pin(lab, "tenants")) as tenants:
        for index, value in tenants.read().items():
            epoch, flags, number = struct.unpack("=IIQ", value)
            if number == 0:
                number = 50_000 + struct.unpack("=I", index)[0]
                tenants.write(index, struct.pack("=IIQ", epoch + 1, flags, number))
                written += 1
    assert written > 4000
    lab.start()
    lab.push(with_tenants(40_000, 2))
    lab.grant(A, "echo")
    lab.serve_all()
    passes(lab, Probe("client", "tenant-a", udp()))


def filter_halves(lab: Lab) -> tuple[list, list]:
    """The words of the filter before the endpoint table: of the active bank, and of the idle one."""
    words = values_of(pin(lab, "endpoint_filter"))
    halves = words[: len(words) // 2], words[len(words) // 2 :]
    active = active_bank(lab)
    return halves[active], halves[active ^ 1]


def test_a_push_that_fails_half_way_leaves_the_filter_in_force_alone() -> None:
    """G4: the idle bank's half is written, and then its table cannot be mapped. The same push succeeds later."""
    with Lab(leases_max=4096) as lab:
        active, idle = filter_halves(lab)
        # Only of BPF maps: where a sanitizer allocates, it may not fail.
        failing = ["strace", "-qq", "-o", "/dev/null", "-P", "anon_inode:bpf-map", "-e", "inject=mmap:error=ENOMEM"]
        tracer = lab.popen("node", [*failing, "-p", str(lab.daemon.pid)])
        wait_until(lambda: traced(lab), 5, "strace holds the daemon")
        assert "mapping map endpoints" in lab.push_refused(without("web"))
        end_process(tracer)
        after = filter_halves(lab)
        assert after[0] == active
        assert after[1] != idle, "the push came as far as the filter"
        lab.grant(A, "web")
        passes(lab, Probe("client", "tenant-a", syn()))
        lab.push(without("web"))
        assert filter_halves(lab)[0] != active


def test_nft_taken_away_in_the_middle_of_a_push() -> None:
    """G4, G13: after the flip the new policy is the one in force, also when nftables fails then. It is written again."""
    with Lab(leases_max=4096) as lab:
        before, after = without("web"), without("perf")
        lab.push(before)
        bank = active_bank(lab)
        delayed = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=membarrier", "-e", "inject=membarrier:delay_enter=500000"]
        tracer = lab.popen("node", [*delayed, "-p", str(lab.daemon.pid)])
        wait_until(lambda: traced(lab), 5, "strace holds the daemon")
        path = lab.write_policy(after | {"generation": 1000}, "after.yaml")
        pushing = lab.popen("node", lab.holdfast_argv("--json", "bundle", "push", path))
        wait_until(lambda: active_bank(lab) != bank, 10, "the flip")
        lab.run("node", ["nft", "delete", "table", "inet", "holdfast"])
        assert pushing.wait(30) == 1
        assert "in force, but nftables" in pushing.stderr.read()
        end_process(tracer)
        assert lab.cli("bundle", "show")["generation"] == 1000
        assert "no_such_endpoint" in lab.try_cli("lease", "grant", A, "--endpoint", "perf").stderr
        lab.serve_all()
        lab.grant(A, "web", "echo")
        wait_until(lambda: lab.tcp("client", TENANT_A.v4, WEB, SILENCE_S), 10, "nftables is whole again")
        denied(lab, Probe("client", "tenant-b", syn()), "no_lease", "from_uplink")


def active_bank(lab: Lab) -> int:
    return values_of(pin(lab, "control"))[0][0]


def pin(lab: Lab, name: str) -> pathlib.Path:
    return next(lab.pin_dir.glob(f"*/maps/{name}"))


def traced(lab: Lab) -> bool:
    status = pathlib.Path(f"/proc/{lab.daemon.pid}/status").read_text()
    return "TracerPid:\t0\n" not in status
