"""Living with the daemon: who may ask, what it answers to nonsense, how it starts, reloads and is removed.

Covers G1, G14, G16, G17, L6, L11, P16, H5, R1, R2, R8, and issue 2's "bad input" and "living with it". Topology and
addresses: lab.py.
"""

import contextlib
import errno
import grp
import json
import os
import pwd
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import frames
import pytest
from bpf import content_of
from control import Control, Refused
from foreign import attached_programs
from lab import A, ANSWER_S, B, ECHO, GATEWAYS, HOSTS, MANY, SILENCE_S, SLOW, SYS, WEB, Lab, end_process, policy, refusing, wait_until
from packets import Probe, denied, passes, syn, udp, watching

TENANT_A = HOSTS["tenant-a"]
LEASED, SHUT = Probe("client", "tenant-a", udp()), Probe("client", "tenant-b", udp())
STRANGER = 61000  # a uid that is nobody's


def still_serves(lab: Lab) -> None:
    """The daemon answers, grants, and enforces as before."""
    lease = lab.grant(A, "echo")
    passes(lab, LEASED)
    denied(lab, SHUT, "no_lease", "from_uplink")
    lab.revoke(lease)
    denied(lab, LEASED, "no_lease", "from_uplink")


# ---- who may ask -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[str, int]]:
    """Both groups, made for the while if the machine has none."""
    made = []
    try:
        for name in ("holdfast", "holdfast-operator"):
            with contextlib.suppress(KeyError):
                grp.getgrnam(name)
                continue
            subprocess.run(["groupadd", "--system", name], check=True)
            made.append(name)
        yield {name: grp.getgrnam(name).gr_gid for name in ("holdfast", "holdfast-operator")}
    finally:
        for name in made:
            subprocess.run(["groupdel", name], check=True)


READS = (["status"], ["lease", "ls"], ["route", "ls"], ["tenant", "ls"], ["bundle", "show"], ["drops"], ["flows"])
CHANGES = (
    ["lease", "grant", A, "--endpoint", "web", "--ttl", "60s"],
    ["tenant", "disable", B],
    ["tenant", "enable", B],
)


@pytest.mark.xdist_group("groups")  # one makes them, and takes them away again
def test_roles(groups: dict[str, int], own_lab: Lab) -> None:
    """P16, R2: group holdfast reads, group holdfast-operator changes, others neither; detach is root's alone."""
    lab = own_lab

    def as_user(*words: object, group: str | None = None, uid: int = STRANGER) -> subprocess.CompletedProcess:
        membership = [f"--groups={groups[group]}"] if group else ["--clear-groups"]
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={uid}", *membership]
        return lab.try_cli(*words, prefix=prefix, json_output=False)

    for words in READS:
        done = as_user(*words)
        assert done.returncode == 1 and "usermod -aG holdfast " in done.stdout + done.stderr, (words, done)
        assert as_user(*words, group="holdfast").returncode == 0, words
        assert as_user(*words, group="holdfast-operator").returncode == 0, words
    for group in (None, "holdfast-operator"):  # nobody's uid also stands for every user that is not mapped
        assert as_user("status", group=group, uid=pwd.getpwnam("nobody").pw_uid).returncode == 1
    for words in CHANGES:
        for group in (None, "holdfast"):
            done = as_user(*words, group=group)
            assert done.returncode == 1 and "holdfast-operator" in done.stdout + done.stderr, (words, done)
        assert lab.leases() == {} and all(row["state"] == "enabled" for row in lab.cli("tenant", "ls")["tenants"])
    for words in CHANGES:
        done = as_user(*words, group="holdfast-operator")
        assert done.returncode == 0, (words, done)
    push = ["bundle", "push", lab.write_policy(policy(generation=7))]
    lab.dir.joinpath("pushed.yaml").chmod(0o644)
    assert as_user(*push, group="holdfast").returncode == 1
    assert as_user(*push, group="holdfast-operator").returncode == 0
    for group in (None, "holdfast", "holdfast-operator"):
        done = as_user("node", "detach", "--yes", group=group)
        assert done.returncode == 1 and "root" in done.stdout + done.stderr, done
    assert lab.cli("status")["policy"]["generation"] == 7


def test_no_daemon_and_no_permission_are_different_errors(own_lab: Lab) -> None:
    """Each with its own mend."""
    lab = own_lab
    prefix = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    outsider = lab.try_cli("status", prefix=prefix, json_output=False)
    lab.stop()
    down = lab.try_cli("status", json_output=False)
    assert down.returncode == outsider.returncode == 1
    assert "holdfastd" in down.stderr and str(lab.socket_path) in down.stderr
    assert outsider.stderr != down.stderr


# ---- nonsense ----------------------------------------------------------------------------------------------

GARBAGE = {
    # what is sent -> the error's code; afterwards that connection is closed
    "another magic": (frames.frame(frames.REQUEST, b"", magic=b"HTTP"), "bad_magic"),
    "a later version": (frames.frame(frames.REQUEST, b"", version=9), "unknown_version"),
    "an unknown type": (frames.frame(77, b""), "unknown_type"),
    "an unknown flag": (frames.frame(frames.REQUEST, b"", flags=0x8000), "unknown_flag"),
    "a length beyond the limit": (frames.frame(frames.REQUEST, b"", length=1 << 30), "frame_too_large"),
    "a memfd that is not there": (frames.frame(frames.REQUEST, b"", flags=2), "memfd_missing"),
}


@pytest.mark.parametrize("case", list(GARBAGE))
def test_broken_frames(lab: Lab, case: str) -> None:
    """L11: a typed error, the end of that connection, and of nothing else."""
    data, code = GARBAGE[case]
    with frames.connected(lab) as bystander, frames.connected(lab) as connection:
        connection.send(data)
        kind, _, body = connection.read()
        assert kind == frames.ERROR and body["code"] == code and body["next_step"] is not None, body
        assert connection.read() is None
        bystander.send(frames.request("status"))
        assert bystander.read()[0] == frames.REPLY
    still_serves(lab)


BODIES = {
    # a whole frame whose body cannot be meant
    "no CBOR": b"\xff\xff\xff",
    "an empty body": b"",
    "trailing bytes": frames.cbor({"verb": "status", "args": {}}) + b"\x00",
    "keys out of order": b"\xa2" + frames.cbor("verb") + frames.cbor("status") + frames.cbor("args") + b"\xa0",
    "a key twice": b"\xa3" + 2 * (frames.cbor("args") + b"\xa0") + frames.cbor("verb") + frames.cbor("status"),
    "an integer longer than it need be": b"\xa1" + frames.cbor("args") + b"\x18\x01",
    "an indefinite length": b"\xbf\xff",
    "a float": b"\xfb" + bytes(8),
    "nested ten thousand deep": b"\x81" * 10_000 + b"\x00",
    "an array that claims more than there is": b"\x9b" + b"\xff" * 8,
    "no verb": frames.cbor({"args": {}}),
    "an unknown key": frames.cbor({"verb": "status", "args": {}, "extra": 1}),
    "a verb that is a number": frames.cbor({"verb": 1, "args": {}}),
    "text that is not UTF-8": b"\xa2" + frames.cbor("args") + b"\xa0" + frames.cbor("verb") + b"\x62\xff\xfe",
}


@pytest.mark.parametrize("case", list(BODIES))
def test_broken_bodies(lab: Lab, case: str) -> None:
    """G10's place: strict deterministic CBOR, refused with a reason."""
    with frames.connected(lab) as connection:
        connection.send(frames.frame(frames.REQUEST, BODIES[case], 5))
        kind, _, body = connection.read()
        assert kind == frames.ERROR and body["class"] == "invalid", body
    still_serves(lab)


ASKED = {
    # verb, arguments, body -> the error's code or class
    "an unknown verb": ("lease.steal", {}, None, "unknown_verb"),
    "an unknown tenant": ("tenant.disable", {"name": "no/such/one"}, None, "no_such_tenant"),
    "a lease id that is none": ("lease.revoke", {"id": "xyz"}, None, "invalid"),
    "an argument nobody knows": ("lease.list", {"colour": "red"}, None, "invalid"),
    "a grant without a body": ("lease.grant", {}, None, "no_body"),
    "a grant of nothing": ("lease.grant", {}, frames.cbor([]), "lease_count"),
    "a term of nothing": (
        "lease.grant", {}, frames.cbor([{"tenant": A, "endpoints": ["web"], "ttl_ns": 0}]), "invalid"
    ),
    "a term of 301 s": (
        "lease.grant", {}, frames.cbor([{"tenant": A, "endpoints": ["web"], "ttl_ns": 301 * 10**9}]), "invalid"
    ),
    "a term of 2^63 ns": (
        "lease.grant", {}, frames.cbor([{"tenant": A, "endpoints": ["web"], "ttl_ns": 2**63}]), "invalid"
    ),
    "a key nobody knows in a lease": (
        "lease.grant", {}, frames.cbor([{"tenant": A, "endpoints": ["web"], "ttl_ns": 10**9, "oops": 1}]),
        "unknown_key",
    ),
    "a policy that is none": ("bundle.push", {"file": "x"}, b"\x00\x01\x02", "invalid"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ASKED))
def test_requests_that_cannot_be_granted(lab: Lab, case: str) -> None:
    """L2, G14: past the command line's own checks the daemon checks again."""
    verb, args, body, expected = ASKED[case]
    with frames.connected(lab) as connection:
        connection.send(frames.request(verb, args, 9, body))
        kind, identifier, answer = connection.read()
        assert (kind, identifier) == (frames.ERROR, 9) and expected in (answer["code"], answer["class"]), answer
        connection.send(frames.request("status", {}, 10))
        assert connection.read()[:2] == (frames.REPLY, 10), "the connection goes on"
    assert lab.leases() == {}


def test_slow_and_half_closed_peers(lab: Lab) -> None:
    """Half a frame, a byte at a time, and a closed sending side hold nobody else up."""
    with frames.connected(lab) as half, frames.connected(lab) as slow, frames.connected(lab) as closed:
        half.send(frames.request("status")[:10])
        for byte in frames.request("status"):
            slow.send(bytes([byte]))
        assert slow.read()[0] == frames.REPLY
        closed.send(frames.request("status"))
        closed.raw.shutdown(socket.SHUT_WR)
        assert closed.read()[0] == frames.REPLY
        assert closed.read() is None
        still_serves(lab)
        half.send(frames.request("status")[10:])
        assert half.read()[0] == frames.REPLY


def test_a_flood_of_unread_requests(lab: Lab) -> None:
    """H5: who asks and never reads is held back, and nobody else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as greedy:
        greedy.connect(str(lab.socket_path))
        greedy.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += greedy.send(frames.request("bundle.show") * 100)
        assert sent < 64 << 20, "the daemon reads no more than it can answer"
        still_serves(lab)


def test_many_connections(lab: Lab) -> None:
    """H5: a bound on connections, and an answer instead of silence beyond it."""
    with contextlib.ExitStack() as opened:
        for _ in range(2000):
            raw = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                raw.settimeout(ANSWER_S)
                raw.connect(str(lab.socket_path))
            except (BlockingIOError, TimeoutError, ConnectionRefusedError):
                break
    still_serves(lab)


# ---- starting ----------------------------------------------------------------------------------------------


def test_two_daemons_at_once(own_lab: Lab) -> None:
    """The second one of the same node refuses, whichever path it shares, and the first notices nothing."""
    lab = own_lab
    lab.serve_all()
    other = {name: lab.dir / f"other-{name}" for name in ("runtime_dir", "state_dir", "config_dir")}
    for changes in ({}, other):
        done = lab.try_start(**changes)
        assert done.returncode == 1 and "another holdfastd" in done.stderr, done
        still_serves(lab)


def test_a_stale_socket_is_replaced(own_lab: Lab) -> None:
    """A killed daemon leaves its socket behind; the next one takes the place."""
    lab = own_lab
    lab.serve_all()
    lab.kill()
    assert lab.socket_path.is_socket()
    assert "holdfastd" in lab.try_cli("status", json_output=False).stderr
    lab.start()
    still_serves(lab)


def test_a_file_in_the_sockets_place_is_kept(own_lab: Lab) -> None:
    """What is not a socket belongs to somebody: refused, not removed."""
    lab = own_lab
    lab.stop()
    lab.socket_path.write_text("precious")
    done = lab.try_start()
    assert done.returncode == 1 and str(lab.socket_path) in done.stderr, done
    assert lab.socket_path.read_text() == "precious"


def test_bpffs_is_missing_or_private(own_lab: Lab) -> None:
    """Pins that would vanish are no enforcement: refused, with what to do."""
    lab = own_lab
    lab.stop()
    done = lab.try_start(pin_dir=lab.dir / "no-bpffs" / "pins")
    assert done.returncode == 1 and "mount" in done.stderr, done
    (lab.dir / "no-bpffs").mkdir()
    done = lab.try_start(pin_dir=lab.dir / "no-bpffs" / "pins")
    assert done.returncode == 1 and "not a BPF file system" in done.stderr and "mount -t bpf" in done.stderr, done
    private = ["unshare", "--mount", "sh", "-c", 'mount -t bpf bpf /sys/fs/bpf && exec "$@"', "sh"]
    done = lab.try_start(prefix=private)
    assert done.returncode == 1 and "this mount namespace alone" in done.stderr, done
    lab.start()


def test_no_capabilities(own_lab: Lab) -> None:
    """Root by name only: refused, naming what it needs."""
    lab = own_lab
    lab.stop()
    done = lab.try_start(prefix=["setpriv", "--bounding-set=-all"])
    assert done.returncode in (1, 3) and "CAP_" in done.stderr, done
    lab.start()


def test_no_grace_periods(own_lab: Lab) -> None:
    """H5, R8: where the kernel refuses membarrier, a sentence and exit code 3, not an abort."""
    lab = own_lab
    lab.stop()
    done = lab.try_start(refusing(SYS["membarrier"], errno.EINVAL))
    assert done.returncode == 3 and "membarrier" in done.stdout + done.stderr, done
    lab.start()
    still_serves(lab)


def test_a_time_namespace(own_lab: Lab) -> None:
    """G2: a shifted clock would end leases at the wrong time: this machine cannot enforce it, exit code 3."""
    lab = own_lab
    lab.stop()
    done = lab.try_start(prefix=["unshare", "--time", "--boottime", "1000", "--fork"])
    assert done.returncode == 3 and "time namespace" in done.stderr, done
    lab.start()


def test_bad_command_lines(own_lab: Lab) -> None:
    """Exit code 2, for daemon and client alike."""
    lab = own_lab
    for changes in ({"tenant_hook": "magic"}, {"leases_max": 3}, {"surprise": 1}):
        done = lab.try_start(**changes)
        assert done.returncode == 2, done
    for words in (["lease", "grant"], ["leese", "ls"], ["lease", "renew"], ["explain", "tcp", "10.0.0.1", "10.0.0.2"]):
        assert lab.try_cli(*words, json_output=False).returncode == 2, words


# ---- reloading, following, ending --------------------------------------------------------------------------


def test_sighup_reloads_whole_or_not_at_all(own_lab: Lab) -> None:
    """R8, G14: a bad file leaves the last good policy, with a word in the log; a good one comes into force."""
    lab = own_lab
    lab.serve_all()
    assert lab.daemon is not None
    fewer = policy(generation=5)
    fewer["tenants"][0]["endpoints"] = fewer["tenants"][0]["endpoints"][:1]
    for bad in ("version: [", json.dumps(fewer)[:-1], json.dumps(fewer | {"uplinks": ["gone0"]})):
        refused = lab.log.count("reload_refused")
        lab.policy_file.write_text(bad)
        lab.daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: lab.log.count("reload_refused") > refused, what="the log tells")
        assert lab.cli("bundle", "show")["generation"] == 1
        still_serves(lab)
    lab.policy_file.write_text(json.dumps(fewer))
    lab.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: lab.cli("bundle", "show")["generation"] == 5)
    denied(lab, LEASED, "no_endpoint", "from_uplink")


def test_the_first_policy_comes_from_the_config_directory() -> None:
    """A fresh node takes policy.yaml at its first start."""
    with Lab(daemon=False) as lab:
        lab.policy_file.write_text(json.dumps(policy(generation=3)))
        lab.start()
        assert lab.cli("bundle", "show")["generation"] == 3
        lab.serve_all()
        still_serves(lab)


def test_before_any_policy_nothing_passes() -> None:
    """G1: a node without a policy forwards nothing at all."""
    with Lab(push=policy(tenants=[])) as lab:
        lab.serve_all()
        for probe in (LEASED, SHUT, Probe("tenant-a", "client", udp())):
            with watching(lab, probe) as capture:
                lab.send(probe.sender, [probe.frame()] * 5)
                assert lab.tcp("client", GATEWAYS["client"].v4, 22, SILENCE_S) is False
                assert capture.count() == 0
        lab.push(policy())
        still_serves(lab)


def test_drops_follow_is_ndjson(lab: Lab) -> None:
    """One JSON object a line, as the packets come, each with its reason."""
    following = lab.popen("node", lab.holdfast_argv("--json", "drops", "--follow"))
    events = []
    while len(events) < 3:
        lab.send("client", [SHUT.frame()])
        # Until the daemon has its request, nobody follows: then there is nothing to read yet.
        if select.select([following.stdout], [], [], 0.2)[0]:
            events.append(json.loads(following.stdout.readline()))
    for event in events:
        assert event["version"] == 1 and event["reason"] == "no_lease" and event["hook"] == "from_uplink", event
        assert event["tenant"] == B and event["destination"] == f"{HOSTS['tenant-b'].v4}:{ECHO}", event
    end_process(following)


HELD_UP_S = 3.0 * SLOW  # 40 renewals of 64 slots with a peer took 38 s on the machine this was found on


@contextlib.contextmanager
def as_uid(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_holder_cannot_hold_up_a_revocation(own_lab: Lab) -> None:
    """G5, L3: forty costly renewals in one write; the operator's revoke comes after one of them at the most."""
    lab = own_lab
    names = [f"many@{TENANT_A.v4}:{MANY + n}" for n in range(64)]
    lease = lab.grant(A, *names, ttl=f"{10 * SLOW:g}s", peer="10.9.0.0/24", holder=f"uid:{STRANGER}")
    victim = lab.grant(B, "echo")
    with as_uid(STRANGER):
        holder = Control(lab.socket_path)
    with holder:
        args = {"id": lease["id"], "ttl_ns": 300_000_000_000}
        holder.socket.sendall(b"".join(frames.request("lease.renew", args, n) for n in range(1, 41)))
        begin = time.monotonic()
        lab.revoke(victim)
        assert time.monotonic() - begin < HELD_UP_S
        kinds = [holder.read_frame() for _ in range(40)]
    assert kinds[0][0] == frames.REPLY
    refused = [body for kind, _, _, body in kinds[1:] if kind == frames.ERROR]
    assert len(refused) == 39 and {body["code"] for body in refused} == {"renewed_too_early"}
    assert all("renew it in" in body["next_step"] for body in refused)
    lab.renew(lease, "300s")  # an operator may at any time


@pytest.mark.xdist_group("groups")  # one makes them, and takes them away again
def test_followers_are_bounded_by_uid(own_lab: Lab, groups: dict[str, int]) -> None:
    """A reader has eight places and not everybody's; operators have their own."""
    lab = own_lab
    before = os.getgroups()
    os.setgroups([groups["holdfast"]])
    try:
        with as_uid(STRANGER):
            reader = Control(lab.socket_path)
    finally:
        os.setgroups(before)
    with reader, Control(lab.socket_path) as operator:
        reader.socket.sendall(b"".join(frames.request("drops.follow", {}, n) for n in range(1, 64)))
        refused = [reader.read_frame() for _ in range(63 - 8)]
        assert {(kind, body["code"]) for kind, _, _, body in refused} == {(frames.ERROR, "followers_max")}
        assert sorted(number for _, _, number, _ in refused) == list(range(9, 64))
        operator.socket.sendall(b"".join(frames.request("drops.follow", {}, n) for n in range(1, 10)))
        operator.last_id = 9
        operator.call("status")  # answered in turn: by now all nine follow
        lab.send("client", [SHUT.frame()])
        numbers = {operator.read_frame()[2] for _ in range(9)}
        assert numbers == set(range(1, 10))


EXPLAIN = {"source": "198.51.100.7", "destination": TENANT_A.v4, "protocol": "tcp", "destination_port": WEB}
MISREAD = {
    "a port too high": {"destination_port": 70000},
    "a source port too high": {"source_port": 65536},
    "unknown flags": {"flags": "SA"},
    "a source MAC that is no text": {"source_mac": 5},
}


@pytest.mark.parametrize("case", list(MISREAD))
def test_explain_refuses_what_it_would_misread(lab: Lab, case: str) -> None:
    """L17: an answer about another packet than the one asked for is worse than none."""
    with Control(lab.socket_path) as control:
        assert control.call("explain", EXPLAIN)["verdict"] == "drop"
        with pytest.raises(Refused):
            control.call("explain", EXPLAIN | MISREAD[case])


def test_explain_leaves_no_trace() -> None:
    """Section 4: counters, flows of each tenant and every other map are byte for byte what they were.

    The cables are cut meanwhile: neighbour discovery would move a counter when it likes. What was under way may still
    move one, once; explain would each time.
    """
    slots = 64
    few = policy(limits={"leases": slots})
    for tenant in few["tenants"]:
        tenant["endpoints"] = [each for each in tenant["endpoints"] if each["name"] != "many"]
    with Lab(leases_max=slots, push=few) as lab:
        lab.grant(A, "web", ttl="300s")
        lab.grant(A, egress="a0", ttl="300s")
        for role in HOSTS:
            lab.run(role, ["ip", "link", "set", "eth0", "down"])
        for _ in range(3):
            wait_until(lambda: same_for(lab, 0.3), 10, "no packet moves a counter")
            before = maps(lab)
            explain_everything(lab)
            after = maps(lab)
            if after == before:
                return
        assert after == before


def explain_everything(lab: Lab) -> None:
    steps = lab.explain("tcp", f"{HOSTS['client'].v4}:4000", f"{TENANT_A.v4}:{WEB}")["steps"]
    assert [step["reason"] for step in steps] == ["endpoint", "endpoint"]
    cases = {
        ("udp", f"{HOSTS['client'].v4}:4000", f"{TENANT_A.v4}:{ECHO}"): "no_lease",
        ("icmp_echo", HOSTS["client"].v6, TENANT_A.v6): "no_lease",
        ("tcp", f"{TENANT_A.v4}:4000", f"{HOSTS['client'].v4}:443", "--from", "ta"): "egress",
        ("tcp", f"{TENANT_A.v4}:4000", f"{HOSTS['tenant-b'].v4}:{WEB}", "--from", "ta"): "lateral",
        ("udp", f"[{TENANT_A.v6}]:4000", f"[{GATEWAYS['tenant-a'].v6}]:53", "--from", "ta"): "host",
        ("tcp", f"{HOSTS['tenant-b'].v4}:4000", f"{HOSTS['client'].v4}:443", "--from", "ta"): "spoofed_address",
        ("tcp", f"{TENANT_A.v4}:4000", f"{HOSTS['client'].v4}:443", "--from", "tb"): "spoofed_address",
        ("udp", f"{HOSTS['client'].v4}:4000", "198.51.100.1:53"): "not_ours",
    }
    for words, reason in cases.items():
        assert lab.explain(*words)["steps"][-1]["reason"] == reason, words


def same_for(lab: Lab, seconds: float) -> bool:
    before = lab.counters()
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: lab.counters() != before, seconds)
        return False
    return True


def maps(lab: Lab) -> dict[str, dict]:
    """What is in every pinned map, and in those that they hold, but for the ring, which is there to be read empty, and
    the clock, which runs. A map of maps has them for a bank of the policy, or for the index of a tenant in `tenants`."""
    pins = {pin.name: pin for pin in (next(lab.pin_dir.glob("v*")) / "maps").iterdir()}
    banks = [struct.pack("=I", bank) for bank in range(2)]
    known = [index for index, tenant in content_of(pins["tenants"], ()).items() if any(tenant)]
    assert len(known) >= 2
    found = {
        name: content_of(pin, banks if name.startswith("policy_") else known)
        for name, pin in pins.items()
        if name not in ("drop_events", "clock_readings")
    }
    assert all(found[name] and all(found[name].values()) for name in ("reason_counters", "slots", "records", "policy_endpoints"))
    assert found["flows"].keys() == found["fragments"].keys() != set(), "a table for each tenant, as a rule empty"
    return found


def test_logs_as_json(own_lab: Lab) -> None:
    """One JSON object a line on standard error; G16: no policy text and no key material in it."""
    lab = own_lab
    lab.stop()
    (lab.dir / "daemon.log").unlink()
    lab.start(log_format="json")
    lab.grant(A, "echo")
    lines = [json.loads(line) for line in lab.log.splitlines()]
    assert any("lease.grant" in line.values() for line in lines), lines


def test_plain_output_where_there_is_no_terminal(lab: Lab) -> None:
    """No escape codes when it is not a terminal; IPv6 reads [::1]:443."""
    lab.grant(A, "web")
    for words in (["status"], ["lease", "ls"], ["route", "ls"], ["tenant", "ls"], ["drops"], ["flows"]):
        done = lab.try_cli(*words, json_output=False)
        assert done.returncode == 0 and "\x1b" not in done.stdout and done.stdout.strip(), words
    assert f"[{TENANT_A.v6}]:{WEB}" in lab.try_cli("lease", "ls", json_output=False).stdout


def test_no_network_listener(lab: Lab) -> None:
    """G17, L6, R1: no TCP or UDP socket in the node's namespace; from outside every port is silent or the host's."""
    assert lab.run("node", ["ss", "-Htuln"]).stdout.strip() == ""
    sockets = lab.run("node", ["ss", "-Hxlp"]).stdout
    assert str(lab.socket_path) in sockets


def test_doctor(lab: Lab) -> None:
    """Needs no daemon; tells each hook's verdict, and the machine that runs this test can enforce."""
    done = lab.try_cli("doctor")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert found["version"] == 1 and found["features"]
    assert all(feature["verdict"] != "refused" for feature in found["features"] if feature["essential"])
    assert len(found["programs"]) == 6 and all(0 < row["insns"] <= 250_000 for row in found["programs"])


def test_detach_alone_opens(own_both: Lab) -> None:
    """Asks first; then removes programs, pins and table, and nothing of ours is left on any interface."""
    lab = own_both
    lab.serve_all()
    done = lab.try_cli("node", "detach", json_output=False)
    assert done.returncode == 2 and "--yes" in done.stderr, done
    denied(lab, LEASED, "no_lease", "from_uplink")
    removed = lab.cli("node", "detach", "--yes")["removed"]
    assert removed
    assert lab.daemon is not None and lab.daemon.wait(10) == 0
    lab.daemon = None
    assert not lab.pin_dir.exists() or list(lab.pin_dir.rglob("*")) == []
    assert lab.nft("list", "tables").strip() == ""
    for interface in ("ta", "tb", "uplink0"):
        assert attached_programs(lab, interface) == set()
    wait_until(lambda: lab.udp("client", TENANT_A.v4, ECHO, SILENCE_S), what="the node forwards as if we had never been there")
    lab.start()
    lab.push(policy())
    still_serves(lab)


def test_an_upgrade_in_place(own_both: Lab) -> None:
    """A copy of the binary elsewhere takes over from the running version's pins, without a packet lost. Without a
    digest the pinned programs are another version's: they are replaced while packets meet them."""
    lab = own_both
    lab.serve_all()
    lab.grant(A, "echo", ttl="200s")
    assert lab.udp("client", TENANT_A.v4, ECHO)
    moved = lab.dir / "next" / "daemon"
    moved.mkdir(parents=True)
    shutil.copy2(lab.holdfastd, moved)
    (lab.dir / "next" / "cli").mkdir()
    shutil.copy2(lab.holdfast, lab.dir / "next" / "cli")
    with lab.probing("client", TENANT_A.v4, ECHO) as tally:
        lab.stop()
        next(lab.pin_dir.glob("v*/digest")).unlink()
        lab.binaries = lab.dir / "next"
        lab.start()
    assert tally["lost"] == [] and tally["sent"] > 100 / SLOW
    still_shut = Probe("client", "tenant-a", syn())
    denied(lab, still_shut, "no_lease", "from_uplink")
    assert os.path.samefile(f"/proc/{lab.daemon.pid}/exe", moved / "holdfastd")


def test_pins_of_another_abi_are_refused(own_lab: Lab) -> None:
    """Never reused in silence."""
    lab = own_lab
    lab.stop()
    (lab.pin_dir / "v999").mkdir()
    done = lab.try_start()
    assert done.returncode == 1 and "v999" in done.stderr and "detach" in done.stderr, done
    (lab.pin_dir / "v999").rmdir()
    lab.start()


def test_detach_with_a_teardown_under_way(own_lab: Lab) -> None:
    """What detach removed stays removed: a teardown that ends after it puts nothing back."""
    lab = own_lab
    lab.grant(A, "echo")
    with Control(lab.socket_path) as control:
        control.call("tenant.disable", {"name": A})
        control.call("node.detach")
    assert lab.daemon.wait(10) == 0
    lab.daemon = None
    assert "table" not in lab.nft("list", "tables")
    assert not (lab.dir / "state" / "policy.json").exists()
    assert not lab.pin_dir.exists()
