"""What doctor says of this kernel is what kernels/doctor.json, and so ARCHITECTURE.md, says of it.

After a change that is meant: scripts/vm on each kernel, then scripts/docs --record, which reads what is left in
/results here.
"""

import json
import os
import pathlib
import subprocess
import tomllib

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAMS = 6  # of bpf/holdfast.bpf.c, clock_leap among them
pytestmark = pytest.mark.xdist_group("doctor")  # one process, one run of it


@pytest.fixture(scope="module")
def found() -> dict:
    """What doctor says."""
    holdfast = pathlib.Path(os.environ["HOLDFAST_BUILD"], "userspace/cli/holdfast")
    done = subprocess.run([str(holdfast), "--json", "doctor"], capture_output=True, text=True, check=False)
    pathlib.Path("/results/doctor.json").write_text(done.stdout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_doctor_as_recorded(found: dict) -> None:
    recorded = json.loads((CHECKOUT / "kernels" / "doctor.json").read_text())[os.environ["HOLDFAST_KERNEL"]]
    assert {row["feature"]: row["verdict"] for row in found["features"]} == recorded
    assert all(row["verdict"] in ("enforced", "fallback") for row in found["features"] if row["essential"])


def test_verifier_budget(found: dict) -> None:
    """Every program is within its budget, as the kernel's verifier counts (`scripts/bench verifier` shows them)."""
    most = tomllib.loads((CHECKOUT / "kernels" / "matrix.toml").read_text())["verifier_insns_max"]
    assert len(found["programs"]) == PROGRAMS
    for row in found["programs"]:
        assert 0 < row["insns"] <= most, row


def test_bpf_lsm_denies(found: dict) -> None:
    """doctor's probe loads a program that denies an open, and sees it denied: in a guest it has to."""
    assert "bpf" in pathlib.Path("/sys/kernel/security/lsm").read_text().split(",")
    (lsm,) = [row for row in found["features"] if row["feature"] == "BPF LSM"]
    assert lsm["verdict"] == "enforced"
