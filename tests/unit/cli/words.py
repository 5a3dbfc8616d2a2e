"""What `holdfast` makes of its command line, without a daemon: exit codes and where messages go."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

HOLDFAST = sys.argv.pop(1)
NO_SOCKET = "/nonexistent/control.sock"


def run(*words, stdin=""):
    return subprocess.run([HOLDFAST, "--socket", NO_SOCKET, *words], input=stdin, text=True,
                          capture_output=True, timeout=30, check=False)


COMMANDS = [
    "status", "doctor", "lease ls", "lease show", "lease grant", "lease renew", "lease revoke", "lease release", "lease preempt",
    "lease checkpoint", "token admit",
    "route ls", "tenant ls", "tenant disable", "tenant enable", "bundle check", "bundle push", "bundle show",
    "bundle diff", "token issue", "token inspect", "token verify", "drops", "flows", "explain", "node detach",
    "peer ls", "peer suspend", "peer resume", "bearer create", "bearer ls", "bearer revoke", "trust show",
    "trust revoke", "trust restore", "trust rotate",
    "watch", "node identity", "node report", "node drain", "node disable", "node quarantine", "node resume", "node release",
    "enroll begin", "enroll finish", "enroll end", "enroll show", "enroll fingerprint",
]

USAGE = [
    "", "lease", "frob", "lease frob", "status extra", "status --frob", "lease show", "lease renew",
    "lease grant", "lease grant acme/shop/prod", "lease grant acme/shop/prod --endpoint web --ttl 90",
    "lease grant acme/shop/prod --endpoint web --holder root", "lease grant --from x.jsonl acme/shop/prod",
    "lease renew 00ff --ttl", "lease renew 00ff --generation x", "tenant disable", "bundle check",
    "token", "token issue acme/shop/prod", "token issue --key k --issuer i --node n --epoch 1",
    "token issue a --key k --issuer i --node n --epoch 1 --kind loan",
    "token issue a --key k --issuer i --node n --epoch 1 --life 301s",
    "token issue a --from x --key k --issuer i --node n --epoch 1", "token inspect",
    "token verify x", "token verify x --operation o", "token verify x --operation o --resource r --anchors y",
    "token issue a --endpoint b --key k --issuer i --node n", "lease grant --token x --each", "lease renew 0 --token x",
    "lease preempt", "lease preempt 00ff --reason x --key k", f"lease preempt {32 * '0'} --reason x",
    f"lease preempt {32 * '0'} --reason x --key k --life 301s", f"lease preempt {32 * '0'} --reason x --key k --grace 5",
    f"lease preempt {32 * '0'} --file x", "lease preempt --file x --out y", "lease checkpoint", "lease checkpoint 00ff --note",
    "lease grant acme/shop/prod --endpoint web --admission x", "token admit x", "token admit x --reason y --key k --life 0s",
    "peer", "peer suspend", "peer suspend root", "peer suspend -1", "peer resume 1x", "peer resume 4294967296", "bearer",
    "bearer create", "bearer create --name n --env e", "bearer create --name n --env e --scope status --ttl 90", "bearer revoke",
    "trust", "trust revoke", "trust rotate", "trust rotate a", "trust rotate a b --after 90", "trust rotate a b --after 331s",
    "trust rotate a b --after 0s", "trust rotate a b --after 500ms", "trust rotate a b c",
    "enroll", "enroll begin", "enroll begin --anchor 00ff",
    f"enroll begin --anchor {64 * '0'} --ttl 25h", f"enroll begin --anchor {64 * 'A'}", "enroll finish", "enroll end x",
    "watch --from 12", "watch --from x:y", "watch --kinds", "node frob", "node drain now", "node identity x", "node report", "node report --sign --verify x", "node report --verify x", "node report --sign --node n", "node report --sign --epoch 1",
    "node report --sign --challenge 00", f"node report --sign --challenge {64 * 'G'}", "node report --verify x --node n --out y",
    "node report --verify x --node n --challenge 0", "node report --out x", f"node report --sign --for {257 * 'x'}", "token verify x --identity y --node n",
    "token verify x --identity y --operation o --resource r", "token verify x --anchors y --node n", "explain tcp 10.0.0.1:1", "explain tcp 10.0.0.1:1 -", "explain tcp 10.0.0.1 10.0.0.2",
]

NEEDS_DAEMON = [
    "status", "lease ls", "lease show 00ff", "lease grant acme/shop/prod --endpoint web --ttl 90s",
    "lease renew 00ff", "lease revoke 00ff 00fe --grace 5s", "lease release 00ff", "lease checkpoint 00ff --note x", "route ls", "tenant ls",
    "tenant disable acme/shop/prod", "bundle show", "drops", "drops --follow", "flows", "watch", "peer ls", "peer suspend 1000", "peer resume all",
    "bearer create --name n --env e --scope status", "bearer ls", "bearer revoke n", "node identity",
    f"node report --sign --challenge {64 * '0'}", "node drain", "node release",
    "trust show", "trust revoke holder:uid:1", "trust restore holder:uid:1", f"trust rotate {64 * '0'} {64 * '1'} --after 5s",
    f"enroll begin --anchor {64 * '0'}", "enroll end --now", "enroll show",
    "explain tcp 10.0.0.1:1 -> 10.0.0.2:2", "explain icmp_echo fd00::1 fd00::2 --from veth0",
]


class Words(unittest.TestCase):
    def test_help_everywhere(self):
        for words in ["", "lease", "route", "tenant", "bundle", "token", "node", "peer", "bearer", *COMMANDS]:
            done = run(*words.split(), "--help")
            self.assertEqual((done.returncode, done.stderr), (0, ""), words)
            self.assertIn("Usage: holdfast", done.stdout)
            if words in COMMANDS:
                self.assertIn("Examples:", done.stdout, words)
        self.assertRegex(run("--version").stdout, r"^holdfast \d+\.\d+\.\d+\n$")

    def test_usage(self):
        for words in USAGE:
            done = run(*words.split())
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
            self.assertTrue(done.stderr.startswith("holdfast: "), words)
            self.assertEqual(done.stderr.count("\n"), 2, f"{words}: a message and a next step: {done.stderr}")
            error = json.loads(run("--json", *words.split()).stderr)
            self.assertEqual((error["version"], error["error"]["code"]), (1, "usage"), words)

    def test_daemon_down(self):
        for words in NEEDS_DAEMON:
            done = run(*words.split())
            self.assertEqual((done.returncode, done.stdout), (1, ""), words)
            self.assertIn("holdfastd is not running", done.stderr)
            self.assertIn("systemctl start holdfastd", done.stderr)
            error = json.loads(run(*words.split(), "--json").stderr)["error"]
            self.assertEqual((error["code"], error["class"]), ("daemon_not_running", "unavailable"), words)

    def test_bundle_check(self):
        done = run("bundle", "check", "-", "--json", stdin="version: 1\ngeneration: 7\nuplinks: [up0]\ntenants: []\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({k: json.loads(done.stdout)[k] for k in ("version", "good", "generation")},
                         {"version": 1, "good": True, "generation": 7})
        bad = run("bundle", "check", "-", stdin="version: 1\ngeneration: 07\n")
        self.assertEqual(bad.returncode, 1)
        self.assertIn("standard input:2", bad.stderr)

    def test_bad_bulk_file_is_named_by_line(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
            file.write('{"tenant": "a/b/c", "endpoints": ["web"]}\n{"tenant": "a/b/c", "endpoint": "web"}\n')
        self.addCleanup(os.unlink, file.name)
        done = run("lease", "grant", "--from", file.name)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f'{file.name}:2: a lease has no "endpoint"', done.stderr)

    def test_full_disk_is_an_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([HOLDFAST, "bundle", "check", "-"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  input="version: 1\ngeneration: 7\nuplinks: [up0]\ntenants: []\n", timeout=30,
                                  check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("No space left", done.stderr)


if __name__ == "__main__":
    unittest.main()
