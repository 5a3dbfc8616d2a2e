"""`scripts/bench tokens`: tokens checked a second on one core of holdfastd, through verify.sock, beside what this
core's `openssl speed` verifies. See README.md for how to read it."""

import json
import os
import pathlib
import statistics
import subprocess
import time

from lab import BUILD, CannotRun, Lab, bench, run, say, trust

LEASES = 100_000
PAIRS = 5
HEADS, TREE = 1_000, 256
COLD, WARM, DRAWN = 20_000, 100_000, 400_000
FLOOD_LEASES, FLOOD_S, HOSTILE = 1_000, 6, 65533
WORKER_CPU, CLIENT_CPU = 0, 1
BATCHED_MIN, COLD_MIN, WARM_MIN = 60, 1.5, 100
KEPT_MIN, RSS_MAX_MIB, CLIENT_CPU_MAX = 0.5, 64, 0.9
TOOL = BUILD / "tests" / "bench" / "bench_tokens"


class Asker:
    """bench_tokens, in a process and on a core of its own."""

    def __init__(self, lab, uid=0):
        words = [TOOL, lab.work / "run" / "control.sock", lab.work / "run" / "verify.sock", lab.work / "key.pem"]
        self.process = subprocess.Popen(
            ["taskset", "-c", str(CLIENT_CPU), *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.leases = self.answer()["leases"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise CannotRun(f"bench_tokens ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.answer()


def openssl_verify_per_s():
    """Of one core, the worker's."""
    report = run("taskset", "-c", str(WORKER_CPU), "openssl", "speed", "-mr", "-seconds", "1", "ed25519")
    for line in report.splitlines():
        if line.startswith("+F6:"):  # +F6:number:bits:name:signed:verified, a second
            return float(line.split(":")[-1])
    raise CannotRun(f"openssl speed does not say: {report[-500:]}")


def node(leases, transport="auto"):
    lab = Lab(leases)
    lab.options = ["--verify-workers", "1", "--verify-transport", transport]
    return lab


def make_issuer(lab):
    """A key of openssl's, believed for everything; and the worker on its core, everything else of the daemon's off it."""
    trust(lab, "bench.example")
    for task in pathlib.Path(f"/proc/{lab.daemon.pid}/task").iterdir():
        cpu = WORKER_CPU if (task / "comm").read_text().strip() == "verifier" else CLIENT_CPU
        os.sched_setaffinity(int(task.name), {cpu})


def status(lab):
    return json.loads(lab.cli("--json", "status"))["verifier"]


def median(runs, key):
    return statistics.median(one[key] for one in runs)


def measure_main():
    with node(LEASES) as lab:
        say(f"tokens: granting {LEASES:,} leases")
        lab.populate(LEASES, LEASES)
        begin = time.monotonic()
        make_issuer(lab)
        result = {"transport": status(lab)["by"], "openssl": [], "batched": [], "known": [], "cold": [], "warm": []}
        with Asker(lab) as asker:
            result["leases"] = asker.leases
            for number in range(PAIRS):
                result["openssl"].append(openssl_verify_per_s())
                asker.ask("make", HEADS, TREE)
                signatures = status(lab)["signatures"]
                result["batched"].append(asker.ask("drive"))
                result["known"].append(asker.ask("drive"))
                time.sleep(0.05)
                result["batched"][-1]["signatures"] = status(lab)["signatures"] - signatures
                say(f"tokens: pair {number + 1}: openssl {result['openssl'][-1]:,.0f}, "
                    f"batched {result['batched'][-1]['per_s']:,.0f}, known {result['known'][-1]['per_s']:,.0f} a second")
            for _ in range(PAIRS):
                result["openssl"].append(openssl_verify_per_s())
                asker.ask("singles", COLD)
                result["cold"].append(asker.ask("drive"))
            asker.ask("singles", WARM)
            asker.ask("drive")
            for _ in range(PAIRS):
                result["openssl"].append(openssl_verify_per_s())
                asker.ask("draw", DRAWN)
                result["warm"].append(asker.ask("drive"))
            result["in_process"] = asker.ask("in_process")
        if time.monotonic() - begin > 280:
            say("tokens: that took so long that leases may have expired")
        return result


def measure_epoll():
    with node(LEASES, "epoll") as lab:
        lab.populate(LEASES, LEASES)
        make_issuer(lab)
        with Asker(lab) as asker:
            runs = []
            for _ in range(PAIRS):
                asker.ask("make", HEADS, TREE)
                runs.append(asker.ask("drive"))
            return runs


def measure_flood():
    with node(FLOOD_LEASES) as lab:
        lab.populate(FLOOD_LEASES, FLOOD_LEASES)
        make_issuer(lab)
        with Asker(lab) as honest:
            honest.ask("good", 64, TREE)
            honest.ask("drive")
            quiet = statistics.median(honest.ask("drive")["per_s"] for _ in range(PAIRS))
            half = honest.ask("pace", 0.5 * quiet, 4)
            offered = 0.8 * quiet
            alone = honest.ask("pace", offered, FLOOD_S)
            with Asker(lab) as hostile:
                hostile.ask("flood", HOSTILE)
                time.sleep(1)
                flooded = honest.ask("pace", offered, FLOOD_S)
                counts = status(lab)
                rss = int(pathlib.Path(f"/proc/{lab.daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            say(f"tokens: offered {offered:,.0f}: {alone['per_s']:,.0f} alone, {flooded['per_s']:,.0f} in the flood; {counts}")
            return {
                "flood": {"offered_per_s": offered, "quiet_per_s": alone["per_s"], "per_s": flooded["per_s"],
                          "kept_fraction": flooded["per_s"] / alone["per_s"], "rss_mib": rss / (1 << 20),
                          "p99_us": flooded["p99_us"], "signatures": counts["signatures"]},
                "latency": {"p50_us": half["p50_us"], "p99_us": half["p99_us"]},
            }


def measure():
    main = measure_main()
    say("tokens: the same by epoll")
    epoll = measure_epoll()
    say("tokens: under a flood")
    flood = measure_flood()
    openssl = statistics.median(main["openssl"])

    def ratio(runs, begin):
        """Median over the pairs of a run and the openssl beside it."""
        return statistics.median(one["per_s"] / other
                                 for one, other in zip(runs, main["openssl"][begin:], strict=False))

    exact = all(one["exact"] for part in ("batched", "known", "cold", "warm") for one in main[part])
    client_cpu = max(one["client_cpu"] for one in main["batched"] + main["known"] + main["warm"])
    result = {
        "leases": main["leases"], "transport": main["transport"], "openssl_verify_per_s": openssl,
        "ed25519_library": "libsodium", "sha256": main["in_process"]["sha256"],
        "batched": {"per_s": median(main["batched"], "per_s"), "ratio": ratio(main["batched"], 0),
                    "signatures": median(main["batched"], "signatures"), "reasons_exact": exact},
        "known_heads": {"per_s": median(main["known"], "per_s")},
        "in_process_per_s": main["in_process"]["per_s"],
        "cold": {"per_s": median(main["cold"], "per_s"), "ratio": ratio(main["cold"], PAIRS)},
        "warm": {"per_s": median(main["warm"], "per_s"), "ratio": ratio(main["warm"], 2 * PAIRS)},
        "uring_per_s": median(main["batched"], "per_s") if main["transport"] == "io_uring" else None,
        "epoll_per_s": median(epoll, "per_s"),
        "flood": flood["flood"], "latency": flood["latency"], "client_cpu": client_cpu,
    }
    targets = {
        "batched": result["batched"]["ratio"] >= BATCHED_MIN and exact,
        "cold": result["cold"]["ratio"] >= COLD_MIN,
        "warm": result["warm"]["ratio"] >= WARM_MIN,
        "flood": result["flood"]["kept_fraction"] >= KEPT_MIN and result["flood"]["rss_mib"] < RSS_MAX_MIB,
        "client_cpu": client_cpu < CLIENT_CPU_MAX,
    }
    return result | {"targets_met": targets, "met": all(targets.values())}


def table(result):
    met = result["targets_met"]

    def word(name):
        return "met" if met[name] else "MISSED"

    return f"""
tokens, one worker core, {result['leases']:,} leases, {result['transport']}, {result['sha256']}   a second   times openssl's {result['openssl_verify_per_s']:,.0f}
  batched: 256 to a head, each head first verified     {result['batched']['per_s']:>10,.0f}   {result['batched']['ratio']:8.1f}   target {BATCHED_MIN}: {word('batched')}
  heads known already                                  {result['known_heads']['per_s']:>10,.0f}
  the checker alone, in process                        {result['in_process_per_s']:>10,.0f}
  cold: one token a head, never seen                   {result['cold']['per_s']:>10,.0f}   {result['cold']['ratio']:8.2f}   target {COLD_MIN}: {word('cold')}
  warm: 100k single tokens, seen before                {result['warm']['per_s']:>10,.0f}   {result['warm']['ratio']:8.1f}   target {WARM_MIN}: {word('warm')}
  batched by epoll                                     {result['epoll_per_s']:>10,.0f}
under a flood an honest peer keeps {result['flood']['kept_fraction']:.0%} of what it offers (target {KEPT_MIN:.0%}), \
RSS {result['flood']['rss_mib']:.1f} MiB (target {RSS_MAX_MIB}): {word('flood')}
a frame of 64 at half load: p50 {result['latency']['p50_us']:.0f} us, p99 {result['latency']['p99_us']:.0f} us; \
client's share of its core {result['client_cpu']:.0%} (target {CLIENT_CPU_MAX:.0%}): {word('client_cpu')}"""


if __name__ == "__main__":
    bench(measure, table)
