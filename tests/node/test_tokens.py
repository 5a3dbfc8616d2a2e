"""Leases by token: who may be granted what with a signature, and every way in which a token is refused.

Covers G3, G10, G11 and L2, L3, L5 (theft), L13, P5, A1. Each refusal stands beside its control, and the counter of
the named reason rises by exactly the tokens presented. The tokens' own format: tests/unit/token.
"""

import json
import pathlib
import re
import subprocess
import time

import pytest
from issuer import Issuer, as_uid, trust
from lab import A, B, Lab, wait_until
from packets import Probe, denied, passes, syn

HOLDER, STRANGER = 4001, 4002
WEB = Probe("client", "tenant-a", syn())


def refused_so_far(lab: Lab) -> dict[str, int]:
    return lab.ask("status")["tokens"]["refused"]


def present(lab: Lab, token: pathlib.Path, uid: int = HOLDER, verb: str = "grant") -> subprocess.CompletedProcess:
    return lab.try_cli("lease", verb, "--token", token, prefix=as_uid(uid))


def granted(lab: Lab, token: pathlib.Path, uid: int = HOLDER, verb: str = "grant") -> dict:
    done = present(lab, token, uid, verb)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(lab: Lab, token: pathlib.Path, reason: str, uid: int = HOLDER, verb: str = "grant", told: str = "") -> None:
    """Refused for that reason and no other; who presents it is told `told`, or the reason."""
    before = refused_so_far(lab)
    done = present(lab, token, uid, verb)
    assert done.returncode == 1, done
    assert json.loads(done.stderr)["error"]["code"] == (told or reason), done.stderr
    assert refused_so_far(lab) == before | {reason: before.get(reason, 0) + 1}


def inspected(lab: Lab, token: str) -> dict:
    path = lab.dir / "shown"
    path.write_text(token)
    return lab.cli("token", "inspect", path)


# ---- granting ----------------------------------------------------------------------------------------------


def test_a_holder_opens_its_own_lease(lab: Lab, issuer: Issuer) -> None:
    """L2, A1: a user in no group of ours, with a token, gets the lease it names, and no other."""
    token = issuer.issue(A, "--endpoint", "web", "--holder", f"uid:{HOLDER}", "--ttl", "40s", "--operation", "connect")
    denied(lab, WEB, "no_lease", "from_uplink")
    lease = granted(lab, token)
    passes(lab, WEB)
    denied(lab, Probe("client", "tenant-b", syn()), "no_lease", "from_uplink")
    assert lease["tenant"] == A and lease["holder"] == f"uid:{HOLDER}"
    assert 30e9 < lease["remaining_ns"] <= 40e9
    # Without a token the same user may not.
    done = lab.try_cli("lease", "grant", A, "--endpoint", "echo", prefix=as_uid(HOLDER))
    assert done.returncode == 1 and "not_operator" in done.stderr
    lab.cli("lease", "revoke", lease["id"])
    denied(lab, WEB, "no_lease", "from_uplink")


def test_the_use_token_says_what_was_opened(lab: Lab, issuer: Issuer) -> None:
    """L13: minted after read-back, by the node's key, for as long as the lease lives."""
    token = issuer.issue(A, "--endpoint", "web", "--endpoint", "echo", "--peer", "192.0.2.0/24", "--operation", "connect")
    lease = granted(lab, token)
    status = lab.ask("status")
    shown = inspected(lab, lease["token"])
    claims, head = shown["claims"], shown["head"]
    assert head["kind"] == "use" and head["epoch"] == status["epoch"]
    assert claims["issuer"] == claims["audience"] == status["node"]
    assert (claims["lease"], claims["generation"]) == (lease["id"], lease["generation"])
    assert claims["endpoints"] == sorted(lease["resources"]) and claims["egress"] == []
    assert claims["operations"] == ["connect"] and claims["peer"] == "192.0.2.0/24"
    assert claims["holder"] == f"uid:{HOLDER}"
    claims = inspected(lab, granted(lab, issuer.issue(A, "--egress", "a0"))["token"])["claims"]
    assert claims["egress"] == ["a0"] and claims["endpoints"] == []
    # It opens nothing by itself.
    path = lab.dir / "used"
    path.write_text(lease["token"])
    path.chmod(0o444)
    refused(lab, path, "wrong_kind")


def test_repeated_grants_find_their_lease_and_ended_ones_stay_ended(lab: Lab, issuer: Issuer) -> None:
    """L5, G11: a token makes one lease: asked again while that lives it is the same one, afterwards there is none."""
    token = issuer.issue(A, "--endpoint", "web")
    first = granted(lab, token)
    again = granted(lab, token)
    assert (again["id"], again["generation"]) == (first["id"], first["generation"])
    lab.cli("lease", "revoke", first["id"])
    refused(lab, token, "already_used")
    denied(lab, WEB, "no_lease", "from_uplink")


def test_no_lease_outlives_its_token(lab: Lab, issuer: Issuer) -> None:
    """L3: the term is the token's, and at most what the token has left."""
    lease = granted(lab, issuer.issue(A, "--endpoint", "web", "--ttl", "300s", life="20s"))
    assert lease["remaining_ns"] <= 20e9


def test_a_grant_that_fails_spends_nothing(lab: Lab, issuer: Issuer) -> None:
    """G14: refused because the endpoint is held; once it is free the same token serves."""
    held = lab.grant(A, "web")
    token = issuer.issue(A, "--endpoint", "web")
    done = present(lab, token)
    assert done.returncode == 1 and "already_leased" in done.stderr
    lab.revoke(held)
    granted(lab, token)
    unknown = issuer.issue(A, "--endpoint", "nothing")
    assert "no_such_endpoint" in present(lab, unknown).stderr


# ---- refusals ----------------------------------------------------------------------------------------------


def test_a_stolen_token(lab: Lab, issuer: Issuer) -> None:
    """L5: made out to one user, presented by another."""
    token = issuer.issue(A, "--endpoint", "web", "--holder", f"uid:{HOLDER}")
    refused(lab, token, "wrong_holder", STRANGER)
    denied(lab, WEB, "no_lease", "from_uplink")
    granted(lab, token)


def test_whose_signature_counts(lab: Lab, issuer: Issuer) -> None:
    """G10, P5: before a signature holds a stranger learns only that it is denied; operators learn why."""
    status = lab.ask("status")
    stranger = Issuer(lab, "other.example")
    words = (A, "--endpoint", "web")
    for token, reason in [
        (stranger.issue(*words), "unknown_key"),
        (issuer.issue(*words, node="ni:///sha-256;" + "A" * 43), "wrong_audience"),
        (issuer.issue(*words, epoch=status["epoch"] - 1), "stale_epoch"),
        (damaged(issuer.issue(*words)), "bad_signature"),
    ]:
        refused(lab, token, reason, told="denied")
        refused(lab, token, reason, uid=0)
    granted(lab, issuer.issue(*words))


def damaged(token: pathlib.Path) -> pathlib.Path:
    """The last bit of the claims' last text turned over."""
    from base64 import urlsafe_b64decode, urlsafe_b64encode

    text = token.read_text().strip()
    data = bytearray(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    at = bytes(data).rindex(b"web") + 2
    data[at] ^= 1
    token.chmod(0o644)
    token.write_text(urlsafe_b64encode(bytes(data)).decode().rstrip("="))
    return token


def test_what_an_issuer_may_not(lab: Lab) -> None:
    """G13: one for tenant A's only cannot speak for B, nor allow what it was not given."""
    issuer = Issuer(lab)
    trust(lab, issuer.anchor(tenants=[A]))
    refused(lab, issuer.issue(B, "--endpoint", "web"), "tenant_not_allowed")
    refused(lab, issuer.issue(A, "--endpoint", "web", "--operation", "erase"), "operation_not_allowed")
    granted(lab, issuer.issue(A, "--endpoint", "web", "--operation", "connect"))
    trust(lab, issuer.anchor(uses=["bundle"]))
    refused(lab, issuer.issue(A, "--endpoint", "echo"), "key_not_for_tokens", told="denied")
    trust(lab)


def test_expired_while_it_waited(lab: Lab, issuer: Issuer) -> None:
    """L2: one second after its end it opens nothing."""
    token = issuer.issue(A, "--endpoint", "web", life="2s")
    time.sleep(3)
    refused(lab, token, "head_expired", told="denied")


def test_revoking_a_key_ends_its_leases(lab: Lab, issuer: Issuer) -> None:
    """L13: a key that is not trusted any more: its tokens are refused, its leases torn down, others' go on."""
    by_token = granted(lab, issuer.issue(A, "--endpoint", "web"))
    by_operator = lab.grant(A, "echo")
    passes(lab, WEB)
    trust(lab, issuer.anchor(state="retiring"))
    passes(lab, WEB)
    trust(lab, issuer.anchor(state="revoked"))
    wait_until(lambda: by_token["id"] not in lab.leases(), 10, "the lease of the revoked key is torn down")
    denied(lab, WEB, "no_lease", "from_uplink")
    assert list(lab.leases()) == [by_operator["id"]]
    refused(lab, issuer.issue(A, "--endpoint", "web"), "key_not_live", told="denied")


# ---- renewing ----------------------------------------------------------------------------------------------


def renewal(issuer: Issuer, lease: dict, tenant: str = A, **changes: object) -> pathlib.Path:
    words = {"lease": lease["id"], "generation": lease["generation"], "ttl": "200s"} | changes
    return issuer.issue(tenant, *(w for name, value in words.items() for w in (f"--{name}", value)), kind="renew", life="250s")


def test_renewing_by_token(lab: Lab, issuer: Issuer) -> None:
    """L3, L13: once for each generation; a token of the generation before is old."""
    lease = granted(lab, issuer.issue(A, "--endpoint", "web", "--ttl", "50s"))
    token = renewal(issuer, lease)
    renewed = granted(lab, token, verb="renew")
    assert renewed["id"] == lease["id"] and renewed["generation"] > lease["generation"]
    assert renewed["remaining_ns"] > 150e9
    assert inspected(lab, renewed["token"])["claims"]["generation"] == renewed["generation"]
    refused(lab, token, "old_generation", verb="renew")
    passes(lab, WEB)
    for other, reason in [
        (renewal(issuer, renewed, tenant=B), "no_lease"),
        (renewal(issuer, renewed | {"id": "00" * 16}), "no_lease"),
        (issuer.issue(A, "--endpoint", "echo"), "wrong_kind"),
    ]:
        refused(lab, other, reason, verb="renew")
    refused(lab, renewal(issuer, renewed), "wrong_holder", STRANGER, verb="renew")


# ---- what the node remembers -------------------------------------------------------------------------------


def test_over_a_restart(own_lab: Lab) -> None:
    """G11: killed and started again the node is the same, in the same epoch, and knows what it took."""
    lab = own_lab
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    lab.serve_all()
    first, second = (issuer.issue(A, "--endpoint", name) for name in ("web", "echo"))
    lease = granted(lab, first)
    ended = granted(lab, second)
    lab.cli("lease", "revoke", ended["id"])
    before = lab.ask("status")
    lab.kill()
    lab.start()
    after = lab.ask("status")
    assert (after["node"], after["epoch"]) == (before["node"], before["epoch"])
    assert granted(lab, first)["id"] == lease["id"]
    refused(lab, second, "already_used")
    passes(lab, WEB)
    # Of a key that was taken out meanwhile the leases end at the start.
    lab.kill()
    trust(lab)
    lab.start()
    wait_until(lambda: not lab.leases(), 10, "the lease of a key that is not trusted ends")
    denied(lab, WEB, "no_lease", "from_uplink")


@pytest.mark.parametrize("loss", ["spent is gone", "spent is damaged", "identity is gone", "identity is damaged"])
def test_lost_state_begins_an_epoch(own_lab: Lab, loss: str) -> None:
    """G11, G12: what was used is not known any more, so that tokens of before count no more."""
    lab = own_lab
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    before = lab.ask("status")
    tokens = [issuer.issue(A, "--endpoint", name) for name in ("web", "echo", "files")]
    for token in tokens[:2]:
        lab.cli("lease", "revoke", granted(lab, token)["id"])
    lab.stop()
    name, how = loss.split(" is ")
    path = lab.dir / "state" / name
    if how == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    lab.start()
    after = lab.ask("status")
    assert after["node"] == before["node"] and after["epoch"] > before["epoch"]
    for token in tokens:
        refused(lab, token, "stale_epoch", told="denied")
    granted(lab, issuer.issue(A, "--endpoint", "web"))


def test_keys_that_cannot_be_trusted(own_lab: Lab) -> None:
    """P5: a node's key that others may read, or that is another's, or an anchors file with a mistake: refused by name."""
    lab = own_lab
    lab.stop()
    key = lab.dir / "state" / "node.key"
    good = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o400
    key.chmod(0o444)
    done = lab.try_start()
    assert done.returncode == 1 and "key_exposed" in done.stderr and str(key) in done.stderr
    key.unlink()
    other = Issuer(lab, "other.example")
    key.write_bytes(other.key.read_bytes())
    key.chmod(0o400)
    done = lab.try_start()
    assert done.returncode == 1 and "node_key_changed" in done.stderr
    key.unlink()
    key.write_bytes(good)
    key.chmod(0o400)
    anchors = lab.dir / "config" / "anchors.yaml"
    anchors.write_text("version: 1\nanchors:\n  - issuer: cp\n")
    done = lab.try_start()
    assert done.returncode == 1 and f"{anchors}:3" in done.stderr
    anchors.unlink()
    lab.start()


def test_command_lines_that_say_it_twice(lab: Lab) -> None:
    """A token says all: nothing beside it is ignored in silence."""
    for words in [
        ["lease", "grant", A, "--token", "x"],
        ["lease", "grant", "--token", "x", "--endpoint", "web"],
        ["lease", "renew"],
        ["lease", "renew", "0" * 32, "--token", "x"],
    ]:
        assert "--token" in lab.cli_refused(*words, exit_code=2)
    text = lab.dir / "no-token"
    text.write_text("not a token!")
    assert "base64url" in lab.cli_refused("lease", "grant", "--token", text)


def test_nothing_secret_in_the_log(lab: Lab, issuer: Issuer) -> None:
    """G16: neither tokens nor keys."""
    token = issuer.issue(A, "--endpoint", "web")
    lease = granted(lab, token)
    for secret in (token.read_text().strip(), lease["token"]):
        assert secret[:60] not in lab.log
    assert not re.search("PRIVATE KEY", lab.log)
