"""What doctor says of this kernel is what kernels/doctor.json, and so ARCHITECTURE.md, says of it.

After a change that is meant: scripts/vm on each kernel, then scripts/docs --record, which reads what is left in
/results here.
"""

import json
import os
import pathlib
import subprocess

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("doctor")  # one process, one run of it


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """feature -> doctor's row."""
    holdfast = pathlib.Path(os.environ["HOLDFAST_BUILD"], "userspace/cli/holdfast")
    done = subprocess.run([str(holdfast), "--json", "doctor"], capture_output=True, text=True, check=False)
    pathlib.Path("/results/doctor.json").write_text(done.stdout)
    assert done.returncode == 0, done.stderr
    return {row["feature"]: row for row in json.loads(done.stdout)["features"]}


def test_doctor_as_recorded(found: dict[str, dict]) -> None:
    recorded = json.loads((CHECKOUT / "kernels" / "doctor.json").read_text())[os.environ["HOLDFAST_KERNEL"]]
    assert {name: row["verdict"] for name, row in found.items()} == recorded
    assert all(row["verdict"] in ("enforced", "fallback") for row in found.values() if row["essential"])


def test_bpf_lsm_denies(found: dict[str, dict]) -> None:
    """doctor's probe loads a program that denies an open, and sees it denied: in a guest it has to."""
    assert "bpf" in pathlib.Path("/sys/kernel/security/lsm").read_text().split(",")
    assert found["BPF LSM"]["verdict"] == "enforced"
