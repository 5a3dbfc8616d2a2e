"""What doctor says of this kernel is what kernels/doctor.json, and so ARCHITECTURE.md, says of it.

After a change that is meant: scripts/vm on each kernel, then scripts/docs --record.
"""

import json
import os
import pathlib
import subprocess

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_doctor_as_recorded() -> None:
    holdfast = pathlib.Path(os.environ["HOLDFAST_BUILD"], "userspace/cli/holdfast")
    done = subprocess.run([str(holdfast), "--json", "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {row["feature"]: row for row in json.loads(done.stdout)["features"]}
    recorded = json.loads((CHECKOUT / "kernels" / "doctor.json").read_text())[os.environ["HOLDFAST_KERNEL"]]
    different = {name: row for name, row in found.items() if row["verdict"] != recorded.get(name)}
    assert not different
    assert set(found) == set(recorded)
    assert all(row["verdict"] in ("enforced", "fallback") for row in found.values() if row["essential"])
