"""holdfastd is killed by strace as it enters a system call, for tests that do so at each step of an operation.

Between two system calls only the daemon's own memory and mapped maps change, so its calls are its steps.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from lab import LOOPS, SLOW, Lab

CALLS = ("recvmsg", "sendto", "write", "fsync", "rename", "openat", "membarrier", "bpf", "pwrite64", "fdatasync")
Step = tuple[bool, str, int]  # in the event loop, name of the call, and its number among those of that name


@contextlib.contextmanager
def traced(lab: Lab, *options: str) -> Iterator[list[str]]:
    """strace on the daemon, by `options`; the lines it wrote are in the list afterwards."""
    out = lab.dir / "trace"
    out.unlink(missing_ok=True)
    argv = ["strace", "-y", "-s", "64", "-o", str(out), "-e", "trace=" + ",".join(CALLS), *options]
    tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    try:
        said = tracer.stderr.readline()
        assert "attached" in said, said
        yield lines
    finally:
        # It ends by itself with the daemon; a living daemon is let go.
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        tracer.wait(10 * SLOW)
        tracer.stderr.close()
        if out.exists():
            lines += out.read_text(errors="replace").splitlines()


def thread_of(lab: Lab, in_loop: bool) -> str:
    """Two threads change something; those that answer on verify.sock have another name. strace counts the calls of each
    by itself, so a kill is for one of them."""
    tasks = pathlib.Path(f"/proc/{lab.daemon.pid}/task").iterdir()
    loop, grace = sorted(int(task.name) for task in tasks if (task / "comm").read_text() == "holdfastd\n")
    return str(loop if in_loop else grace)


def daemon_ended(lab: Lab, timeout_s: float) -> bool:
    """Whether it has, of its own or killed; waits no longer than that, times SLOW."""
    try:
        lab.daemon.wait(timeout_s * SLOW)
    except subprocess.TimeoutExpired:
        return False
    lab.daemon = None
    return True


def calls_of(lab: Lab, act: Callable[[], object]) -> list[Step]:
    """The system calls of what is asked, once untouched: (in the event loop, name, number of that name)."""
    loop = thread_of(lab, in_loop=True)
    with traced(lab, "-f", "-p", loop) as lines:
        act()
        time.sleep(0.1)
    counted: dict[tuple[str, str], int] = {}
    out = []
    for line in lines:
        if found := re.match(r"(\d+) +(\w+)\(", line):
            counted[found.groups()] = counted.get(found.groups(), 0) + 1
            if found[2] in CALLS:
                out.append((found[1] == loop, found[2], counted[found.groups()]))
    assert out, "it made no calls"
    return out


def sample(steps: list[Step]) -> list[Step]:
    """Of the steps at most HOLDFAST_LOOPS, from the first on at equal distances."""
    return steps[:: math.ceil(len(steps) / LOOPS)]


def answered_and_killed(lab: Lab, act: Callable[[], object]) -> tuple[bool, bool]:
    """Whether `act` was answered by a daemon that is being killed, and whether that was so: without, it goes on."""
    try:
        act()
    except ConnectionError:
        assert daemon_ended(lab, 10), "the daemon hung up, and goes on"
        return False, True
    return True, daemon_ended(lab, 0.5)


def killed_at(lab: Lab, step: Step, act: Callable[[], object]) -> bool:
    """Whether `act` was answered by a daemon that is killed at that step, or soon behind it. It is not started again."""
    in_loop, call, number = step
    with traced(lab, "-e", f"inject={call}:signal=KILL:when={number}", "-p", thread_of(lab, in_loop)):
        answered, killed = answered_and_killed(lab, act)
    if not killed:
        lab.kill()
    return answered
