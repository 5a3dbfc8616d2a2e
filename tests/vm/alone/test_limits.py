"""What a machine's owner may forbid: io_uring by sysctl, and the kernel's lockdown, which ends with the machine.

Covers H5: it is told what holds, and leases are enforced all the same.
"""

import json
import pathlib

import pytest
from lab import A, Lab
from packets import PROTOCOLS, Probe, denied, passes

IO_URING_DISABLED = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
LOCKDOWN = pathlib.Path("/sys/kernel/security/lockdown")


def doctor(lab: Lab) -> dict[str, dict]:
    done = lab.try_cli("doctor")
    assert done.returncode == 0, done
    return {row["feature"]: row for row in json.loads(done.stdout)["features"]}


def enforces(lab: Lab) -> None:
    probe = Probe("client", "tenant-a", PROTOCOLS["udp"][0])
    denied(lab, probe, "no_lease", "from_uplink")
    lease = lab.grant(A, "echo")
    passes(lab, probe)
    lab.revoke(lease)
    denied(lab, probe, "no_lease", "from_uplink")


def test_io_uring_disabled_by_sysctl() -> None:
    """The sysctl is there since 6.6; before, doctor has nothing to tell of it."""
    with Lab() as lab:
        if not IO_URING_DISABLED.exists():
            assert doctor(lab)["io_uring"]["verdict"] == "enforced"
            return
        before = IO_URING_DISABLED.read_text()
        IO_URING_DISABLED.write_text("2")
        try:
            row = doctor(lab)["io_uring"]
            assert row["verdict"] == "fallback" and "io_uring_disabled=2" in row["detail"], row
            enforces(lab)
        finally:
            IO_URING_DISABLED.write_text(before)


@pytest.mark.parametrize("level", ["integrity", "confidentiality"])
def test_a_locked_down_kernel(level: str) -> None:
    """A daemon that starts under lockdown loads, attaches and enforces; doctor sees the same. There is no way back."""
    LOCKDOWN.write_text(level)
    assert f"[{level}]" in LOCKDOWN.read_text()
    with Lab() as lab:
        essential = [row for row in doctor(lab).values() if row["essential"]]
        assert all(row["verdict"] in ("enforced", "fallback") for row in essential), essential
        enforces(lab)
