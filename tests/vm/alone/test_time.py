"""Clocks: a lease ends by boot time, whatever the wall clock does, and suspend counts.

Covers G2, G3, L2. Changes the machine's clock and suspends it, so nothing else may run beside it.
"""

import contextlib
import datetime
import subprocess
import time
from collections.abc import Iterator

import pytest
from control import Control, Refused
from issuer import Issuer, trust
from lab import A, B, SLOW, Lab, wait_until
from packets import PACKETS, PROTOCOLS, Probe, denied, passes, watching
from verify_sock import Check, VerifySock

UDP = PROTOCOLS["udp"][0]
YEAR_S = 365 * 86400
SOON_S = 0.75 * SLOW  # time enough for a question and a packet


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@contextlib.contextmanager
def wall_clock_at(stamp_s: float) -> Iterator[None]:
    """Steps it there, and back by as much."""
    by = stamp_s - time.time()
    time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - by)


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def stamp_s(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize(
    "to",
    [
        pytest.param(lambda now: now + 3600, id="an hour ahead"),
        pytest.param(lambda now: now - 3600, id="an hour back"),
        pytest.param(lambda now: now + YEAR_S, id="a year ahead"),
        pytest.param(lambda now: now - YEAR_S, id="a year back"),
        pytest.param(lambda now: boot_s() + 60, id="1970"),  # the kernel takes nothing before its own start
        pytest.param(lambda now: 2**31 - 4, id="2038"),  # a 32-bit time_t overflows while the lease lives
    ],
)
def test_the_wall_clock_is_stepped(lab: Lab, to) -> None:
    probe = Probe("client", "tenant-a", UDP)
    lease = lab.grant(A, "echo", ttl="8s")
    end = boot_s() + lease["remaining_ns"] / 1e9
    with wall_clock_at(to(time.time())):
        passes(lab, probe)
        (shown,) = lab.leases().values()
        assert abs(shown["remaining_ns"] / 1e9 - (end - boot_s())) < SOON_S
        assert abs(stamp_s(shown["expires_at"]) - (time.time() + end - boot_s())) < 2, "by the clock as it is now"
        wait_until(lambda: boot_s() > end - SOON_S, 10)
        passes(lab, probe, 1)
        assert boot_s() < end, "too slow to see it pass in time"
        wait_until(lambda: boot_s() >= end)
        with watching(lab, probe) as capture:
            lab.send("client", [probe.frame()] * PACKETS)
            wait_until(lambda: lab.leases() == {}, what="it is torn down")
            assert capture.count() == 0
        denied(lab, probe, "no_lease", "from_uplink")


def test_suspend_counts(lab: Lab) -> None:
    """Asleep beyond a lease's end: its first packet after is denied. nft's clock stood still; the gate's did not."""
    short, long = Probe("client", "tenant-a", UDP), Probe("client", "tenant-b", UDP)
    lab.grant(A, "echo", ttl="15s")
    kept = lab.grant(B, "echo", ttl="200s")
    passes(lab, short)
    passes(lab, long)
    expired = lab.counter("lease_expired", "from_uplink")
    lab.freeze()  # nothing but the kernel ends it
    before_boot, before_monotonic = boot_s(), time.monotonic()
    subprocess.run(["rtcwake", "--mode", "mem", "--seconds", "20"], check=True, timeout=300, capture_output=True)
    asleep = (boot_s() - before_boot) - (time.monotonic() - before_monotonic)
    assert asleep > 15, f"the machine slept for {asleep:.1f} s only"
    with watching(lab, short) as capture:
        lab.send("client", [short.frame()] * PACKETS)
        passes(lab, long)
        assert capture.count() == 0
    lab.thaw()
    wait_until(lambda: set(lab.leases()) == {kept["id"]}, 15, "the daemon buries the one that ended")
    assert lab.counter("lease_expired", "from_uplink") - expired == PACKETS
    denied(lab, short, "no_lease", "from_uplink")
    lab.revoke(kept)
    denied(lab, long, "no_lease", "from_uplink")


def test_a_clock_that_was_stepped_judges_no_tokens(lab: Lab) -> None:
    """L2, H11, PROTOCOL 3: `clock_suspect`. Ten seconds off, and no token is taken, made or found good; the lease runs on."""
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    use = ("--endpoint", "web", "--operation", "connect")
    lease = lab.cli("lease", "grant", "--token", issuer.issue(A, *use, life="300s"))
    another = issuer.issue(A, "--endpoint", "echo", life="300s")
    check = Check(lease["token"], "connect", lease["resources"][0], "uid:0")
    reading = {"name": "reader", "environment": "prod", "scope": ["status"], "ttl_ns": 10**12}
    bearer = {"token": lab.ask("bearer.create", reading)["token"]}
    with VerifySock(lab.dir / "run" / "verify.sock") as service:
        assert service.reason(check) == "good"
        for by_s in (10, -10):
            with wall_clock_at(time.time() + by_s):
                wait_until(lambda: service.reason(check) == "clock_suspect", what="the step is noticed")
                refused = lab.cli_refused("lease", "grant", "--token", another)
                assert "clock" in refused and "restart" in refused
                assert "suspect" in lab.ask("status")["tokens"]["clock"]
                assert lease["id"] in lab.leases()
                for verb, args in (("session.bearer", bearer), ("bearer.create", reading | {"name": "other"})):
                    with pytest.raises(Refused, match="clock_suspect"):
                        lab.ask(verb, args)
            wait_until(lambda: service.reason(check) == "good", what="the clock is back")
    assert lab.ask("status")["tokens"]["refused"]["clock_suspect"] == 2
    lab.cli("lease", "grant", "--token", another)
    with Control(lab.socket_path) as reader:
        reader.call("session.bearer", bearer)
        reader.call("status")
    for each in lab.leases():
        lab.cli("lease", "revoke", each)
