"""Revocations: of a key, a head, a token, a holder, and of all that an issuer issued before some time.

Each is believed no more from the next question on, its leases are down, others' go on, and it stays so over a crash.
Covers G10, G11, L13, P5. Each refusal stands beside its control.
"""

import datetime
import itertools
import json
import pathlib
import time

from control import Control
from issuer import Issuer, as_bytes, as_uid, trust
from lab import A, B, HOSTS, MANY, Lab, policy, wait_until
from packets import Probe, denied, passes, ports_of, syn, udp
from verify_sock import Check, VerifySock

HOLDER, OTHER = 4001, 4002
WEB_A, WEB_B = Probe("client", "tenant-a", syn()), Probe("client", "tenant-b", syn())


def revocations(lab: Lab) -> list[dict]:
    return lab.cli("trust", "show")["revocations"]


def revoke(lab: Lab, what: str, *words: object) -> int:
    """How many leases ended."""
    return lab.cli("trust", "revoke", what, *words)["leases_ended"]


def granted(lab: Lab, token: pathlib.Path, uid: int = HOLDER, verb: str = "grant") -> dict:
    done = lab.try_cli("lease", verb, "--token", token, prefix=as_uid(uid))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(lab: Lab, token: pathlib.Path, reason: str, uid: int = HOLDER, verb: str = "grant", told: str = "") -> None:
    before = lab.ask("status")["tokens"]["refused"].get(reason, 0)
    done = lab.try_cli("lease", verb, "--token", token, prefix=as_uid(uid))
    assert done.returncode == 1 and json.loads(done.stderr)["error"]["code"] == (told or reason), done
    assert lab.ask("status")["tokens"]["refused"][reason] == before + 1


def answers(lab: Lab, *leases: dict) -> list[str]:
    """What verify.sock says of the leases' use tokens, asked by one who may name presenters."""
    with VerifySock(lab.dir / "run" / "verify.sock") as service:
        return [service.reason(Check(each["token"], "connect", each["resources"][0], each["holder"])) for each in leases]


def down(lab: Lab, probe: Probe, lease: dict) -> None:
    wait_until(lambda: lease["id"] not in lab.leases(), 10, "the lease is torn down")
    denied(lab, probe, "no_lease", "from_uplink")


def inspected(lab: Lab, token: pathlib.Path) -> dict:
    return lab.cli("token", "inspect", token)


def batch(lab: Lab, issuer: Issuer) -> list[pathlib.Path]:
    """Tokens for both tenants' web under one head."""
    path = lab.dir / "batch.json"
    entries = [{"tenant": tenant, "endpoints": ["web"], "operations": ["connect"]} for tenant in (A, B)]
    path.write_text(json.dumps(entries))
    return [issuer.keep(each) for each in issuer.tokens("--from", path)]


def one(issuer: Issuer, tenant: str = A, *words: object, **options: object) -> pathlib.Path:
    return issuer.issue(tenant, "--endpoint", "web", "--operation", "connect", *words, **options)


def test_a_token(lab: Lab, issuer: Issuer) -> None:
    """Its lease ends, its brother under the same head goes on, and it does not serve again."""
    mine, other = batch(lab, issuer)
    first, second = granted(lab, mine), granted(lab, other)
    passes(lab, WEB_A)
    assert answers(lab, first, second) == ["good", "good"]
    assert revoke(lab, f"token:{inspected(lab, mine)['leaf']}") == 1
    down(lab, WEB_A, first)
    passes(lab, WEB_B)
    assert answers(lab, first, second) == ["no_lease", "good"]
    refused(lab, mine, "revoked")
    assert granted(lab, other)["id"] == second["id"]
    # One that was not used yet.
    unused = one(issuer, A)
    assert revoke(lab, f"token:{inspected(lab, unused)['leaf']}") == 0
    refused(lab, unused, "revoked")
    granted(lab, one(issuer, A))


def test_a_use_token(lab: Lab, issuer: Issuer) -> None:
    """It is shown no more; the lease goes on, and a renewal makes another one."""
    lease = granted(lab, one(issuer))
    path = issuer.keep(lease["token"])
    assert revoke(lab, f"token:{inspected(lab, path)['leaf']}") == 0
    assert answers(lab, lease) == ["revoked"]
    passes(lab, WEB_A)
    token = issuer.issue(A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect", kind="renew")
    assert answers(lab, granted(lab, token, verb="renew")) == ["good"]


def test_a_renew_token(lab: Lab, issuer: Issuer) -> None:
    """A lease stands on the token that renewed it last, and ends with that one, too."""
    lease = granted(lab, one(issuer, A))
    renewal = issuer.issue(A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect", kind="renew")
    granted(lab, renewal, verb="renew")
    passes(lab, WEB_A)
    assert revoke(lab, f"token:{inspected(lab, renewal)['leaf']}") == 1
    down(lab, WEB_A, lease)


def test_zeros_mean_no_lease(lab: Lab, issuer: Issuer) -> None:
    """Leases of operators stand on no token: no digest means them."""
    lab.grant(A, "web")
    for kind in ("key", "head", "token"):
        assert revoke(lab, f"{kind}:{'0' * 64}") == 0
    passes(lab, WEB_A)


def test_a_head(lab: Lab, issuer: Issuer) -> None:
    """All that it covers, and nothing of another head of the same key."""
    mine, other = batch(lab, issuer)
    first, second = granted(lab, mine), granted(lab, other)
    head = inspected(lab, mine)["head"]["digest"]
    assert head == inspected(lab, other)["head"]["digest"]
    assert revoke(lab, f"head:{head}") == 2
    down(lab, WEB_A, first)
    down(lab, WEB_B, second)
    for token in (mine, other):
        refused(lab, token, "revoked")
    granted(lab, one(issuer, A))
    passes(lab, WEB_A)


def test_a_key(lab: Lab, issuer: Issuer) -> None:
    second = Issuer(lab, "second.example")
    trust(lab, issuer.anchor(), second.anchor())
    lease, other = granted(lab, one(issuer, A)), granted(lab, one(second, B))
    by_operator = lab.grant(A, "echo")
    key = inspected(lab, one(issuer))["head"]["key"]
    assert revoke(lab, f"key:{key}") == 1
    down(lab, WEB_A, lease)
    passes(lab, WEB_B)
    assert set(lab.leases()) == {other["id"], by_operator["id"]}
    refused(lab, one(issuer, A), "key_not_live", told="denied")
    states = {each["key"]: each["state"] for each in lab.cli("trust", "show")["anchors"]}
    assert states[key] == "revoked" and sorted(states.values()) == ["current", "revoked"]
    lab.cli("trust", "restore", f"key:{key}")
    granted(lab, one(issuer, A))


def test_a_key_of_many_leases(own_lab: Lab) -> None:
    """Of one slot and of many, more than are forgotten in one turn of the loop: its own end, and among them another
    key's and operators' go on. So it is after a crash, too: then only the records tell."""
    lab, singles, wide, width = own_lab, 300, 64, 64
    first, second = Issuer(lab), Issuer(lab, "second.example")
    document = policy(2, limits={"leases": 65536})
    for tenant in document["tenants"]:
        (many,) = (each for each in tenant["endpoints"] if each["name"] == "many")
        many["listen"] = f"{MANY}-{MANY + 3 * singles + wide * width - 1}"
    lab.push(document)
    trust(lab, first.anchor(), second.anchor())
    unused = itertools.count(MANY)

    def take(count: int) -> list[int]:
        return list(itertools.islice(unused, count))

    def name(port: int) -> str:
        return f"many@{HOSTS['tenant-a'].v4}:{port}"

    def lease(issuer: Issuer, leases: int, slots: int) -> list[int]:
        """The ports of so many leases of so many slots each."""
        leased = [take(slots) for _ in range(leases)]
        batch = [{"tenant": A, "endpoints": [name(port) for port in each], "operations": ["connect"], "ttl": "300s"} for each in leased]
        path = lab.dir / "batch.json"
        path.write_text(json.dumps(batch))
        with Control(lab.socket_path, 60) as control:
            for token in issuer.tokens("--from", path, life="300s"):
                control.call("lease.grant", {"token": as_bytes(token)})
        return sum(leased, [])

    mine, others, operators = [], [], []
    for _ in range(4):  # between one another
        mine += lease(first, singles // 4, 1) + lease(first, wide // 4, width)
        others += lease(second, singles // 4, 1)
        operators += (ports := take(singles // 4))
        lab.grant_many([{"tenant": A, "endpoints": [name(port)], "ttl": "300s"} for port in ports])

    def lives(leases: int, *passing: list[int]) -> None:
        wanted = set(sum(passing, []))
        asked = [port for ports in (mine, others, operators) for port in (*ports[::9], ports[-1])]
        probes = [Probe("client", "tenant-a", udp(port)) for port in asked]
        for probe in probes:
            probe.marker = probes[0].marker
        with lab.capture("tenant-a", probes[0].marker) as capture:
            arrive = 0
            for at in range(0, len(probes), 32):  # no more at once than the receiver's buffer holds
                lab.send("client", [probe.frame() for probe in probes[at : at + 32]])
                arrive += sum(port in wanted for port in asked[at : at + 32])
                wait_until(lambda arrive=arrive: len(capture.drain()) >= arrive, 3, "what is leased arrives")
            assert ports_of(capture.drain()) == wanted.intersection(asked)
        wait_until(lambda: lab.ask("status")["leases"]["live"] == leases, 5, "what ended is not counted any more")

    lives(wide + 3 * singles, mine, others, operators)
    assert revoke(lab, f"key:{inspected(lab, one(first))['head']['key']}") == wide + singles
    lives(2 * singles, others, operators)
    lab.kill()
    lab.start()
    lives(2 * singles, others, operators)
    assert revoke(lab, f"key:{inspected(lab, one(second))['head']['key']}") == singles
    lives(singles, operators)
    # What ended is free again, the first and the last of it.
    for port in (mine[0], mine[-1], others[-1]):
        lab.grant(A, name(port))


def test_a_lease_stands_on_its_last_token(lab: Lab, issuer: Issuer) -> None:
    """Renewed by another key it ends with that one, and not with the first."""
    second = Issuer(lab, "second.example")
    trust(lab, issuer.anchor(), second.anchor())
    lease = granted(lab, one(issuer, A))
    words = (A, "--lease", lease["id"], "--generation", lease["generation"], "--operation", "connect")
    granted(lab, second.issue(*words, kind="renew"), verb="renew")
    assert revoke(lab, f"key:{inspected(lab, one(issuer))['head']['key']}") == 0
    passes(lab, WEB_A)
    assert revoke(lab, f"key:{inspected(lab, one(second))['head']['key']}") == 1
    down(lab, WEB_A, lease)


def test_a_holder(lab: Lab, issuer: Issuer) -> None:
    """What is made out to it, and what it presents; its leases, whoever made them."""
    named = one(issuer, A, "--holder", f"uid:{HOLDER}")
    lease, other = granted(lab, named), granted(lab, one(issuer, B), uid=OTHER)
    by_operator = lab.grant(A, "echo", holder=f"uid:{HOLDER}")
    assert revoke(lab, f"holder:uid:{HOLDER}") == 2
    down(lab, WEB_A, lease)
    passes(lab, WEB_B)
    assert answers(lab, lease, other) == ["revoked", "good"]
    assert set(lab.leases()) == {other["id"]} and by_operator["id"] not in lab.leases()
    refused(lab, one(issuer, A, "--holder", f"uid:{HOLDER}"), "revoked")
    refused(lab, one(issuer, A), "revoked")
    granted(lab, one(issuer, A), uid=OTHER)
    # Anybody's use token, shown by it.
    words = ("--lease", other["id"], "--generation", other["generation"])
    anybodys = one(issuer, B, *words, kind="use").read_text()
    with VerifySock(lab.dir / "run" / "verify.sock") as service:
        checks = [Check(anybodys, "connect", other["resources"][0], f"uid:{uid}") for uid in (HOLDER, OTHER)]
        assert [service.reason(each) for each in checks] == ["revoked", "good"]


def test_all_before_some_time(lab: Lab, issuer: Issuer) -> None:
    """Of an issuer, for one tenant or all: what was issued by then is void, what comes after is good."""
    first, second = granted(lab, one(issuer, A)), granted(lab, one(issuer, B))
    kept = one(issuer, A)
    assert revoke(lab, f"issuer:{issuer.name}", "--tenant", A) == 1
    down(lab, WEB_A, first)
    passes(lab, WEB_B)
    refused(lab, kept, "revoked")
    time.sleep(1.1)  # iat counts whole seconds: of the one that was revoked nothing is good
    third = granted(lab, one(issuer, A))
    passes(lab, WEB_A)
    # A time that is over means what was issued before it.
    ago = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert revoke(lab, f"issuer:{issuer.name}", "--issued-before", ago) == 0
    passes(lab, WEB_A)
    assert revoke(lab, f"issuer:{issuer.name}") == 2
    down(lab, WEB_A, third)
    down(lab, WEB_B, second)
    shown = [(each["what"], each["tenant"]) for each in revocations(lab)]
    assert sorted(shown, key=str) == sorted([(f"issuer:{issuer.name}", A), (f"issuer:{issuer.name}", None)], key=str)


def test_who_may(lab: Lab, issuer: Issuer) -> None:
    """Operators change it; a holder of tokens neither changes nor reads it. A mistake changes nothing."""
    for words in (["revoke", "holder:uid:1"], ["restore", "holder:uid:1"], ["show"]):
        done = lab.try_cli("trust", *words, prefix=as_uid(HOLDER))
        assert done.returncode == 1 and json.loads(done.stderr)["error"]["class"] == "denied", done
    for words, said in (
        (["revoke", "lease:1"], "names nothing"),
        (["revoke", "key:12"], "names nothing"),
        (["revoke", "holder:root"], "is not a holder"),
        (["revoke", "holder:uid:04001"], "is not a holder"),
        (["revoke", "issuer:x", "--tenant", "t" * 257], "that long"),
        (["revoke", "issuer:x", "--issued-before", "2999-01-01T00:00:00Z"], "5m ahead"),
        (["revoke", "holder:uid:1", "--tenant", A], "narrows"),
        (["restore", "holder:uid:1"], "is not revoked"),
    ):
        assert said in lab.cli_refused("trust", *words)
    assert "no time" in lab.cli_refused("trust", "revoke", "issuer:x", "--issued-before", "noon", exit_code=2)
    assert revocations(lab) == []
    text = lab.try_cli("trust", "show", json_output=False).stdout
    assert issuer.name in text and "current" in text


def test_many_of_them(own_lab: Lab) -> None:
    """More than one answer holds: shown page by page."""
    lab = own_lab
    with Control(lab.socket_path) as control:
        for number in range(1100):
            control.call("trust.revoke", {"what": f"holder:uid:{number}"})
        assert len(control.call("trust.show")["revocations"]) < 1100
    assert [each["what"] for each in revocations(lab)] == [f"holder:uid:{number}" for number in range(1100)]
    assert lab.ask("status")["tokens"]["revocations"] == 1100


def test_over_a_crash(own_lab: Lab) -> None:
    """G11: killed right after the answer it is still revoked; a list that is damaged is no empty one."""
    lab = own_lab
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    token, lease = one(issuer, A), granted(lab, one(issuer, B), uid=OTHER)
    revoke(lab, f"token:{inspected(lab, token)['leaf']}")
    revoke(lab, f"holder:uid:{HOLDER}")
    lab.kill()
    lab.start()
    assert len(revocations(lab)) == 2
    refused(lab, token, "revoked", uid=OTHER)
    refused(lab, one(issuer, A), "revoked")
    assert lease["id"] in lab.leases()

    lab.stop()
    path = lab.dir / "state" / "revocations"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = lab.try_start()
    assert done.returncode == 1 and "revocations_damaged" in done.stderr and str(path) in done.stderr
    path.write_bytes(good)
    lab.start()
    refused(lab, one(issuer, A), "revoked")
    lab.cli("trust", "restore", f"holder:uid:{HOLDER}")
    granted(lab, one(issuer, A))


def test_a_disk_that_is_full(own_lab: Lab) -> None:
    """Not written: said so, and in force all the same until the daemon ends."""
    lab = own_lab
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    lease = granted(lab, one(issuer, A))
    # A directory where the file should come is not overwritten.
    (lab.dir / "state" / "revocations").mkdir()
    (lab.dir / "state" / "revocations" / "full").touch()
    error = lab.cli_refused("trust", "revoke", f"holder:uid:{HOLDER}")
    assert "until the daemon ends" in error
    down(lab, WEB_A, lease)
    refused(lab, one(issuer, A), "revoked")


