"""A machine in miniature: a node that runs the real holdfastd, a client outside, two tenants behind it.

    hf-PID-N-client              hf-PID-N-node                     hf-PID-N-tenant-a
    eth0 192.0.2.10/24 -------- uplink0 192.0.2.1/24   ta -------- eth0 10.1.0.2/24
         2001:db8:1::10/64        2001:db8:1::1/64     |                fd00:1::2/64
                                  [holdfastd]          |  10.1.0.1/24, fd00:1::1/64 is the gateway
                                                       |
                                                       |           hf-PID-N-tenant-b
                                                       tb -------- eth0 10.2.0.2/24
                                                                        fd00:2::2/64

Every namespace, path, pin directory and table belongs to one Lab, so that several run at once. Namespaces are
entered with setns, never with `ip netns exec`, whose private bpffs would lose the pins (TRAPS). close() leaves
nothing, whatever happened before; the nft table ends with its namespace.

Standard library only: the demo runs on it too. Needs root. HOLDFAST_BUILD names the build to drive.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from control import Control, Refused, encode

HERE = pathlib.Path(__file__).resolve().parent
BPFFS = pathlib.Path("/sys/fs/bpf")
PYTHON = "/usr/bin/python3"
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
ETH_P_ALL = 3
BPF_FS_MAGIC = 0xCAFE4A11

# How much slower than a release build on an idle machine things may go: a sanitizer's build, an emulated machine.
SLOW = float(os.environ.get("HOLDFAST_SLOW") or 1)
LOOPS = int(os.environ.get("HOLDFAST_LOOPS", "1000"))  # how often what needs many turns is done
START_LIMIT_S = 30 * SLOW
STOP_LIMIT_S = 20 * SLOW
CLI_LIMIT_S = 60 * SLOW
ANSWER_S = 5.0 * SLOW  # how long a client waits that has to be answered; only a failure takes that long
SILENCE_S = 0.5 * SLOW  # how long one listens that must not be

libc = ctypes.CDLL(None, use_errno=True)
numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Host:
    """One end of a cable: where it is, and what it is called there."""

    v4: str
    v6: str
    mac: str
    interface: str  # on the node

    def address(self, version: int) -> str:
        return {4: self.v4, 6: self.v6}[version]

    @property
    def link_local(self) -> str:
        """What the kernel makes of the MAC (RFC 4291, appendix A)."""
        octets = [int(octet, 16) for octet in self.mac.split(":")]
        octets = [octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]
        packed = bytes([0xFE, 0x80, 0, 0, 0, 0, 0, 0, *octets])
        return socket.inet_ntop(socket.AF_INET6, packed)


HOSTS = {
    "client": Host("192.0.2.10", "2001:db8:1::10", "02:00:00:00:00:c1", "uplink0"),
    "tenant-a": Host("10.1.0.2", "fd00:1::2", "02:00:00:00:00:0a", "ta"),
    "tenant-b": Host("10.2.0.2", "fd00:2::2", "02:00:00:00:00:0b", "tb"),
}
# The node's ends of the same cables.
GATEWAYS = {
    "client": Host("192.0.2.1", "2001:db8:1::1", "02:00:00:00:01:c1", "uplink0"),
    "tenant-a": Host("10.1.0.1", "fd00:1::1", "02:00:00:00:01:0a", "ta"),
    "tenant-b": Host("10.2.0.1", "fd00:2::1", "02:00:00:00:01:0b", "tb"),
}
ROLES = ("client", "node", "tenant-a", "tenant-b")
TENANTS = {"tenant-a": "acme/shop/prod", "tenant-b": "globex/crm/prod"}
A, B = TENANTS["tenant-a"], TENANTS["tenant-b"]

WEB, FILES, ECHO, PERF, MANY = 8080, 8081, 9000, 5201, 20000  # ports of the policy below
MANY_COUNT = 1000
CLOSED = 8443  # published by nobody


def policy(generation: int = 1, **changes: object) -> dict:
    """The lab's policy: both tenants publish the same. `changes` replaces top-level keys."""

    def tenant(number: int, role: str) -> dict:
        host, port = HOSTS[role], f"{role[-1]}0"
        return {
            "id": number,
            "name": TENANTS[role],
            "ports": [
                {
                    "name": port,
                    "interface": host.interface,
                    "mac": host.mac,
                    "addresses": [host.v4, host.v6, host.link_local],
                }
            ],
            "endpoints": [
                {"name": "web", "port": port, "protocol": "tcp", "listen": WEB},
                {"name": "files", "port": port, "protocol": "tcp", "listen": FILES},
                {"name": "echo", "port": port, "protocol": "udp", "listen": ECHO},
                {"name": "perf", "port": port, "protocol": "tcp", "listen": PERF},
                {"name": "ping", "port": port, "protocol": "icmp_echo"},
                {
                    "name": "many",
                    "port": port,
                    "protocol": "udp",
                    "listen": f"{MANY}-{MANY + MANY_COUNT - 1}",
                    "addresses": [host.v4],
                },
            ],
        }

    return {
        "version": 1,
        "generation": generation,
        "uplinks": ["uplink0"],
        "limits": {"leases": 4096},
        "tenants": [tenant(1, "tenant-a"), tenant(2, "tenant-b")],
    } | changes


def wait_until(condition: Callable[[], object], timeout_s: float = 5.0, what: str = "") -> object:
    """The first true value of `condition`, asked every few milliseconds. `timeout_s` is an idle machine's."""
    end = time.monotonic() + timeout_s * SLOW
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s * SLOW:g} s: {what or condition}")
        time.sleep(0.004 * SLOW)


class TooSlow(Exception):
    """The machine did not keep up: what the test would have seen says nothing."""


def in_time(attempt: Callable[[float], None], term_s: float) -> None:
    """attempt(term_s), which raises TooSlow if that was too short for what it does; then with twice as much, and again."""
    for longer in (1, 2):
        with contextlib.suppress(TooSlow):
            return attempt(longer * term_s)
    return attempt(4 * term_s)


# System calls that tests have the kernel refuse.
SYS = {
    "x86_64": {"membarrier": 324, "io_uring_setup": 425, "socket": 41},
    "aarch64": {"membarrier": 283, "io_uring_setup": 425, "socket": 198},
}[platform.machine()]


def refusing(number: int, error: int, **arguments: int) -> list[str]:
    """What to put before a command: refused are system calls of that number whose argument `a0`, `a1`... has the value."""
    only = [f"{name[1:]}={value}" for name, value in arguments.items()]
    return [PYTHON, str(HERE / "refuse.py"), str(number), str(error), *only, "--"]


def nanoseconds(seconds: str) -> int:
    """Of "90s"."""
    return round(float(seconds.removesuffix("s")) * 1e9)


def build_dir() -> pathlib.Path:
    default = HERE.parent.parent / "build" / "release"
    return pathlib.Path(os.environ.get("HOLDFAST_BUILD") or default).resolve()


def is_bpffs(path: pathlib.Path) -> bool:
    # struct statfs begins with f_type, a long; 120 bytes on 64-bit Linux.
    buffer = ctypes.create_string_buffer(256)
    return libc.statfs(os.fsencode(path), buffer) == 0 and int.from_bytes(buffer[:8], sys.byteorder) == BPF_FS_MAGIC


class CommandFailed(AssertionError):
    """A command that should have succeeded did not, or the other way round."""

    def __init__(self, argv: Sequence[str], done: subprocess.CompletedProcess) -> None:
        super().__init__(f"{' '.join(argv)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr


class Capture:
    """Counts the frames that arrive at an interface and contain `marker`. Made by Lab.capture()."""

    def __init__(self, receiver: socket.socket, marker: bytes, lengths: set[int]) -> None:
        self.receiver, self.marker, self.lengths = receiver, marker, lengths
        self.frames: list[bytes] = []

    def drain(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.receiver.recv(65536)
                if self.marker in frame and (not self.lengths or len(frame) in self.lengths):
                    self.frames.append(frame)
        return self.frames

    def count(self) -> int:
        return len(self.drain())


class Lab:
    def __init__(
        self,
        tenant_hook: str = "auto",
        uplink_hook: str = "auto",
        leases_max: int = 65536,
        daemon: bool = True,
        push: dict | None = None,
    ) -> None:
        self.tenant_hook, self.uplink_hook, self.leases_max = tenant_hook, uplink_hook, leases_max
        self.start_daemon, self.first_policy = daemon, push
        number = next(numbers)
        self.tag = f"hf-{os.getpid()}-{number}"
        self.ns = {role: f"{self.tag}-{role}" for role in ROLES}
        self.pin_dir = BPFFS / f"hf-lab-{os.getpid()}-{number}"
        self.daemon: subprocess.Popen | None = None
        self.children: list[subprocess.Popen] = []
        self.servers: list[subprocess.Popen] = []
        self.in_force: dict | str = {}
        self.spoiled = False  # not to be used by another test
        self.complaints: list[str] = []
        self.generation = 0
        self.dir = pathlib.Path()

    # ---- building up and taking down ---------------------------------------------------------------------

    def __enter__(self) -> Lab:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind, *_) -> None:
        self.close()
        if kind is None and self.complaints:
            raise AssertionError("; ".join(self.complaints))

    def open(self) -> None:
        if os.geteuid() != 0:
            raise PermissionError("the lab makes network namespaces and loads BPF programs: run it as root")
        self.binaries = build_dir() / "userspace"
        for binary in (self.holdfastd, self.holdfast):
            if not binary.exists():
                raise FileNotFoundError(f"{binary} is not built: run scripts/build, or set HOLDFAST_BUILD")
        if not is_bpffs(BPFFS):
            # It stays: unmounting would detach what others pin there meanwhile.
            subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir="/tmp"))
        self.dir.chmod(0o711)  # other users have to reach the control socket
        for name in ("config", "run", "state"):
            (self.dir / name).mkdir(mode=0o755)
        self.build_network()
        if self.start_daemon:
            self.start()
            self.push(self.first_policy if self.first_policy is not None else policy())

    def build_network(self) -> None:
        self.sh(["ip", "-batch", "-"], stdin="".join(f"netns add {ns}\n" for ns in self.ns.values()))
        for role in ROLES:
            # No duplicate address detection to wait for, no routers to ask for.
            self.sysctl(role, "ipv6/conf/all/accept_dad", 0)
            self.sysctl(role, "ipv6/conf/default/accept_dad", 0)
            self.sysctl(role, "ipv6/conf/default/router_solicitations", 0)
        self.sysctl("node", "ipv4/ip_forward", 1)
        self.sysctl("node", "ipv6/conf/all/forwarding", 1)
        # The tests look for every ICMP error, also for the second one within a second.
        for role in ROLES:
            self.sysctl(role, "ipv4/icmp_ratelimit", 0)
            self.sysctl(role, "ipv6/icmp/ratelimit", 0)
        self.plug_in(*HOSTS)

    def plug_in(self, *roles: str) -> None:
        """The cables between the node and `roles`, with addresses and routes."""
        self.ip("node", "link set lo up", *(line for role in roles for line in self.nodes_end(role)))
        for role in roles:
            host, gateway = HOSTS[role], GATEWAYS[role]
            self.ip(
                role,
                "link set lo up",
                f"addr add {host.v4}/24 dev eth0",
                f"addr add {host.v6}/64 dev eth0",
                "link set eth0 up",
                f"route add default via {gateway.v4}",
                f"route add default via {gateway.v6}",
            )

    def nodes_end(self, role: str) -> list[str]:
        host, gateway = HOSTS[role], GATEWAYS[role]
        port = gateway.interface
        return [
            f"link add {port} address {gateway.mac} type veth peer name eth0 address {host.mac} netns {self.ns[role]}",
            f"addr add {gateway.v4}/24 dev {port}",
            f"addr add {gateway.v6}/64 dev {port}",
            f"link set {port} up",
        ]

    def close(self) -> None:
        """Takes everything down. A second interruption does not stop it."""
        with ignoring_interrupts():
            if self.daemon is not None:
                self.stop(check=False)
            for child in self.children:
                end_process(child)
            there = "".join(f"netns del {ns}\n" for ns in self.ns.values())
            subprocess.run(["ip", "-force", "-batch", "-"], input=there, text=True, capture_output=True, check=False)
            # Pinned links outlive the namespace as objects; unlinking the pins frees them.
            shutil.rmtree(self.pin_dir, ignore_errors=True)
            if self.pin_dir.exists():
                self.complaints.append(f"{self.pin_dir} could not be removed")
            if self.dir != pathlib.Path():
                shutil.rmtree(self.dir, ignore_errors=True)

    def reset(self) -> None:
        """Back to a running daemon, the lab's policy and no lease, for the next test."""
        for child in [child for child in self.children if child not in self.servers]:
            end_process(child)
            self.children.remove(child)
        if self.daemon is None:
            self.start()
        self.thaw()
        if self.in_force != policy():
            self.push(policy())
        for tenant in self.ask("tenant.list")["tenants"]:
            if tenant["leases"]:
                self.ask("tenant.disable", {"name": tenant["name"]})
            if tenant["leases"] or tenant["state"] == "disabled":
                self.ask("tenant.enable", {"name": tenant["name"]})
        wait_until(lambda: not self.leases(), 10, "every lease is torn down")
        assert all(server.poll() is None for server in self.servers), "a server ended"

    # ---- the daemon ---------------------------------------------------------------------------------------

    @property
    def holdfastd(self) -> pathlib.Path:
        return self.binaries / "daemon" / "holdfastd"

    @property
    def holdfast(self) -> pathlib.Path:
        return self.binaries / "cli" / "holdfast"

    @property
    def socket_path(self) -> pathlib.Path:
        return self.dir / "run" / "control.sock"

    @property
    def policy_file(self) -> pathlib.Path:
        return self.dir / "config" / "policy.yaml"

    @property
    def log(self) -> str:
        path = self.dir / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def daemon_argv(self, **changes: object) -> list[str]:
        flags = {
            "config-dir": self.dir / "config",
            "runtime-dir": self.dir / "run",
            "state-dir": self.dir / "state",
            "pin-dir": self.pin_dir,
            "table": "holdfast",
            "leases-max": self.leases_max,
            "log-level": "info",
            "tenant-hook": self.tenant_hook,
            "uplink-hook": self.uplink_hook,
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        argv = [str(self.holdfastd)]
        for name, value in flags.items():
            argv += [f"--{name}", str(value)]
        return argv

    def start(self, prefix: Sequence[str] = (), **changes: object) -> None:
        """Starts the daemon in the node's namespace and waits until it says that it serves (sd_notify)."""
        notify_path = self.dir / "notify"
        notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.dir / "daemon.log", "ab") as log:
            notify.bind(str(notify_path))
            notify.settimeout(0.05)
            with self.at("node"):
                self.daemon = subprocess.Popen(
                    [*prefix, *self.daemon_argv(**changes)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"NOTIFY_SOCKET": str(notify_path)},
                    start_new_session=True,  # Ctrl-C is for the lab, which then ends the daemon itself
                )
            end = time.monotonic() + START_LIMIT_S
            while True:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096):
                        return
                if self.daemon.poll() is not None:
                    code, self.daemon = self.daemon.returncode, None
                    raise AssertionError(f"holdfastd ended at start with exit code {code}:\n{self.log[-3000:]}")
                if time.monotonic() > end:
                    raise TimeoutError(f"holdfastd was not ready within {START_LIMIT_S} s:\n{self.log[-3000:]}")

    def try_start(self, prefix: Sequence[str] = (), **changes: object) -> subprocess.CompletedProcess:
        """For a start that must be refused: runs a daemon until it ends by itself."""
        argv = [*prefix, *self.daemon_argv(**changes)]
        pipe = subprocess.PIPE
        with self.at("node"):
            daemon = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        with daemon:
            try:
                out, errors = daemon.communicate(timeout=START_LIMIT_S)
            except BaseException:
                os.killpg(daemon.pid, signal.SIGKILL)  # what a prefix has forked ends with it
                raise
        return subprocess.CompletedProcess(argv, daemon.returncode, out, errors)

    def stop(self, check: bool = True) -> None:
        """SIGTERM: it stops serving; what it enforces stays."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGCONT)
            daemon.send_signal(signal.SIGTERM)
        try:
            code = daemon.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            code = "none: it did not end by SIGTERM"
        if code != 0:
            self.complaints.append(f"holdfastd's exit code was {code}:\n{self.log[-3000:]}")
            if check:
                raise AssertionError(self.complaints.pop())

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        daemon, self.daemon = self.daemon, None
        assert daemon is not None
        daemon.kill()
        daemon.wait()

    def freeze(self) -> None:
        """SIGSTOP: alive, and doing nothing."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.daemon_state() == "T", what="holdfastd is stopped")

    def thaw(self) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGCONT)

    def daemon_state(self) -> str:
        assert self.daemon is not None
        return pathlib.Path(f"/proc/{self.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    # ---- the command line ---------------------------------------------------------------------------------

    def holdfast_argv(self, *words: object) -> list[str]:
        return [str(self.holdfast), "--socket", str(self.socket_path), *map(str, words)]

    def try_cli(
        self, *words: object, json_output: bool = True, prefix: Sequence[str] = ()
    ) -> subprocess.CompletedProcess:
        """Runs `holdfast`, however it ends. `prefix` goes before it, such as setpriv and its arguments."""
        argv = [*prefix, *self.holdfast_argv(*(["--json"] if json_output else []), *words)]
        return self.run("node", argv, check=False, timeout_s=CLI_LIMIT_S)

    def cli(self, *words: object) -> dict:
        """`holdfast --json WORDS`, which has to succeed, as what it printed."""
        done = self.try_cli(*words)
        if done.returncode != 0:
            raise CommandFailed(["holdfast", *map(str, words)], done)
        answer = json.loads(done.stdout)
        assert "version" in answer, f"holdfast {words}: every JSON object carries a version, not {answer}"
        return answer

    def cli_text(self, *words: object) -> str:
        """`holdfast WORDS`, which has to succeed, as a person sees it."""
        done = self.try_cli(*words, json_output=False)
        if done.returncode != 0:
            raise CommandFailed(["holdfast", *map(str, words)], done)
        return done.stdout

    def cli_refused(self, *words: object, exit_code: int = 1) -> str:
        """`holdfast WORDS`, which has to be refused, as what it said."""
        done = self.try_cli(*words, json_output=False)
        if done.returncode != exit_code:
            raise CommandFailed(["holdfast", *map(str, words)], done)
        return done.stdout + done.stderr

    def write_policy(self, document: dict | str, name: str = "pushed.yaml") -> pathlib.Path:
        path = self.dir / name
        path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1) + "\n")
        return path

    def push(self, document: dict | str) -> dict:
        """Puts a policy in force. A policy given as a tree gets the next generation."""
        pushed = document
        if isinstance(document, dict):
            self.generation += 1
            document = document | {"generation": self.generation}
        with Control(self.socket_path, CLI_LIMIT_S) as control:
            answer = control.push(document if isinstance(document, str) else json.dumps(document))
        self.in_force = pushed
        return answer

    def push_refused(self, document: dict | str, exit_code: int = 1) -> str:
        if isinstance(document, dict):
            document = document | {"generation": self.generation + 1}
        return self.cli_refused("bundle", "push", self.write_policy(document), exit_code=exit_code)

    # ---- the control socket, for what nearly every test asks: no process to start for it ------------------

    def ask(self, verb: str, args: dict | None = None, body: object = None) -> dict:
        with Control(self.socket_path, CLI_LIMIT_S) as control:
            return control.call(verb, args, None if body is None else encode(body))

    def grant(self, tenant: str, *endpoints: str, ttl: str = "120s", egress: str = "", **options: object) -> dict:
        """Grants one lease and returns it as `lease ls` shows it. Of `options` there are peer and holder."""
        request = {"tenant": tenant, "ttl_ns": nanoseconds(ttl)} | options
        if endpoints:
            request["endpoints"] = list(endpoints)
        if egress:
            request["egress"] = [egress]
        # Right after its last lease ended a resource may still be draining, which the answer says.
        answer = wait_until(lambda: self.unless_draining(request), 5, "the resource is torn down")
        assert answer["granted"] == 1, answer
        return answer["leases"][0]

    def unless_draining(self, request: dict) -> dict | None:
        try:
            return self.ask("lease.grant", body=[request])
        except Refused as refused:
            if refused.code != "draining":
                raise
        return None

    def grant_many(self, requests: list[dict]) -> dict:
        path = self.dir / "grants.json"
        path.write_text(json.dumps(requests))
        return self.cli("lease", "grant", "--from", path)

    def renew(self, lease: dict, ttl: str) -> dict:
        return self.ask("lease.renew", {"id": lease["id"], "ttl_ns": nanoseconds(ttl)})

    def revoke(self, lease: dict) -> None:
        self.ask("lease.revoke", {"id": lease["id"]})

    def leases(self) -> dict[str, dict]:
        """By id; of at most a page of them."""
        return {lease["id"]: lease for lease in self.ask("lease.list")["leases"]}

    def counters(self) -> dict[tuple[str, str], int]:
        """(hook, reason) -> packets, as the kernel counted them."""
        return {(row["hook"], row["reason"]): row["packets"] for row in self.ask("drops.read")["reasons"]}

    def counter(self, reason: str, hook: str) -> int:
        return self.counters().get((hook, reason), 0)

    def explain(self, *words: object) -> dict:
        return self.cli("explain", *words)

    # ---- namespaces ---------------------------------------------------------------------------------------

    @staticmethod
    def sh(
        argv: Sequence[str], check: bool = True, stdin: str = "", timeout_s: float = 60 * SLOW
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode != 0:
            raise CommandFailed(argv, done)
        return done

    def run(self, role: str, argv: Sequence[str], **options) -> subprocess.CompletedProcess:
        with self.at(role):
            return self.sh(argv, **options)

    def ip(self, role: str, *lines: str) -> None:
        """What `ip` is to do, a command a line."""
        self.run(role, ["ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))

    def popen(self, role: str, argv: Sequence[str], **options) -> subprocess.Popen:
        """A process that ends with the lab at the latest."""
        pipe = subprocess.PIPE
        options = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True} | options
        with self.at(role):
            child = subprocess.Popen(argv, start_new_session=True, **options)
        self.children.append(child)
        return child

    @contextlib.contextmanager
    def at(self, role: str) -> Iterator[None]:
        """Puts the calling thread into a namespace for a while."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.ns[role]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {self.ns[role]}")
            yield
        finally:
            if libc.setns(home, CLONE_NEWNET) != 0:
                os._exit(70)  # a thread in the wrong namespace would test the wrong machine
            os.close(home)
            os.close(there)

    def sysctl(self, role: str, name: str, value: object) -> None:
        with self.at(role):
            pathlib.Path("/proc/sys/net", name).write_text(f"{value}\n")

    def ifindex(self, role: str, interface: str) -> int:
        with self.at(role):
            return socket.if_nametoindex(interface)

    def socket(self, role: str, version: int, kind: int) -> socket.socket:
        with self.at(role):
            return socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[version], kind)

    # ---- real clients and servers -------------------------------------------------------------------------

    def serve(self, role: str, *services: str) -> subprocess.Popen:
        """Starts servers.py with such services as tcp:8080; returns when they listen."""
        child = self.popen(role, [PYTHON, str(HERE / "servers.py"), "serve", *services])
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        self.servers.append(child)
        return child

    def serve_all(self) -> None:
        """What the lab's policy publishes, at both tenants, and something to reach at the client."""
        for role in TENANTS:
            self.serve(role, f"tcp:{WEB}", f"http:{FILES}", f"udp:{ECHO}", f"tcp:{CLOSED}")
        self.serve("client", f"tcp:{WEB}", f"udp:{ECHO}")

    def connect(self, role: str, address: str, port: int, timeout_s: float = ANSWER_S) -> socket.socket:
        """A TCP connection; raises OSError if there is none in time."""
        version = 6 if ":" in address else 4
        client = self.socket(role, version, socket.SOCK_STREAM)
        client.settimeout(timeout_s)
        # Closing resets at once: a FIN that is denied would be sent again and again, into the next counts.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    def tcp(self, role: str, address: str, port: int, timeout_s: float = ANSWER_S) -> bool:
        """Whether a connection is made and carries data both ways. Where none may be, wait SILENCE_S."""
        try:
            with self.connect(role, address, port, timeout_s) as client:
                return says(client)
        except OSError:
            return False

    def udp(self, role: str, address: str, port: int, timeout_s: float = ANSWER_S) -> bool:
        with self.socket(role, 6 if ":" in address else 4, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout_s)
            try:
                client.connect((address, port))
                client.send(b"hello")
                return client.recv(100) == b"hello"
            except OSError:
                return False

    def ping(self, role: str, address: str, timeout_s: float = ANSWER_S) -> bool:
        argv = ["ping", "-n", "-q", "-c1", "-W", f"{timeout_s:g}", address]
        return self.run(role, argv, check=False).returncode == 0

    def talk(self, protocol: str, role: str, address: str, timeout_s: float = ANSWER_S) -> bool:
        """A conversation with what the policy publishes there for "tcp", "udp" or "ping"."""
        if protocol == "tcp":
            return self.tcp(role, address, WEB, timeout_s)
        if protocol == "udp":
            return self.udp(role, address, ECHO, timeout_s)
        return self.ping(role, address, timeout_s)

    @contextlib.contextmanager
    def probing(self, role: str, address: str, port: int) -> Iterator[dict]:
        """1000 echo datagrams a second, fewer where all is slow, for as long as the block runs; the tally is in the
        dict afterwards."""
        argv = [PYTHON, str(HERE / "servers.py"), "probe", address, str(port), str(round(1000 / SLOW))]
        child = self.popen(role, argv)
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        tally: dict = {}
        try:
            yield tally
        finally:
            child.terminate()
            out, errors = child.communicate(timeout=10 * SLOW)
            assert child.returncode == 0, errors
            tally.update(json.loads(out))

    # ---- raw packets --------------------------------------------------------------------------------------

    def send(self, role: str, frames: Sequence[bytes], interface: str = "eth0") -> None:
        """Puts frames on the wire as they are, below the sender's own IP stack."""
        with self.at(role):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sender:
            sender.bind((interface, 0))
            for frame in frames:
                wait_until(lambda frame=frame: sent(sender, frame), 5, "the interface takes a frame")

    @contextlib.contextmanager
    def receiving(self, role: str, interface: str) -> Iterator[socket.socket]:
        """All frames that come in there; does not block."""
        with self.at(role):
            receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        with receiver:
            receiver.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            receiver.bind((interface, ETH_P_ALL))
            receiver.setblocking(False)
            yield receiver

    @contextlib.contextmanager
    def capture(
        self, role: str, marker: bytes, interface: str = "eth0", lengths: set[int] | None = None
    ) -> Iterator[Capture]:
        with self.receiving(role, interface) as receiver:
            yield Capture(receiver, marker, lengths or set())

    # ---- the second opinion -------------------------------------------------------------------------------

    def nft(self, *words: str, check: bool = True) -> str:
        return self.run("node", ["nft", *words], check=check).stdout

    def nft_counters(self, table: str = "holdfast") -> collections.Counter[str]:
        """reason -> packets that nft dropped for it, over all chains. Without elements: their list may be long."""
        counters = collections.Counter()
        for each in json.loads(self.nft("-j", "-t", "list", "table", "inet", table))["nftables"]:
            rule = each.get("rule", {})
            for expression in rule.get("expr", []):
                if "comment" in rule and "counter" in expression:
                    counters[rule["comment"]] += expression["counter"]["packets"]
        return counters

    def nft_counter(self, reason: str, table: str = "holdfast") -> int:
        return self.nft_counters(table)[reason]


def sent(sender: socket.socket, frame: bytes) -> bool:
    """Whether a frame is on its way: a queue that is full takes none for a moment."""
    try:
        return sender.send(frame) > 0
    except OSError as full:
        if full.errno != errno.ENOBUFS:
            raise
        return False


def says(connection: socket.socket, data: bytes = b"hello") -> bool:
    """Whether what is sent comes back."""
    try:
        connection.sendall(data)
        return connection.recv(100) == data
    except OSError:
        return False


def end_process(child: subprocess.Popen) -> None:
    """Ends one process that we started, by its own handle."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGCONT)
        child.terminate()
    try:
        child.wait(2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def sweep() -> None:
    """Takes down labs whose owner was killed and could not: what is called by the id of a process that is no more."""
    for ns in pathlib.Path("/run/netns").glob("hf-*-*-*"):
        if not owner_lives(ns.name):
            inside = Lab.sh(["ip", "netns", "pids", ns.name], check=False).stdout.split()
            for number in map(int, inside):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            Lab.sh(["ip", "netns", "del", ns.name], check=False)
    for left in [*BPFFS.glob("hf-lab-*-*"), *pathlib.Path("/tmp").glob("hf-*-*-*")]:
        if not owner_lives(left.name.replace("hf-lab-", "hf-")):
            shutil.rmtree(left, ignore_errors=True)


def owner_lives(name: str) -> bool:
    owner = name.split("-")[1]
    return not owner.isdigit() or pathlib.Path("/proc", owner).exists()
