"""What exists only in guests: a first use of each, so that later tests can build on it.

The host of the build lacks them (no modules, no BPF LSM): whoever runs this file there sees it fail.
"""

import contextlib
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

HERE, THERE = f"hf-vm-{os.getpid()}-a", f"hf-vm-{os.getpid()}-b"


def sh(*argv: str, check: bool = True, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}"
    return done.stdout


def inside(ns: str, *argv: str, check: bool = True) -> str:
    return sh("nsenter", f"--net=/run/netns/{ns}", "--", *argv, check=check)


@pytest.fixture
def cable() -> Iterator[None]:
    """Two namespaces and a veth pair between them, eth0 at both ends."""
    try:
        for ns in (HERE, THERE):
            sh("ip", "netns", "add", ns)
            inside(ns, "ip", "link", "set", "lo", "up")
        inside(HERE, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", THERE)
        for number, ns in enumerate((HERE, THERE), 1):
            inside(ns, "ip", "addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
            inside(ns, "ip", "link", "set", "eth0", "up")
        yield
    finally:
        for ns in (HERE, THERE):
            sh("ip", "netns", "del", ns, check=False)


def round_trip_ms(address: str) -> float | None:
    out = inside(HERE, "ping", "-n", "-c1", "-W5", address, check=False)
    found = re.search(r"time=([\d.]+) ms", out)
    return float(found.group(1)) if found else None


def test_vlan(cable: None) -> None:
    """A tagged frame arrives at the VLAN device of its id, and at no other's."""
    for number, ns in enumerate((HERE, THERE), 1):
        inside(ns, "ip", "link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7")
        inside(ns, "ip", "addr", "add", f"198.51.100.{number}/24", "dev", "eth0.7")
        inside(ns, "ip", "link", "set", "eth0.7", "up")
    assert round_trip_ms("198.51.100.2") is not None
    inside(THERE, "ip", "link", "del", "eth0.7")
    inside(THERE, "ip", "link", "add", "link", "eth0", "name", "eth0.8", "type", "vlan", "id", "8")
    inside(THERE, "ip", "addr", "add", "198.51.100.2/24", "dev", "eth0.8")
    inside(THERE, "ip", "link", "set", "eth0.8", "up")
    assert round_trip_ms("198.51.100.2") is None


def test_netem(cable: None) -> None:
    """A delay is added to the round trip."""
    assert round_trip_ms("192.0.2.2") is not None  # ARP is done with
    inside(HERE, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "300ms")
    delayed = round_trip_ms("192.0.2.2")
    assert delayed is not None and delayed >= 300
    inside(HERE, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "loss", "100%")
    assert round_trip_ms("192.0.2.2") is None


@contextlib.contextmanager
def loop_device(file: pathlib.Path) -> Iterator[str]:
    device = sh("losetup", "--find", "--show", str(file)).strip()
    try:
        yield device
    finally:
        sh("losetup", "--detach", device)


def test_dm_flakey(tmp_path: pathlib.Path) -> None:
    """A disk that is told to fail writes fails them, and takes them again when told so."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    sectors = (1 << 20) // 512
    name = "hf-flakey"
    write = ["dd", "if=/dev/zero", f"of=/dev/mapper/{name}", "bs=4096", "count=1", "oflag=direct", "status=none"]
    with loop_device(disk) as device:
        sh("dmsetup", "create", "--noudevsync", name, "--table", f"0 {sectors} flakey {device} 0 3600 0")
        try:
            sh("dmsetup", "mknodes", name)
            sh(*write)
            sh("dmsetup", "reload", name, "--table", f"0 {sectors} flakey {device} 0 0 3600 1 error_writes")
            sh("dmsetup", "suspend", "--noudevsync", name)
            sh("dmsetup", "resume", "--noudevsync", name)
            assert subprocess.run(write, capture_output=True, check=False).returncode != 0
            sh("dmsetup", "reload", name, "--table", f"0 {sectors} flakey {device} 0 3600 0")
            sh("dmsetup", "suspend", "--noudevsync", name)
            sh("dmsetup", "resume", "--noudevsync", name)
            sh(*write)
        finally:
            sh("dmsetup", "remove", "--noudevsync", "--retry", name)
