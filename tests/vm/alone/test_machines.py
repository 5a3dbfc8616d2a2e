"""Machines that are set up otherwise: cgroups of both versions side by side, a network driver without type information.

Covers H5, L5: nothing is enforced less for it.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab import Lab
from test_limits import enforces

NODE_TESTS = pathlib.Path(__file__).resolve().parent.parent.parent / "node"

# As systemd's "hybrid" mode has them.
MIXED = """
mount -t tmpfs cgroup /sys/fs/cgroup
cd /sys/fs/cgroup
mkdir unified systemd net_cls,net_prio
mount -t cgroup2 cgroup2 unified
mount -t cgroup -o none,name=systemd cgroup systemd
mount -t cgroup -o net_cls,net_prio cgroup net_cls,net_prio
mkdir net_cls,net_prio/classified
echo 0x100001 > net_cls,net_prio/classified/net_cls.classid
"""
CLASSIFIED = pathlib.Path("/sys/fs/cgroup/net_cls,net_prio/classified")


def run(*argv: object) -> str:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def mixed_hierarchies() -> Iterator[None]:
    try:
        run("sh", "-euc", MIXED)
        yield
    finally:
        CLASSIFIED.rmdir()
        run("umount", CLASSIFIED.parent, *(f"/sys/fs/cgroup{name}" for name in ("/systemd", "/unified", "")))


def in_a_class(*argv: object) -> list[object]:
    """In a class of net_cls, which the kernel keeps beside a socket's cgroup of version 2."""
    return ["sh", "-c", f"echo $$ > {CLASSIFIED}/cgroup.procs && exec \"$@\"", "sh", *argv]


def verdicts() -> dict[str, str]:
    doctor = pathlib.Path(os.environ["HOLDFAST_BUILD"], "userspace/cli/holdfast")
    return {row["feature"]: row["verdict"] for row in json.loads(run(doctor, "--json", "doctor"))["features"]}


def test_cgroups_of_both_versions(request: pytest.FixtureRequest) -> None:
    """doctor finds the same as without, and a workload holds its lease by its cgroup of version 2."""
    plain = verdicts()
    request.getfixturevalue("mixed_hierarchies")
    assert verdicts() == plain and plain["connections by cgroup"] == "enforced"
    tests = [NODE_TESTS / "test_holders.py", "-k", "workload_holds or cgroup_that"]
    said = run(*in_a_class(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests))
    assert "2 passed" in said, said


def without_btf(module: pathlib.Path) -> bytes:
    """The module, with its section of types under a name that the kernel does not look for (elf(5)).

    And without its signature, which would not fit any more (the kernel's struct module_signature)."""
    data = bytearray(module.read_bytes())
    mark = b"~Module signature appended~\n"
    if data.endswith(mark):
        (length,) = struct.unpack(">I", data[-len(mark) - 4 : -len(mark)])
        del data[-len(mark) - 12 - length :]
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, _, names = struct.unpack_from("<HHH", data, 58)
    start, length = struct.unpack_from("<QQ", data, sections + names * size + 24)
    at = data.index(b"\0.BTF\0", start, start + length)
    data[at + 1 : at + 5] = b".OFF"
    return bytes(data)


def test_a_driver_without_btf(tmp_path: pathlib.Path) -> None:
    """As of a module that was built without, or against another kernel: its devices are guarded all the same."""
    types = pathlib.Path("/sys/kernel/btf/veth")
    assert types.exists()
    release = os.uname().release
    (driver,) = pathlib.Path("/lib/modules", release).rglob("veth.ko")
    copy = tmp_path / "veth.ko"
    copy.write_bytes(without_btf(driver))
    run("rmmod", "veth")
    try:
        run("insmod", copy)
        assert not types.exists()
        with Lab() as lab:
            rows = lab.cli("doctor")["features"]
            assert all(row["verdict"] in ("enforced", "fallback") for row in rows if row["essential"]), rows
            (xdp,) = [row for row in rows if "XDP" in row["feature"]]
            assert xdp["verdict"] == "enforced", xdp
            enforces(lab)
        run("rmmod", "veth")
    finally:
        run("modprobe", "veth")
    assert types.exists()
