"""`scripts/bench dataplane`: what a verdict costs. See README.md for what is compared and how to read it."""

import json
import os
import pathlib
import statistics

from lab import BUILD, CannotRun, Lab, address_of, bench, port_of, say

SIZES = (1, 1_000, 100_000, 1_000_000)
PAIRS = 15
RATIO_MAX = 2.0
VETH_SIZES = (1_000, 100_000)
VETH_RUNS = 7
VETH_SECONDS = 1
VETH_RATIO_MIN = 3.0
TOOL = BUILD / "tests" / "bench" / "bench_dataplane"


def verdict(lab, leases, *more):
    return json.loads(lab.inside("node", TOOL, "verdict", "--pins", lab.pin_root, "--port", "t0",
                                 "--leases", leases, "--pairs", PAIRS, *more))


def measure_verdicts():
    rows, hot = [], None
    for leases in SIZES:
        with Lab(leases) as lab:
            say(f"dataplane: granting {leases:,} leases")
            lab.populate(leases, leases)
            say(f"dataplane: {PAIRS} pairs of floor and gate over {leases:,} leases")
            rows.append(verdict(lab, leases))
            if leases == SIZES[-1]:
                hot = verdict(lab, leases, "--hot")
    for row in [*rows, hot]:
        row["met"] = row["ratio"] <= RATIO_MAX
    return rows, hot


class OurDrop:
    """uplink_xdp on uplink0, as holdfastd attached it."""

    device, generator = "uplink0", "gen0"

    def __init__(self, lab):
        self.lab = lab

    def dropped(self):
        return json.loads(self.lab.inside("node", TOOL, "drops", "--pins", self.lab.pin_root))["dropped"]


class NftDrop:
    """The same match in nft's fastest place for it, ingress of a device, with a set of equal size.

    Redirected frames need NAPI at the receiver. Generic receive offload switches it on."""

    device, generator = "bare0", "gen1"

    def __init__(self, lab, leases):
        self.lab = lab
        lab.inside("node", "ethtool", "-K", self.device, "gro", "on")
        elements = ",\n".join(f"{address_of(k)} . udp . {port_of(k)}" for k in range(leases))
        lab.inside("node", "nft", "-f", "-", stdin=f"""
            table netdev bench {{
              counter dropped {{ }}
              set leased {{
                type ipv4_addr . inet_proto . inet_service; size {leases};
                elements = {{ {elements} }}
              }}
              chain early {{
                type filter hook ingress device "{self.device}" priority 0; policy accept;
                ip daddr . meta l4proto . th dport != @leased counter name dropped drop
              }}
            }}""")

    def dropped(self):
        listed = json.loads(self.lab.inside("node", "nft", "-j", "list", "counter", "netdev", "bench", "dropped"))
        return next(item["counter"]["packets"] for item in listed["nftables"] if "counter" in item)


def napi_threads():
    found = set()
    for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith("napi/"):
                found.add(int(comm.parent.name))
        except OSError:  # ended meanwhile
            pass
    return found


def receiver_of(lab, device, cpu):
    """Moves the receiving side of `device` into a thread of its own, on `cpu`; its process id."""
    before = napi_threads()
    # /sys shows the interfaces of the namespace it was mounted in: mounted for this one command alone.
    lab.inside("node", "unshare", "--mount", "sh", "-c",
               f"mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/{device}/threaded")
    new = napi_threads() - before
    if len(new) != 1:
        raise CannotRun(f"{device} got {len(new)} receiving threads instead of one")
    (thread,) = new
    os.sched_setaffinity(thread, {cpu})
    return thread


def cpu_ns(thread):
    return int(pathlib.Path(f"/proc/{thread}/schedstat").read_text().split()[0])


def flood(lab, what, receiver, cpu, leases):
    """Millions of frames that `what` dropped in a second of its core. The frames go to the tenant's
    addresses, and to ports beyond the leased ones: no frame's key is in the set."""
    dropped_before, cpu_before = what.dropped(), cpu_ns(receiver)
    lab.inside("generator", "taskset", "-c", cpu, TOOL, "flood", "--out", what.generator, "--first", leases,
               "--keys", leases, "--seconds", VETH_SECONDS)
    dropped = what.dropped() - dropped_before
    if dropped < 10_000:
        raise CannotRun(f"{dropped} frames were dropped at {what.device}: the flood did not reach it")
    return 1000 * dropped / (cpu_ns(receiver) - cpu_before)


def measure_veth(leases):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise CannotRun("the veth comparison needs two cores, one to send and one to receive")
    with Lab(leases) as lab:
        say(f"dataplane: veth, early drop of what is not among {leases:,} leases")
        lab.populate(leases, leases)
        contenders = [(what, receiver_of(lab, what.device, cpus[-1]))
                      for what in (OurDrop(lab), NftDrop(lab, leases))]
        runs = []
        for _ in range(VETH_RUNS):
            runs.append([flood(lab, what, receiver, cpus[0], leases) for what, receiver in contenders])
            say("dataplane: veth, %.2f Mpps by holdfast, %.2f by nft" % tuple(runs[-1]))
    ratio = statistics.median(ours / nft for ours, nft in runs)
    return {
        "leases": leases, "runs": VETH_RUNS,
        "holdfast_mpps": round(statistics.median(ours for ours, _ in runs), 3),
        "nft_mpps": round(statistics.median(nft for _, nft in runs), 3),
        "ratio": round(ratio, 2), "met": ratio >= VETH_RATIO_MIN,
    }


def table(result):
    lines = ["", f"{'leases':>10} {'gate ns':>9} {'floor ns':>9} {'ratio':>7} {'gross':>7}   target <= {RATIO_MAX}"]
    for row in [*result["rows"], result["hot"]]:
        name = "one of 1M" if row is result["hot"] else f"{row['leases']:,}"
        lines.append(f"{name:>10} {row['verdict_ns']:>9.1f} {row['floor_ns']:>9.1f} {row['ratio']:>7.2f} "
                     f"{row['gross_ratio']:>7.2f}   {'met' if row['met'] else 'MISSED'}")
    lines += [f"harness {result['harness_ns']:.1f} ns, already taken off; flatness {result['flatness']:.2f}", "",
              f"{'leases':>10} {'our Mpps':>9} {'nft Mpps':>9} {'ratio':>7}   early drop; target >= {VETH_RATIO_MIN}"]
    for row in result["veth"]["rows"]:
        lines.append(f"{row['leases']:>10,} {row['holdfast_mpps']:>9.2f} {row['nft_mpps']:>9.2f} "
                     f"{row['ratio']:>7.2f}   {'met' if row['met'] else 'MISSED'}")
    return "\n".join(lines)


def measure():
    rows, hot = measure_verdicts()
    drops = [measure_veth(leases) for leases in VETH_SIZES]
    ratios = [row["ratio"] for row in rows]
    return {
        "rows": rows, "harness_ns": statistics.median(row["harness_ns"] for row in rows),
        "flatness": round(max(ratios) / min(ratios), 3), "hot": hot,
        # The whole speaks for its worst size.
        "veth": min(drops, key=lambda row: row["ratio"]) | {"rows": drops},
        "met": all(row["met"] for row in [*rows, *drops]),
    }


if __name__ == "__main__":
    bench(measure, table)
