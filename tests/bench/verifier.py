"""`scripts/bench verifier`: what each kernel's verifier says of each of our programs. See README.md.

The figures are doctor's, which loads the very object that holdfastd loads: here, and in a guest for each kernel of
kernels/matrix.toml (`scripts/vm`), whose CPUs are emulated. Instructions and stack do not depend on that; times do.
"""

import json
import subprocess
import tomllib

from lab import ROOT, CannotRun, bench, binary, run, say

INSNS_MAX = tomllib.loads((ROOT / "kernels" / "matrix.toml").read_text())["verifier_insns_max"]


def programs_of(found):
    return [
        {"name": row["name"], "insns": row["insns"], "stack_bytes": row["stack_bytes"], "load_ms": row["load_us"] / 1000}
        for row in found["programs"]
    ]


def doctor_here():
    return json.loads(run(binary("holdfast"), "--json", "doctor"))


def doctor_on(kernel):
    say(f"verifier: asking {kernel}, in a guest")
    done = subprocess.run([ROOT / "scripts/vm", kernel, "tests/vm/test_doctor.py"], capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun(f"scripts/vm {kernel} tests/vm/test_doctor.py ended with {done.returncode}:\n"
                        f"{(done.stdout + done.stderr)[-4000:]}")
    return json.loads((ROOT / "build/vm" / kernel / "results/doctor.json").read_text())


def measure():
    matrix = run(ROOT / "scripts/vm", "--list").split()
    kernels = []
    for name, emulated, found in [("host", False, doctor_here()), *((name, True, doctor_on(name)) for name in matrix)]:
        kernels.append({"name": name, "release": found["kernel"], "emulated": emulated, "programs": programs_of(found)})
    most = max(row["insns"] for kernel in kernels for row in kernel["programs"])
    return {"kernels": kernels, "max_insns": most, "target_insns": INSNS_MAX, "met": most <= INSNS_MAX}


def table(result):
    lines = ["", f"{'kernel':<28} {'program':<20} {'instructions':>12} {'stack':>6} {'load ms':>8}"]
    for kernel in result["kernels"]:
        label = kernel["release"] + (" (emulated)" if kernel["emulated"] else "")
        for row in kernel["programs"]:
            lines.append(f"{label:<28} {row['name']:<20} {row['insns']:>12,} {row['stack_bytes']:>6} {row['load_ms']:>8.1f}")
        lines.append(f"{'':<28} {'all':<20} {sum(row['insns'] for row in kernel['programs']):>12,} {'':>6} "
                     f"{sum(row['load_ms'] for row in kernel['programs']):>8.1f}")
    verdict = "met" if result["met"] else "MISSED"
    lines.append(f"at most {result['max_insns']:,} instructions in a program   target <= {INSNS_MAX:,}   {verdict}")
    return "\n".join(lines)


bench(measure, table)
