"""Tokens that are good, and one for each way in which they are not: the golden vectors of tests/vectors/tokens.json."""

import independent as own
from independent import EGRESS, ENDPOINTS, GENERATION, HOLDER, LEASE, OPERATIONS, PEER, PRIVATE, TENANT, TTL

NOW = 1_800_000_000
EPOCH = 4
ISSUER = "cp.example"
SEED, RETIRED, BUNDLES, STRANGER = (bytes([number]) * 32 for number in (1, 2, 3, 4))
NODE = own.node_name(own.public_of(bytes([9]) * 32))
OTHER_NODE = own.node_name(own.public_of(bytes([8]) * 32))
TENANTS = ["acme/shop/prod"]
ANCHORS = [
    {"seed": SEED, "state": "current", "uses": ["token"]},
    {"seed": RETIRED, "state": "verify_only", "uses": ["token"]},
    {"seed": BUNDLES, "state": "current", "uses": ["operator"]},
]


def anchors():
    made = {}
    for each in ANCHORS:
        key = own.public_of(each["seed"])
        made[own.thumbprint(key)] = each | {"key": key, "issuer": ISSUER, "tenants": TENANTS, "operations": ["connect"]}
    return made


def claims(kind="grant", changes=None, ours=None):
    """A good one's, but for what is changed; None leaves out."""
    mine = {TENANT: TENANTS[0], ENDPOINTS: ["echo", "web@10.1.0.2:443"], OPERATIONS: ["connect"], TTL: 60}
    if kind == "renew":
        del mine[ENDPOINTS]
    if kind == "use":
        del mine[TTL]
    if kind != "grant":
        mine |= {LEASE: bytes(range(16)), GENERATION: 3}
    mine |= ours or {}
    made = {1: ISSUER, 3: NODE, 4: NOW + 120, 5: NOW - 5, 6: NOW - 5, 7: bytes([7]) * 16, PRIVATE: mine} | (changes or {})
    made[PRIVATE] = {key: value for key, value in made[PRIVATE].items() if value is not None}
    return {key: value for key, value in made.items() if value is not None}


def issue(made=None, kind="grant", seed=SEED, issuer=ISSUER, audience=NODE, expires=NOW + 300, epoch=EPOCH):
    return own.issue(seed, kind, issuer, audience, expires, epoch, [made or claims(kind)])[0]


def signed(leaf, header=None, drop=(), proof=None, kind="grant", unprotected=None):
    """A token of bytes that need not make sense, under a signature that is good."""
    parameters = {
        1: -19,
        4: own.thumbprint(own.public_of(SEED)),
        15: {1: ISSUER, 3: NODE, 4: NOW + 300},
        16: f"application/holdfast-{kind}+cwt",
        395: 1,
        PRIVATE: {1: 1, 2: EPOCH},
    } | (header if isinstance(header, dict) else {})
    encoded = own.encode({key: value for key, value in parameters.items() if key not in drop})
    if isinstance(header, bytes):
        encoded = header
    signature = own.sign(SEED, own.to_be_signed(kind, encoded, own.leaf_hash(leaf)))
    proofs = {396: {-1: [proof if proof is not None else own.encode([1, 0, []])]}}
    return own.encode([[encoded, proofs if unprotected is None else unprotected, None, signature], leaf])


def with_proof(token_claims, size, index, path):
    """One leaf of a tree of five whose proof says something else."""
    tokens = own.issue(SEED, "grant", ISSUER, NODE, NOW + 300, EPOCH, token_claims)
    hashes = [own.leaf_hash(own.encode(each)) for each in token_claims]
    good = own.encode([5, 2, own.path_of(2, hashes)])
    bad = own.encode([size, index, path(own.path_of(2, hashes))])
    return tokens[2].replace(own.encode(good), own.encode(bad))


def cases():
    """(name, reason, token)"""
    five = [claims(changes={7: bytes([number]) * 16}) for number in range(5)]
    batch = own.issue(SEED, "grant", ISSUER, NODE, NOW + 300, EPOCH, five)
    full = claims("use", {8: {5: own.thumbprint(own.public_of(STRANGER))}}, {PEER: "192.0.2.0/24", EGRESS: ["a0"]})
    leaf = own.encode(claims())
    private = own.encode(claims()[PRIVATE])

    yield from ((f"a {kind} token", "good", issue(kind=kind)) for kind in ("grant", "renew", "use"))
    yield "every claim there is", "good", issue(full, "use")
    yield from ((f"leaf {number} of five", "good", token) for number, token in enumerate(batch))

    # What the issuer signed, and the node does not take.
    for name, reason, changes in (
        ("its last second", "good", {4: NOW + 1}),
        ("expired", "expired", {4: NOW}),
        ("nbf ahead", "not_yet_valid", {5: NOW + 1}),
        ("iat within the skew", "good", {6: NOW + 30}),
        ("iat ahead", "issued_in_future", {6: NOW + 31}),
        ("300 s", "good", {6: NOW, 4: NOW + 300}),
        ("301 s", "life_too_long", {6: NOW, 4: NOW + 301}),
        ("another issuer in the claims", "claims_differ", {1: "other.example"}),
        ("another node in the claims", "claims_differ", {3: OTHER_NODE}),
        ("no cti", "bad_claims", {7: None}),
        ("a short cti", "bad_claims", {7: bytes(15)}),
        ("a claim nobody knows", "bad_claims", {9: "scope"}),
        ("a holder's key by itself", "bad_claims", {8: {1: {1: 1, -1: 6, -2: bytes(32)}}}),
        ("a holder's key of 31 bytes", "bad_claims", {8: {5: bytes(31)}}),
        ("expires before it begins", "bad_claims", {4: NOW - 5}),
    ):
        yield name, reason, issue(claims(changes=changes))
    for name, reason, ours in (
        ("another tenant's issuer", "tenant_not_allowed", {TENANT: "globex/crm/prod"}),
        ("an operation beyond the key's", "operation_not_allowed", {OPERATIONS: ["connect", "exec"]}),
        ("an unknown caveat", "bad_claims", {10: 1}),
        ("a term of 301 s", "bad_claims", {TTL: 301}),
        ("a term of 0 s", "bad_claims", {TTL: 0}),
        ("a grant that names a lease", "bad_claims", {LEASE: bytes(16), GENERATION: 1}),
        ("nothing to use", "bad_claims", {ENDPOINTS: None}),
        ("an empty list", "bad_claims", {EGRESS: []}),
        ("a name twice", "bad_claims", {ENDPOINTS: ["echo", "echo"]}),
        ("names out of order", "bad_claims", {ENDPOINTS: ["web", "echo"]}),
        ("text where a list belongs", "bad_claims", {ENDPOINTS: "echo"}),
        ("an empty holder", "bad_claims", {HOLDER: ""}),
        ("no tenant", "bad_claims", {TENANT: None}),
    ):
        yield name, reason, issue(claims(ours=ours))
    yield "a holder", "good", issue(claims(ours={HOLDER: "uid:1000"}))
    yield "a holder and a holder's key", "bad_claims", issue(claims(changes={8: {5: bytes(32)}}, ours={HOLDER: "uid:1000"}))
    yield "a lease without its generation", "bad_claims", issue(claims("use", ours={GENERATION: None}), "use")
    yield "a use token with a term", "bad_claims", issue(claims("use", ours={TTL: 60}), "use")
    yield "a renewal that widens", "bad_claims", issue(claims("renew", ours={EGRESS: ["a0"]}), "renew")

    # Whose signature it is.
    yield "another node's", "wrong_audience", issue(claims(changes={3: OTHER_NODE}), audience=OTHER_NODE)
    yield "a stale epoch", "stale_epoch", issue(epoch=EPOCH - 1)
    yield "an epoch to come", "stale_epoch", issue(epoch=EPOCH + 1)
    yield "a stranger's key", "unknown_key", issue(seed=STRANGER)
    yield "a key kept for history", "key_not_live", issue(seed=RETIRED)
    yield "a key for bundles", "key_not_for_tokens", issue(seed=BUNDLES)
    yield "an issuer by another name", "wrong_issuer", issue(claims(changes={1: "other.example"}), issuer="other.example")
    yield "a head that ended before its token", "head_expired", issue(expires=NOW)
    yield "the last leaf of another tree", "bad_signature", batch[4].replace(own.encode(five[4]), own.encode(five[3]))

    # Trees.
    yield "another index", "bad_signature", with_proof(five, 5, 3, lambda path: path)
    yield "an index beyond the tree", "bad_proof", with_proof(five, 5, 5, lambda path: path)
    yield "another size", "bad_proof", with_proof(five, 6, 2, lambda path: path)
    yield "a path too short", "bad_proof", with_proof(five, 5, 2, lambda path: path[:-1])
    yield "a path too long", "bad_proof", with_proof(five, 5, 2, lambda path: [*path, path[-1]])
    yield "a node of 31 bytes", "malformed", with_proof(five, 5, 2, lambda path: [path[0][:-1], *path[1:]])
    yield "more nodes than any tree has", "malformed", with_proof(five, 5, 2, lambda _: [bytes(32)] * 21)
    yield "an index of 2^63", "bad_proof", with_proof(five, 5, 1 << 63, lambda path: path)
    yield "two proofs", "malformed", signed(leaf, unprotected={396: {-1: [own.encode([1, 0, []])] * 2}})
    yield "no proof", "malformed", signed(leaf, unprotected={396: {-1: []}})
    yield "another unprotected parameter", "malformed", signed(leaf, unprotected={4: b"x", 396: {-1: [own.encode([1, 0, []])]}})
    yield "an empty tree", "malformed", signed(leaf, {PRIVATE: {1: 0, 2: EPOCH}})
    yield "a tree of more than 2^20", "malformed", signed(leaf, {PRIVATE: {1: (1 << 20) + 1, 2: EPOCH}})

    # Headers.
    yield "a critical parameter", "unknown_critical", signed(leaf, {2: [99], 99: 1})
    yield "an unknown parameter", "unknown_header", signed(leaf, {99: 1})
    yield "EdDSA by its old number", "wrong_algorithm", signed(leaf, {1: -8})
    yield "another kind of tree", "wrong_algorithm", signed(leaf, {395: 2})
    yield "a type nobody knows", "wrong_type", signed(leaf, {16: "application/cwt"})
    yield from ((f"no parameter {key}", "malformed", signed(leaf, drop=[key])) for key in (1, 4, 15, 16, 395, PRIVATE))
    yield "a header of 513 bytes", "malformed", signed(leaf, {16: "x" * 400})
    yield "signed as another kind", "bad_signature", renamed()

    # CBOR.
    yield "a key twice", "bad_claims", signed(b"\xa8" + own.encode(1) + own.encode(ISSUER) + leaf[1:])
    yield "keys out of order", "bad_claims", signed(b"\xa7" + leaf[1 + 12 :] + leaf[1 : 1 + 12])
    yield "an indefinite map", "bad_claims", signed(b"\xbf" + leaf[1:] + b"\xff")
    yield "a long integer", "bad_claims", signed(leaf.replace(own.encode(NOW + 120), b"\x1b" + (NOW + 120).to_bytes(8, "big")))
    yield "a float", "bad_claims", signed(leaf.replace(own.encode(NOW + 120), b"\xfb" + bytes(8)))
    yield "a tag", "bad_claims", signed(leaf.replace(private, b"\xc0" + private))
    yield "a huge length", "bad_claims", signed(leaf[:-1] + b"\x5b" + b"\xff" * 8)
    yield "deep nesting", "bad_claims", signed(leaf.replace(private, b"\x81" * 40 + b"\x80"))
    yield "something behind the claims", "bad_claims", signed(leaf + b"\xf6")
    yield "text that is no UTF-8", "bad_claims", signed(leaf.replace(b"acme/shop", b"acme\xff" + b"shop"))
    yield "claims of 2049 bytes", "bad_claims", issue(claims(ours={ENDPOINTS: [f"{number:02}" + "x" * 250 for number in range(8)]}))
    yield "a token of 4097 bytes", "malformed", signed(bytes(4097))
    yield "nothing", "malformed", b""
    yield "a tagged receipt", "malformed", issue().replace(b"\x82\x84", b"\x82\xd2\x84", 1)
    yield "an attached payload", "malformed", issue().replace(b"\xf6\x58\x40", b"\x41\x00\x58\x40", 1)


def renamed():
    """The signature is over the context of a grant; the header says use."""
    use = claims("use")
    return signed(own.encode(use), {16: "application/holdfast-use+cwt"})
