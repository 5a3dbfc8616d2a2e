"""The guest's initramfs: this machine's programs with their libraries, a kernel's modules, the build and the tests.

Written straight into a cpio archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst), so
that no tree of copies is made. Not compressed: unpacking it would take the emulated CPU longer than reading it.
"""

from __future__ import annotations

import fnmatch
import os
import pathlib
import re
import stat
import subprocess
import tomllib
from collections.abc import Iterable
from typing import BinaryIO

from kernels import GUEST, ROOT, Kernel, run

CHECKOUT = "/holdfast"  # where the guest has it
MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr, as on the machine itself
NOT_MERGED = ("dev", "proc", "sys", "run", "tmp", "root", "etc", "results", "var/tmp")


class Archive:
    """A cpio archive of the "newc" kind. A path that is added again replaces what was added before."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.number, self.directories = file, 0, {""}

    def entry(self, name: str, mode: int, data: bytes = b"", mtime: int = 0) -> None:
        self.number += 1
        path = name.encode() + b"\0"
        fields = (self.number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        for part in (head, data):
            self.file.write(part + bytes(-len(part) % 4))

    def directory(self, name: str) -> None:
        name = name.strip("/")
        if name not in self.directories:
            self.directory(os.path.dirname(name))
            self.directories.add(name)
            self.entry(name, stat.S_IFDIR | (0o1777 if name in ("tmp", "var/tmp") else 0o755))

    def write(self, name: str, data: bytes, mode: int = 0o644) -> None:
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self.entry(name, stat.S_IFREG | mode, data)

    def copy(self, source: pathlib.Path, name: str | None = None) -> None:
        """One file or link of this machine, where it is here or at `name`."""
        name = (name or str(source)).strip("/")
        info = source.lstat()
        self.directory(os.path.dirname(name))
        if stat.S_ISLNK(info.st_mode):
            self.entry(name, info.st_mode, os.fsencode(os.readlink(source)), int(info.st_mtime))
        elif stat.S_ISREG(info.st_mode):
            self.entry(name, info.st_mode, source.read_bytes(), int(info.st_mtime))

    def close(self) -> None:
        self.entry("TRAILER!!!", 0)


def is_program(path: pathlib.Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def package_files(packages: Iterable[str], without: Iterable[str]) -> list[pathlib.Path]:
    """The files of installed packages, as they are on this machine, with Python's compiled ones beside them."""
    found = set()
    for line in run(["dpkg-query", "--listfiles", *packages]).splitlines():
        path = pathlib.Path(line)
        if not line.startswith("/") or any(fnmatch.fnmatchcase(line, pattern) for pattern in without):
            continue
        path = pathlib.Path(os.path.realpath(path.parent)) / path.name  # /bin/x is /usr/bin/x
        if path.is_symlink() or path.is_file():
            found.add(path)
            if path.suffix == ".py":
                found.update((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    return sorted(found)


def libraries(programs: Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """What the dynamic linker loads for them, with the links by which it finds it."""
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    if missing := re.findall(r"(\S+) => not found", done.stdout):
        raise FileNotFoundError(f"no library {missing[0]} on this machine")
    found = set()
    for line in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M):
        path = pathlib.Path(line)
        while True:
            path = pathlib.Path(os.path.realpath(path.parent)) / path.name
            found.add(path)
            if not path.is_symlink():
                break
            path = path.parent / os.readlink(path)
    return found


def write(to: pathlib.Path, kernel: Kernel, build: pathlib.Path, job: bytes) -> None:
    """The initramfs for one run. `job` is what guest.py reads; build is build/PRESET."""
    wanted = tomllib.loads(GUEST.read_text())
    files = package_files(wanted["packages"], wanted["without"])
    files += [pathlib.Path(os.path.realpath(os.path.dirname(name))) / os.path.basename(name) for name in wanted["files"]]
    programs = []
    for pattern in wanted["programs"]:
        matches = [path for path in sorted(build.glob(pattern)) if is_program(path)]
        if not matches:
            raise FileNotFoundError(f"{build}/{pattern} is not built: run scripts/build {build.name}")
        programs += matches
    files = sorted(set(files) | libraries([*filter(is_program, files), *programs]))

    with to.open("wb") as file:
        archive = Archive(file)
        for name in NOT_MERGED:
            archive.directory(name)
        for name in MERGED:
            archive.entry(name, stat.S_IFLNK | 0o777, b"usr/" + name.encode())
        for path in files:
            archive.copy(path)
        for path in sorted((kernel.path / "modules").rglob("*")):
            if not path.is_dir():
                archive.copy(path, f"usr/lib/modules/{path.relative_to(kernel.path / 'modules')}")
        for path in programs:
            archive.copy(path, f"{CHECKOUT}/build/{build.name}/{path.relative_to(build)}")
        for name in wanted["sources"]:
            source = ROOT / name
            for path in [source] if source.is_file() else sorted(source.rglob("*")):
                if not path.is_dir() and "__pycache__" not in path.parts:
                    archive.copy(path, f"{CHECKOUT}/{path.relative_to(ROOT)}")
        archive.write("job.json", job)
        archive.copy(ROOT / "tests/vm/guest.py", "init")
        archive.close()
