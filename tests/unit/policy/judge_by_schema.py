#!/usr/bin/python3
"""Judges the policy cases by the published JSON Schema.

Every good case must pass. Every bad case does what its .expect file says: the schema rejects it,
accepts it (the mistake is beyond what a schema can say; the validator's test shows that it is found),
or never sees it, because an ordinary YAML or JSON reader already finds it unreadable. A schema that
became looser or stricter than these lines say fails here, so the two judges cannot drift apart unseen.

Usage: judge_by_schema.py SCHEMA CASES_DIRECTORY
"""

import json
import pathlib
import sys

import jsonschema
import yaml


def load(path):
    """The document as an ordinary reader sees it."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.loads(data.decode("utf-8"), parse_constant=float)
    return yaml.safe_load(data)


def judge(path, validator):
    try:
        document = load(path)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        return "unreadable"
    # An integer is one: Python's float 7.0 is an integer to JSON Schema, and that is accepted here too.
    return "accepts" if validator.is_valid(document) else "rejects"


def expectation(path):
    for line in path.with_suffix(".expect").read_text().splitlines():
        if line.startswith("schema: "):
            return line.removeprefix("schema: ")
    raise SystemExit(f"{path}: its .expect file has no 'schema: ' line; add one")


def cases(directory):
    found = sorted(p for p in directory.iterdir() if p.suffix in (".yaml", ".json"))
    if not found:
        raise SystemExit(f"{directory}: no cases; the check would be empty")
    return found


def main():
    schema_file, directory = map(pathlib.Path, sys.argv[1:3])
    schema = json.loads(schema_file.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    failures = []
    counts = {"accepts": 0, "rejects": 0, "unreadable": 0}
    for kind in ("good", "bad"):
        for path in cases(directory / kind):
            expected = "accepts" if kind == "good" else expectation(path)
            answer = judge(path, validator)
            counts[answer] += 1
            if answer != expected:
                failures.append(f"{kind}/{path.name}: expected that the schema {expected}, it {answer}")
    print("\n".join(failures))
    print(", ".join(f"{answer} {count}" for answer, count in counts.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
