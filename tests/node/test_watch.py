"""watch: a snapshot, then every event once and in order, to many at a time; and what becomes of those who do not read.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)
                               tb ---- tenant-b

Covers issue 5's watch: snapshot, resume by cursor over reconnects, filters, limits, heartbeats, slow watchers, SIGKILL.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from control import Control, Refused, encode
from lab import A, B, LOOPS, MANY, SLOW, Lab, build_dir, nanoseconds, policy, wait_until
from watcher import Watcher

from test_daemon import groups  # noqa: F401 (a fixture)
from test_policy_push import fence

READER = 61001  # uids that are nobody's
OTHER_READER = 61002


@contextlib.contextmanager
def watching(lab: Lab, **args: object) -> Iterator[Watcher]:
    with Watcher(lab.socket_path, 30 * SLOW, **args) as watcher:
        yield watcher


def numbers(events: list[dict]) -> list[int]:
    return [event["seq"] for event in events]


def names(events: list[dict]) -> list[str]:
    return [event["event"] for event in events]


def many(lab: Lab, count: int, first: int = MANY, ttl: str = "120s") -> list[dict]:
    host = "10.1.0.2"
    requests = [
        {"tenant": A, "endpoints": [f"many@{host}:{port}"], "ttl_ns": nanoseconds(ttl)}
        for port in range(first, first + count)
    ]
    return lab.ask("lease.grant", body=requests)["leases"]


# ---- what is told ------------------------------------------------------------------------------------------


def test_snapshot_then_events(lab: Lab) -> None:
    """The snapshot is what the reading verbs say; then a lease's whole life, event for event, with nothing between."""
    before = [lab.grant(A, "web"), lab.grant(B, "echo", egress="b0")]
    with watching(lab) as watcher:
        seen = watcher.snapshot()
        status = lab.ask("status")
        assert seen.node["node"] == status["node"] and seen.node["epoch"] == status["epoch"]
        assert seen.node["state"]["name"] == "active"
        assert seen.node["generation"] == status["policy"]["generation"]
        assert seen.node["leases"] == 2 and seen.node["leases_max"] == policy()["limits"]["leases"]
        assert seen.node["slots"] == lab.leases_max and seen.node["slots_used"] >= 2 * (4 + 1000)
        assert seen.node["dark"] == [] and [each["interface"] for each in seen.node["uplinks"]] == ["uplink0"]
        rows = {row["name"]: row for row in lab.ask("tenant.list")["tenants"]}
        assert set(seen.tenants) == set(rows) == {A, B}
        for name, row in rows.items():
            told = seen.tenants[name]
            assert {k: told[k] for k in ("id", "state", "leases", "leases_max")} == {k: row[k] for k in ("id", "state", "leases", "leases_max")}
        assert [port["egress"] for port in seen.tenants[A]["ports"]] == ["free"]
        assert [port["egress"] for port in seen.tenants[B]["ports"]] == ["leased"]
        routes = {(row["tenant"], row["endpoint"]): row for row in lab.ask("route.list")["routes"]}
        assert set(seen.endpoints) == set(routes)
        for key, row in routes.items():
            told = seen.endpoints[key]
            assert (told["members"], told["leased"]) == (row["members"], row["leased"]), key
            assert told["free"] == row["members"] - row["leased"] and told["draining"] == told["fenced"] == 0
        leases = lab.leases()
        assert set(seen.leases) == {lease["id"] for lease in before} == set(leases)
        for name, lease in seen.leases.items():
            assert {k: lease[k] for k in ("tenant", "resources", "holder", "state", "generation")} == {
                k: leases[name][k] for k in ("tenant", "resources", "holder", "state", "generation")
            }

        lease = lab.grant(A, "echo")
        lab.renew(lease, "200s")
        lab.ask("lease.revoke", {"id": lease["id"], "grace_ns": nanoseconds("0.3s")})
        watcher.until_named("lease.failed_closed", lease=lease["id"])
        lab.ask("tenant.disable", {"name": B})
        lab.ask("tenant.enable", {"name": B})
        watcher.until_named("tenant.enable")
        watcher.until_named("lease.torndown", tenant=B)
        assert numbers(watcher.events) == list(range(seen.cursor["seq"] + 1, watcher.cursor["seq"] + 1))
        own = [event for event in watcher.events if event.get("lease") == lease["id"]]
        assert names(own) == [
            "lease.grant",
            "lease.renew",
            "lease.revoke_warning",
            "lease.grace_running",
            "lease.expired",
            "lease.forced_teardown",
            "lease.failed_closed",
        ]
        grant, renew = own[0], own[1]
        assert grant["tenant"] == A and grant["resources"] == lease["resources"] and grant["holder"] == "uid:0"
        assert grant["generation"] == lease["generation"] < renew["generation"]
        assert grant["expires_at"][:19] == lease["expires_at"][:19] and renew["expires_at"] > grant["expires_at"]
        others = names([event for event in watcher.events if event.get("tenant") == B])
        assert others[0] == "tenant.disable" and set(others) >= {"lease.forced_teardown", "lease.torndown", "tenant.enable"}


def test_no_gap_between_snapshot_and_events(own_lab: Lab) -> None:
    """While leases come and go, watchers begin: what each knows by snapshot and events is what there is."""
    lab, ports = own_lab, itertools.cycle(range(MANY, MANY + 900))
    pool: collections.deque[str] = collections.deque()
    between = 0

    def come_and_go(control: Control, stop: threading.Event) -> None:
        while not stop.is_set():
            pool.append(control.grant(A, f"many@10.1.0.2:{next(ports)}", ttl_s=200)["id"])
            if len(pool) > 300:
                control.revoke(pool.popleft())

    with Control(lab.socket_path) as control:
        other = {"tenant": B, "endpoints": ["many"], "each": True, "ttl_ns": nanoseconds("250s")}
        ballast = control.call("lease.grant", {}, encode([other]))["leases"]  # makes the snapshot some pages longer
        for turn in range(200):
            if turn >= 12 and between:
                break
            stop = threading.Event()
            others = threading.Thread(target=come_and_go, args=(control, stop))
            begun = lab.ask("status")["watch"]["cursor"]["seq"]
            others.start()
            wait_until(lambda begun=begun: lab.ask("status")["watch"]["cursor"]["seq"] > begun, 5, "leases come and go")
            with watching(lab) as watcher:
                seen = watcher.snapshot()
                stop.set()
                others.join()
                last = lab.ask("status")["watch"]["cursor"]["seq"]
                while watcher.cursor["seq"] < last:
                    watcher.frame()
                told = numbers(watcher.events)
                first = told[0] if told else watcher.cursor["seq"] + 1  # none came: it has missed none
                assert told == list(range(first, watcher.cursor["seq"] + 1)) and first <= seen.cursor["seq"] + 1
                between += len([number for number in told if number <= seen.cursor["seq"]])
                assert live(watcher.frames) == set(pool) | {lease["id"] for lease in ballast}
    assert between, "no event came between two pages"


def test_a_push_begins_the_snapshot_anew(own_lab: Lab) -> None:
    """One that does not read stands still in the middle of its snapshot; what it then reads begins once more."""
    lab = own_lab
    all_of = [{"tenant": tenant, "endpoints": ["many"], "each": True, "ttl_ns": nanoseconds("250s")} for tenant in (A, B)]
    with Control(lab.socket_path) as control, watching(lab) as bystander:
        bystander.snapshot()
        assert control.call("lease.grant", {}, encode(all_of))["granted"] == 2000
        with watching(lab) as watcher:
            time.sleep(0.5 * SLOW)
            lab.push(policy(listeners=[{"protocol": "tcp", "port": 7070}]))
            lease = lab.grant(A, "web")
            bystander.until_named("lease.grant", lease=lease["id"])
            pages = watcher.snapshot()
            types = [frame["type"] for frame in watcher.frames]
            assert types.count("snapshot") == 2 and types.count("snapshot_end") == 1, collections.Counter(types)
            again = types.index("snapshot", 1)
            assert names(watcher.frames[again - 1]["events"])[-2:] == ["policy.apply", "lease.grant"]
            assert len(live(watcher.frames[again:])) == 2001 and pages.node["generation"] < lab.generation


def test_fenced_is_told() -> None:
    """What is fenced is in the snapshot, and no state of the node clears it (G7)."""
    with Lab(leases_max=4096) as lab:
        lease = lab.grant(A, "echo")
        fence(lab, lease)
        for verb in (None, "disable", "resume", "quarantine", "release"):
            if verb:
                lab.ask(f"node.{verb}")
            with watching(lab) as watcher:
                seen = watcher.snapshot()
            assert {name: each["state"] for name, each in seen.leases.items()} == {lease["id"]: "fenced"}, verb
            echo = seen.endpoints[A, "echo"]
            assert (echo["fenced"], echo["free"], echo["members"]) == (2, 0, 2), (verb, echo)
        assert "fenced" in lab.cli_refused("lease", "grant", A, "--endpoint", "echo")


def live(frames: list[dict]) -> set[str]:
    """The leases that are, by pages and events as they came."""
    known: set[str] = set()
    for frame in frames:
        if frame["type"] == "leases":
            known |= {lease["id"] for lease in frame["leases"] if lease["state"] != "draining"}
        for event in frame.get("events", []):
            if event["event"] == "lease.grant":
                known.add(event["lease"])
            elif event["event"] == "lease.forced_teardown":
                known.discard(event["lease"])
    return known


def test_resume(lab: Lab) -> None:
    """A cursor goes on where it stood: no snapshot, nothing twice, nothing left out."""
    with watching(lab) as watcher:
        watcher.snapshot()
        first = lab.grant(A, "web")
        watcher.until_named("lease.grant", lease=first["id"])
    second = lab.grant(A, "echo")
    lab.revoke(second)
    with watching(lab, **{"from": watcher.cursor}) as again:
        assert again.frame() == {"type": "resumed", "cursor": watcher.cursor}
        again.until_named("lease.torndown", lease=second["id"])
        assert numbers(again.events) == list(range(watcher.cursor["seq"] + 1, again.cursor["seq"] + 1))
        assert names(again.events)[0] == "lease.grant"
    for wrong in ({"seq": again.cursor["seq"] + 1000}, {"instance": "0" * 16}):
        with watching(lab, **{"from": again.cursor | wrong}) as anew:
            assert first["id"] in anew.snapshot().leases


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_over_a_restart(own_lab: Lab, end: str) -> None:
    """The stream ends with the daemon; a cursor of another run gives a snapshot, in which what was granted is."""
    lab = own_lab
    lease = lab.grant(A, "web")
    with watching(lab) as watcher:
        seen = watcher.snapshot()
        getattr(lab, end)()
        with pytest.raises(ConnectionError):
            while True:
                watcher.frame()
    lab.start()
    with watching(lab, **{"from": seen.cursor}) as again:
        anew = again.snapshot()
        assert anew.cursor["instance"] != seen.cursor["instance"]
        assert set(anew.leases) == {lease["id"]}
        lab.revoke(lease)
        again.until_named("lease.torndown", lease=lease["id"])


def test_filters(lab: Lab) -> None:
    """By tenant and by kind; what is of no tenant is for everybody; snapshots too."""
    mine, other = lab.grant(A, "web"), lab.grant(B, "web")
    with (
        watching(lab, tenants=[A]) as of_a,
        watching(lab, kinds=["lease.torndown", "node"]) as ends,
        watching(lab, kinds=["policy"], tenants=[B]) as policies,
    ):
        seen = of_a.snapshot()
        assert set(seen.tenants) == {A} and set(seen.leases) == {mine["id"]} and {key[0] for key in seen.endpoints} == {A}
        assert set(ends.snapshot().leases) == {mine["id"], other["id"]}
        bare = policies.snapshot()
        assert set(bare.tenants) == {B} and not bare.leases and not bare.endpoints
        lab.revoke(other)
        lab.revoke(mine)
        lab.ask("node.drain")
        lab.ask("node.resume")
        lab.push(policy())
        for watcher in (of_a, ends):
            watcher.until_named("node.resume")
        policies.until_named("policy.apply")
        of_a.until_named("policy.apply")
        assert {event.get("tenant") for event in of_a.events} == {A, None}
        assert names(ends.events) == ["lease.torndown", "lease.torndown", "node.drain", "node.resume"]
        assert [event["lease"] for event in ends.events[:2]] == [other["id"], mine["id"]]
        assert names(policies.events) == ["policy.apply"]


def test_many_at_once_are_told_as_a_number(lab: Lab) -> None:
    """More than 16 leases of one request are one event for each tenant, and the lists have them."""
    with watching(lab) as watcher:
        watcher.snapshot()
        each = many(lab, 16)
        watcher.until(lambda event: event.get("lease") == each[-1]["id"])
        assert names(watcher.events) == ["lease.grant"] * 16
        many(lab, 500, MANY + 16)
        told = watcher.until_named("lease.grant", leases=500)
        assert told["tenant"] == A and "lease" not in told
        lab.ask("tenant.disable", {"name": A})
        lab.ask("tenant.enable", {"name": A})
        watcher.until_named("lease.torndown", leases=516, slots=516)
        watcher.until_named("tenant.enable")
    many(lab, 500)
    with watching(lab) as later:
        seen = later.snapshot()
        assert len(seen.leases) == 500 and seen.endpoints[A, "many"]["leased"] == 500
        assert sum("leases" in frame and frame["type"] == "leases" for frame in later.frames) >= 5


def test_heartbeats(lab: Lab) -> None:
    """When nothing happens, with the cursor; not while something does."""
    begin = time.monotonic()
    with watching(lab, heartbeat_ns=nanoseconds("1s"), kinds=["tenant"]) as watcher:
        watcher.snapshot()
        beats = [watcher.frame() for _ in range(2)]
        assert 2 <= time.monotonic() - begin < 4 * SLOW + 5
        assert [beat["type"] for beat in beats] == ["heartbeat"] * 2
        lab.revoke(lab.grant(A, "web"))  # not wanted, and yet the cursor moves on
        wait_until(lambda: watcher.frame()["cursor"]["seq"] >= beats[-1]["cursor"]["seq"] + 2, 5)
        assert watcher.events == []
        for wrong in (nanoseconds("0.5s"), nanoseconds("301s")):
            with watching(lab, heartbeat_ns=wrong) as refused, pytest.raises(Refused) as error:
                refused.frame()
            assert error.value.code == "out_of_range"


def test_trust_policy_and_interfaces(own_lab: Lab) -> None:
    lab = own_lab
    with watching(lab, kinds=["trust", "policy", "interface"]) as watcher:
        watcher.snapshot()
        lab.ask("trust.revoke", {"what": "holder:uid:4711"})
        lab.ask("trust.restore", {"what": "holder:uid:4711"})
        lab.ip("node", "link del ta")
        watcher.until_named("interface.dark", interface="ta")
        lab.plug_in("tenant-a")
        watcher.until_named("interface.back", interface="ta")
        lab.daemon.send_signal(signal.SIGHUP)
        watcher.until_named("trust.anchors")
        assert names(watcher.events)[:2] == ["trust.revoke", "trust.restore"]
        assert watcher.events[0]["what"] == "holder:uid:4711" and watcher.events[0]["actor_uid"] == 0


# ---- limits ------------------------------------------------------------------------------------------------


def as_reader(groups: dict[str, int], uid: int, body: Callable[[int], None]) -> None:
    """Runs `body` in a child in group holdfast, which connects as this user; what it raises ends it badly."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([groups["holdfast"]])
            body(uid)
            code = 0
        except BaseException as error:  # noqa: BLE001 (a child's last words)
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.xdist_group("groups")  # one makes them, and takes them away again
def test_limits(groups: dict[str, int], own_lab: Lab) -> None:  # noqa: F811
    """A reader watches 64 times, 4 of them signed; beyond, it is refused by name, others are not, and what it ends makes
    room."""
    lab = own_lab
    wrong = {
        "an unknown kind": ({"kinds": ["leases"]}, "unknown_kind"),
        "kinds that are no list": ({"kinds": "lease"}, "wrong_type"),
        "an empty tenant": ({"tenants": [""]}, "watch_filter"),
        "a cursor that is none": ({"from": {"instance": "x", "seq": 1}}, "watch_cursor"),
        "a misspelt argument": ({"tenant": A}, "unknown_key"),
    }
    for name, (args, code) in wrong.items():
        with watching(lab, **args) as watcher, pytest.raises(Refused) as refused:
            watcher.frame()
        assert refused.value.code == code, name

    def fill(uid: int) -> None:
        watchers = [Watcher(lab.socket_path, 30 * SLOW, uid) for _ in range(63)]
        for watcher in watchers:
            watcher.snapshot()
        last = watchers[-1]
        last.begin()  # a second stream on one connection
        last.snapshot()
        last.begin()
        with contextlib.suppress(Refused):
            last.frame()
            raise AssertionError("a 65th was not refused")
        watching_now = lab.ask("status")["connections"]
        watchers[0].socket.close()
        wait_until(lambda: lab.ask("status")["connections"] < watching_now, 5, "one has left")
        last.begin()
        last.snapshot()

    def one(uid: int) -> None:
        with Watcher(lab.socket_path, 30 * SLOW, uid) as watcher:
            watcher.snapshot()

    def have_signed(uid: int) -> None:
        sign = {"challenge": bytes(32), "for": "x"}
        with contextlib.ExitStack() as all_of_them:
            for _ in range(4):
                all_of_them.enter_context(Watcher(lab.socket_path, 30 * SLOW, uid, sign=sign)).frame()
            with Watcher(lab.socket_path, 30 * SLOW, uid, sign=sign) as fifth, pytest.raises(Refused) as refused:
                fifth.frame()
            assert refused.value.code == "signed_watchers_max"
            one(uid)

    as_reader(groups, READER, have_signed)
    as_reader(groups, READER, fill)
    as_reader(groups, OTHER_READER, one)
    wait_until(lambda: lab.ask("status")["watch"]["watchers"] == 0, 5)


def test_a_stranger_may_not(lab: Lab) -> None:
    prefix = ["setpriv", f"--reuid={READER}", f"--regid={READER}", "--clear-groups"]
    done = lab.try_cli("watch", prefix=prefix, json_output=False)
    assert done.returncode == 1 and "usermod -aG holdfast " in done.stderr


@pytest.mark.slow
def test_slow_watcher_resyncs_and_nobody_waits(own_lab: Lab) -> None:
    """One stops reading while the ring is overrun; it is told resync_required, and another has seen every event."""
    lab = own_lab
    with Control(lab.socket_path) as control, watching(lab) as slow, watching(lab) as good:
        slow.snapshot()
        begin = good.snapshot().cursor["seq"]
        ids = [control.grant(A, "web", "files", "echo", "perf", "ping", ttl_s=200)["id"]]
        ids += [lease["id"] for lease in many(lab, 200)]
        rss = resident(lab)
        told = good.cursor["seq"]
        for turn in range(60000):
            control.renew(ids[turn % len(ids)], 150 + turn % 100)
            if turn % 200 == 0:
                while told < (told := lab.ask("status")["watch"]["cursor"]["seq"]):
                    while good.cursor["seq"] < told:
                        good.frame()
                if control.call("status")["watch"]["resyncs"]:
                    break
                # On a slow machine a minute is over first, and with it the connection of who reads nothing.
                if "peer_stalled" in lab.log:
                    pytest.skip("too slow to overrun the ring before a peer that reads nothing is closed")
        else:
            raise AssertionError("nobody was told to begin anew")
        # AddressSanitizer keeps what was freed, for a while.
        assert build_dir().name == "asan" or resident(lab) - rss < 24 << 20
        assert numbers(good.events) == list(range(begin + 1, good.cursor["seq"] + 1))
        with pytest.raises(Refused) as refused:
            while True:
                slow.frame()
        error = refused.value.error
        assert (error["code"], error["class"], error["retry"]) == ("resync_required", "exhausted", "after_event"), error
        assert numbers(slow.events) == list(range(begin + 1, begin + 1 + len(slow.events)))
        slow.begin()  # on the same connection
        assert set(slow.snapshot().leases) == set(ids)
        control.revoke(ids[0])
        for watcher in (slow, good):
            watcher.until_named("lease.torndown", lease=ids[0])


def resident(lab: Lab) -> int:
    with open(f"/proc/{lab.daemon.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_thousand_watchers(own_lab: Lab) -> None:
    """Each is told all, and an operator still gets in. What it costs the daemon: scripts/bench control, `watch_cpu`.

    A hundred where loops are few: what takes long in a guest is our own reading."""
    lab, count = own_lab, max(100, LOOPS)
    watchers: list[Watcher] = []
    try:
        for _ in range(count):
            watchers.append(Watcher(lab.socket_path, 60 * SLOW, kinds=["lease"]))
        for watcher in watchers:
            watcher.snapshot()
        lease = lab.grant(A, "web")
        reading = threading.Event()
        readers = threading.Thread(target=read_along, args=(watchers, reading))
        readers.start()
        try:
            with Control(lab.socket_path) as control:
                begin = time.monotonic()
                for turn in range(400):
                    control.renew(lease["id"], 150)
                    time.sleep(max(0.0, begin + (turn + 1) / 100 - time.monotonic()))
        finally:
            reading.set()
            readers.join()
        for watcher in watchers:
            while sum(event["event"] == "lease.renew" for event in watcher.events) < 400:
                watcher.frame()
    finally:
        for watcher in watchers:
            watcher.socket.close()


def read_along(watchers: list[Watcher], over: threading.Event) -> None:
    """Takes what comes, and looks at it later."""
    with selectors.DefaultSelector() as selector:
        for watcher in watchers:
            selector.register(watcher.socket, selectors.EVENT_READ, watcher)
        while not over.is_set():
            for key, _ in selector.select(0.1):
                key.data.buffer += key.data.socket.recv(1 << 16)


# ---- the command -------------------------------------------------------------------------------------------


def started(lab: Lab, *words: str) -> subprocess.Popen:
    return lab.popen("node", lab.holdfast_argv(*words), bufsize=1)


def test_command(own_lab: Lab) -> None:
    """People's lines, a JSON object a line, --from a line's cursor; Ctrl-C ends it well, the daemon's end does not."""
    lab = own_lab
    plain, machine = started(lab, "watch", "--tenant", A), started(lab, "watch", "--json", "--kinds", "lease,node")
    for child in (plain, machine):
        for line in child.stdout:
            if "cursor" in line and ("snapshot_end" in line or "from here on" in line):
                break
    lease = lab.grant(A, "web")
    line = next(line for line in plain.stdout)
    assert "lease.grant" in line and lease["id"] in line and A in line, line
    event = json.loads(next(line for line in machine.stdout))
    assert event["version"] == 1 and event["event"] == "lease.grant" and event["lease"] == lease["id"]
    machine.send_signal(signal.SIGINT)
    assert machine.wait(5) == 0 and machine.stderr.read() == ""
    lab.revoke(lease)
    cursor = "{instance}:{seq}".format(**event["cursor"])
    later = started(lab, "watch", "--json", "--kinds", "lease", "--from", cursor)
    told = [json.loads(next(line for line in later.stdout)) for _ in range(3)]
    assert [each["type"] for each in told] == ["resumed", "event", "event"]
    assert [each["event"] for each in told[1:]] == ["lease.forced_teardown", "lease.torndown"]
    patient = started(lab, "watch", "--json", "--reconnect", "--kinds", "lease")
    while json.loads(patient.stdout.readline())["type"] != "snapshot_end":
        pass
    lab.kill()
    for child in (plain, later):
        assert child.wait(5) == 1
    assert "connection_closed" in later.stderr.read()
    assert "closed" in plain.stderr.read()
    lab.start()
    while json.loads(patient.stdout.readline())["type"] != "snapshot_end":
        pass
    lease = lab.grant(A, "web")
    assert json.loads(patient.stdout.readline())["lease"] == lease["id"]
    patient.send_signal(signal.SIGINT)
    assert patient.wait(5) == 0
    assert "INSTANCE:SEQ" in lab.cli_refused("watch", "--from", "12", exit_code=2)
    assert "interface" in lab.cli_refused("watch", "--kinds", "leases")
