"""`scripts/bench idle`: what a settled holdfastd with room for a million leases holds in memory. See README.md."""

import json
import pathlib
import statistics
import time

from lab import Lab, bench, say

LEASES_MAX = 1_048_576
LIVE = 1_000
# What the policy names: just what is leased, and as much as there is room for.
ENDPOINTS = (1_000, 1_000_000)
SETTLE_S = 5
RUNS = 5
RSS_MAX_MIB = 32.0
MIB = 1 << 20


def memory_of(process):
    """Bytes. `private`: the pages nobody else maps, of whatever kind but BPF arrays, which are the kernel's and
    only looked at from here; a page that is anonymous counts even if it is shared. `bpf`: the arrays mapped."""
    rss = {"private": 0, "anonymous": 0, "bpf": 0, "bpf_rss": 0}
    is_bpf = False
    for line in pathlib.Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # "7f00-7f01 rw-s ... anon_inode:bpf-map": the next mapping
            is_bpf = rest[-1:] == ["anon_inode:bpf-map"]
            continue
        if rest[-1:] != ["kB"]:
            continue
        size = int(rest[0]) * 1024
        if is_bpf:
            rss["bpf"] += size if name == "Size:" else 0
            rss["bpf_rss"] += size if name == "Rss:" else 0
        elif name in ("Private_Clean:", "Private_Dirty:"):
            rss["private"] += size
        elif name == "Anonymous:":
            rss["anonymous"] += size
    return rss


def measure_policy(endpoints):
    lab = Lab(endpoints)
    lab.leases_max = LEASES_MAX
    with lab:
        lab.populate(endpoints, LIVE)
        time.sleep(SETTLE_S)
        samples = []
        for _ in range(RUNS):
            samples.append(memory_of(lab.daemon.pid))
            time.sleep(1)
        median = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        state = json.loads(lab.cli("--json", "status"))
        row = {
            "endpoints": endpoints, "leases_max": state["leases"]["max"], "leases": state["leases"]["live"],
            # Clean pages of the program's own file are private as long as only one holdfastd runs: with them.
            "rss_mib": round(max(median["private"], median["anonymous"]) / MIB, 2),
            "private_mib": round(median["private"] / MIB, 2),
            "anonymous_mib": round(median["anonymous"] / MIB, 2),
            "mapped_mib": round(state["mapped_bytes"] / MIB, 2),
            "smaps_bpf_mib": round(median["bpf"] / MIB, 2),
            "smaps_bpf_rss_mib": round(median["bpf_rss"] / MIB, 2),
        }
        row["met"] = row["rss_mib"] <= RSS_MAX_MIB
        say(f"idle: {row}")
        return row


def table(result):
    lines = ["", f"{'endpoints':>10} {'leases':>8} {'room':>10} {'RSS MiB':>8} {'anonymous':>10} {'BPF mapped':>11}"
                 f"   target <= {RSS_MAX_MIB:g}"]
    for row in result["rows"]:
        lines.append(f"{row['endpoints']:>10,} {row['leases']:>8,} {row['leases_max']:>10,} {row['rss_mib']:>8.1f} "
                     f"{row['anonymous_mib']:>10.1f} {row['mapped_mib']:>11.1f}   "
                     f"{'met' if row['met'] else 'MISSED'}")
    return "\n".join(lines)


def measure():
    rows = [measure_policy(endpoints) for endpoints in ENDPOINTS]
    # The whole speaks for its worst policy.
    worst = max(rows, key=lambda row: row["rss_mib"])
    return {key: worst[key] for key in ("rss_mib", "mapped_mib")} | {
        "runs": RUNS, "rows": rows, "met": all(row["met"] for row in rows)}


if __name__ == "__main__":
    bench(measure, table)
