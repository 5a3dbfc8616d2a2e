"""Counts one stage's JUnit report for scripts/test.

Names every failure, with its output where the report has it (ctest), and every skip with its reason,
and writes "passed failed skipped" to --out. A skip that tests/skips does not name counts as failed: what
is not run is not known to work.
"""

import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree

OUTPUT_LINES_MAX = 200  # of one failed test; the end of its output, where the failure is


def allowed_skips(path: pathlib.Path) -> dict[str, str]:
    """test id -> "why; runs in ..."; exits on a line that does not have the three fields."""
    allowed = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 3 or not all(fields):
            sys.exit(f"{path}:{number}: needs 'test id | why | where it does run'")
        allowed[fields[0]] = f"{fields[1]}; runs {fields[2]}"
    return allowed


def test_id(case: ElementTree.Element) -> str:
    name = re.sub(r"@\w+$", "", case.get("name", "?"))  # pytest-xdist puts a test's group there
    file = case.get("file")
    if not file:
        return name
    # pytest: classname is the module's dotted path, then a class if there is one.
    module = file.removesuffix(".py").replace("/", ".")
    inner = case.get("classname", "").removeprefix(module).strip(".")
    return "::".join(part for part in (file, inner, name) if part)


def print_output(case: ElementTree.Element) -> None:
    """The end of a compiled test's output; pytest and scripts/check have printed theirs already."""
    for line in (case.findtext("system-out") or "").rstrip().splitlines()[-OUTPUT_LINES_MAX:]:
        print("    " + line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junit", type=pathlib.Path, required=True)
    parser.add_argument("--skips", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()

    allowed = allowed_skips(arguments.skips)
    passed = failed = skipped = 0
    for case in ElementTree.parse(arguments.junit).iter("testcase"):
        name = test_id(case)
        skip = case.find("skipped")
        problems = case.findall("failure") + case.findall("error")
        # ctest: a test that could not be run at all has no failure element.
        if problems or case.get("status") == "fail":
            failed += 1
            print(f"FAILED {name}")
            print_output(case)
        elif skip is not None or case.get("status") in ("notrun", "disabled"):
            reason = (skip.get("message") if skip is not None else None) or "not run"
            if name in allowed:
                skipped += 1
                print(f"skipped {name}: {allowed[name]}")
            else:
                failed += 1
                print(f"FAILED {name}: skipped ({reason}), and {arguments.skips} does not name it")
                print_output(case)
        else:
            passed += 1
    arguments.out.write_text(f"{passed} {failed} {skipped}\n")


main()
