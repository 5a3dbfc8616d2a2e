"""One guest in qemu, from its start to the line that says how its steps ended."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib

from guest import ALIVE_S, DONE
from kernels import ROOT

SILENCE_S = 12 * ALIVE_S  # a guest that says nothing for so long hangs
# What must not be in a kernel's log. Each begins the kernel's own report of a bug in it, or of a hang.
BUGS = re.compile(
    r"WARNING: |BUG: |kernel BUG at|Oops|general protection fault|Kernel panic|UBSAN: |KASAN: |KCSAN: "
    r"|soft lockup|hard LOCKUP|rcu: INFO: .* detected .*stall|blocked for more than|Call Trace:|refcount_t: "
)
# A CPU that is emulated may be kept waiting by the machine below it: a hang is what lasts longer than that. Its
# mitigations guard against other guests of a CPU that does not exist.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 oops=panic mitigations=off watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 "
    "random.trust_cpu=on tsc=reliable clocksource=tsc no_console_suspend"
)
# Left out is what costs an emulator much and is no matter of these tests (kernels/README.md).
TCG_CPU = (
    "max,la57=off,cx16=off,erms=off,"
    "xsave=off,avx=off,avx2=off,f16c=off,fma=off,vaes=off,vpclmulqdq=off,pku=off,mpx=off"  # these need xsave
)
# What no CPU does, and only an emulator (kernels/README.md): a breakpoint that no debugger set; flags whose bits above 21,
# which are always 0 (Intel SDM, volume 1, 3.4.3), are set.
EMULATORS = re.compile(r"int3: 0000|EFLAGS: (?!00[0-3])[0-9a-f]{8}\b")


class MachineError(Exception):
    """The machine could not be started; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Profile:
    name: str
    cpus: int
    memory_mib: int
    devices: list[str]
    chipset: str = "pc"
    kernel: str = ""
    taps: list[str] = dataclasses.field(default_factory=list)
    netdevs: list[str] = dataclasses.field(default_factory=list)
    blockdevs: list[str] = dataclasses.field(default_factory=list)


def profile(name: str) -> Profile:
    profiles = tomllib.loads((ROOT / "kernels/machines.toml").read_text())
    if name not in profiles:
        raise MachineError(f"there is no machine '{name}' in kernels/machines.toml; there are {', '.join(profiles)}")
    return Profile(name=name, **profiles[name])


@dataclasses.dataclass
class Outcome:
    """How a run ended: exit codes by step, and what makes it a failure besides them."""

    codes: dict[str, int]
    problems: list[str]

    emulators: bool = False  # the emulator's fault, not the kernel's and not ours

    @property
    def passed(self) -> bool:
        return bool(self.codes) and not any(self.codes.values()) and not self.problems


def arguments(machine: Profile, accel: str, kernel: pathlib.Path, initramfs: pathlib.Path, directory: pathlib.Path, shell: bool) -> list[str]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise MachineError("qemu-system-x86_64 is not installed: run scripts/setup")
    cpu = {"tcg": ["-accel", "tcg,thread=multi", "-cpu", TCG_CPU], "kvm": ["-accel", "kvm", "-cpu", "host"]}[accel]
    # A terminal for a person; else a file that is always open, for a port whose other end is closed blocks the guest.
    chardev, port = ("stdio,signal=off", "virtconsole") if shell else ("file,path=/dev/stdout", "virtserialport,name=output")
    return [
        *own_network(machine.taps),
        qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", machine.chipset, *cpu,
        "-smp", str(machine.cpus), "-m", str(machine.memory_mib), "-nic", "none",
        *(word for netdev in machine.netdevs for word in ("-netdev", netdev)),
        *(word for blockdev in machine.blockdevs for word in ("-blockdev", blockdev)),
        *(word for device in machine.devices for word in ("-device", device)),
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", f"{COMMAND_LINE} tsc_early_khz={tsc_khz()} {machine.kernel}",
        "-serial", f"file:{directory}/kernel.log",
        "-device", "virtio-serial-pci",
        "-chardev", f"{chardev},id=output", "-device", f"{port},chardev=output",
        "-chardev", f"file,id=results,path={directory}/results.tar", "-device", "virtserialport,chardev=results,name=results",
    ]  # fmt: skip


def own_network(taps: list[str]) -> list[str]:
    """What runs the command that follows in a network namespace where there is nothing but these devices, on one bridge."""
    words = ["echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6", "ip link add cable type bridge", "ip link set cable up"]
    for tap in taps:
        words += [f"ip tuntap add {tap} mode tap multi_queue vnet_hdr", f"ip link set {tap} mtu 9000 master cable up"]
    return ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec", "; ".join([*words, 'exec "$@"']), "sh"]


def tsc_khz() -> int:
    """The rate of this machine's time stamp counter, which is its guests' as well.

    Told to a guest's kernel, since on a busy host that finds it out wrongly: ten times too slow by the timer chips that
    qemu emulates, and then a minute is ten.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
        start = ctypes.c_char.from_buffer(code)
        rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))

        def reading() -> tuple[int, int]:
            """The counter and the time, of the attempt that was least interrupted."""
            attempts = [(time.monotonic_ns(), rdtsc(), time.monotonic_ns()) for _ in range(50)]
            before, ticks, after = min(attempts, key=lambda attempt: attempt[2] - attempt[0])
            return ticks, (before + after) // 2

        (ticks, begin), _, (more_ticks, end) = reading(), time.sleep(0.1), reading()
        del start
    return (more_ticks - ticks) * 1_000_000 // (end - begin)


def attend(argv: list[str], directory: pathlib.Path, limit_s: float) -> Outcome:
    """Runs the guest, passes its output on, and judges how it ended."""
    codes: dict[str, int] = {}
    problems: list[str] = []
    line = b""
    begin = heard = time.monotonic()
    with (directory / "qemu.log").open("wb") as errors:
        guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    try:
        while True:
            now = time.monotonic()
            if now - heard > SILENCE_S or now - begin > limit_s:
                problems.append(f"the guest said nothing for {now - heard:.0f} s, {now - begin:.0f} s after its start")
                break
            if not select.select([guest.stdout], [], [], 1)[0]:
                continue
            data = os.read(guest.stdout.fileno(), 1 << 16)
            if not data:
                break
            heard = now
            text = data.replace(b"\0", b"").replace(b"\r\n", b"\n")
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
            *lines, line = (line + text).split(b"\n")
            for each in lines:
                if each.startswith(DONE.encode()):
                    codes = json.loads(each[len(DONE) :])
    finally:
        if guest.poll() is None:
            with_grace(guest)
    if guest.returncode != 0 and not problems:
        problems.append(f"qemu ended with exit code {guest.returncode}: {tail(directory / 'qemu.log')}")
    if not codes:
        problems.append(f"the guest did not say that it was done; its kernel's last words:\n{tail(directory / 'kernel.log', 30)}")
    log = (directory / "kernel.log").read_text(errors="replace")
    reports = kernel_bugs(log)
    return Outcome(codes, problems + reports, emulators=bool(reports) and EMULATORS.search(reports[0]) is not None)


def with_grace(guest: subprocess.Popen) -> None:
    """A guest that was done powers off by itself; one that hangs is ended."""
    try:
        guest.wait(10)
    except subprocess.TimeoutExpired:
        guest.kill()
        guest.wait()


def tail(path: pathlib.Path, lines: int = 5) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def kernel_bugs(log: str) -> list[str]:
    """What the first report of a bug says in a line, and below it how the report goes on."""
    lines = log.replace("\r", "").splitlines()
    trouble = [number for number, line in enumerate(lines) if BUGS.search(line)]
    if not trouble:
        return []
    report = lines[trouble[0] : trouble[0] + 80]
    where = next((line.split("RIP: ")[1] for line in report if "RIP: " in line), "no instruction named")
    what = report[0].split("] ", 1)[-1]
    return [f"the kernel's log has {len(trouble)} lines of trouble, first '{what}' ({where}):\n" + "\n".join(report)]


def results(directory: pathlib.Path) -> pathlib.Path:
    """What the steps left in /results, unpacked."""
    to = directory / "results"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    try:
        with tarfile.open(directory / "results.tar") as archive:
            for member in archive:
                # Nothing else than plain files with plain names is expected of a guest.
                if member.isfile() and "/" not in member.name.removeprefix("./"):
                    (to / member.name).write_bytes(archive.extractfile(member).read())
    except (tarfile.ReadError, FileNotFoundError):
        pass  # a guest that died left none, which its missing last line tells
    (directory / "results.tar").unlink(missing_ok=True)
    return to
