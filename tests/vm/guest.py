#!/usr/bin/python3
"""The guest's init: mounts what a machine has mounted, runs the steps of /job.json, hands over what they left.

Two virtio-serial ports lead to the host. "output" carries what the steps print, a zero byte at least every ten
seconds as a sign of life, and last the line that alone means success or failure:

    holdfast-guest: done {"bpf": 0, "node": 1}      exit codes by step; without this line the run failed

"results" carries a tar of /results: reports the steps wrote. Any error here is printed, and then the line is missing.
"""

import ctypes
import glob
import json
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import tarfile
import time
import traceback

DONE = "holdfast-guest: done "
ALIVE_S = 10
POWER_OFF = 0x4321FEDC  # linux/reboot.h

MOUNTS = """
devtmpfs /dev devtmpfs
proc /proc proc
sysfs /sys sysfs
tmpfs /run tmpfs mode=755
tmpfs /tmp tmpfs mode=1777
devpts /dev/pts devpts gid=5,mode=620
tmpfs /dev/shm tmpfs mode=1777
cgroup2 /sys/fs/cgroup cgroup2
bpf /sys/fs/bpf bpf mode=700
tracefs /sys/kernel/tracing tracefs
securityfs /sys/kernel/security securityfs
"""


def mount_all() -> None:
    for line in MOUNTS.split("\n"):
        if fields := line.split():
            kind, at, name, *options = fields
            os.makedirs(at, exist_ok=True)
            subprocess.run(["mount", "-t", name, *(["-o", options[0]] if options else []), kind, at], check=True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")


# What the kernel switches by patching its own code on the packet path, for as long as somebody wants it: held on, for
# an emulated CPU may still run the breakpoint of a patch that is over, and the kernel dies of it (kernels/README.md).
HELD = """
table inet held {
  chain prerouting { type filter hook prerouting priority 0; }
  chain input { type filter hook input priority 0; }
  chain forward { type filter hook forward priority 0; }
  chain output { type filter hook output priority 0; }
  chain postrouting { type filter hook postrouting priority 0; }
}
table netdev held {
  chain ingress { type filter hook ingress device lo priority 0; }
}
"""


def hold_patched_code() -> socket.socket:
    """The sites of packet timestamps (each ping wants them), of traffic control and of netfilter."""
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "clsact"], check=True)
    subprocess.run(["nft", "-f", "-"], input=HELD, text=True, check=True)
    timestamps = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    timestamps.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP, which Python does not name
    return timestamps


def port(name: str) -> int:
    """A virtio-serial port by its name, for writing. There is no udev here that would link it."""
    for path in glob.glob("/sys/class/virtio-ports/*/name"):
        if pathlib.Path(path).read_text().strip() == name:
            return os.open(f"/dev/{path.split('/')[-2]}", os.O_WRONLY)
    raise FileNotFoundError(f"no virtio-serial port '{name}'")


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def idle_s() -> float:
    """How long the CPUs have had nothing to do since the guest's start, each (proc(5))."""
    idle, waiting = map(int, pathlib.Path("/proc/stat").read_text().split(maxsplit=6)[4:6])
    return (idle + waiting) / os.sysconf("SC_CLK_TCK") / os.cpu_count()


def run_step(step: dict, output: int, environment: dict[str, str]) -> int:
    """One command, its output passed on; its exit code, or 124 if it had to be stopped."""
    write_all(output, f"\n--- {step['name']} ---\n".encode())
    begin, idle = time.monotonic(), idle_s()
    receiver, sender = os.pipe()
    child = subprocess.Popen(
        step["argv"], cwd="/holdfast", env=environment, stdin=subprocess.DEVNULL, stdout=sender, stderr=sender,
        start_new_session=True,
    )  # fmt: skip
    os.close(sender)
    os.set_blocking(receiver, False)
    code, said, stopping = None, time.monotonic(), 0
    while True:
        ready = select.select([receiver], [], [], 0.1)[0]
        data = os.read(receiver, 1 << 16) if ready else b""
        now = time.monotonic()
        if data or now - said > ALIVE_S:
            write_all(output, data or b"\0")
            said = now
        if code is not None and not data:
            break
        # As the first process we inherit what others leave, and reap it.
        while code is None or ready:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child.pid:
                code = child.returncode = os.waitstatus_to_exitcode(status)
        if code is None and now - begin > step["limit_s"] + 60 * stopping:
            write_all(output, f"\nstopped after {step['limit_s']} s: {step['name']}\n".encode())
            os.killpg(child.pid, signal.SIGKILL if stopping else signal.SIGINT)
            stopping += 1
    os.close(receiver)
    took_s = now - begin
    busy = 100 * (1 - (idle_s() - idle) / took_s)
    write_all(output, f"--- {step['name']}: exit code {code}, {took_s:.1f} s, CPUs {busy:.0f} % busy ---\n".encode())
    return 124 if stopping else code


def hand_over(results: int) -> None:
    with os.fdopen(results, "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add("/results", arcname=".")


def shell(job: dict, environment: dict[str, str]) -> None:
    with open("/dev/hvc0", "r+b", buffering=0) as terminal:
        print("Holdfast's guest. The checkout is at /holdfast; leave with exit.", file=sys.stderr)
        subprocess.run(["setsid", "--ctty", "bash", "-i"], stdin=terminal, stdout=terminal, stderr=terminal,
                       env=environment | {"TERM": job["term"]}, cwd="/holdfast", check=False)  # fmt: skip


def main() -> None:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    mount_all()
    job = json.loads(pathlib.Path("/job.json").read_text())
    environment = dict(os.environ) | {"HOME": "/root", "LC_ALL": "C.UTF-8"} | job["environment"]
    subprocess.run(["modprobe", "--all", *job["modules"]], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 19, 1 << 19))  # as systemd has it
    pathlib.Path("/proc/sys/kernel/hostname").write_text("guest\n")
    held = hold_patched_code()  # until the guest ends
    if job["shell"]:
        return shell(job, environment)
    output = port("output")
    try:
        write_all(output, f"{' '.join(os.uname()[::2])}\n".encode())
        codes = {step["name"]: run_step(step, output, environment) for step in job["steps"]}
        hand_over(port("results"))
        write_all(output, f"\n{DONE}{json.dumps(codes)}\n".encode())
    except BaseException:
        write_all(output, traceback.format_exc().encode())
    held.close()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
    os.sync()
    ctypes.CDLL(None).reboot(POWER_OFF)
