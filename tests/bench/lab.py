"""The lab of the benchmarks: a node in a network namespace of its own, with the release holdfastd.

    generator namespace         node namespace               tenant namespace
    gen0 ------------------ uplink0 (holdfastd's)
    gen1 ------------------ bare0   (nobody's)
                            t0 ------------------------- eth0

Everything is made new for one measurement and taken away after it: the namespaces, the pin directory, the
daemon. holdfastd is driven through its public interface alone: its options, `holdfast bundle push` and
`holdfast lease grant --from`.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("HOLDFAST_BUILD", ROOT / "build" / "release"))
TENANT = "bench/load/prod"
MAC = "02:00:00:00:00:0a"
READY_S = 60

# As in dataplane.h: key k is address 10.90.0.(16 + k % 16), port 1024 + k / 16.
ADDRESSES = [f"10.90.0.{16 + i}" for i in range(16)]
PORT_FIRST = 1024


class CannotRun(Exception):
    """The measurement could not be made; the text says why."""


def bench(measure, table):
    """What every benchmark's script ends with: measures, prints the table for people and the JSON."""
    def interrupted(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    name = pathlib.Path(sys.argv[0]).stem
    try:
        result = {"version": 1, "bench": name, "kernel": os.uname().release} | measure()
    except CannotRun as why:
        say(f"{name}: {why}")
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"{name}: interrupted")
        sys.exit(130)
    say(table(result))
    print(json.dumps(result))


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, stdin=None):
    """Runs a command that has to succeed; its standard output."""
    command = [str(word) for word in command]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def binary(name):
    for path in BUILD.rglob(name):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise CannotRun(f"{BUILD} holds no {name}; scripts/build makes it")


def address_of(key):
    return ADDRESSES[key % len(ADDRESSES)]


def port_of(key):
    return PORT_FIRST + key // len(ADDRESSES)


class Lab:
    """Use as `with Lab(endpoints) as lab`: with room for that many."""

    def __init__(self, endpoints):
        # A slot for every endpoint, which come in full rows of addresses, and one for the port's egress;
        # but at least what a node has by default.
        rows = -(-endpoints // len(ADDRESSES))
        self.leases_max = max(65536, rows * len(ADDRESSES) + 1)
        self.name = f"hfbench{os.getpid()}"
        self.pins = pathlib.Path("/sys/fs/bpf") / self.name
        self.daemon = None
        self.options = []  # further ones of holdfastd
        self.in_memory = False  # the state directory: for what is not about syncing
        self.undo = contextlib.ExitStack()

    def __enter__(self):
        try:
            where = "/dev/shm" if self.in_memory else None
            self.work = pathlib.Path(tempfile.mkdtemp(prefix="holdfast-bench.", dir=where))
            self.work.chmod(0o711)  # other users may use the sockets
            self.undo.callback(shutil.rmtree, self.work, ignore_errors=True)
            self.make_network()
            self.start_daemon()
        except BaseException:
            self.undo.close()
            raise
        return self

    def __exit__(self, *unused):
        self.undo.close()

    def inside(self, namespace, *command, stdin=None):
        return run("nsenter", f"--net=/run/netns/{self.name}-{namespace}", "--", *command, stdin=stdin)

    def make_network(self):
        for namespace in ("node", "generator", "tenant"):
            run("ip", "netns", "add", f"{self.name}-{namespace}")
            self.undo.callback(run, "ip", "netns", "del", f"{self.name}-{namespace}")
            # Router solicitations and the like would be counted as packets of the measurement.
            self.inside(namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                        "net.ipv6.conf.default.disable_ipv6=1")
        for ours, theirs, namespace in (("uplink0", "gen0", "generator"), ("bare0", "gen1", "generator"),
                                        ("t0", "eth0", "tenant")):
            self.inside("node", "ip", "link", "add", ours, "type", "veth", "peer", "name", theirs,
                        "netns", f"{self.name}-{namespace}")
            self.inside("node", "ip", "link", "set", ours, "up")
            self.inside(namespace, "ip", "link", "set", theirs, "up")
        self.inside("tenant", "ip", "link", "set", "eth0", "address", MAC)

    def start_daemon(self):
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.undo.enter_context(ready)
        ready.bind(str(self.work / "ready"))
        ready.settimeout(READY_S)
        for part in ("etc", "run", "state"):
            (self.work / part).mkdir()
        log = self.undo.enter_context(open(self.work / "log", "w"))
        # The pins are links too: removing them detaches the programs.
        self.undo.callback(shutil.rmtree, self.pins, ignore_errors=True)
        self.daemon = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}-node", "--", binary("holdfastd"),
             "--config-dir", self.work / "etc", "--runtime-dir", self.work / "run",
             "--state-dir", self.work / "state", "--pin-dir", self.pins, "--table", "holdfast",
             "--leases-max", str(self.leases_max), *self.options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=os.environ | {"NOTIFY_SOCKET": str(self.work / "ready")})
        self.undo.callback(self.stop_daemon)
        try:
            while b"READY=1" not in ready.recv(4096):
                pass
        except socket.timeout:
            raise CannotRun(f"holdfastd was not ready after {READY_S} s:\n{self.log_tail()}") from None

    def stop_daemon(self):
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()

    def log_tail(self):
        return "\n".join((self.work / "log").read_text().splitlines()[-5:])

    def cli(self, *words, stdin=None):
        try:
            return self.inside("node", binary("holdfast"), "--socket",
                               self.work / "run" / "control.sock", *words, stdin=stdin)
        except CannotRun as why:
            raise CannotRun(f"{why}\nholdfastd's last words:\n{self.log_tail()}") from None

    @property
    def pin_root(self):
        """The directory of the pins of the one ABI version that is there."""
        (root,) = self.pins.glob("v*")
        return root

    def populate(self, endpoints, leases):
        """Makes keys 0 to `endpoints`-1 (or a few more, to fill all addresses) endpoints of the tenant on
        t0, and grants a lease on each of the first `leases`, if any, in one bulk grant, for the longest term."""
        addresses = ADDRESSES[:min(endpoints, len(ADDRESSES))]
        last = port_of(endpoints - 1)
        listen = PORT_FIRST if last == PORT_FIRST else f"{PORT_FIRST}-{last}"
        policy = {
            "version": 1, "generation": 1, "uplinks": ["uplink0"],
            "limits": {"leases": self.leases_max},
            "tenants": [{
                "id": 1, "name": TENANT, "limits": {"leases": self.leases_max, "flows": 16384},
                "ports": [{"name": "port", "interface": "t0", "mac": MAC, "addresses": addresses}],
                "endpoints": [{"name": "load", "port": "port", "protocol": "udp",
                               "listen": listen}],
            }],
        }
        file = self.work / "policy.json"
        file.write_text(json.dumps(policy))
        self.cli("bundle", "push", file)
        if leases == 0:
            return
        grants = self.work / "grants.jsonl"
        with open(grants, "w") as out:
            for key in range(leases):
                out.write('{"tenant":"%s","endpoints":["load@%s:%d"],"ttl":"300s"}\n'
                          % (TENANT, address_of(key), port_of(key)))
        self.cli("lease", "grant", "--from", grants)
        grants.unlink()


def make_path(lab):
    """The node forwards from its uplink to the tenant, through all layers. Neighbours are told, not asked for."""
    lab.inside("node", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0",
               "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.uplink0.rp_filter=0",
               "net.netfilter.nf_conntrack_max=1048576")
    lab.inside("node", "ip", "address", "add", "10.80.0.1/24", "dev", "uplink0")
    lab.inside("node", "ip", "route", "add", "203.0.113.0/24", "dev", "uplink0")
    lab.inside("node", "ip", "route", "add", "10.90.0.0/24", "dev", "t0")
    for address in ADDRESSES:
        lab.inside("node", "ip", "neighbour", "replace", address, "lladdr", MAC, "dev", "t0")
    (uplink,) = json.loads(lab.inside("node", "ip", "-j", "link", "show", "uplink0"))
    return uplink["address"]


def trust(lab, issuer, use="token", what="operations"):
    """A key of openssl's, believed for everything of that use; the file that holds it."""
    key = lab.work / "key.pem"
    run("openssl", "genpkey", "-algorithm", "ed25519", "-out", key)
    key.chmod(0o400)
    line = run("openssl", "pkey", "-in", key, "-pubout").splitlines()[1]
    anchors = {"version": 1, "anchors": [
        {"issuer": issuer, "key": line, "uses": [use], "tenants": ["*"], what: ["*"]}]}
    (lab.work / "etc" / "anchors.yaml").write_text(json.dumps(anchors))
    before = (lab.work / "log").read_text().count("reloaded")
    lab.daemon.send_signal(signal.SIGHUP)
    end = time.monotonic() + 30
    while (lab.work / "log").read_text().count("reloaded") == before:
        if time.monotonic() > end:
            raise CannotRun("holdfastd did not read the anchors:\n" + lab.log_tail())
        time.sleep(0.05)
    return key
