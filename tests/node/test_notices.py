"""Notices: what happens on a node under its signature, as it happens, and kept as evidence for who was not there.

    client ---- uplink0 [node] ta ---- tenant-a        (topology and addresses: lab.py)

Covers issue 5 (node identity signs inventory, reports and notices), PROTOCOL.md section 2, G16. That nobody else's are
believed, truncations and bits: tests/unit/token/node_identity_test.cpp. The bytes are read by independent.py, too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import signal
import subprocess
from collections.abc import Iterator

import pytest
from control import Refused, decode
from lab import A, SLOW, Lab, build_dir, nanoseconds, wait_until
from packets import Probe, denied, passes, syn
from signing import independent
from watcher import Watcher

CHALLENGE = bytes([0x5F]) * 32
SIGN = {"challenge": CHALLENGE, "for": "cp.example"}
SIGNED_MAX = 16
WEB_A = Probe("client", "tenant-a", syn())


class SignedWatcher(Watcher):
    """Believes nothing but what the node has signed, for it, over its challenge, one after the other."""

    def __init__(self, lab: Lab, **args: object) -> None:
        self.node = lab.ask("status")["node"]
        self.notices: list[bytes] = []
        super().__init__(lab.socket_path, 30 * SLOW, sign=SIGN, **args)
        assert self.frame() == {"type": "asked", "args": args}

    def read_frame(self) -> tuple[int, int, int, dict]:
        kind, flags, number, body = super().read_frame()
        if body.get("type") != "signed":
            assert "type" not in body, f"not signed: {body}"
            return kind, flags, number, body
        assert set(body) == {"type", "notice"}
        said, is_by = independent.take_signed(body["notice"], "notice", (1, 2, 3, 9))
        key, epoch = independent.epoch_key_of(said["private"][9], self.node)
        assert is_by(key) and said["audience"] == "cp.example"
        assert [said["private"][label] for label in (1, 2, 3)] == [epoch, CHALLENGE, len(self.notices)]
        self.notices.append(body["notice"])
        return kind, flags, number, decode(said["content"])[0]


def test_each_frame_is_signed(lab: Lab) -> None:
    """Snapshot, events and heartbeats; what is signed is what others are told without."""
    lease = lab.grant(A, "web", grace_ns=nanoseconds("20s"))
    with SignedWatcher(lab, heartbeat_ns=nanoseconds("1s")) as signed, Watcher(lab.socket_path) as plain:
        ours, theirs = signed.snapshot(), plain.snapshot()
        assert ours.node["node"] == signed.node and ours.tenants == theirs.tenants
        now = {"remaining_ns": 0}  # of the moment
        assert [each | now for each in ours.leases.values()] == [each | now for each in theirs.leases.values()]
        passes(lab, WEB_A)
        lab.ask("lease.revoke", {"id": lease["id"]})
        lab.ask("lease.checkpoint", {"id": lease["id"], "note": "saved"})
        for watcher in (signed, plain):
            watcher.until_named("lease.torndown", lease=lease["id"])
        denied(lab, WEB_A, "no_lease", "from_uplink")
        assert signed.events == plain.events[-len(signed.events) :]
        told = [event["event"] for event in signed.events if event.get("lease") == lease["id"]]
        assert "lease.revoke_warning" in told and "lease.checkpoint_reported" in told, told
        signed.frames.clear()
        wait_until(lambda: signed.frame()["type"] == "heartbeat", 10)


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        ({}, "missing_key"),
        ({"challenge": CHALLENGE}, "missing_key"),
        ({"challenge": CHALLENGE, "for": ""}, "bad_audience"),
        ({"challenge": CHALLENGE, "for": "x" * 257}, "bad_audience"),
        ({"challenge": CHALLENGE[1:], "for": "x"}, "out_of_range"),
        ({"challenge": CHALLENGE, "for": "x", "more": 1}, "unknown_key"),
        (True, "wrong_type"),
    ],
)
def test_what_is_no_target(lab: Lab, sign: object, code: str) -> None:
    with Watcher(lab.socket_path, sign=sign) as watcher, pytest.raises(Refused) as error:
        watcher.frame()
    assert error.value.code == code


def test_so_many_are_signed_for(lab: Lab) -> None:
    """A signature costs: there are few who get them, and all others are served as ever."""
    with contextlib.ExitStack() as all_of_them:
        for _ in range(SIGNED_MAX):
            all_of_them.enter_context(SignedWatcher(lab)).snapshot()
        with Watcher(lab.socket_path, sign=SIGN) as one_more, pytest.raises(Refused) as error:
            one_more.frame()
        assert error.value.code == "signed_watchers_max"
        with Watcher(lab.socket_path) as plain:
            plain.snapshot()
    with SignedWatcher(lab) as again:
        again.snapshot()


def test_what_was_asked_for_is_signed(lab: Lab) -> None:
    """Who has the frames knows what was left out of them because nobody asked for it."""
    with SignedWatcher(lab, kinds=["lease"], tenants=[A]) as first:
        cursor = first.snapshot().cursor
    with SignedWatcher(lab, **{"from": cursor}) as second:
        assert second.frame() == {"type": "resumed", "cursor": cursor}


# ---- the command ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(lab: Lab, *words: object) -> Iterator[subprocess.Popen[str]]:
    argv = [build_dir() / "userspace/cli/holdfast", "--socket", lab.socket_path, "--json", "watch", *words]
    process = subprocess.Popen([str(each) for each in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> list[dict]:
    """By Ctrl-C, and what it printed."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20 * SLOW)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def kept_by(lab: Lab, path: pathlib.Path, node: str) -> list[dict]:
    """A lease's life, watched and kept in the file; what was printed meanwhile."""
    with watching(lab, "--node", node, "--for", "cp.example", "--keep", path) as process:
        wait_until(lambda: path.exists() and b"snapshot_end" in path.read_bytes(), 20, "a snapshot is kept")
        lease = lab.grant(A, "web")
        passes(lab, WEB_A)
        lab.revoke(lease)
        denied(lab, WEB_A, "no_lease", "from_uplink")
        wait_until(lambda: path.read_bytes().count(b"lease.torndown") > 0, 20, "its end is kept")
        return ended(process)


def verified(lab: Lab, path: pathlib.Path, *words: object) -> tuple[list[dict], str]:
    """What the command says of a file, and the code of what it is refused for."""
    done = lab.try_cli("watch", "--verify", path, *words)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode == 0:
        return said, ""
    assert done.returncode == 1, done
    return said, json.loads(done.stderr)["error"]["code"]


def items(kept: bytes) -> list[bytes]:
    """The notices in a file."""
    found = []
    while kept:
        reader = independent.Reader(kept, 1 << 24)
        begin = reader.at
        reader.skip()
        found.append(kept[begin : reader.at])
        kept = kept[reader.at :]
    return found


def test_evidence(lab: Lab, tmp_path: pathlib.Path) -> None:
    """What was kept says what was printed, to whoever knows the node's name, without a daemon; nothing can be left out."""
    node, path = lab.ask("status")["node"], tmp_path / "kept"
    printed = kept_by(lab, path, node)
    said, code = verified(lab, path, "--node", node)
    assert (said, code) == (printed, "")
    asked = said[0]
    assert (asked["type"], asked["node"], asked["for"], asked["args"]) == ("asked", node, "cp.example", {})
    assert asked["epoch"] == lab.ask("status")["epoch"]
    for words, refused in [(("--for", "cp.example", "--epoch", asked["epoch"]), ""), (("--for", "x"), "wrong_audience"), (("--epoch", asked["epoch"] + 1), "stale_epoch")]:
        assert verified(lab, path, "--node", node, *words)[1] == refused
    events = [line["event"] for line in said if line["type"] == "event"]
    assert events[0] == "lease.grant" and events[-1] == "lease.torndown"
    # A second stream behind the first.
    first = path.read_bytes()
    again = kept_by(lab, tmp_path / "again", node)
    second = (tmp_path / "again").read_bytes()
    path.write_bytes(first + second)
    assert verified(lab, path, "--node", node) == (printed + again, "")

    notices = items(first)
    assert b"".join(notices) == first and len(notices) >= 4

    def damaged(kept: list[bytes], code: str, *words: object) -> None:
        path.write_bytes(b"".join(kept))
        said, refused = verified(lab, path, *(words or ("--node", node)))
        assert refused == code and said == (printed + again)[: len(said)], (code, refused)

    for index in range(1, len(notices) - 1):
        damaged(notices[:index] + notices[index + 1 :], "notice_missing")
    damaged(notices[1:], "wrong_challenge")
    damaged([*notices, notices[-1]], "notice_missing")
    damaged([notices[0], *notices], "notice_repeated")
    damaged([first, second, first], "notice_repeated")
    damaged([], "no_notices")
    damaged([notices[0], items(second)[1]], "wrong_challenge")
    flipped = bytearray(notices[-1])
    flipped[-1] ^= 1
    damaged([*notices[:-1], bytes(flipped)], "bad_signature")
    damaged([*notices[:-1], notices[-1][:-1]], "malformed_cbor")
    damaged(notices, "wrong_node", "--node", "ni:///sha-256;" + independent.to_text(bytes(32)))


def test_a_stream_that_goes_on_shows_what_is_missing(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Behind a cursor: the end of the stream before can be left out no more, in a file or on the way."""
    node, path = lab.ask("status")["node"], tmp_path / "kept"
    printed = kept_by(lab, path, node)
    first, cursor = path.read_bytes(), printed[-1]["cursor"]
    with watching(lab, "--node", node, "--keep", path, "--from", f"{cursor['instance']}:{cursor['seq']}") as process:
        wait_until(lambda: b"resumed" in path.read_bytes(), 20, "it goes on")
        printed += ended(process)
    second = path.read_bytes()[len(first) :]
    assert verified(lab, path, "--node", node) == (printed, "")
    path.write_bytes(b"".join(items(first)[:-1]) + second)
    assert verified(lab, path, "--node", node)[1] == "notice_missing"


def test_what_is_no_place_to_keep(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Another file is not written into, nor behind half a notice; nor do two watches write into one."""
    node, path = lab.ask("status")["node"], tmp_path / "kept"

    def refused() -> str:
        done = lab.try_cli("watch", "--node", node, "--keep", path)
        assert done.returncode == 1 and done.stdout == ""
        return json.loads(done.stderr)["error"]["code"]

    kept_by(lab, path, node)
    torn = path.read_bytes()[:-1]
    path.write_bytes(torn)
    assert refused() == "not_notices" and path.read_bytes() == torn
    path.write_text("what I keep my shopping list in\n")
    assert refused() == "not_notices" and path.read_text().startswith("what I keep")
    path.unlink()
    with watching(lab, "--node", node, "--keep", path):
        wait_until(lambda: path.exists() and b"snapshot_end" in path.read_bytes(), 20, "a snapshot is kept")
        assert refused() == "file_locked"


def test_a_full_disk(own_lab: Lab, tmp_path: pathlib.Path) -> None:
    """What does not fit whole is not kept at all, and what was kept before stays good."""
    lab, node, small = own_lab, own_lab.ask("status")["node"], tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], check=True)
    try:
        with watching(lab, "--node", node, "--keep", small / "kept") as process:
            wait_until(lambda: (small / "kept").exists() and b"snapshot_end" in (small / "kept").read_bytes(), 20, "a snapshot")
            for _ in range(40):
                lab.revoke(lab.grant(A, "web"))
                if process.poll() is not None:
                    break
            out, err = process.communicate(timeout=20 * SLOW)
        assert process.returncode == 1 and json.loads(err)["error"]["code"] == "file_write"
        kept = small / "kept"
        said, code = verified(lab, kept, "--node", node)
        assert code == "" and said == [json.loads(line) for line in out.splitlines()][: len(said)] and len(said) > 4
    finally:
        subprocess.run(["umount", small], check=True)


def test_another_node_is_not_believed(lab: Lab, tmp_path: pathlib.Path) -> None:
    """The name is what is known: nothing of this node's is printed or kept under another's."""
    path = tmp_path / "kept"
    other = "ni:///sha-256;" + independent.to_text(bytes(32))
    done = lab.try_cli("watch", "--node", other, "--keep", path)
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == "wrong_node"
    assert done.stdout == "" and path.read_bytes() == b""


@pytest.mark.parametrize(
    "words",
    [("--keep", "kept"), ("--for", "cp.example"), ("--verify", "kept"), ("--epoch", "1"), ("--verify", "kept", "--node", "x", "--reconnect")],
)
def test_words_that_do_not_go_together(lab: Lab, words: tuple[str, ...]) -> None:
    done = lab.try_cli("watch", *words)
    assert done.returncode == 2 and json.loads(done.stderr)["error"]["next_step"]


def test_a_stream_that_begins_anew(own_lab: Lab, tmp_path: pathlib.Path) -> None:
    """With --reconnect over a restart: each stream has its own challenge, and one file has both."""
    lab, path = own_lab, tmp_path / "kept"
    node = lab.ask("status")["node"]
    with watching(lab, "--node", node, "--keep", path, "--reconnect") as process:
        wait_until(lambda: path.exists() and b"snapshot_end" in path.read_bytes(), 20, "a snapshot is kept")
        lab.stop()
        lab.start()
        wait_until(lambda: path.read_bytes().count(b"snapshot_end") == 2, 20, "another is kept")
        printed = ended(process)
    assert verified(lab, path, "--node", node) == (printed, "")
    challenges = [independent.take_signed(each, "notice", (1, 2, 3, 9))[0]["private"][2] for each in items(path.read_bytes())]
    assert len([1 for _ in itertools.groupby(challenges)]) == 2
