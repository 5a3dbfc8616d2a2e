"""Tests here use the lab of tests/node as well."""

import pathlib
import sys

collect_ignore = ["alone"]  # scripts/vm runs it by itself, after all others

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "node"))
