"""Holds `holdfast token` and independent.py against each other, and both against tests/vectors/tokens.json.

Usage: both_ways.py HOLDFAST             the tests
       both_ways.py --record             writes the vectors anew, from cases.py, and the fuzzers' seeds
"""

import base64
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import unittest

import independent as own
from cases import ANCHORS, EPOCH, ISSUER, NODE, NOW, SEED, STRANGER, TENANTS, anchors, cases, issue

TESTS = pathlib.Path(__file__).resolve().parents[2]
VECTORS = TESTS / "vectors" / "tokens.json"
CORPUS = TESTS / "fuzz" / "corpus"
HOLDFAST = ""
AT = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW))


def public_line(seed):
    return base64.b64encode(bytes.fromhex("302a300506032b6570032100") + own.public_of(seed)).decode()


def private_pem(seed):
    line = base64.b64encode(bytes.fromhex("302e020100300506032b657004220420") + seed).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{line}\n-----END PRIVATE KEY-----\n"


def vectors():
    return {
        "about": "Golden vectors of the token format, userspace/token/README.md; made by tests/unit/token/both_ways.py --record",
        "now": NOW,
        "node": NODE,
        "epoch": EPOCH,
        "anchors": [
            {key: value for key, value in each.items() if key != "seed"}
            | {"issuer": ISSUER, "key": public_line(each["seed"]), "tenants": TENANTS, "operations": ["connect"]}
            for each in ANCHORS
        ],
        "tokens": [{"name": name, "verdict": reason, "token": own.to_text(token)} for name, reason, token in cases()],
    }


def header_of(token):
    """Nothing where the token is no token even on the outside."""
    reader = own.Reader(token, len(token))
    try:
        reader.array(2)
        reader.array(4)
        return reader.bytes()
    except own.Malformed:
        return None


def record_seeds():
    """Every token for the targets token and verify, and every header once for the target head."""
    seeds, headers = {}, set()
    for name, _, token in cases():
        name = re.sub(r"\W+", "_", name)
        seeds[f"token/{name}"] = token
        header = header_of(token)
        if header is not None and header not in headers:
            headers.add(header)
            seeds[f"head/{name}"] = header
    for path, content in seeds.items():
        (CORPUS / path).write_bytes(content)


def damaged(token, rng):
    at = rng.randrange(len(token))
    return rng.choice(
        [
            lambda: token[:at] + bytes([token[at] ^ 1 << rng.randrange(8)]) + token[at + 1 :],
            lambda: token[:at] + bytes([rng.randrange(256)]) + token[at:],
            lambda: token[:at] + token[at + 1 :],
            lambda: token[:at],
            lambda: token[:at] + rng.choice([b"\x00", b"\x18", b"\x1b", b"\x5f", b"\x80", b"\xa0", b"\xf6", b"\xff"]) + token[at + 1 :],
        ]
    )()


class BothWays(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.anchors = self.directory / "anchors.json"
        self.anchors.write_text(json.dumps({"version": 1, "anchors": vectors()["anchors"]}))

    def holdfast(self, *words, stdin=""):
        return subprocess.run([HOLDFAST, "--json", "token", *map(str, words)], input=stdin, text=True, capture_output=True, timeout=120)

    def answers(self, tokens):
        """What holdfast says of each; an empty one has no text, which is malformed without asking."""
        lines = "".join(own.to_text(token) + "\n" for token in tokens if token)
        done = self.holdfast("verify", "-", "--anchors", self.anchors, "--node", NODE, "--epoch", EPOCH, "--at", AT, stdin=lines)
        self.assertEqual(done.stderr, "")
        said = iter([json.loads(line) for line in done.stdout.splitlines()])
        return [next(said).get("reason", "good") if token else "malformed" for token in tokens]

    def test_the_vectors_are_the_cases(self):
        self.assertEqual(json.loads(VECTORS.read_text()), vectors())

    def test_both_answer_the_vectors(self):
        listed = json.loads(VECTORS.read_text())["tokens"]
        tokens = [own.from_text(each["token"]) for each in listed]
        said = self.answers(tokens)
        for each, token, answer in zip(listed, tokens, said, strict=True):
            self.assertEqual(own.verify(token, anchors(), NODE, EPOCH, NOW), each["verdict"], each["name"])
            self.assertEqual(answer, each["verdict"], each["name"])

    def test_what_holdfast_issues(self):
        key = self.directory / "key.pem"
        key.write_text(private_pem(SEED))
        key.chmod(0o400)
        requests = self.directory / "requests.yaml"
        requests.write_text(
            json.dumps([{"tenant": TENANTS[0], "endpoints": ["web", f"e{n}"], "operations": ["connect"], "peer": "192.0.2.0/24"} for n in range(21)])
        )
        head = ["--key", key, "--issuer", ISSUER, "--node", NODE, "--epoch", EPOCH, "--life", "5m"]
        lease = ["--lease", "00" * 16, "--generation", "3"]
        for words in (
            ["--from", requests],
            [TENANTS[0], "--egress", "a0", "--holder", "uid:1000", "--ttl", "5m"],
            [TENANTS[0], "--kind", "renew", *lease],
            [TENANTS[0], "--kind", "use", "--endpoint", "web", "--operation", "connect", *lease],
        ):
            done = self.holdfast("issue", *words, *head)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for line in done.stdout.splitlines():
                token = own.from_text(json.loads(line)["token"])
                self.assertEqual(own.verify(token, anchors(), NODE, EPOCH, int(time.time())), "good")

    def test_a_file_names_a_key_for_each_token(self):
        """Where it names none, the command line's; a line that is no key is refused by file and line."""
        key, proved = self.directory / "key.pem", self.directory / "proved.pem"
        key.write_text(private_pem(SEED))
        key.chmod(0o400)
        proved.write_text(f"-----BEGIN PUBLIC KEY-----\n{public_line(SEED)}\n-----END PUBLIC KEY-----\n")
        words = ["issue", "--from", "-", "--key", key, "--issuer", ISSUER, "--node", NODE, "--epoch", EPOCH, "--holder-key", proved]
        plain = {"tenant": TENANTS[0], "endpoints": ["web"]}
        done = self.holdfast(*words, stdin=json.dumps([plain | {"holder_key": public_line(STRANGER)}, plain]))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        tokens = "".join(json.loads(line)["token"] + "\n" for line in done.stdout.splitlines())
        said = self.holdfast("inspect", "-", stdin=tokens).stdout.splitlines()
        keys = [json.loads(line)["claims"]["holder_key"] for line in said]
        self.assertEqual(keys, [own.thumbprint(own.public_of(seed)).hex() for seed in (STRANGER, SEED)])
        done = self.holdfast(*words, stdin=json.dumps([plain | {"holder_key": "MCow"}]))
        self.assertEqual(done.returncode, 1)
        self.assertIn("standard input:1: no Ed25519 public key", done.stderr)

    def test_both_refuse_the_same_damage(self):
        rng = random.Random(1)
        good = [token for _, reason, token in cases() if reason == "good"]
        tokens = [damaged(rng.choice(good), rng) for _ in range(1500)]
        said = self.answers(tokens)
        for token, answer in zip(tokens, said, strict=True):
            self.assertEqual(answer, own.verify(token, anchors(), NODE, EPOCH, NOW), token.hex())
        self.assertGreater(len(set(said)), 3)

    def test_inspect_shows_what_is_in_it(self):
        text = own.to_text(issue())
        for extra, state in (([], "not checked: no --anchors"), (["--anchors", self.anchors], "good")):
            shown = json.loads(self.holdfast("inspect", "-", *extra, stdin=text).stdout)
            self.assertEqual(shown["signature"], state)
            self.assertEqual(shown["claims"]["tenant"], TENANTS[0])
            self.assertEqual((shown["head"]["kind"], shown["head"]["epoch"], shown["head"]["issuer"]), ("grant", EPOCH, ISSUER))

    def test_files_that_are_refused(self):
        key = self.directory / "key.pem"
        key.write_text(private_pem(SEED))
        head = ["--issuer", ISSUER, "--node", NODE, "--epoch", EPOCH]
        one = [TENANTS[0], "--endpoint", "web", *head]
        for mode, said in ((0o440, "key_exposed"), (0o404, "key_exposed")):
            key.chmod(mode)
            self.assertIn(said, self.holdfast("issue", *one, "--key", key).stderr)
        key.chmod(0o400)
        link = self.directory / "link.pem"
        link.symlink_to(key)
        for path, said in ((link, "key_not_regular"), (self.directory, "key_not_regular"), (self.directory / "none", "key_missing"), (self.anchors, "key_")):
            self.assertIn(said, self.holdfast("issue", *one, "--key", path).stderr)
        for bad, said in (
            ('[{"tenant": "a", "endpoint": ["web"]}]', ":1: there is no"),
            ('[{"endpoints": ["web"]}]', "is missing"),
            ('[{"tenant": "a"}]', "neither endpoints nor egress"),
            ("[]", "0 tokens"),
        ):
            requests = self.directory / "requests.json"
            requests.write_text(bad)
            done = self.holdfast("issue", "--from", requests, "--key", key, *head)
            self.assertEqual(done.stdout, "")
            self.assertIn(said, json.loads(done.stderr)["error"]["detail"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
        record_seeds()
    else:
        HOLDFAST = sys.argv.pop(1)
        unittest.main()
