"""`scripts/bench revoke`: how long packets still arrive after a revocation was asked for. See README.md."""

import json
import time

from lab import BUILD, TENANT, Lab, bench, make_path, say

LEASES = 100_000
SINGLE_RUNS = 300
TENANT_RUNS = 100
PART_SECONDS = 300  # after which no run begins: `runs` says how many there were
RUNS_MIN = 60  # fewer prove no percentile: the target is not met
PPS_MIN = 100_000
P99_MAX_US = 1000
TOOL = BUILD / "tests" / "bench" / "bench_revoke"


def measure_part(what, runs, granted):
    """A lab of its own, so that the terms of its leases outlast it."""
    with Lab(LEASES) as lab:
        say(f"revoke: granting {LEASES:,} leases")
        lab.populate(LEASES, granted)
        mac = make_path(lab)
        begin = time.monotonic()
        part = json.loads(lab.inside(
            "tenant", TOOL, what, "--socket", lab.work / "run" / "control.sock", "--sender",
            f"/run/netns/{lab.name}-generator", "--out", "gen0", "--to", mac, "--in", "eth0",
            "--tenant", TENANT, "--leases", LEASES, "--runs", runs,
            "--seconds", PART_SECONDS, "--daemon", lab.daemon.pid))
        say(f"revoke: {what}: {part} in {time.monotonic() - begin:.0f} s")
        return part


def measure():
    single = measure_part("single", SINGLE_RUNS, LEASES - 1)
    tenant = measure_part("tenant", TENANT_RUNS, LEASES)
    result = {"leases": LEASES, "pps": min(single["pps"], tenant["pps"])}
    for name, part in (("single", single), ("tenant", tenant)):
        for key in ("p50_us", "p90_us", "p99_us", "max_us", "runs", "discarded", "sender_paused", "pps"):
            result[f"{name}_{key}"] = part[key]
        result[f"{name}_met"] = part["runs"] >= RUNS_MIN and part["p99_us"] <= P99_MAX_US
    result["pps_met"] = result["pps"] >= PPS_MIN
    result["met"] = result["pps_met"] and result["single_met"] and result["tenant_met"]
    return result


def table(result):
    lines = ["", f"{'revoked':>14} {'p50 us':>8} {'p90 us':>8} {'p99 us':>8} {'max us':>8} {'packets/s':>10} "
                 f"{'runs':>5} {'discarded':>9}   target p99 <= {P99_MAX_US}"]
    for name, shown in (("single", "one lease"), ("tenant", f"all {result['leases']:,}")):
        lines.append(f"{shown:>14} " + " ".join(f"{result[f'{name}_{key}_us']:>8.1f}"
                                                for key in ("p50", "p90", "p99", "max"))
                     + f" {result[f'{name}_pps']:>10,.0f} {result[f'{name}_runs']:>5} "
                     f"{result[f'{name}_discarded']:>9}   {'met' if result[f'{name}_met'] else 'MISSED'}")
    lines.append(f"packets a second, at least {PPS_MIN:,}: {'met' if result['pps_met'] else 'MISSED'}")
    return "\n".join(lines)


if __name__ == "__main__":
    bench(measure, table)
