"""Peers as nobody should be: a thousand connections, all the descriptors that a message takes, user namespaces, sockets
that another has opened; and SIGKILL at every step where what widens has to be signed.

Covers H5, L11, G8, G11, G13, P16. Each gets a typed reply, nothing is left behind, and others are served meanwhile. A
watcher that stops reading is in test_watch.py, peers that go on with what is refused in test_peers.py.
"""

import array
import contextlib
import os
import pathlib
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from control import Control, Refused
from frames import ERROR, HELLO, REPLY, Connection, connected, request
from issuer import as_uid, trust
from kills import calls_of, killed_at, sample
from lab import A, ANSWER_S, PYTHON, Lab, wait_until
from packets import Probe, denied, passes, syn
from signing import SEED, STRANGER, anchor, connect, thumbprint

HERE = pathlib.Path(__file__).resolve().parent
CROWD, OTHER, USER, NOBODY = 61030, 61031, 61032, 65534
FDS_MAX = 253  # SCM_MAX_FD: a message takes no more
WEB_A = Probe("client", "tenant-a", syn())


def descriptors(lab: Lab) -> int:
    return len(os.listdir(f"/proc/{lab.daemon.pid}/fd"))


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Whom SO_PEERCRED names of what is connected meanwhile."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_thousand_connections_of_one_uid(lab: Lab) -> None:
    """H5: 64 are served, each other one is told why; nobody else notices, and what it closes makes room."""
    before = descriptors(lab)
    with contextlib.ExitStack() as opened:
        told = []
        for number in range(1000):
            raw = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with as_user(CROWD):
                raw.connect(str(lab.socket_path))
            kind, _, said = Connection(raw).read()
            told.append("hello" if kind == HELLO else said["code"])
            if number % 100 == 99:
                with Control(lab.socket_path) as operator, Control(lab.socket_path, uid=OTHER) as other:
                    lease = operator.grant(A, "web", holder=f"uid:{OTHER}")
                    other.call("lease.release", {"id": lease["id"]})
        assert told == ["hello"] * 64 + ["too_many_connections"] * 936
        assert {peer["uid"]: peer["connections"] for peer in lab.ask("peer.list")["peers"]}[CROWD] == 64
        assert descriptors(lab) < before + 64 + 16
    wait_until(lambda: descriptors(lab) <= before, ANSWER_S, "what was closed is closed here, too")
    with Control(lab.socket_path, uid=CROWD) as again:
        assert "challenge" in again.hello


def send_descriptors(raw: socket.socket, data: bytes, count: int) -> list[socket.socket]:
    """Sends `data` with so many ends of connections of our own, whose other ends are returned; ours are closed."""
    pairs = [socket.socketpair() for _ in range(count)]
    fds = array.array("i", [theirs.fileno() for _, theirs in pairs])
    raw.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    for _, theirs in pairs:
        theirs.close()
    return [ours for ours, _ in pairs]


def all_closed(ends: list[socket.socket]) -> None:
    """Nobody has the other end of any of them."""
    for end in ends:
        end.settimeout(ANSWER_S)
        assert end.recv(1) == b""
        end.close()


@pytest.mark.parametrize("uid", [0, USER], ids=["operator", "stranger"])
@pytest.mark.parametrize("count", [1, 4, 5, FDS_MAX])
def test_descriptors_that_nobody_asked_for(lab: Lab, uid: int, count: int) -> None:
    """L11: with a request that takes none, with half of a header, and behind a request: closed, each of them."""
    before = descriptors(lab)
    whole = request("status")
    for data in (whole, whole[:7], whole + whole[:3]):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            with as_user(uid):
                raw.connect(str(lab.socket_path))
            connection = Connection(raw)
            assert connection.read()[0] == HELLO
            ends = send_descriptors(raw, data, count)
            if data != whole[:7]:
                kind, _, said = connection.read()
                assert kind in (REPLY, ERROR) and (kind == REPLY or said["class"] in ("denied", "invalid")), said
            assert descriptors(lab) <= before + 1 + 4, "no more are kept than a frame may have"
        all_closed(ends)
    wait_until(lambda: descriptors(lab) <= before, ANSWER_S, "none is left")
    assert "node" in lab.ask("status")


def test_descriptors_without_end(lab: Lab) -> None:
    """L11: 253 with each of many requests on one connection, as fast as they are answered."""
    before = descriptors(lab)
    with connected(lab) as connection:
        for number in range(1, 40):
            ends = send_descriptors(connection.raw, request("status", identifier=number), FDS_MAX)
            answered = connection.read()
            all_closed(ends)
            if answered is None or answered[0] == ERROR:
                break
            assert answered[:2] == (REPLY, number)
    wait_until(lambda: descriptors(lab) <= before, ANSWER_S, "none is left")


HELLO_OF = """
import os, sys
sys.path.insert(0, {tests!r})
from control import Control, Refused
with Control({path!r}) as control:
    said = control.hello.get("role") or control.hello.get("code")
    try:
        control.call("trust.revoke", {{"what": "holder:uid:1"}})
        done = "done"
    except (Refused, ConnectionError) as error:
        done = getattr(error, "code", "closed")
print(os.geteuid(), said, done, flush=True)
"""


def hello_of(lab: Lab, prefix: list[str]) -> list[str]:
    """Who a process believes to be, what it is told that it is, and what becomes of a request of an operator's."""
    script = HELLO_OF.format(tests=str(HERE), path=str(lab.socket_path))
    argv = [*prefix, PYTHON, "-c", script]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    if "unshare" in prefix and "Operation not permitted" in done.stderr:
        pytest.skip("this machine lets no user make a user namespace")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_user_namespaces(lab: Lab) -> None:
    """G13, H5: root of a namespace of one's own is who made it, and so is who is nobody there."""
    assert hello_of(lab, []) == ["0", "operator", "done"]
    lab.ask("trust.restore", {"what": "holder:uid:1"})
    assert hello_of(lab, as_uid(USER)) == [str(USER), "none", "not_operator"]
    assert hello_of(lab, [*as_uid(USER), "unshare", "--user", "--map-root-user"]) == ["0", "none", "not_operator"]
    assert hello_of(lab, [*as_uid(USER), "unshare", "--user"]) == [str(NOBODY), "none", "not_operator"]


def test_a_user_that_has_no_number_here(lab: Lab) -> None:
    """G13: the overflow uid stands for whoever is not mapped: refused on both sockets, in whatever group, and told why."""
    with Control(lab.socket_path, uid=NOBODY) as nobody:
        assert nobody.hello["code"] == "unmapped_uid" and nobody.hello["class"] == "denied"
        with pytest.raises(ConnectionError):
            nobody.call("status")

    def told() -> bool:
        assert hello_of(lab, as_uid(NOBODY))[1:] == ["unmapped_uid", "closed"]
        return "unmapped_uid" in lab.log

    # Asked anew, since of what happens more often than 20 times a second the log has no line each.
    wait_until(told, what="a line of who was refused")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw, as_user(NOBODY):
        raw.connect(str(lab.dir / "run" / "verify.sock"))
        raw.settimeout(ANSWER_S)
        assert b"challenge" not in raw.recv(1 << 16)
    with Control(lab.socket_path, uid=USER) as control:
        assert control.hello["role"] == "none"


SPEAK = """
import socket, sys
sys.path.insert(0, {tests!r})
from frames import Connection, request
raw = socket.socket(fileno={fd})
if {pass_on}:
    raw = socket.socket(fileno=socket.recv_fds(raw, 1, 1)[1][0])
connection = Connection(raw)
connection.send(request("lease.revoke", {{"id": {lease!r}}}))
answer = connection.read()
print(answer[2].get("code", "done"), flush=True)
"""


@pytest.mark.parametrize("by", ["exec", "message"])
@pytest.mark.parametrize("opened_by, spoken_by, answer", [(0, USER, "done"), (USER, 0, "not_operator"), (USER, OTHER, "not_operator")])
def test_a_socket_that_another_has_opened(lab: Lab, by: str, opened_by: int, spoken_by: int, answer: str) -> None:
    """SO_PEERCRED names who connected, not who speaks: who hands its socket on hands on what it may, and root's process on a
    user's socket is that user. A request by signature is its signer's there as anywhere."""
    lease = lab.grant(A, "web")
    passes(lab, WEB_A)
    with contextlib.ExitStack() as held:
        raw = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with as_user(opened_by):
            raw.connect(str(lab.socket_path))
        assert Connection(raw).read()[0] == HELLO
        given = raw
        if by == "message":
            ours, given = (held.enter_context(each) for each in socket.socketpair())
            socket.send_fds(ours, [b"x"], [raw.fileno()])
        raw.setblocking(True)
        script = SPEAK.format(tests=str(HERE), fd=given.fileno(), pass_on=by == "message", lease=lease["id"])
        argv = [*as_uid(spoken_by), PYTHON, "-c", script]
        done = subprocess.run(argv, pass_fds=[given.fileno()], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [answer]
        with Control(lab.socket_path) as operator:
            uids = {peer["uid"] for peer in operator.call("peer.list")["peers"] if peer["connections"]}
        assert opened_by in uids and (spoken_by == 0 or spoken_by not in uids)
    if answer == "done":
        wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
        denied(lab, WEB_A, "no_lease", "from_uplink")
    else:
        passes(lab, WEB_A)


# ---- SIGKILL at every step, where what widens has to be signed ----------------------------------------------------------


class Tightened:
    """A lab with `unsigned: tighten`, and one change of it: what is prepared, done, and so afterwards."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        trust(lab, anchor(), anchor(STRANGER), unsigned="tighten")

    def prepare_grant(self) -> None:
        for lease in self.lab.leases().values():
            self.lab.ask("lease.revoke", {"id": lease["id"]})

    def grant(self) -> None:
        with connect(self.lab) as signer:
            signer.grant(A, "web", ttl_s=250)

    def grant_is_done(self) -> bool:
        return bool(self.lab.leases())

    def lift(self, what: str) -> None:
        with connect(self.lab) as signer, contextlib.suppress(Refused):
            signer.call("trust.restore", {"what": what})

    def leased_by_stranger(self) -> None:
        if not self.lab.leases():
            with connect(self.lab, seed=STRANGER) as other:
                other.grant(A, "web", ttl_s=250)

    def prepare_revoke(self) -> None:
        self.lift(f"key:{thumbprint(STRANGER)}")
        self.leased_by_stranger()

    def revoke(self) -> None:
        self.lab.ask("trust.revoke", {"what": f"key:{thumbprint(STRANGER)}"})

    def revoke_is_done(self) -> bool:
        return not self.lab.leases() and self.state() == "revoked"

    def prepare_rotate(self) -> None:
        self.lift(f"retire:{thumbprint(STRANGER)}")
        self.leased_by_stranger()

    def rotate(self) -> None:
        self.lab.ask("trust.rotate", {"old": thumbprint(STRANGER), "new": thumbprint(SEED)})

    def rotate_is_done(self) -> bool:
        assert self.lab.leases(), "nothing ends before its time"
        return self.state() == "retiring"

    def state(self) -> str:
        return {each["key"]: each["state"] for each in self.lab.ask("trust.show")["anchors"]}[thumbprint(STRANGER)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grant", "revoke", "rotate"])
def test_killed_at_every_step(own_lab: Lab, name: str) -> None:
    """G8, G11, P16: what was answered holds; else it is as before or as asked, whole. Nobody's word opens anything after."""
    lab, world = own_lab, Tightened(own_lab)

    def method(prefix: str = "", suffix: str = "") -> Callable[[], object]:
        return getattr(world, prefix + name + suffix)

    method("prepare_")()
    steps = calls_of(lab, method())
    assert method(suffix="_is_done")() and len(steps) > 5
    outcomes = set()
    for step in sample(steps):
        method("prepare_")()
        answered = killed_at(lab, step, method())
        lab.start()
        done = method(suffix="_is_done")()
        assert done or not answered, step
        outcomes.add((answered, done))
        if lab.leases():
            passes(lab, WEB_A, 1)
        else:
            denied(lab, WEB_A, "no_lease", "from_uplink", 1)
        assert lab.ask("status")["tokens"]["unsigned_may"] == "tighten"
        for verb, args in (("lease.grant", {}), ("trust.restore", {"what": f"key:{thumbprint(STRANGER)}"})):
            with pytest.raises(Refused, match="step_up_required"):
                lab.ask(verb, args, b"\x80")
    assert outcomes, "no step was hit"
