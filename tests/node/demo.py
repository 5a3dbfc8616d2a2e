"""The demo behind scripts/demo: Holdfast's main job with real clients, step by step.

    client (curl, ping, iperf3) ---- uplink0 [node: holdfastd] ta ---- tenant-a
                                                               tb ---- tenant-b      (lab.py)

Each step prints what was tried and what happened. Exits with 1 if any step is not as it should be.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from issuer import Issuer, as_uid, trust
from lab import A, B, ECHO, FILES, HOSTS, MANY, PERF, SLOW, WEB, Lab, policy, sweep, wait_until

TENANT_A, TENANT_B, CLIENT = HOSTS["tenant-a"], HOSTS["tenant-b"], HOSTS["client"]
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ
MANY_LEASES = 500
HOLDER = 4001  # a uid in none of our groups


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURS else text


class Show:
    """Prints steps, and remembers whether all of them were as they should be."""

    def __init__(self) -> None:
        self.steps = self.failures = 0

    def chapter(self, title: str) -> None:
        print(f"\n{paint('1', title)}", flush=True)

    def step(self, tried: str, expected: str, happened: object, as_it_should_be: object) -> None:
        self.steps += 1
        if not as_it_should_be:
            self.failures += 1
        mark = paint("32", "OK    ") if as_it_should_be else paint("31", "FAILED")
        print(f"  {mark}  {tried}\n          {happened}", flush=True)
        if not as_it_should_be:
            print(f"          expected: {expected}", flush=True)

    def quote(self, text: str, lines_max: int = 12) -> None:
        for line in text.rstrip().splitlines()[:lines_max]:
            print(paint("2", f"          | {line}"), flush=True)


def curl(lab: Lab, role: str, url: str, limit_s: float = 1.0) -> tuple[bool, str]:
    argv = ["curl", "-sS", "-o", "/dev/null", "-m", f"{limit_s:g}", "-w", "%{http_code}", url]
    done = lab.run(role, argv, check=False)
    if done.returncode == 0:
        return True, f"HTTP {done.stdout}"
    return False, done.stderr.strip() or f"curl ended with {done.returncode}"


def ping(lab: Lab, role: str, address: str) -> tuple[bool, str]:
    done = lab.run(role, ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.5", address], check=False)
    found = re.search(r".*packet loss", done.stdout)
    return done.returncode == 0, found.group(0) if found else done.stderr.strip()


def human(lab: Lab, *words: object) -> str:
    """What a person sees of a command."""
    done = lab.try_cli(*words, json_output=False)
    return done.stdout + done.stderr


def rates_in(report: pathlib.Path) -> list[float]:
    """iperf3's rates so far, Mbit/s, one an interval."""
    return [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec", report.read_text())]


# ---- the chapters ------------------------------------------------------------------------------------------


def default_deny(lab: Lab, show: Show) -> None:
    show.chapter("Without a lease nothing passes")
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step(f"curl http://{TENANT_A.v4}:{WEB}/ from outside", "a timeout", what, not passed)
    passed, what = ping(lab, "client", TENANT_A.v6)
    show.step(f"ping {TENANT_A.v6} from outside", "no answer", what, not passed)
    passed, what = ping(lab, "tenant-a", CLIENT.v4)
    show.step(f"ping {CLIENT.v4} from inside tenant A", "no answer", what, not passed)


def grant(lab: Lab, show: Show) -> None:
    show.chapter("A lease lets exactly its traffic through")
    lease = lab.grant(A, "web", "ping", ttl="60s")
    show.step(
        f"holdfast lease grant {A} --endpoint web --endpoint ping --ttl 60s",
        "a lease",
        f"lease {lease['id']}, active: {', '.join(lease['resources'])}",
        lease["state"] == "active",
    )
    for host in (TENANT_A.v4, f"[{TENANT_A.v6}]"):
        passed, what = curl(lab, "client", f"http://{host}:{WEB}/")
        show.step(f"curl http://{host}:{WEB}/", "HTTP 200", what, passed)
    passed, what = ping(lab, "client", TENANT_A.v4)
    show.step(f"ping {TENANT_A.v4}", "three answers", what, passed)
    passed, what = curl(lab, "client", f"http://{TENANT_B.v4}:{WEB}/")
    show.step(f"curl http://{TENANT_B.v4}:{WEB}/: the other tenant has no lease", "a timeout", what, not passed)
    show.quote(human(lab, "lease", "ls"))
    lab.revoke(lease)
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step(f"holdfast lease revoke {lease['id']}, then curl again", "a timeout", what, not passed)


def cut_download(lab: Lab, show: Show) -> None:
    show.chapter("Revoking cuts what is running")
    lease = lab.grant(A, "files", "perf", ttl="60s")
    target = lab.dir / "download"
    client = lab.popen("client", ["curl", "-sS", "-o", str(target), f"http://{TENANT_A.v4}:{FILES}/"])
    size: Callable[[], int] = lambda: target.stat().st_size if target.exists() else 0  # noqa: E731
    wait_until(lambda: size() > 20_000_000, 20, "the download runs")
    before = size()
    url = f"http://{TENANT_A.v4}:{FILES}/"
    show.step(f"curl downloads from {url}", "bytes come", f"{before / 1e6:.0f} MB so far", True)

    lab.popen("tenant-a", ["iperf3", "-s", "-1", "-p", str(PERF)])
    wait_until(lambda: f":{PERF}" in lab.run("tenant-a", ["ss", "-Hltn"]).stdout, what="iperf3 listens")
    report = lab.dir / "iperf3"
    argv = ["iperf3", "-c", TENANT_A.v4, "-p", str(PERF), "-t", "60", "-i", "0.5", "-f", "m", "--forceflush"]
    with report.open("w") as output:
        lab.popen("client", argv, stdout=output)
    wait_until(lambda: len(rates_in(report)) >= 2, 10, "iperf3 measures")
    rate = rates_in(report)[-1]
    show.step(f"iperf3 -c {TENANT_A.v4} beside it", "a rate", f"{rate:.0f} Mbit/s", rate > 1)

    buffered = int(pathlib.Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    begin = time.monotonic()
    lab.revoke(lease)
    took_ms = (time.monotonic() - begin) * 1e3
    at_revoke = size()
    seen = len(rates_in(report))
    wait_until(lambda: len(rates_in(report)) >= seen + 3, 10, "three further intervals")
    rates = rates_in(report)
    # What curl's kernel had received before the revoke, curl may still have written after it.
    grew, then = size() - at_revoke, size()
    time.sleep(0.5)
    show.step(
        "holdfast lease revoke, while both run",
        "not a byte more for curl, 0 Mbit/s for iperf3",
        f"answered after {took_ms:.0f} ms; in the {time.monotonic() - begin:.1f} s since, "
        f"curl received {grew} bytes more and iperf3 went to {rates[-1]:.0f} Mbit/s",
        grew <= buffered and size() == then and rates[-1] == 0 and client.poll() is None,
    )


def until_it_ends(lab: Lab, incapacitate: Callable[[], None]) -> tuple[list[float], float, float]:
    """A packet every 2 ms under a lease of 2 s and after it: when each left, the last that was answered, the deadline."""
    lease = lab.grant(A, "echo", ttl="2s")
    end = time.clock_gettime(time.CLOCK_BOOTTIME) + lease["remaining_ns"] / 1e9
    incapacitate()
    sent, last = [], 0.0
    with lab.socket("client", 4, 2) as client:
        client.connect((TENANT_A.v4, ECHO))
        client.settimeout(0.002)
        while (now := time.clock_gettime(time.CLOCK_BOOTTIME)) < end + 0.5:
            client.send(b"%f" % now)
            sent.append(now)
            try:
                last = max(last, float(client.recv(64)))
            except TimeoutError:
                pass
    return sent, last, end


def expiry(lab: Lab, show: Show) -> None:
    show.chapter("A lease ends on time, whatever happens to the daemon")
    cases: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
        ("running", lambda: None, lambda: None),
        ("stopped (SIGSTOP)", lab.freeze, lab.thaw),
        ("killed (SIGKILL)", lab.kill, lab.start),
    ]
    for state, incapacitate, recover in cases:
        for _ in range(3):
            sent, last, end = until_it_ends(lab, incapacitate)
            recover()
            wait_until(lambda: not lab.leases(), 10)
            # Of those that left in time, but for a tick and what the answer to the grant took; if this machine sent
            # none for long before the deadline, it has measured itself.
            due = max(at for at in sent if at < end - 0.02)
            if end - due < 0.1:
                break
        late_ms = (last - end) * 1e3
        side = "after" if late_ms > 0 else "before"
        show.step(
            f"a lease of 2 s, with holdfastd {state}",
            "answers until its deadline, and none after",
            f"the last answered packet left {abs(late_ms):.0f} ms {side} the deadline",
            due <= last and late_ms <= 0,
        )
    wait_until(lambda: not lab.leases(), 10, "the daemon cleared away what had expired")


def lateral(lab: Lab, show: Show) -> None:
    show.chapter("Tenants are strangers, and the reason is told")
    lab.grant(A, egress="a0", ttl="60s")
    opened = lab.grant(B, "web", ttl="60s")
    passed, what = ping(lab, "tenant-a", CLIENT.v4)
    show.step("tenant A, under an egress lease, pings the world outside", "answers", what, passed)
    passed, what = curl(lab, "client", f"http://{TENANT_B.v4}:{WEB}/")
    show.step("the world outside reaches tenant B's web, which is leased", "HTTP 200", what, passed)
    before = lab.counter("lateral", "from_tenant")
    passed, what = curl(lab, "tenant-a", f"http://{TENANT_B.v4}:{WEB}/")
    show.step("tenant A tries tenant B's web", "a timeout", what, not passed)
    words = ["tcp", f"{TENANT_A.v4}:40000", f"{TENANT_B.v4}:{WEB}", "--from", TENANT_A.interface]
    reasons = [step["reason"] for step in lab.explain(*words)["steps"]]
    happened = f"the reason is {reasons[-1]}"
    show.step(f"holdfast explain {' '.join(words)}", "lateral", happened, reasons[-1] == "lateral")
    show.quote(human(lab, "explain", *words))
    counted = lab.counter("lateral", "from_tenant") - before
    show.step("holdfast drops", "lateral, counted", f"{counted} packets dropped as lateral", counted >= 1)
    show.quote(human(lab, "drops"), 20)
    lab.revoke(opened)
    lab.grant(B, "web", ttl="60s", peer=f"{TENANT_A.v4}/32")
    passed, what = curl(lab, "tenant-a", f"http://{TENANT_B.v4}:{WEB}/")
    show.step("once a lease of B's names A as its peer", "HTTP 200", what, passed)


def disable(lab: Lab, show: Show) -> None:
    show.chapter("A whole tenant goes dark at once")
    endpoints = [f"many@{TENANT_A.v4}:{MANY + n}" for n in range(MANY_LEASES)]
    requests = [{"tenant": A, "endpoints": [endpoint], "ttl": "60s"} for endpoint in endpoints]
    path = lab.dir / "grants.json"
    path.write_text(json.dumps(requests))
    granted = lab.cli("lease", "grant", "--from", path)["granted"]
    ports = [MANY, MANY + MANY_LEASES // 2, MANY + MANY_LEASES - 1]
    passing = sum(lab.udp("client", TENANT_A.v4, port) for port in ports)
    show.step(
        f"holdfast lease grant --from a file with {MANY_LEASES} leases",
        "all of them, and they pass",
        f"{granted} granted; {passing} of {len(ports)} that were tried answer",
        granted == MANY_LEASES and passing == len(ports),
    )
    begin = time.monotonic()
    lab.cli("tenant", "disable", A)
    took_ms = (time.monotonic() - begin) * 1e3
    passing = sum(lab.udp("client", TENANT_A.v4, port, 0.2) for port in ports)
    show.step(
        f"holdfast tenant disable {A}",
        "none answers",
        f"answered after {took_ms:.0f} ms; {passing} of {len(ports)} answer",
        passing == 0,
    )
    lab.cli("tenant", "enable", A)
    wait_until(lambda: not any(lease["tenant"] == A for lease in lab.leases().values()), 10, "the teardown is done")
    passing = sum(lab.udp("client", TENANT_A.v4, port, 0.2) for port in ports)
    show.step(f"holdfast tenant enable {A}", "nothing revives", f"{passing} of {len(ports)} answer", passing == 0)


def tokens(lab: Lab, show: Show) -> None:
    show.chapter("A token instead of an operator")
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    asked = {"tenant": A, "endpoints": ["web"], "operations": ["connect"], "holder": f"uid:{HOLDER}"}
    requests = lab.dir / "requests.json"
    requests.write_text(json.dumps([asked, asked | {"endpoints": ["echo"]}, asked | {"endpoints": ["perf"]}]))
    status = lab.ask("status")
    batch = issuer.tokens("--from", requests)
    show.step(
        "holdfast token issue --from requests.json: three tokens, one signature",
        "three tokens under one head",
        f"{len(batch)} tokens for node {status['node'][:24]}..., epoch {status['epoch']}",
        len(batch) == 3,
    )
    done = present(lab, issuer.keep(batch[0]))
    lease = json.loads(done.stdout) if done.returncode == 0 else {}
    show.step(
        f"uid {HOLDER}, in none of our groups: holdfast lease grant --token FILE",
        "a lease, and a token to show",
        f"lease {lease['id']}: {', '.join(lease['resources'])}" if lease else done.stderr,
        lease,
    )
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step(f"curl http://{TENANT_A.v4}:{WEB}/", "HTTP 200", what, passed)

    shown = lab.dir / "shown"
    shown.write_text(lease["token"])
    words = ["--operation", "connect", "--resource", f"web@{TENANT_A.v4}:{WEB}", "--holder", f"uid:{HOLDER}"]
    done = lab.try_cli("token", "verify", shown, *words, json_output=False)
    show.step("a service asks the node: holdfast token verify", "good", done.stdout.strip(), done.returncode == 0)

    other = "ni:///sha-256;" + "A" * 43
    expired = issuer.issue(A, "--endpoint", "echo", life="1s")
    time.sleep(2)
    for what, token, uid, reason in [
        ("a stolen one: another user presents it", issuer.keep(batch[1]), HOLDER + 1, "wrong_holder"),
        ("another node's", issuer.issue(A, "--endpoint", "echo", node=other), 0, "wrong_audience"),
        ("a stale epoch's", issuer.issue(A, "--endpoint", "echo", epoch=status["epoch"] - 1), 0, "stale_epoch"),
        ("one that has expired", expired, 0, "head_expired"),
    ]:
        refused = lab.try_cli("lease", "grant", "--token", token, prefix=as_uid(uid))
        said = json.loads(refused.stderr)["error"] if refused.returncode == 1 else {"code": "granted", "detail": ""}
        show.step(what, reason, f"{said['code']}: {said['detail']}", said["code"] == reason)
    renewal = ["--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect"]
    renewed = present(lab, issuer.issue(A, *renewal, kind="renew"), "renew")
    done = lab.try_cli("token", "verify", shown, *words, json_output=False)
    show.step(
        "the lease is renewed; the token of the generation before",
        "old_generation",
        done.stdout.strip(),
        renewed.returncode == 0 and "old_generation" in done.stdout,
    )
    trust(lab, issuer.anchor(state="revoked"))
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step("the issuer's key is revoked: its lease has ended; curl again", "a timeout", what, not passed)
    trust(lab)


def control_plane(lab: Lab, show: Show) -> None:
    show.chapter("A node under a control plane that it knows by a fingerprint")
    root, ann = Issuer(lab, "root"), Issuer(lab, "ann.example")
    os.chown(ann.key, HOLDER, HOLDER)
    public = lab.dir / "root.pub"
    public.write_text(subprocess.run(["openssl", "pkey", "-in", str(root.key), "-pubout"], check=True, capture_output=True, text=True).stdout)
    fingerprint = lab.cli_text("enroll", "fingerprint", public).strip()
    request = lab.dir / "request.json"
    request.write_text(lab.cli_text("enroll", "begin", "--anchor", fingerprint))
    shown = lab.cli("enroll", "show")
    show.step(f"holdfast enroll begin --anchor {fingerprint[:16]}...", "pending", f"the node is {shown['state']}", shown["state"] == "pending")
    refused = lab.cli_refused("lease", "grant", A, "--endpoint", "web", "--ttl", "60s")
    show.step("holdfast lease grant, while it waits", "refused", refused.strip().splitlines()[0], "enroll" in refused)

    bundles = itertools.count(lab.cli("bundle", "show")["generation"] + 1)
    anchors = lab.dir / "anchors.json"
    ann_may = {"issuer": ann.name, "key": ann.line, "uses": ["request"], "tenants": ["*"], "verbs": ["lease.grant", "lease.list"]}
    anchors.write_text(json.dumps({"version": 1, "anchors": [ann_may]}))

    def signed(name: str, key: pathlib.Path, *more: object) -> pathlib.Path:
        made, document = lab.dir / name, lab.write_policy(policy(next(bundles)))
        argv = lab.holdfast_argv("bundle", "sign", document, "--key", key, "--anchors", anchors, *more)
        made.write_bytes(subprocess.run(argv, check=True, capture_output=True).stdout)
        made.chmod(0o444)
        return made

    answer = signed("answer", root.key, "--enroll", request)
    done = lab.cli("enroll", "finish", answer)
    show.step(
        "holdfast bundle sign --enroll there, holdfast enroll finish here",
        "enrolled, with the root's policy and keys",
        f"{done['enrollment']['state']}, generation {done['generation']}",
        done["enrollment"]["state"] == "enrolled",
    )
    refused = lab.cli_refused("enroll", "finish", answer)
    show.step("the same answer once more", "refused", refused.strip().splitlines()[0], "answered already" in refused)

    words = ("lease", "grant", A, "--endpoint", "web", "--ttl", "60s")
    done = lab.try_cli(*words, prefix=as_uid(HOLDER))
    show.step(f"uid {HOLDER}: holdfast lease grant", "refused", said_by(done), done.returncode == 1)
    done = lab.try_cli(*words, "--sign-key", ann.key, prefix=as_uid(HOLDER))
    show.step(f"uid {HOLDER}: the same with --sign-key ann.pem", "a lease", said_by(done), done.returncode == 0)
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step(f"curl http://{TENANT_A.v4}:{WEB}/", "HTTP 200", what, passed)

    document = lab.write_policy(policy(next(bundles)))
    refused = lab.cli_refused("bundle", "push", document)
    show.step("root: holdfast bundle push of an unsigned policy", "refused", refused.strip().splitlines()[0], "sign" in refused)
    done = lab.try_cli("bundle", "push", signed("next.bundle", root.key, "--node", lab.cli("status")["node"]), prefix=as_uid(HOLDER))
    show.step(f"uid {HOLDER}: holdfast bundle push of one that the root signed", "in force", said_by(done), done.returncode == 0)

    ended = lab.cli("trust", "revoke", "issuer:ann.example")["leases_ended"]
    passed, what = curl(lab, "client", f"http://{TENANT_A.v4}:{WEB}/")
    show.step("holdfast trust revoke issuer:ann.example, then curl", "its lease has ended", f"{ended} lease ended; {what}", ended == 1 and not passed)
    done = lab.cli("enroll", "end", "--now")
    state = done["enrollment"]["state"]
    show.step("holdfast enroll end --now", "left", f"the node has {state} its root", state == "left")


def schedule(lab: Lab, show: Show) -> None:
    show.chapter("Keys rotate, schedulers preempt, and the node signs for what happened")
    new = Issuer(lab)
    new.key = new.key.rename(lab.dir / "next.pem")
    old, scheduler = Issuer(lab), Issuer(lab, "sched.example")
    trust(lab, old.anchor(), new.anchor(), scheduler.anchor(uses=["schedule"]))
    node, kept, url = lab.ask("status")["node"], lab.dir / "kept", f"http://{TENANT_A.v4}:{WEB}/"
    argv = lab.holdfast_argv("--json", "watch", "--node", node, "--kinds", "lease,trust", "--keep", kept)
    watch = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: kept.exists() and b"snapshot_end" in kept.read_bytes(), 10, "watch has a snapshot")
        rotate_and_preempt(lab, show, old, new, scheduler, url)
        wait_until(lambda: b"lease.torndown" in kept.read_bytes(), 10, "watch has seen the lease end")
        watch.send_signal(signal.SIGINT)
        printed = watch.communicate(timeout=30)[0].splitlines()
        kept.chmod(0o444)
    finally:
        watch.kill()
        watch.wait()

    done = lab.try_cli("watch", "--verify", kept, "--node", node, prefix=as_uid(HOLDER))
    events = [line["event"] for line in map(json.loads, done.stdout.splitlines()) if line["type"] == "event"]
    what = f"{len(printed)} lines, all signed by the node; {', '.join(events)}"
    told = done.stdout.splitlines() == printed and {"trust.rotate", "lease.preempted", "lease.checkpoint_reported"} <= set(events)
    show.step(f"holdfast watch --node --keep FILE, meanwhile; uid {HOLDER}: watch --verify FILE", "what was printed", what, told)
    flipped = bytearray(kept.read_bytes())
    flipped[-1] ^= 1
    kept.write_bytes(flipped)
    done = lab.try_cli("watch", "--verify", kept, "--node", node)
    show.step("the same with one bit changed", "bad_signature", said_by(done), done.returncode == 1 and "bad_signature" in done.stderr)

    report = lab.dir / "node.report"
    lab.cli("node", "report", "--sign", "--for", "cp.example", "--out", report)
    done = lab.try_cli("node", "report", "--verify", report, "--node", node, "--for", "cp.example", prefix=as_uid(HOLDER))
    what = done.stderr.strip() or f"epoch {json.loads(done.stdout)['epoch']}, for {json.loads(done.stdout)['for']}"
    show.step(f"holdfast node report --sign; uid {HOLDER}: node report --verify", "the node's", what, done.returncode == 0)
    trust(lab)


def rotate_and_preempt(lab: Lab, show: Show, old: Issuer, new: Issuer, scheduler: Issuer, url: str) -> None:
    lease = json.loads(present(lab, old.issue(A, "--endpoint", "web", "--operation", "connect", "--holder", f"uid:{HOLDER}")).stdout)
    after = f"{3 * SLOW:.0f}s"
    told = lab.cli("trust", "rotate", old.thumbprint(), new.thumbprint(), "--after", after)
    words = (A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect")
    renewed = present(lab, new.issue(*words, kind="renew"), "renew")
    what = f"the old one is believed until {told['until']}"
    show.step(f"holdfast trust rotate OLD NEW --after {after}; the lease is renewed by the new key", "renewed", what, renewed.returncode == 0)

    def is_over() -> bool:
        return any(each["key"] == old.thumbprint() and each["state"] == "verify_only" for each in lab.cli("trust", "show")["anchors"])

    wait_until(is_over, 10, "the old key's time is over")
    done = lab.try_cli("lease", "grant", "--token", old.issue(A, "--endpoint", "echo"))
    passed, what = curl(lab, "client", url)
    show.step(f"{after} later: a token by the old key", "key_not_live", said_by(done), done.returncode == 1 and "key_not_live" in done.stderr)
    show.step(f"curl {url}, by the lease that the old key began", "HTTP 200", what, passed)

    told = lab.cli("lease", "preempt", lease["id"], "--reason", "job 17 comes first", "--grace", "30s", "--key", scheduler.key)
    passed, what = curl(lab, "client", url)
    show.step("holdfast lease preempt --grace 30s, signed by a scheduler; curl", "HTTP 200 in the grace", f"{told['state']}; {what}", passed)
    done = lab.try_cli("lease", "checkpoint", lease["id"], "--note", "saved", prefix=as_uid(HOLDER))
    passed, what = curl(lab, "client", url)
    ended = done.returncode == 0 and not passed
    what = f"{json.loads(done.stdout)['state']}; {what}" if done.returncode == 0 else done.stderr
    show.step(f"uid {HOLDER}, its holder: holdfast lease checkpoint --note saved; curl", "its grace ends now", what, ended)


def said_by(done: subprocess.CompletedProcess) -> str:
    """What a command with --json answered, in a line."""
    if done.returncode != 0:
        error = json.loads(done.stderr)["error"]
        return f"{error['code']}: {error['detail']}"
    answer = json.loads(done.stdout)
    return f"{answer['granted']} granted" if "granted" in answer else f"generation {answer['generation']}, signed by {answer['signer']}"


def present(lab: Lab, token: object, verb: str = "grant") -> subprocess.CompletedProcess:
    return lab.try_cli("lease", verb, "--token", token, prefix=as_uid(HOLDER))


def main() -> int:
    def interrupted(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    sweep()
    show = Show()
    begin = time.monotonic()
    try:
        with Lab() as lab:
            lab.serve("tenant-a", f"page:{WEB}", f"http:{FILES}", f"udp:{ECHO}", *many_ports())
            lab.serve("tenant-b", f"page:{WEB}")
            print(f"lab: a client, a node with holdfastd, two tenants, in network namespaces {lab.tag}-*")
            for chapter in (default_deny, grant, cut_download, expiry, lateral, disable, tokens, schedule, control_plane):
                lab.reset()
                try:
                    chapter(lab, show)
                except (AssertionError, OSError, subprocess.SubprocessError) as error:
                    happened = f"{type(error).__name__}: {error}"
                    show.step(f"chapter {chapter.__name__}", "to get through", happened, False)
    except KeyboardInterrupt as interruption:
        print(f"\ninterrupted ({interruption or 'SIGINT'}); everything was taken down", flush=True)
        return 130
    good = show.steps - show.failures
    print(f"\n{good} of {show.steps} steps as they should be, in {time.monotonic() - begin:.0f} s")
    return 1 if show.failures else 0


def many_ports() -> list[str]:
    return [f"udp:{port}" for port in (MANY, MANY + MANY_LEASES // 2, MANY + MANY_LEASES - 1)]


if __name__ == "__main__":
    sys.exit(main())
