"""verify.sock: services ask the node whether a token holds, at this moment, for this use, by this presenter.

Both transports answer alike. Covers G3, G5, G10 and L2, L5, L13, P5. Each refusal stands beside its control, and the
counter of the named reason rises by exactly the tokens asked about.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from control import HEADER, Refused
from issuer import Issuer, trust
from lab import A, B, HOSTS, PYTHON, SLOW, SYS, Lab, build_dir, policy, refusing, wait_until
from verify_sock import Check, VerifySock, body_of

pytestmark = pytest.mark.xdist_group("io_uring")  # one test here takes it from the whole machine for a moment

HOLDER, STRANGER = 4001, 4002
WEB = f"web@{HOSTS['tenant-a'].v4}:8080"


@pytest.fixture(scope="module", params=["auto", "epoll"])
def node(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose daemon waits for frames in that way."""
    with Lab(daemon=False) as lab:
        lab.start(verify_transport=request.param, verify_workers=2)  # whatever the machine
        lab.push(policy())
        by = lab.ask("status")["verifier"]["by"]
        assert by == ("epoll" if request.param == "epoll" else "io_uring")
        lab.issuer = Issuer(lab)
        trust(lab, lab.issuer.anchor())
        yield lab


@pytest.fixture(autouse=True)
def no_leases(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    lab = request.getfixturevalue("node") if "node" in request.fixturenames else None
    if lab is not None:
        for lease in lab.leases():
            with contextlib.suppress(Refused):  # it has ended by itself
                lab.ask("lease.revoke", {"id": lease})


def asking(lab: Lab, uid: int = 0) -> VerifySock:
    return VerifySock(lab.dir / "run" / "verify.sock", uid)


def by_token(lab: Lab, *words: object, tenant: str = A, **options: object) -> dict:
    """A lease by token, with its use token."""
    words = words or ("--endpoint", "web")
    path = lab.issuer.issue(tenant, *words, "--operation", "connect", "--holder", f"uid:{HOLDER}", **options)
    return lab.cli("lease", "grant", "--token", path)


def counts(lab: Lab) -> dict[str, int]:
    verifier = lab.ask("status")["verifier"]
    return verifier["refused"] | {"good": verifier["good"]}


# ---- what is good, and what is not ------------------------------------------------------------------------


def test_a_token_is_good_as_long_as_its_lease(node: Lab) -> None:
    """L2, G5: good while the lease is in force, refused at the next question after its revocation."""
    lease = by_token(node)
    check = Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")
    with asking(node) as service:
        (verdict,) = service.ask([check])
        assert verdict[0] == 0 and verdict[2] == lease["generation"]
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert boot_ns < verdict[3] <= boot_ns + lease["remaining_ns"] + 1e9
        node.ask("lease.revoke", {"id": lease["id"]})
        assert service.reason(check) == "no_lease"


def test_all_resources_of_a_lease_have_one_generation(node: Lab) -> None:
    """Also where one of them had more leases before than another: the use token serves for each."""
    one = node.grant(A, WEB)
    node.ask("lease.revoke", {"id": one["id"]})
    lease = by_token(node)
    assert len(lease["resources"]) > 1


    def answers(each: dict) -> set[str]:
        with asking(node) as service:
            return {service.reason(Check(each["token"], "connect", name, f"uid:{HOLDER}")) for name in each["resources"]}

    assert answers(lease) == {"good"}
    renewal = node.issuer.issue(A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect", kind="renew")
    assert answers(node.cli("lease", "renew", "--token", renewal)) == {"good"}


def test_it_ends_with_its_lease(node: Lab) -> None:
    """L2, G2: by the very deadline that packets meet, though nothing told the verifier."""
    lease = by_token(node, "--endpoint", "web", "--ttl", f"{round(3 * SLOW)}s")
    check = Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")
    now = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)  # noqa: E731
    with asking(node) as service:
        verdict = service.ask([check])[0]
        assert verdict[0] == 0
        end = verdict[3]
        while verdict[0] == 0:
            asked = now()
            verdict = service.ask([check])[0]
            assert verdict[0] != 0 or asked < end
        assert now() >= end
        # The token's own end is the second that follows.
        assert service.reasons[verdict[0]] in ("no_lease", "expired", "head_expired")


def test_each_reason_beside_its_control(node: Lab) -> None:
    """L5, L13: every way in which a token does not serve, each with its name, and the counters exact."""
    lease = by_token(node)
    token, mine = lease["token"], f"uid:{HOLDER}"
    other_epoch = node.issuer.issue(
        A, "--endpoint", WEB, "--lease", lease["id"], "--generation", lease["generation"], kind="use", epoch=7
    ).read_text()
    grant = node.issuer.issue(A, "--endpoint", "web").read_text()
    unknown = Issuer(node, "nobody.example").issue(
        A, "--endpoint", WEB, "--lease", lease["id"], "--generation", lease["generation"], kind="use"
    )  # fmt: skip
    old = node.issuer.issue(
        A, "--endpoint", WEB, "--operation", "connect", "--lease", lease["id"], "--generation", lease["generation"] - 1,
        kind="use",
    )  # fmt: skip
    none = node.issuer.issue(
        A, "--endpoint", WEB, "--operation", "connect", "--lease", "0" * 31 + "1", "--generation", "1", kind="use"
    )
    elsewhere = node.issuer.issue(
        B, "--endpoint", f"web@{HOSTS['tenant-b'].v4}:8080", "--operation", "connect", "--lease", lease["id"],
        "--generation", lease["generation"], kind="use",
    )  # fmt: skip
    table = [
        ("good", Check(token, "connect", WEB, mine)),
        ("wrong_holder", Check(token, "connect", WEB, f"uid:{STRANGER}")),
        ("wrong_holder", Check(token, "connect", WEB, None)),
        ("operation_not_named", Check(token, "erase", WEB, mine)),
        ("resource_not_named", Check(token, "connect", f"files@{HOSTS['tenant-a'].v4}:8081", mine)),
        ("resource_not_named", Check(token, "connect", "egress:a0", mine)),
        ("resource_not_named", Check(token, "connect", WEB + "0", mine)),
        ("stale_epoch", Check(other_epoch, "connect", WEB, mine)),
        ("wrong_kind", Check(grant, "connect", WEB, mine)),
        ("unknown_key", Check(unknown.read_text(), "connect", WEB, mine)),
        ("old_generation", Check(old.read_text(), "connect", WEB, mine)),
        ("no_lease", Check(none.read_text(), "connect", WEB, mine)),
        ("no_lease", Check(elsewhere.read_text(), "connect", f"web@{HOSTS['tenant-b'].v4}:8080", mine)),
        ("good", Check(token, "connect", WEB, mine)),
    ]
    before = counts(node)
    with asking(node) as service:
        # In one frame, and one by one.
        verdicts = service.ask([check for _, check in table])
        assert [service.reasons[verdict[0]] for verdict in verdicts] == [reason for reason, _ in table]
        for reason, check in table:
            assert service.reason(check) == reason
    expected = dict(before)
    for reason, _ in table:
        expected[reason] = expected.get(reason, 0) + 2
    wait_until(lambda: counts(node) == expected, what=f"the counters are {expected}")


def test_who_may_name_a_presenter(node: Lab) -> None:
    """L5: a service in none of our groups checks its own tokens only; root and group holdfast check for others."""
    lease = by_token(node)
    with asking(node, HOLDER) as holder:
        assert holder.reason(Check(lease["token"], "connect", WEB)) == "good"
        assert holder.reason(Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")) == "not_relying"
    with asking(node, STRANGER) as thief:
        assert thief.reason(Check(lease["token"], "connect", WEB)) == "wrong_holder"
        assert thief.reason(Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")) == "not_relying"


def test_who_is_told_why(node: Lab) -> None:
    """G10: before a signature holds a stranger learns only that it is denied; the true reason is counted."""
    words = (A, "--endpoint", WEB, "--lease", "0" * 32, "--generation", "1")
    status = node.ask("status")
    for token, reason in [
        (Issuer(node, "stranger.example").issue(*words, kind="use"), "unknown_key"),
        (node.issuer.issue(*words, kind="use", epoch=status["epoch"] - 1), "stale_epoch"),
    ]:
        check = Check(token.read_text(), "connect", WEB)
        before = counts(node)
        with asking(node, STRANGER) as stranger, asking(node) as reader:
            assert stranger.reason(check) == "denied"
            assert reader.reason(check) == reason
        expected = before | {reason: before.get(reason, 0) + 2}
        wait_until(lambda wanted=expected: counts(node) == wanted, what=f"both are counted as {reason}")


def test_after_a_renewal_only_the_new_one(node: Lab) -> None:
    """L13: each renewal makes the tokens of before old."""
    lease = by_token(node)
    renewal = node.issuer.issue(
        A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect", kind="renew"
    )
    renewed = node.cli("lease", "renew", "--token", renewal)
    with asking(node) as service:
        assert service.reason(Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")) == "old_generation"
        assert service.reason(Check(renewed["token"], "connect", WEB, f"uid:{HOLDER}")) == "good"


def test_a_key_that_is_trusted_no_more(node: Lab) -> None:
    """L13: what was proved before is judged anew: known heads of a revoked key are refused."""
    lease = by_token(node)
    by_issuer = node.issuer.issue(
        A, "--endpoint", "web", "--operation", "connect", "--lease", lease["id"], "--generation", lease["generation"],
        kind="use",
    ).read_text()  # fmt: skip
    check = Check(by_issuer, "connect", WEB, f"uid:{HOLDER}")
    with asking(node) as service:
        assert service.reason(check) == "good"
        trust(node, node.issuer.anchor(state="revoked"))
        assert service.reason(check) == "key_not_live"
        # Its lease is gone with it; the node's own token says so.
        wait_until(lambda: service.reason(Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")) == "no_lease")
        trust(node, node.issuer.anchor())
        assert service.reason(check) == "no_lease"


def test_a_disabled_tenant(node: Lab) -> None:
    """G5: one store ends every lease of a tenant, and every token of it."""
    lease = by_token(node)
    check = Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")
    with asking(node) as service:
        assert service.reason(check) == "good"
        node.ask("tenant.disable", {"name": A})
        assert service.reason(check) == "no_lease"
        node.ask("tenant.enable", {"name": A})
        assert service.reason(check) == "no_lease"


def test_many_in_a_frame_one_signature(node: Lab) -> None:
    """L13: a batch under one head costs one signature check, whoever asks how often."""
    lease = by_token(node)
    requests = [
        {"tenant": A, "endpoints": [WEB], "operations": ["connect"], "lease": lease["id"], "generation": str(lease["generation"])}
    ] * 100
    path = node.dir / "requests.json"
    path.write_text(json.dumps(requests))
    made = node.issuer.tokens("--from", path, kind="use")
    assert len(made) == 100
    before = node.ask("status")["verifier"]["signatures"]
    with asking(node) as service:
        for begin in (0, 50, 0):
            checks = [Check(token, "connect", WEB, f"uid:{HOLDER}") for token in made[begin : begin + 50]]
            assert all(verdict[0] == 0 for verdict in service.ask(checks))
    wait_until(lambda: node.ask("status")["verifier"]["signatures"] == before + 1)


# ---- bad input, and peers that are a burden ---------------------------------------------------------------


def test_junk_is_told_so_and_let_go(node: Lab) -> None:
    """G10: what is no frame gets a typed error and the end of its connection; others do not notice."""
    lease = by_token(node)
    check = Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")
    good = body_of([check])

    def header(body: bytes, **changes: object) -> bytes:
        right = {"magic": b"HLDF", "version": 1, "kind": 6, "flags": 0, "length": len(body), "number": 9}
        return HEADER.pack(*(right | changes).values())

    with asking(node) as witness:
        for datagram, code in [
            (b"x", "bad_magic"),
            (header(good, magic=b"HLDG") + good, "bad_magic"),
            (header(good, version=2) + good, "unknown_version"),
            (header(good, kind=9) + good, "unknown_type"),
            (header(good, kind=2) + good, "unknown_type"),
            (header(good, flags=1) + good, "unknown_flag"),
            (header(good, length=len(good) - 1) + good, "frame_length"),
            (header(b"\0" * 65521) + b"\0" * 65521, "frame_too_large"),
        ]:
            with asking(node) as peer:
                peer.socket.sendall(datagram)
                with pytest.raises(Refused) as refused:
                    peer.answer()
                assert refused.value.code == code
                with pytest.raises(ConnectionError):
                    peer.read()
            assert witness.reason(check) == "good"


def test_every_truncation_and_every_flipped_bit_of_a_frame(node: Lab) -> None:
    """L5, G10: no damaged frame gets another answer than its own refusal, and the connection goes on."""
    lease = by_token(node)
    body = body_of([Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")])
    with asking(node) as service:
        for size in range(len(body)):
            service.send(body[:size])
            with pytest.raises(Refused) as refused:
                service.answer()
            assert refused.value.code == "malformed_cbor", size
        bits = range(8 * len(body))
        answered = 0
        for begin in range(0, len(bits), 16):
            chunk = bits[begin : begin + 16]
            for bit in chunk:
                flipped = bytearray(body)
                flipped[bit // 8] ^= 1 << bit % 8
                service.send(bytes(flipped))
            for _ in chunk:
                answered += 1
                try:
                    (verdict,) = service.answer()
                    assert verdict[0] != 0, "a flipped bit in what is signed, hashed, asked or proved"
                except Refused as error:
                    assert error.code == "malformed_cbor"
        assert answered == len(bits)
        service.send(body)
        assert service.answer()[0][0] == 0


def test_who_does_not_read_is_not_read(node: Lab) -> None:
    """L5: a peer that leaves its answers unread stalls itself; another user's questions are answered meanwhile."""
    lease = by_token(node)
    body = body_of([Check(lease["token"], "connect", WEB)] * 60)
    with asking(node, STRANGER) as rude, asking(node, HOLDER) as kind:
        sent = 0
        while sent < 5000 and select.select([], [rude.socket], [], 0.5 * SLOW)[1]:
            rude.send(body)
            sent += 1
        assert sent < 5000, "everything was taken in, and nobody read"
        begin = time.monotonic()
        for _ in range(50):
            assert kind.reason(Check(lease["token"], "connect", WEB)) == "good"
        assert time.monotonic() - begin < 5 * SLOW
    is_small(node)


def test_connections_come_and_go(node: Lab) -> None:
    """A thousand connections one after the other, and as many at once as a user may have, leave nothing."""
    lease = by_token(node)
    check = Check(lease["token"], "connect", WEB, f"uid:{HOLDER}")
    for number in range(300):
        with asking(node) as service:
            if number % 3 == 0:
                assert service.reason(check) == "good"
            elif number % 3 == 1:
                service.send(body_of([check]))  # gone before the answer
    held = [asking(node, STRANGER) for _ in range(200)]
    open_at_most = 64 * node.ask("status")["verifier"]["workers"]
    too_many = max(0, len(held) - open_at_most)
    wait_until(lambda: sum(is_closed(each.socket) for each in held) == too_many, what=f"{too_many} are let go")
    for each in held:
        each.socket.close()
    with asking(node) as service:
        assert service.reason(check) == "good"
    wait_until(lambda: node.ask("status")["verifier"]["connections"] == 0, 10, "all connections are gone")


# ---- many users at once -----------------------------------------------------------------------------------

USERS = range(5000, 5040)
FRAMES = 20  # that each of them sends


def ask_as(uid: int, path: os.PathLike, table: list[tuple[str, Check]], together, told) -> None:
    """A user, in a process of its own: connects when all do, and asks when all are connected. Tells its answers."""
    bodies = [body_of([check for _, check in table[i:] + table[:i]]) for i in range(len(table))]
    together.wait()
    with VerifySock(path, uid) as sock:
        together.wait()
        answers = []
        for number in range(FRAMES):
            sent = sock.send(bodies[(uid + number) % len(bodies)])
            answers.append([sock.reasons[verdict[0]] for verdict in sock.answer()])
            assert sock.answered == sent
        told.send(answers)


def users_ask(node: Lab, lease: dict, besides: int = 0, meanwhile: Callable[[], None] = lambda: None) -> dict[str, int]:
    """All USERS at once, each about tokens of its own and of others, while `besides` connections stand; `meanwhile`
    comes when all are connected. How often which reason has to be counted for it."""
    at_lease = {"tenant": A, "endpoints": [WEB], "lease": lease["id"], "generation": str(lease["generation"])}
    path = node.dir / "requests.json"
    path.write_text(json.dumps([at_lease | {"operations": ["connect"], "holder": f"uid:{uid}"} for uid in USERS]))
    own = dict(zip(USERS, node.issuer.tokens("--from", path, kind="use"), strict=True))
    (unknown,) = Issuer(node, "unknown.example").tokens(
        A, "--endpoint", WEB, "--lease", lease["id"], "--generation", lease["generation"], kind="use"
    )
    forks = multiprocessing.get_context("fork")
    together = forks.Barrier(len(USERS) + 1, timeout=20 * SLOW)
    asked = {}
    with contextlib.ExitStack() as ends:
        for uid in USERS:
            table = [
                ("good", Check(own[uid], "connect", WEB)),
                ("wrong_holder", Check(own[uid + 1 if uid + 1 in USERS else USERS[0]], "connect", WEB)),
                ("operation_not_named", Check(own[uid], "erase", WEB)),
                ("not_relying", Check(own[uid], "connect", WEB, f"uid:{uid}")),
                ("denied", Check(unknown, "connect", WEB)),
            ]
            answers, told = forks.Pipe(duplex=False)
            process = forks.Process(target=ask_as, args=(uid, node.dir / "run" / "verify.sock", table, together, told))
            process.start()
            ends.callback(process.join)
            ends.callback(process.kill)
            asked[uid] = table, answers
        together.wait()
        wait_until(lambda: connections(node) == len(USERS) + besides, 10, "all are connected at once")
        assert sockets(node) == len(USERS) + besides
        meanwhile()
        together.wait()
        for uid, (table, answers) in asked.items():
            assert answers.poll(20 * SLOW), f"uid {uid} has no answers"
            expected = [reason for reason, _ in table]
            turns = [(uid + number) % len(table) for number in range(FRAMES)]
            assert answers.recv() == [expected[turn:] + expected[:turn] for turn in turns], uid
    each = len(USERS) * FRAMES
    return {reason: each for reason in ("good", "wrong_holder", "operation_not_named", "not_relying", "unknown_key")}


def connections(node: Lab) -> int:
    return node.ask("status")["verifier"]["connections"]


def risen(node: Lab, before: dict[str, int]) -> dict[str, int]:
    now = counts(node)
    return {reason: count - before.get(reason, 0) for reason, count in now.items() if count != before.get(reason, 0)}


def sockets(node: Lab) -> int:
    """The daemon's ends of connections on verify.sock. The kernel makes them in the network namespace of who connects,
    which is ours."""
    rows = pathlib.Path("/proc/net/unix").read_text().splitlines()
    return sum(row.endswith(f" {node.dir}/run/verify.sock") for row in rows)


def test_many_users_at_once(node: Lab) -> None:
    """L5, L13: each gets its own answers and no other's, the counters are exact in sum, and nothing is left."""
    wait_until(lambda: connections(node) == 0)
    before = counts(node)
    expected = users_ask(node, by_token(node))
    wait_until(lambda: risen(node, before) == expected, what=f"the counters rise by {expected}")
    wait_until(lambda: connections(node) == 0, 10, "all connections are gone")
    wait_until(lambda: sockets(node) == 0, what="no socket is left")


def test_a_user_over_its_budget_is_in_nobodys_way(node: Lab) -> None:
    """L5: budgets go by user. One has every connection it may have, and more, and reads no answers: it alone is short."""
    wait_until(lambda: connections(node) == 0)
    lease = by_token(node)
    mine = 64 * node.ask("status")["verifier"]["workers"]
    dear = body_of([Check(lease["token"], "connect", WEB + "0", None)] * 60)
    before = counts(node)
    with contextlib.ExitStack() as held:
        greedy = [held.enter_context(asking(node, HOLDER)) for _ in range(mine + 8)]
        wait_until(lambda: sum(is_closed(each.socket) for each in greedy) == 8, what="8 are let go")

        def ask_much() -> None:
            for each in greedy:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it takes no more, or is one of the 8
                    for _ in range(50):
                        each.send(dear)

        expected = users_ask(node, lease, besides=mine, meanwhile=ask_much)
        wait_until(lambda: expected.items() < risen(node, before).items(), what="what was answered is counted")
        assert risen(node, before).keys() == expected.keys() | {"resource_not_named"}
    wait_until(lambda: connections(node) == 0, 10, "all connections are gone")
    wait_until(lambda: sockets(node) == 0, what="no socket is left")


def test_as_many_users_as_there_is_room_for(node: Lab) -> None:
    """L5: 64 users a worker; one more is let go, and has its place as soon as another has left. Again and again."""
    wait_until(lambda: connections(node) == 0)
    room = 64 * node.ask("status")["verifier"]["workers"]
    lease = by_token(node)
    check = Check(lease["token"], "connect", WEB)
    for first in (6000, 7000):
        with contextlib.ExitStack() as held:
            users = [held.enter_context(asking(node, first + number)) for number in range(room)]
            wait_until(lambda: connections(node) == room)
            with asking(node, first + room) as late, pytest.raises(ConnectionError):
                late.read()
            assert {user.reason(check) for user in users} == {"wrong_holder"}
            users[0].socket.close()
            wait_until(lambda: connections(node) == room - 1)
            wait_until(lambda: takes(node, first + room, check), what="it has its place")
        wait_until(lambda: connections(node) == 0, 10, "all connections are gone")
    is_small(node)


def is_small(node: Lab) -> None:
    """Whatever was asked before, and by how many."""
    if build_dir().name == "asan":
        return  # its memory is the sanitizer's
    rss = int(open(f"/proc/{node.daemon.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert rss < 64 << 20


def takes(node: Lab, uid: int, check: Check) -> bool:
    """Whether it is answered. Connections go to the workers in turn: not each of them has room."""
    with asking(node, uid) as user:
        try:
            return user.reason(check) == "wrong_holder"
        except (ConnectionError, BrokenPipeError):
            return False


def is_closed(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize("refusal", ["seccomp", "sysctl"])
def test_without_io_uring(refusal: str) -> None:
    """H: refused by seccomp, or disabled by sysctl, it is epoll, which the log and status say."""
    setting = "/proc/sys/kernel/io_uring_disabled"
    if refusal == "sysctl" and not os.path.exists(setting):
        pytest.skip("this kernel has no io_uring_disabled")
    before = open(setting).read() if refusal == "sysctl" else ""
    with Lab(daemon=False) as lab:
        try:
            if refusal == "sysctl":
                open(setting, "w").write("2")
            prefix = refusing(SYS["io_uring_setup"], 1) if refusal == "seccomp" else []
            lab.start(prefix=prefix)
        finally:
            if refusal == "sysctl":
                open(setting, "w").write(before)
        assert lab.ask("status")["verifier"]["by"] == "epoll"
        assert "without_io_uring" in lab.log
        with asking(lab) as service:
            assert service.ask([]) == []


def test_the_example_in_python(node: Lab) -> None:
    """A1: the one-file example issues, presents and checks a token, by the sockets alone."""
    example = pathlib.Path(__file__).parents[2] / "userspace" / "dist" / "token_example.py"
    words = ["--key", node.issuer.key, "--issuer", node.issuer.name, "--tenant", A, "--endpoint", "web"]
    done = node.run("node", [PYTHON, str(example), *map(str, words), "--sockets", str(node.dir / "run")])
    said = done.stdout.splitlines()
    assert sum(line.startswith("granted") for line in said) == 1
    asked = [line.rsplit(": ", 1)[1] for line in said if line.startswith("asked")]
    assert asked == ["good", "operation_not_named"] * 2, done.stdout
    assert sum(line.startswith("renewed") for line in said) == 1 and not any(line.startswith("watched") for line in said)
