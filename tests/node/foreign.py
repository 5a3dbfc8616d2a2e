"""By bare bpf(2): somebody else's program to stand in Holdfast's way, and a look at who is attached.

Debian 12's bpftool knows no tcx yet, hence the query by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import struct
from collections.abc import Iterator

from bpf import (
    BPF_LINK_CREATE,
    BPF_OBJ_GET_INFO_BY_FD,
    BPF_OBJ_PIN,
    BPF_PROG_GET_FD_BY_ID,
    BPF_PROG_LOAD,
    BPF_PROG_QUERY,
    bpf,
)
from lab import BPFFS, Lab

NAME = "foreign"
SCHED_CLS, XDP = 3, 6  # program types
ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47
F_BEFORE, XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 8, 2, 4
TCX_NEXT, TCX_PASS, XDP_PASS = -1, 0, 2  # PASS at tcx ends the chain: whoever comes later is bypassed


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
def attached(
    lab: Lab, interface: str, attach: int, verdict: int, xdp_mode: int = XDP_FLAGS_DRV_MODE
) -> Iterator[int]:
    """The program at a hook of one of the node's interfaces, first in order, while the block runs; its link's fd."""
    xdp = attach == ATTACH_XDP
    program = load(XDP if xdp else SCHED_CLS, verdict)
    link = -1
    try:
        with lab.at("node"):
            index = lab.ifindex("node", interface)
            flags = xdp_mode if xdp else F_BEFORE
            link = bpf(BPF_LINK_CREATE, struct.pack("<IIII48x", program, index, attach, flags))
        yield link
    finally:
        for fd in (link, program):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def ahead(lab: Lab, interface: str, ingress: bool, verdict: int) -> Iterator[None]:
    """A program before Holdfast's at tc: of tcx where that is in use, else a filter of the same priority, which
    stands before those that were there."""
    attach = ATTACH_TCX_INGRESS if ingress else ATTACH_TCX_EGRESS
    if tcx_programs(lab, interface, attach):
        with attached(lab, interface, attach, verdict):
            yield
        return
    pin = BPFFS / f"{lab.pin_dir.name}-{NAME}"
    path = ctypes.create_string_buffer(os.fsencode(pin))
    program = load(SCHED_CLS, verdict)
    try:
        bpf(BPF_OBJ_PIN, struct.pack("<QII", ctypes.addressof(path), program, 0))
    finally:
        os.close(program)
    place = ["dev", interface, "ingress" if ingress else "egress", "prio", "1", "handle", "2", "bpf"]
    try:
        lab.run("node", ["tc", "filter", "add", *place, "direct-action", "object-pinned", str(pin)])
    finally:
        pin.unlink()
    yield
    lab.run("node", ["tc", "filter", "del", *place])


def tcx_programs(lab: Lab, interface: str, attach: int) -> list[int]:
    """Ids of the programs at a tcx hook, in order; none where the kernel has no tcx."""
    ids = ctypes.create_string_buffer(4 * 64)
    attributes = struct.pack("<IIIIQII24x", lab.ifindex("node", interface), attach, 0, 0, ctypes.addressof(ids), 64, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    with lab.at("node"):
        try:
            bpf(BPF_PROG_QUERY, buffer)
        except OSError:
            return []
    count = struct.unpack_from("<I", buffer.raw, 24)[0]
    return list(struct.unpack_from(f"<{count}I", ids.raw))


def program_name(number: int) -> str:
    program = bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("<III4x", number, 0, 0))
    try:
        info = ctypes.create_string_buffer(256)
        bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    finally:
        os.close(program)
    return info.raw[64:80].rstrip(b"\0").decode()  # bpf_prog_info.name


def attached_programs(lab: Lab, interface: str) -> set[str]:
    """Names of what is attached to one of the node's interfaces: by tcx, clsact and XDP."""
    ids = tcx_programs(lab, interface, ATTACH_TCX_INGRESS) + tcx_programs(lab, interface, ATTACH_TCX_EGRESS)
    link = json.loads(lab.run("node", ["ip", "-j", "-d", "link", "show", "dev", interface]).stdout)[0]
    if "xdp" in link:
        ids.append(link["xdp"]["prog"]["id"])
    for direction in ("ingress", "egress"):
        shown = lab.run("node", ["tc", "-j", "filter", "show", "dev", interface, direction], check=False).stdout
        ids += [int(number) for number in re.findall(r'"prog":\{"id":(\d+)', shown)]
    return {program_name(number) for number in ids}
