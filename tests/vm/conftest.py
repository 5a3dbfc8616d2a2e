"""Tests here use the lab of tests/node as well."""

import pathlib
import sys

# "alone" scripts/vm runs by itself, after all others; "devices" needs a machine of that profile.
collect_ignore = ["alone", "devices"]

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "node"))
