"""G2, G8, G11: holdfastd is killed at every step of grant (by token, too), renew, revoke (of trust, too), expiry and
push, and nothing is lost or left open.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

First each operation runs once under strace, which lists its steps: the system calls by which it reads, writes and
waits. Then, for one step after another, strace delivers SIGKILL as the daemon enters that call, the daemon is started
again, and the whole state is held against what had been acknowledged:

    acknowledged and live      listed, its gates open until its term and not longer, and passing
    acknowledged as ended      neither listed nor passing, nothing of it in nft
    not acknowledged           passes exactly if it is listed
    a push                     the old policy or the new one, whole; the new one if acknowledged
    a grant token              makes its lease again, or none any more; none ever if acknowledged as revoked

Between two system calls only the daemon's own memory and mapped maps change. What a kill between two such stores leaves
behind is put there by hand in the last test. HOLDFAST_LOOPS is the number of kills, at most 200 (for tokens half as many): these
hit every class of steps five times, fewer take a sample.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import signing
from bpf import pinned_map, values_of
from control import Control, Refused
from issuer import Issuer, as_bytes, trust
from kills import CALLS, answered_and_killed, daemon_ended, thread_of, traced
from lab import A, ECHO, HOSTS, MANY, SLOW, Lab, policy, wait_until
from packets import Probe, ports_of, udp

FULL = 200  # kills with which every class of steps is hit five times, however many more that takes
KILLS = min(FULL, int(os.environ.get("HOLDFAST_LOOPS", "1000")))
BPF_WRITES = ("BPF_MAP_CREATE", "BPF_MAP_UPDATE_BATCH", "BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_LINK_CREATE", "BPF_LINK_UPDATE", "BPF_LINK_DETACH", "BPF_OBJ_PIN")
SLOTS = 2048
PORTS = 400  # of the endpoint `many`
KEEPER = ECHO  # the port of a lease that lives all along
ADDED = 7777  # an endpoint that only the pushed policy has
TARGET = HOSTS["tenant-a"].v4
TOKEN_LIFE_S = 250
TICK_S = 0.01  # what a term is rounded by, generously


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclasses.dataclass
class Lease:
    """What the test knows of one lease: deadlines that it may have, by CLOCK_BOOTTIME, and whether it may be gone."""

    id: str
    ports: tuple[int, ...]
    earliest_s: float
    latest_s: float
    may_be_gone: bool = False


@dataclasses.dataclass(frozen=True)
class Step:
    """One system call of an operation: the `number`th of its name that the thread makes since the operation began."""

    operation: str
    in_loop: bool  # in the event loop's thread, or in the one that waits for grace periods
    call: str
    number: int
    place: str

    @property
    def kind(self) -> str:
        return f"{self.operation}: {self.place}"


def place_of(line: str) -> str | None:
    """What a traced call is for, as a word or two; none for what only serves the process itself."""
    found = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
    if not found or found[1] not in CALLS:
        return None
    call, arguments = found[1], found[2]
    if call == "bpf":
        command = re.match(r"\w+", arguments)[0]
        return command if command in BPF_WRITES else "bpf read"
    if call == "sendto":
        if "HLDF" in arguments:
            return "reply"
        kind = re.search(r"nlmsg_type=(0x\w+|\w+)", arguments)
        return "netlink " + {"0x10": "transaction"}.get(kind[1] if kind else "", "read")
    if call == "recvmsg":
        return "request" if "HLDF" in arguments else None
    if call in ("write", "pwrite64"):
        files = {"policy.json.new": "policy file", "spent": "used tokens", "revocations.new": "revocations", "bundle.new": "bundle record"}
        return (files | {"daemon.log": "log"}).get(name_in(arguments), "wake")
    return call


def name_in(arguments: str) -> str:
    found = re.match(r"\d+<([^>]*)>", arguments)
    return found[1].rsplit("/", 1)[-1] if found else ""


def small_policy(generation: int) -> dict:
    """The lab's, with few slots, so that whole maps are soon read."""
    made = policy(generation, limits={"leases": SLOTS})
    made["tenants"][1]["endpoints"].pop()
    made["tenants"][0]["endpoints"][-1]["listen"] = f"{MANY}-{MANY + PORTS - 1}"
    return made


class World:
    """The lab, and what was acknowledged in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control = Control(lab.socket_path)
        self.ports = itertools.cycle(range(MANY, MANY + PORTS))
        self.live: list[Lease] = []
        self.gone: collections.deque[int] = collections.deque(maxlen=24)  # ports whose leases ended
        self.unsure: list[int] = []  # ports of a grant that was not acknowledged
        self.generation = 10
        self.pushed = {self.generation: self.document(self.generation, None)}
        self.issuer = Issuer(lab)
        trust(lab, self.issuer.anchor(), signing.anchor(issuer="root.example", uses=["bundle"]))
        self.push(self.generation)
        self.epoch = self.control.call("status")["epoch"]
        self.token: tuple[pathlib.Path, tuple[int, ...]] | None = None  # the last that was presented, and its ports
        # With the time, by CLOCK_BOOTTIME, until which "revoked" is what is wrong with each.
        self.revoked: collections.deque[tuple[pathlib.Path, float]] = collections.deque(maxlen=3)
        self.grant(KEEPER, ttl_s=300)

    def push(self, generation: int) -> None:
        """As a signed bundle."""
        made = signing.bundle(self.control.hello["node"], self.pushed[generation])
        self.control.call("bundle.push", {"signed": True}, made)

    # ---- what is asked of the daemon -----------------------------------------------------------------------

    def document(self, generation: int, dropped: int | None) -> dict:
        """The lab's policy as it is; with `dropped` one of them goes and another endpoint comes."""
        made = small_policy(generation)
        endpoints = made["tenants"][0]["endpoints"]
        many = endpoints.pop()
        last = MANY + PORTS - 1
        if dropped is None:
            endpoints.append(many)
            return made
        for name, first, end in (("many", MANY, dropped - 1), ("many-more", dropped + 1, last)):
            if first <= end:
                endpoints.append(many | {"name": name, "listen": f"{first}-{end}"})
        endpoints.insert(0, many | {"name": "added", "listen": ADDED})
        return made

    def names(self, ports: Sequence[int]) -> list[str]:
        return ["echo" if port == KEEPER else f"{self.endpoint_of(port)}@{TARGET}:{port}" for port in ports]

    def endpoint_of(self, port: int) -> str:
        for each in self.pushed[self.generation]["tenants"][0]["endpoints"]:
            first, _, last = str(each.get("listen", "0")).partition("-")
            if each["protocol"] == "udp" and int(first) <= port <= int(last or first):
                return each["name"]
        raise KeyError(port)

    def fresh(self, count: int) -> tuple[int, ...]:
        held = {port for lease in self.live for port in lease.ports} | set(self.unsure)
        ports: list[int] = []
        while len(ports) < count:
            port = next(self.ports)
            with contextlib.suppress(KeyError):
                if port not in held and self.endpoint_of(port):
                    ports.append(port)
        for port in ports:
            with contextlib.suppress(ValueError):
                self.gone.remove(port)
        return tuple(ports)

    def grant(self, *ports: int, ttl_s: float) -> Lease:
        begin = boot_s()
        lease = self.control.grant(A, *self.names(ports), ttl_s=ttl_s)
        self.live.append(Lease(lease["id"], ports, begin + ttl_s - TICK_S, boot_s() + ttl_s))
        return self.live[-1]

    def renew(self, lease: Lease, ttl_s: float) -> None:
        begin = boot_s()
        try:
            self.control.renew(lease.id, ttl_s)
            lease.earliest_s = begin + ttl_s - TICK_S
        finally:  # a daemon that was killed counted from no later than this
            lease.latest_s = boot_s() + ttl_s

    def by_token(self, token: pathlib.Path, ports: tuple[int, ...]) -> Lease:
        begin = boot_s()
        lease = self.control.call("lease.grant", {"token": as_bytes(token.read_text())})
        known = [each for each in self.live if each.id == lease["id"]]
        if not known:
            left_s = lease["remaining_ns"] / 1e9
            known = [Lease(lease["id"], ports, begin + left_s - TICK_S, boot_s() + left_s)]
            self.live += known
        return known[0]

    def ended(self, lease: Lease) -> None:
        self.live.remove(lease)
        self.gone.extend(lease.ports)

    # ---- the operations that are killed: what to have before, and what to do ----------------------------------

    def prepare_grant(self) -> Callable[[], None]:
        ports = self.fresh(2)
        self.unsure += ports

        def act() -> None:
            self.grant(*ports, ttl_s=100)
            self.unsure = [port for port in self.unsure if port not in ports]

        return act

    def prepare_token(self) -> Callable[[], None]:
        ports = self.fresh(2)
        self.unsure += ports
        named = [word for name in self.names(ports) for word in ("--endpoint", name)]
        token = self.issuer.issue(A, *named, "--ttl", "100s", life=f"{TOKEN_LIFE_S}s")
        self.token = token, ports

        def act() -> None:
            self.by_token(token, ports)
            self.unsure = [port for port in self.unsure if port not in ports]

        return act

    def prepare_trust(self) -> Callable[[], None]:
        ports = self.fresh(2)
        named = [word for name in self.names(ports) for word in ("--endpoint", name)]
        expires_s = boot_s() + TOKEN_LIFE_S - 1  # at the earliest: a token's times are whole seconds
        token = self.issuer.issue(A, *named, "--ttl", "100s", life=f"{TOKEN_LIFE_S}s")
        lease = self.by_token(token, ports)
        leaf = self.lab.cli("token", "inspect", token)["leaf"]

        def act() -> None:
            lease.may_be_gone = True
            assert self.control.call("trust.revoke", {"what": f"token:{leaf}"})["leases_ended"] == 1
            self.ended(lease)
            self.revoked.append((token, expires_s))

        return act

    def prepare_renew(self) -> Callable[[], None]:
        lease = self.grant(*self.fresh(2), ttl_s=100)

        def act() -> None:
            self.renew(lease, 200)

        return act

    def prepare_revoke(self) -> Callable[[], None]:
        lease = self.grant(*self.fresh(2), ttl_s=100)

        def act() -> None:
            lease.may_be_gone = True
            self.control.revoke(lease.id)
            self.ended(lease)

        return act

    def prepare_expire(self) -> Callable[[], None]:
        lease = self.grant(*self.fresh(2), ttl_s=1.0 * SLOW)

        def act() -> None:
            time.sleep(max(0.0, lease.latest_s - boot_s()) + 0.25)
            self.ended(lease)  # acknowledged or not: at its term it ends

        return act

    def prepare_push(self) -> Callable[[], None]:
        had = self.grant(*self.fresh(1), ttl_s=100)
        dropped = had.ports[0]
        generation = max(self.pushed) + 1
        back = "added" in json.dumps(self.pushed[self.generation])  # then everything returns, and nothing ends
        self.pushed[generation] = self.document(generation, None if back else dropped)

        def act() -> None:
            if not back:
                had.may_be_gone = True
            self.push(generation)
            self.generation = generation
            if not back:
                self.ended(had)

        return act

    # ---- after the kill -------------------------------------------------------------------------------------

    def restart(self) -> None:
        self.lab.start()
        self.control.socket.close()
        self.control = Control(self.lab.socket_path)

    def passing(self, ports: Sequence[int]) -> set[int]:
        """The ports at which a datagram from the client arrives now. The keeper's, sent last, tells when all were judged."""
        probe = Probe("client", "tenant-a", udp())
        frames = []
        for port in [*ports, KEEPER]:
            each = Probe("client", "tenant-a", udp(port))
            each.marker = probe.marker
            frames.append(each.frame())
        with self.lab.capture("tenant-a", probe.marker) as capture:
            self.lab.send("client", frames)
            wait_until(lambda: KEEPER in ports_of(capture.drain()), 3, "the keeper's lease passes")
            return ports_of(capture.drain()) - ({KEEPER} - set(ports))

    def open_gates(self) -> dict[str, float]:
        """lease id -> the latest deadline of its gates, from the pinned maps and not from the daemon."""
        slots, records = (dump(self.lab, name) for name in ("slots", "records"))
        now, found = boot_s(), {}
        for slot, record in zip(slots, records, strict=True):
            gate = struct.unpack_from("=Q", slot)[0]
            deadline_s = (gate >> 24 << 20) / 1e9
            if deadline_s > now:
                high, low = struct.unpack_from("=QQ", record)
                name = f"{high:016x}{low:016x}"
                found[name] = max(deadline_s, found.get(name, 0.0))
        return found

    def in_nft(self, ports: Sequence[int]) -> list[int]:
        """Those that an element of nft names."""
        elements = self.lab.nft("list", "table", "inet", "holdfast")
        return [port for port in ports if re.search(rf"\. {port}\b", elements)]

    def check_policy(self) -> None:
        shown = self.control.call("bundle.show")
        generation = shown["generation"]
        assert shown["signed"]["generation"] >= generation, "nothing older is taken again (G12)"
        if generation != self.generation:
            assert generation == max(self.pushed), f"generation {generation} is in force, {self.generation} was acknowledged"
            self.generation = generation
        served = {
            (route["endpoint"], route["listen"])
            for route in self.control.call("route.list")["routes"]
            if (route["tenant"], route["protocol"]) == (A, "udp")
        }
        endpoints = self.pushed[generation]["tenants"][0]["endpoints"]
        wanted = {(each["name"], str(each["listen"])) for each in endpoints if each["protocol"] == "udp"}
        assert served == wanted, f"policy {generation} is not in force as a whole: {served ^ wanted}"

    def check_tokens(self) -> None:
        """The last token makes its lease, the same if that is known; what was revoked makes none."""
        assert self.control.call("status")["epoch"] == self.epoch
        if self.token is not None:
            token, ports = self.token
            try:
                lease = self.by_token(token, ports)
                assert set(lease.ports) == set(ports)
            except Refused as refused:
                # Written down as used, and killed before it was open.
                assert refused.code == "already_used"
                assert not any(set(lease.ports) == set(ports) for lease in self.live)
                self.gone.extend(ports)
            self.unsure = [port for port in self.unsure if port not in ports]
            self.token = None
        for token, expires_s in self.revoked:
            # One that expired while it was asked about is refused for that.
            with pytest.raises(Refused) as error:
                self.control.call("lease.grant", {"token": as_bytes(token.read_text())})
            assert error.value.code == "revoked" or boot_s() > expires_s, error.value

    def check(self) -> None:
        self.check_policy()
        asked_s = boot_s()
        listed = self.control.leases()
        answered_s = boot_s()
        known = {lease.id for lease in self.live}
        extra = set(listed) - known
        # A grant that was not acknowledged may stand; then it is one like any other.
        for name in extra:
            ports = tuple(int(resource.rsplit(":", 1)[-1]) for resource in listed[name]["resources"] if ":" in resource)
            assert set(ports) <= set(self.unsure), f"a lease nobody asked for: {listed[name]}"
            self.unsure = [port for port in self.unsure if port not in ports]
            self.live.append(Lease(name, ports, 0, boot_s() + 101))
        for lease in list(self.live):
            if lease.id not in listed:
                if lease.may_be_gone or lease.earliest_s <= boot_s():
                    self.ended(lease)
                else:
                    raise AssertionError(f"lost: lease {lease.id} on {lease.ports}, acknowledged, {lease.earliest_s - boot_s():.1f} s left")
                continue
            # The answer was given between these two times.
            left_s = listed[lease.id]["remaining_ns"] / 1e9
            earliest_s, latest_s = asked_s + left_s, answered_s + left_s
            assert listed[lease.id]["state"] == "active", listed[lease.id]
            ends = f"{lease} ends between {earliest_s} and {latest_s}"
            assert lease.earliest_s - 0.1 <= latest_s and earliest_s <= lease.latest_s + 0.1, ends
            lease.earliest_s, lease.latest_s, lease.may_be_gone = earliest_s - 0.1, latest_s + 0.1, False
        gates = self.open_gates()
        # What ends between the two readings is listed, and not open any more.
        live = {lease.id for lease in self.live if lease.earliest_s > boot_s()}
        assert live <= set(gates) <= {lease.id for lease in self.live}, f"open gates {sorted(gates)}, listed {sorted(listed)}"
        open_ = [lease for lease in self.live if lease.id in gates]
        for lease in open_:
            assert gates[lease.id] <= lease.latest_s + TICK_S, f"{lease} is open until {gates[lease.id]}"
        shut = [*self.unsure, *self.gone, ADDED]
        expected = {port for lease in open_ for port in lease.ports}
        passed = self.passing([*expected, *shut])
        # Likewise what ends before its packet is there.
        expected -= {port for lease in open_ if gates[lease.id] <= boot_s() for port in lease.ports} - passed
        assert passed == expected, f"pass and should not: {sorted(passed - expected)}; should and do not: {sorted(expected - passed)}"
        # The successor closes the gates before it answers, and takes the elements away after that.
        wait_until(lambda: not self.in_nft(shut), what=f"nft holds no element of ports {shut}")
        self.unsure.clear()
        self.check_tokens()

    def tidy(self) -> None:
        """Few leases, with time left."""
        for lease in list(self.live):
            if lease.ports[0] == KEEPER:
                if lease.earliest_s - boot_s() < 200:
                    self.renew(lease, 300)
            elif len(self.live) > 6:
                try:
                    self.control.revoke(lease.id)
                except Refused as refused:
                    assert refused.code == "no_such_lease" and boot_s() >= lease.earliest_s  # its term ended first
                self.ended(lease)


def dump(lab: Lab, name: str) -> list[bytes]:
    return values_of(pin(lab, name))


def pin(lab: Lab, name: str) -> os.PathLike:
    return next(lab.pin_dir.glob(f"*/maps/{name}"), None) or next(lab.pin_dir.glob(f"**/{name}"))


NOT_HIT = ": not hit"
OPERATIONS = {"leases": ("grant", "renew", "revoke", "expire", "push"), "tokens": ("token", "trust")}


def steps_of(world: World, operation: str) -> list[Step]:
    """Runs the operation once, untouched."""
    act = getattr(world, f"prepare_{operation}")()
    loop = thread_of(world.lab, in_loop=True)
    with traced(world.lab, "-f", "-p", loop) as lines:
        act()
        time.sleep(0.1)
    steps, numbers = [], collections.Counter()
    for line in lines:
        found = re.match(r"(\d+) +(\w+)\(", line)
        if not found:
            continue
        thread, call = found.groups()
        numbers[thread, call] += 1
        if place := place_of(line):
            steps.append(Step(operation, thread == loop, call, numbers[thread, call], place))
    assert steps, f"{operation}: strace saw nothing"
    return steps


def hit(step: Step, lines: list[str]) -> str:
    """The class of the step that the kill hit, by the last call that strace saw; its arguments may be cut off by then."""
    calls = [line for line in lines if re.match(r"(?:\d+ +)?\w+\(", line)]
    last = next((line for line in reversed(calls[-3:]) if f"{step.call}(" in line), None)
    assert last, f"meant to kill at {step}, killed at {calls[-3:]}"
    place = place_of(last)
    return f"{step.operation}: {place}" if place and "<unfinished" not in last else step.kind


def choose(steps: list[Step], kills: int) -> list[Step]:
    """The steps to kill at: each class in turn, and within a class its steps in turn."""
    classes: dict[str, list[Step]] = {}
    for step in steps:
        classes.setdefault(step.kind, []).append(step)
    order = []
    for turn in range(kills):
        for members in classes.values():
            order.append(members[turn * max(1, len(members) // 5) % len(members)])
    if kills < len(classes):
        stride = len(classes) / kills  # a sample over all operations
        return [order[int(turn * stride)] for turn in range(kills)]
    return order[:kills]


def kill_at(world: World, step: Step) -> str:
    """Kills the daemon at that step, starts it again and checks everything. Returns what the kill hit."""
    act = getattr(world, f"prepare_{step.operation}")()
    thread = thread_of(world.lab, step.in_loop)
    with traced(world.lab, "-e", f"inject={step.call}:signal=KILL:when={step.number}", "-p", thread) as lines:
        _, killed = answered_and_killed(world.lab, act)
    if not killed:
        world.lab.kill()  # the path was shorter this time: the operation went through untouched
    world.restart()
    try:
        world.check()
    except AssertionError as error:
        raise AssertionError(f"killed at {step}: {error}\ntrace:\n" + "\n".join(lines[-12:])) from error
    world.tidy()
    return hit(step, lines) if killed else f"{step.operation}{NOT_HIT}"


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(leases_max=SLOTS, push=small_policy(1)) as lab:
        made = World(lab)
        try:
            yield made
        finally:
            made.control.socket.close()


@pytest.mark.slow
@pytest.mark.parametrize("of", OPERATIONS)
def test_killed_at_every_step(world: World, of: str) -> None:
    """See above. Prints which step each kill hit."""
    hits: collections.Counter[str] = collections.Counter()
    steps = [step for operation in OPERATIONS[of] for step in steps_of(world, operation)]
    world.check()
    kills = KILLS if of == "leases" else KILLS // 2
    for step in choose(steps, kills):
        hits[kill_at(world, step)] += 1
    if KILLS >= FULL:
        turns = {kind: itertools.cycle([step for step in steps if step.kind == kind]) for kind in {step.kind for step in steps}}
        for _ in range(100):
            kind = min(turns, key=lambda kind: hits[kind])
            if hits[kind] >= 5:
                break
            hits[kill_at(world, next(turns[kind]))] += 1
    for kind, count in sorted(hits.items()):
        print(f"{count:4} {kind}")
    assert sum(count for kind, count in hits.items() if kind.endswith(NOT_HIT)) <= kills / 10, hits
    few = {step.kind: hits[step.kind] for step in steps if hits[step.kind] < 5}
    assert KILLS < FULL or not few, f"hit fewer than 5 times: {few}"


@pytest.mark.slow
def test_killed_at_random_moments(world: World) -> None:
    """Grants, renewals and revokes one after the other, and a SIGKILL whenever it likes, a fifth as often as above."""
    seed = secrets.randbits(32)
    chance, done = random.Random(seed), 0
    for _ in range(max(3, KILLS // 5)):
        killer = threading.Timer(chance.uniform(0.001, 0.4), world.lab.daemon.kill)
        killer.start()
        with contextlib.suppress(ConnectionError):
            while True:
                mine = [lease for lease in world.live if lease.ports[0] != KEEPER and not lease.may_be_gone]
                operation = chance.choice(["grant", "grant", "renew", "revoke"])
                if operation == "grant" and len(mine) < 40:
                    world.prepare_grant()()
                elif mine and operation == "renew":
                    lease = chance.choice(mine)
                    world.renew(lease, 200)
                elif mine:
                    lease = chance.choice(mine)
                    lease.may_be_gone = True
                    world.control.revoke(lease.id)
                    world.ended(lease)
                done += 1
        killer.join()
        assert daemon_ended(world.lab, 5)
        world.restart()
        try:
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        world.tidy()
    print(f"{done} grants, renewals and revokes, {max(3, KILLS // 5)} kills")


@pytest.mark.parametrize("closed", [0, 1], ids=["first-closed", "second-closed"])
def test_killed_between_two_stores(world: World, closed: int) -> None:
    """A lease on two endpoints, one gate of which is closed: half a revocation. It is finished, or the lease is listed."""
    lab, lease = world.lab, world.grant(*world.fresh(2), ttl_s=100)
    lab.kill()
    slots = [number for number, record in enumerate(dump(lab, "records")) if record_id(record) == lease.id]
    assert len(slots) == 2
    value = bytearray(dump(lab, "slots")[slots[closed]])
    gate = struct.unpack_from("=Q", value)[0]
    struct.pack_into("=Q", value, 0, (gate & 0xFFFFFF) + 1)  # as Slots::close does
    with pinned_map(pin(lab, "slots")) as map_of_slots:
        map_of_slots.write(struct.pack("=I", slots[closed]), bytes(value))
    lease.may_be_gone = True
    world.restart()
    world.check()
    lab.kill()
    world.restart()
    world.check()


ISSUER_AT = 120  # in a lease_record of bpf/abi.h


def test_killed_between_two_origins(world: World) -> None:
    """A lease on two endpoints, killed while a renewal by another issuer wrote down whose it is: it stands on the first
    one's. Revoked, both end, and not the half of it."""
    lab, ports = world.lab, world.fresh(2)
    named = [word for name in world.names(ports) for word in ("--endpoint", name)]
    lease = world.by_token(world.issuer.issue(A, *named, "--ttl", "100s"), ports)
    lab.kill()
    records = dump(lab, "records")
    slots = [number for number, record in enumerate(records) if record_id(record) == lease.id]
    (issuer,) = {struct.unpack_from("=Q", records[slot], ISSUER_AT) for slot in slots}
    assert len(slots) == 2 and issuer != (0,)
    value = bytearray(records[slots[1]])
    struct.pack_into("=Q", value, ISSUER_AT, 4711)
    with pinned_map(pin(lab, "records")) as map_of_records:
        map_of_records.write(struct.pack("=I", slots[1]), bytes(value))
    world.restart()
    world.check()
    assert lease in world.live
    what = f"issuer:{world.issuer.name}"
    assert world.control.call("trust.revoke", {"what": what})["leases_ended"] == 1
    world.ended(lease)
    world.control.call("trust.restore", {"what": what})
    world.check()


def record_id(record: bytes) -> str:
    return "%016x%016x" % struct.unpack_from("=QQ", record)
