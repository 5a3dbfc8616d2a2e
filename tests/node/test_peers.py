"""Peers that misbehave on the control socket, under uids of their own: suspended until an operator resumes them.

Covers H5, L11, P16 (what tightens works meanwhile), G13. Real processes flood; others ask meanwhile and are answered.
"""

import contextlib
import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import Control, Refused
from issuer import as_uid, trust
from kills import calls_of, killed_at, sample
from lab import A, PYTHON, SLOW, Lab, wait_until
from packets import Probe, denied, passes, syn
from signing import anchor
from watcher import Watcher

HERE = pathlib.Path(__file__).resolve().parent
FLOODERS = {"rate": 61010, "frame": 61011, "signature": 61012, "proof": 61013, "authority": 61014, "token": 61015}
COUNTED_AS = {"token": "proof"}
CAUSES = set(FLOODERS) - set(COUNTED_AS)  # of any: who connects too often to send garbage is over its rate as well
if SLOW > 1:
    del FLOODERS["rate"]  # where a request takes long its uid is made to wait before it is over its rate
HOLDER, OTHER, BYSTANDER = 61020, 61021, 61022
WEB_A = Probe("client", "tenant-a", syn())


@pytest.fixture(autouse=True)
def nobody_suspended(lab: Lab) -> Iterator[None]:
    yield
    if lab.daemon is not None:
        lab.ask("peer.resume", {"all": True})


def peers(lab: Lab) -> dict[int, dict]:
    return {peer["uid"]: peer for peer in lab.cli("peer", "ls")["peers"]}


def refusal(lab: Lab, uid: int) -> str:
    """What a new connection of a uid is told instead of a hello; empty if it is served."""
    with Control(lab.socket_path, uid=uid) as control:
        return control.hello.get("code", "")


@contextlib.contextmanager
def flooding(lab: Lab, kind: str, uid: int) -> Iterator[subprocess.Popen]:
    argv = [*as_uid(uid), PYTHON, str(HERE / "flood.py"), str(lab.socket_path), kind]
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()


@pytest.mark.slow
def test_who_goes_on_is_suspended_and_others_are_served_meanwhile(lab: Lab) -> None:
    """H5, G13, L11: each kind of abuse by a uid of its own, and a holder and an operator who notice nothing of it."""
    lease = lab.grant(A, "web", holder=f"uid:{BYSTANDER}")
    before = lab.ask("status")["abuse"]
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(Watcher(lab.socket_path, kinds=["peer"]))
        floods = {uid: stack.enter_context(flooding(lab, kind, uid)) for kind, uid in FLOODERS.items()}
        root = stack.enter_context(flooding(lab, "frame", 0))
        for uid, child in [(0, root), *floods.items()]:
            assert child.stdout.readline() == "begun\n", uid
        holder = stack.enter_context(Control(lab.socket_path, uid=BYSTANDER))
        longest, asked = 0.0, 0
        end = time.monotonic() + 120 * SLOW
        while any(child.poll() is None for child in floods.values()):
            assert time.monotonic() < end, peers(lab)
            begin = time.monotonic()
            holder.call("session.challenge")
            lab.ask("status")
            longest, asked = max(longest, time.monotonic() - begin), asked + 1
            time.sleep(0.02)
        assert longest < 2 * SLOW, "the others were held up"
        assert asked > 20
        for uid, child in floods.items():
            assert child.stdout.read() == "suspended\n", uid
            event = watcher.until(lambda each, uid=uid: each["event"] == "peer.suspend" and each["uid"] == uid)
            assert event["cause"] in CAUSES and "actor_uid" not in event, "nobody asked for it"
        assert root.poll() is None, "root is refused, and never suspended"
        holder.renew(lease["id"], 250)
        passes(lab, WEB_A)
    told = peers(lab)
    for kind, uid in FLOODERS.items():
        peer = told[uid]
        assert peer["state"] == "suspended" and peer["connections"] == 0 and peer["since"], peer
        assert peer["offences"][COUNTED_AS.get(kind, kind)] > 0 and sum(peer["offences"].values()) >= 200, peer  # 10 in each of 20 windows
        assert peer["by_uid"] is None
    assert told[BYSTANDER]["state"] == "served" and told[BYSTANDER]["offences"] == {}
    assert told[0]["state"] == "served"
    after = lab.ask("status")["abuse"]
    assert after["suspended"] == len(FLOODERS) and not after["everybody"]
    assert after["refused_suspended"] - before["refused_suspended"] >= len(FLOODERS)
    for kind in CAUSES & set(FLOODERS):
        assert after["offences"][kind] > before["offences"].get(kind, 0), kind
    assert "are suspended" in lab.cli_text("status")
    # Over a restart, in each way to stop.
    for stop in (lab.stop, lab.kill):
        stop()
        lab.start()
        assert all(refusal(lab, uid) == "suspended" for uid in FLOODERS.values())
        assert refusal(lab, BYSTANDER) == ""
    first, *others = FLOODERS.values()
    assert lab.cli("peer", "resume", first) == {"version": 1, "uid": first, "state": "served"}
    assert refusal(lab, first) == ""
    assert all(refusal(lab, uid) == "suspended" for uid in others)
    assert lab.cli("peer", "resume", "all")["resumed"] == len(others)
    assert all(refusal(lab, uid) == "" for uid in FLOODERS.values())


def test_an_operator_suspends_and_resumes(lab: Lab) -> None:
    """H5, P16: at once, with what is open; a lease of the uid stays, since that is another question."""
    lease = lab.grant(A, "web", holder=f"uid:{OTHER}")
    with Watcher(lab.socket_path, kinds=["peer"]) as watcher, Control(lab.socket_path, uid=OTHER) as there:
        there.call("session.challenge")
        assert peers(lab)[OTHER]["connections"] == 1
        lab.cli("peer", "suspend", OTHER)
        kind, _, number, error = there.read_frame()
        assert (kind, number, error["code"], error["class"], error["retry"]) == (4, 0, "suspended", "denied", "never")
        with pytest.raises(ConnectionError):
            there.read_frame()
        assert f"peer resume {OTHER}" in error["next_step"]
        event = watcher.until(lambda each: each["event"] == "peer.suspend" and each["uid"] == OTHER)
        assert event["cause"] == "operator" and event["actor_uid"] == 0
        lab.cli("peer", "suspend", OTHER)  # again changes nothing
        (told,) = [each for uid, each in peers(lab).items() if uid == OTHER]
        assert told["cause"] == "operator" and told["by_uid"] == 0
        done = lab.try_cli("lease", "release", lease["id"], prefix=as_uid(OTHER))
        assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "suspended"
        passes(lab, WEB_A)
        lab.cli("peer", "resume", OTHER)
        watcher.until(lambda each: each["event"] == "peer.resume" and each["uid"] == OTHER)
    with Control(lab.socket_path, uid=OTHER) as again:
        again.call("lease.release", {"id": lease["id"]})
    denied(lab, WEB_A, "no_lease", "from_uplink")
    text = lab.cli_text("peer", "ls")
    assert "UID" in text and "REQUESTS/S" in text


def test_what_is_refused(lab: Lab) -> None:
    """H5: root is not suspended, nobody is resumed twice, and only operators do either."""
    for words, code in (
        (("peer", "suspend", "0"), "root_peer"),
        (("peer", "resume", OTHER), "not_suspended"),
    ):  # fmt: skip
        done = lab.try_cli(*words)
        assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == code, words
    for verb, code in (("peer.suspend", "not_operator"), ("peer.resume", "not_operator"), ("peer.list", "not_in_group")):
        with Control(lab.socket_path, uid=HOLDER) as stranger, pytest.raises(Refused, match=code):
            stranger.call(verb, {} if verb == "peer.list" else {"uid": OTHER})
    with Control(lab.socket_path) as root:
        for args in ({}, {"uid": "1"}, {"uid": 2**32 - 1}, {"uid": 1, "all": True}, {"uid": 1, "why": "x"}):
            for verb in ("peer.suspend", "peer.resume"):
                with pytest.raises(Refused):
                    root.call(verb, args)
        with pytest.raises(Refused, match="peer_all"):
            root.call("peer.resume", {"all": False})
    assert lab.ask("status")["abuse"]["suspended"] == 0


def test_to_resume_is_to_widen(lab: Lab) -> None:
    """H10, P16: where what widens has to be signed, or nothing may be opened, a peer can be suspended and not resumed."""
    try:
        trust(lab, anchor(), unsigned="tighten")
        lab.cli("peer", "suspend", OTHER)
        done = lab.try_cli("peer", "resume", OTHER)
        assert done.returncode == 4 and json.loads(done.stderr)["error"]["code"] == "step_up_required"
    finally:
        trust(lab)
    lab.cli("node", "quarantine")
    try:
        lab.cli("peer", "suspend", HOLDER)
        done = lab.try_cli("peer", "resume", HOLDER)
        assert json.loads(done.stderr)["error"]["code"] == "node_quarantined"
        assert refusal(lab, OTHER) == refusal(lab, HOLDER) == "suspended"
    finally:
        lab.cli("node", "release")


def test_a_damaged_list_suspends_all_but_operators(lab: Lab) -> None:
    """H5: it may have named anybody; resuming all begins it anew."""
    lab.cli("peer", "suspend", OTHER)
    lab.stop()
    path = lab.dir / "state" / "peers"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(str(OTHER).encode(), str(HOLDER).encode()))
    lab.start()
    assert refusal(lab, OTHER) == refusal(lab, HOLDER) == "suspended"
    assert "damaged" in lab.cli_text("status") and "damaged" in lab.cli_text("peer", "ls")
    done = lab.try_cli("peer", "resume", OTHER)
    assert json.loads(done.stderr)["error"]["code"] == "peers_damaged"
    lab.cli("peer", "resume", "all")
    assert refusal(lab, OTHER) == refusal(lab, HOLDER) == ""
    lab.daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: lab.daemon.poll() is not None, 20, "it ends")
    lab.daemon = None
    lab.start()
    assert refusal(lab, OTHER) == ""


CREATE = {"name": "reader", "environment": "prod", "scope": ["status"], "ttl_ns": 10**12}
VERBS = {  # what is asked, and whether it is then so
    "peer.suspend": ({"uid": OTHER}, True),
    "peer.resume": ({"uid": OTHER}, False),
    "bearer.create": (CREATE, True),
    "bearer.revoke": ({"name": "reader"}, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_step(own_lab: Lab, verb: str) -> None:
    """H5, H11, G8: what was answered holds; without an answer it is as before or as asked, whole."""
    lab = own_lab
    args, then = VERBS[verb]

    def holds() -> bool:
        if verb.startswith("peer."):
            return refusal(lab, OTHER) == "suspended"
        return any(each["state"] == "live" for each in lab.ask("bearer.list")["bearers"])

    def prepare() -> None:
        if holds() == then:
            opposite = next(other for other in VERBS if other != verb and other.split(".")[0] == verb.split(".")[0])
            lab.ask(opposite, VERBS[opposite][0])

    prepare()
    steps = calls_of(lab, lambda: lab.ask(verb, args))
    assert holds() == then
    for step in sample(steps):
        prepare()
        answered = killed_at(lab, step, lambda: lab.ask(verb, args))
        lab.start()
        assert not lab.ask("status")["abuse"]["everybody"]
        assert holds() == then or not answered, step
    assert len(steps) > 5
