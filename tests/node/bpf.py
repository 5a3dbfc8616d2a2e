"""Bare bpf(2), and what is in a map by it: whole, and all at once where bpftool asks for one key after the other."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import platform
import struct
from collections.abc import Iterable, Iterator

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
# Commands and types of maps, by their names in linux/bpf.h.
BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_GET_NEXT_KEY = 1, 2, 4
BPF_PROG_LOAD, BPF_OBJ_PIN, BPF_OBJ_GET, BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID = 5, 6, 7, 13, 14
BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY, BPF_MAP_LOOKUP_BATCH, BPF_LINK_CREATE = 15, 16, 24, 28
OF_CPUS, OF_MAPS = (5, 6, 10), (12, 13)
ENOTSUPP = 524  # the kernel's own, where a map has no batches

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | ctypes.Array) -> int:
    """What it returns; what it writes is in `attributes`, if that is a buffer."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes)) if isinstance(attributes, bytes) else attributes
    result = libc.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}: {os.strerror(ctypes.get_errno())}")
    return result


def possible_cpus() -> int:
    """The highest number of a CPU, and one."""
    return int(pathlib.Path("/sys/devices/system/cpu/possible").read_text().replace(",", "-").split("-")[-1]) + 1


class Map:
    """One map, by a descriptor that it owns."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = ctypes.create_string_buffer(24)
        bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        self.type, _, self.key_size, self.value_size, self.entries_max, _ = struct.unpack("=6I", info.raw)
        if self.type in OF_CPUS:
            self.value_size = (self.value_size + 7) // 8 * 8 * possible_cpus()

    def read(self) -> dict[bytes, bytes]:
        """All that is in it, by key. Of a map of maps the values are the ids of those."""
        try:
            return self.read_at_once()
        except OSError as error:
            if error.errno not in (errno.EINVAL, ENOTSUPP):
                raise
            return self.read_at(self.keys())

    def read_at_once(self) -> dict[bytes, bytes]:
        keys = ctypes.create_string_buffer(self.key_size * self.entries_max)
        values = ctypes.create_string_buffer(self.value_size * self.entries_max)
        goes_on_at = ctypes.create_string_buffer(max(4, self.key_size))
        addresses = map(ctypes.addressof, (goes_on_at, keys, values))
        attributes = struct.pack("=4QIIQQ", 0, *addresses, self.entries_max, self.fd, 0, 0)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        with contextlib.suppress(FileNotFoundError):  # what says that it was all
            bpf(BPF_MAP_LOOKUP_BATCH, buffer)
        (count,) = struct.unpack_from("=I", buffer.raw, 32)
        raw_keys, raw_values = keys.raw, values.raw

        def part(of: bytes, size: int, number: int) -> bytes:
            return of[size * number : size * (number + 1)]

        return {part(raw_keys, self.key_size, n): part(raw_values, self.value_size, n) for n in range(count)}

    def read_at(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """What is there at those keys. In a map of maps each look takes a grace period of RCU before Linux 6.8."""
        return {key: value for key in keys if (value := self.value_at(key)) is not None}

    def keys(self) -> Iterator[bytes]:
        key, address = ctypes.create_string_buffer(self.key_size), 0
        with contextlib.suppress(FileNotFoundError):  # there is no next
            while True:
                bpf(BPF_MAP_GET_NEXT_KEY, struct.pack("=I4xQQQ", self.fd, address, ctypes.addressof(key), 0))
                address = ctypes.addressof(key)
                yield key.raw

    def value_at(self, key: bytes) -> bytes | None:
        """None if there is none, as there may be in an array of maps, too."""
        buffers = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(self.value_size)
        try:
            bpf(BPF_MAP_LOOKUP_ELEM, struct.pack("=I4xQQQ", self.fd, *map(ctypes.addressof, buffers), 0))
        except FileNotFoundError:
            return None
        return buffers[1].raw

    def write(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == (self.key_size, self.value_size)
        buffers = [ctypes.create_string_buffer(data, len(data)) for data in (key, value)]
        bpf(BPF_MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", self.fd, *map(ctypes.addressof, buffers), 0))


@contextlib.contextmanager
def pinned_map(pin: os.PathLike) -> Iterator[Map]:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    fd = bpf(BPF_OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))
    try:
        yield Map(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def map_by_id(number: int) -> Iterator[Map]:
    fd = bpf(BPF_MAP_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
    try:
        yield Map(fd)
    finally:
        os.close(fd)


def values_of(pin: os.PathLike) -> list[bytes]:
    """Of an array, by index."""
    with pinned_map(pin) as array:
        values = list(array.read().values())
        assert len(values) == array.entries_max
        return values


def content_of(pin: os.PathLike, keys: Iterable[bytes]) -> dict[bytes, bytes | dict[bytes, bytes]]:
    """Of any map but a ring; of a map of maps, what is in each of those at `keys`, by key."""
    with pinned_map(pin) as outer:
        if outer.type not in OF_MAPS:
            return dict(outer.read())
        found: dict[bytes, bytes | dict[bytes, bytes]] = {}
        for key, number in outer.read_at(keys).items():
            with map_by_id(struct.unpack("=I", number)[0]) as inner:
                found[key] = inner.read()
        return found
