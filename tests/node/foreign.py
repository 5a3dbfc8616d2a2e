"""Somebody else's BPF program, as small as one can be, to stand in Holdfast's way. Loaded with bare bpf(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator

from lab import Lab

NAME = "foreign"
SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_LOAD, BPF_LINK_CREATE = 5, 28
SCHED_CLS, XDP = 3, 6  # program types
ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47
F_BEFORE, XDP_FLAGS_DRV_MODE = 8, 4
TCX_NEXT, TCX_PASS, XDP_PASS = -1, 0, 2  # PASS at tcx ends the chain: whoever comes later is bypassed

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    fd = libc.syscall(SYS_BPF, command, buffer, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}: {os.strerror(ctypes.get_errno())}")
    return fd


def load(kind: int, verdict: int) -> int:
    """A program that answers `verdict` to every packet."""
    move_r0, leave = struct.pack("<BBhi", 0xB7, 0, 0, verdict), struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = ctypes.create_string_buffer(move_r0 + leave, 16)
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQII16s", kind, 2, ctypes.addressof(code), ctypes.addressof(license_), 0, 0, 0, 0, 0, NAME.encode()
    )
    return bpf(BPF_PROG_LOAD, attributes)


@contextlib.contextmanager
def attached(lab: Lab, interface: str, attach: int, verdict: int) -> Iterator[int]:
    """The program at a hook of one of the node's interfaces, first in order, while the block runs; its link's fd."""
    xdp = attach == ATTACH_XDP
    program = load(XDP if xdp else SCHED_CLS, verdict)
    link = -1
    try:
        with lab.at("node"):
            index = lab.ifindex("node", interface)
            flags = XDP_FLAGS_DRV_MODE if xdp else F_BEFORE
            link = bpf(BPF_LINK_CREATE, struct.pack("<IIII48x", program, index, attach, flags))
        yield link
    finally:
        for fd in (link, program):
            if fd >= 0:
                os.close(fd)
