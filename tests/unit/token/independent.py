"""Holdfast's tokens a second time, from userspace/token/README.md alone: own CBOR, own Ed25519, own trees.

Slow and plain. What it says of a token has to be what the C++ says, reason for reason.
"""

import base64
import hashlib

# ---- Ed25519 (RFC 8032, section 5.1), with one encoding for each signature ---------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def add(a, b):
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    e, f = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    g, h = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar, point):
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def same(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def point_of(encoded):
    """None unless it is the one encoding of a point whose order is not small."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT % P
    if x * x % P != square or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    point = (x, y, 1, x * y % P)
    return None if same(times(8, point), (0, 1, 1, 0)) else point


BASE = point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def encode_point(point):
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def hash_scalar(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def secret_of(seed):
    digest = hashlib.sha512(seed).digest()
    return int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254, digest[32:]


def public_of(seed):
    return encode_point(times(secret_of(seed)[0], BASE))


def sign(seed, message):
    scalar, prefix = secret_of(seed)
    nonce = hash_scalar(prefix, message) % L
    r = encode_point(times(nonce, BASE))
    challenge = hash_scalar(r, public_of(seed), message) % L
    return r + ((nonce + challenge * scalar) % L).to_bytes(32, "little")


def is_signed(key, message, signature):
    a, r = point_of(key), point_of(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    challenge = hash_scalar(signature[:32], key, message) % L
    return same(times(s, BASE), add(r, times(challenge, a)))


# ---- CBOR (RFC 8949, section 4.2.1) ------------------------------------------------------------------------


class Malformed(Exception):
    pass


def head(major, value):
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 24:
            return bytes([major << 5 | value])
        if value < 1 << 8 * size:
            return bytes([major << 5 | info]) + value.to_bytes(size, "big")
    raise ValueError(value)


def encode(value):
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    pairs = sorted((encode(key), encode(item)) for key, item in value.items())
    return head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


class Reader:
    """Items one after the other; what is not the shortest form of what is asked for raises Malformed."""

    def __init__(self, data, size_max):
        if len(data) > size_max:
            raise Malformed
        self.data, self.at = data, 0

    def take(self, size):
        if self.at + size > len(self.data):
            raise Malformed
        self.at += size
        return self.data[self.at - size : self.at]

    def head(self, *majors):
        first = self.take(1)[0]
        major, value = first >> 5, first & 31
        if major not in majors or value > 27:
            raise Malformed
        if value >= 24:
            size = 1 << value - 24
            value = int.from_bytes(self.take(size), "big")
            if value < (24 if size == 1 else 1 << 4 * size):
                raise Malformed
        return major, value

    def unsigned(self):
        return self.head(0)[1]

    def integer(self):
        major, value = self.head(0, 1)
        if value >= 1 << 63:
            raise Malformed
        return value if major == 0 else -1 - value

    def bytes(self, size=None):
        data = self.take(self.head(2)[1])
        if size not in (None, len(data)):
            raise Malformed
        return data

    def text(self):
        data = self.take(self.head(3)[1])
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise Malformed from None

    def named(self):
        text = self.text()
        if not text:
            raise Malformed
        return text

    def array(self, *counts):
        count = self.head(4)[1]
        if counts and count not in counts or count > len(self.data) - self.at:
            raise Malformed
        return count

    def keys(self, count=None):
        """Enters a map and gives its integer keys, each before its value is read."""
        there = self.head(5)[1]
        if count not in (None, there) or there > len(self.data) - self.at:
            raise Malformed
        last = b""
        for _ in range(there):
            begin = self.at
            key = self.integer()
            if self.data[begin : self.at] <= last:
                raise Malformed
            last = self.data[begin : self.at]
            yield key

    def exactly(self, *keys):
        """A map with these keys and no others."""
        found = self.keys(len(keys))
        for key in keys:
            if next(found) != key:
                raise Malformed
            yield key

    def skip(self, depth=1):
        major, value = self.head(0, 1, 2, 3, 4, 5, 7)
        if major == 7:
            if value not in (20, 21, 22):
                raise Malformed
        elif major in (2, 3):
            data = self.take(value)
            if major == 3:
                try:
                    data.decode()
                except UnicodeDecodeError:
                    raise Malformed from None
        elif major == 4:
            if depth >= 3:
                raise Malformed
            for _ in range(value):
                self.skip(depth + 1)
        elif major == 5:
            if depth >= 3:
                raise Malformed
            last = b""
            for _ in range(value):
                begin = self.at
                if self.data[begin : begin + 1] and self.data[begin] >> 5 > 3:
                    raise Malformed
                self.skip(depth + 1)
                if self.data[begin : self.at] <= last:
                    raise Malformed
                last = self.data[begin : self.at]
                self.skip(depth + 1)

    def null(self):
        if self.take(1) != b"\xf6":
            raise Malformed

    def finish(self):
        if self.at != len(self.data):
            raise Malformed


# ---- trees (RFC 9162, section 2.1) -------------------------------------------------------------------------


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf_hash(leaf):
    return sha(b"\0", leaf)


def split(size):
    return 1 << (size - 1).bit_length() - 1


def root_of(leaves):
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha(b"\1", root_of(leaves[:k]), root_of(leaves[k:]))


def path_of(index, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*path_of(index, leaves[:k]), root_of(leaves[k:])]
    return [*path_of(index - k, leaves[k:]), root_of(leaves[:k])]


def root_by(leaf, index, size, path):
    """Top down; None if the path's length is wrong."""
    if size == 1:
        return leaf if not path else None
    if not path:
        return None
    k = split(size)
    if index < k:
        below = root_by(leaf, index, k, path[:-1])
        return below and sha(b"\1", below, path[-1])
    below = root_by(leaf, index - k, size - k, path[:-1])
    return below and sha(b"\1", path[-1], below)


# ---- tokens ------------------------------------------------------------------------------------------------

KINDS = {f"application/holdfast-{kind}+cwt": kind for kind in ("grant", "renew", "use")}
PRIVATE = -65537
LIFE_MAX_S, SKEW_S = 300, 30
TENANT, ENDPOINTS, EGRESS, OPERATIONS, PEER, HOLDER, TTL, LEASE, GENERATION = range(1, 10)
COMMON = {1, 3, 4, 5, 6, 7, PRIVATE}


class Refused(Exception):
    pass


def to_text(token):
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def from_text(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def thumbprint(key):
    return sha(encode({1: 1, -1: 6, -2: key}))


def node_name(key):
    return "ni:///sha-256;" + to_text(thumbprint(key))


def to_be_signed(kind, header, root):
    return encode(["Signature1", header, f"holdfast {kind} token v1".encode(), root])


def issue(seed, kind, issuer, audience, expires, epoch, all_claims):
    """`all_claims`: maps as they are encoded. A token for each."""
    header = encode(
        {
            1: -19,
            4: thumbprint(public_of(seed)),
            15: {1: issuer, 3: audience, 4: expires},
            16: f"application/holdfast-{kind}+cwt",
            395: 1,
            PRIVATE: {1: len(all_claims), 2: epoch},
        }
    )
    leaves = [encode(claims) for claims in all_claims]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    signature = sign(seed, to_be_signed(kind, header, root_of(hashes)))
    return [
        encode([[header, {396: {-1: [encode([len(leaves), index, path_of(index, hashes)])]}}, None, signature], leaf])
        for index, leaf in enumerate(leaves)
    ]


def make_proof(seed, node, epoch, challenge):
    """That who has a key is at the other end of a connection."""
    header = encode({1: -19, 16: "application/holdfast-holder-proof+cwt"})
    key = {1: 1, -1: 6, -2: public_of(seed)}
    payload = encode({3: node, 8: {1: key}, 10: challenge, PRIVATE: {1: epoch}})
    signature = sign(seed, encode(["Signature1", header, b"holdfast holder proof v1", payload]))
    return encode([header, {}, payload, signature])


def make_signed(seed, purpose, audience, issued, private, content, expires=None):
    """Content under a signature for one purpose. PRIVATE: the labels of the header that are ours, as README.md numbers them."""
    claims = {3: audience, 6: issued} | ({4: expires} if expires is not None else {})
    header = {1: -19, 4: thumbprint(public_of(seed)), 15: claims, 16: f"application/holdfast-{purpose}+cose"}
    header = encode(header | {PRIVATE: private})
    signature = sign(seed, encode(["Signature1", header, f"holdfast {purpose} v1".encode(), content]))
    return encode([header, {}, content, signature])


def take_signed(data, purpose, privates):
    """What make_signed() made for this purpose, with these labels under PRIVATE: what it says, and check(key) for who signed."""
    reader = Reader(data, 1 << 20)
    reader.array(4)
    header = reader.bytes()
    list(reader.keys(0))
    content, signature = reader.bytes(), reader.bytes(64)
    reader.finish()
    if len(header) > 1024:
        raise Malformed
    reader = Reader(header, 1024)
    said = {"content": content, "private": {}}
    for key in reader.exactly(1, 4, 15, 16, PRIVATE):
        if key == 1 and reader.integer() != -19:
            raise Refused("wrong_algorithm")
        if key == 4:
            said["key"] = reader.bytes(32)
        if key == 15:
            said["audience"], said["issued"] = [reader.text() if each == 3 else reader.unsigned() for each in reader.exactly(3, 6)]
        if key == 16 and reader.text() != f"application/holdfast-{purpose}+cose":
            raise Refused("wrong_purpose")
        if key == PRIVATE:
            for each in reader.exactly(*privates):
                said["private"][each] = reader.unsigned() if each in (1, 3, 4, 5) else reader.bytes()
    reader.finish()
    signed = encode(["Signature1", header, f"holdfast {purpose} v1".encode(), content])
    return said, lambda key: thumbprint(key) == said["key"] and is_signed(key, signed, signature)


def epoch_key_of(certificate, node):
    """With what the node of that name signs, and in which epoch."""
    said, is_by = take_signed(certificate, "epoch-key", (1, 7))
    own = said["private"][7]
    if len(own) != 32 or len(said["content"]) != 32:
        raise Malformed
    if said["audience"] != node or node_name(own) != node:
        raise Refused("wrong_node")
    if not is_by(own):
        raise Refused("bad_signature")
    return said["content"], said["private"][1]


def own_anchors(certificate, node):
    """Who signs the use tokens of that node, as verify() takes it."""
    key, _ = epoch_key_of(certificate, node)
    return {thumbprint(key): {"issuer": node, "key": key, "state": "current", "uses": ["token"], "tenants": ["*"], "operations": ["*"]}}


def read_header(data):
    reader = Reader(data, 512)
    found = {}
    for key in reader.keys():
        if key == 1:
            found["algorithm"] = reader.integer()
        elif key == 2:
            reader.skip()
            raise Refused("unknown_critical")
        elif key == 4:
            found["key"] = reader.bytes(32)
        elif key == 15:
            claims = [reader.unsigned() if each == 4 else reader.text() for each in reader.exactly(1, 3, 4)]
            found["issuer"], found["audience"], found["expires"] = claims
        elif key == 16:
            found["type"] = reader.text()
        elif key == 395:
            found["structure"] = reader.unsigned()
        elif key == PRIVATE:
            found["size"], found["epoch"] = [reader.unsigned() for _ in reader.exactly(1, 2)]
            if not 1 <= found["size"] <= 1 << 20:
                raise Malformed
        else:
            raise Refused("unknown_header")
    reader.finish()
    if len(found) != 9:
        raise Malformed
    if found["algorithm"] != -19 or found["structure"] != 1:
        raise Refused("wrong_algorithm")
    if found["type"] not in KINDS:
        raise Refused("wrong_type")
    return found | {"kind": KINDS[found["type"]]}


def read_names(reader):
    names = [reader.named() for _ in range(reader.array(*range(1, 65)))]
    if names != sorted(set(names), key=str.encode):
        raise Malformed
    return names


def read_claims(data, kind):
    reader = Reader(data, 2048)
    found, ours = {}, {}
    for key in reader.keys():
        if key in (1, 3):
            found[key] = reader.named()
        elif key in (4, 5, 6):
            found[key] = reader.unsigned()
        elif key == 7:
            found[key] = reader.bytes(16)
        elif key == 8:
            for _ in reader.exactly(5):
                found[key] = reader.bytes(32)
        elif key == PRIVATE:
            found[key] = ours
            for own in reader.keys():
                if own in (TENANT, PEER, HOLDER):
                    ours[own] = reader.named()
                elif own in (ENDPOINTS, EGRESS, OPERATIONS):
                    ours[own] = read_names(reader)
                elif own in (TTL, GENERATION):
                    ours[own] = reader.unsigned()
                elif own == LEASE:
                    ours[own] = reader.bytes(16)
                else:
                    raise Malformed
        else:
            raise Malformed
    reader.finish()
    texts = [found.get(1), found.get(3), *(ours.get(key) for key in (TENANT, PEER, HOLDER))]
    texts += [name for key in (ENDPOINTS, EGRESS, OPERATIONS) for name in ours.get(key, [])]
    opens = ENDPOINTS in ours or EGRESS in ours
    if (
        not found.keys() >= COMMON
        or TENANT not in ours
        or any(text and len(text.encode()) > 256 for text in texts)
        or (LEASE in ours) != (GENERATION in ours)
        or found[4] <= max(found[5], found[6])
        or opens == (kind == "renew")
        or (LEASE in ours) == (kind == "grant")
        or (TTL in ours) == (kind == "use")
        or not 1 <= ours.get(TTL, 1) <= LIFE_MAX_S
        or (8 in found and HOLDER in ours)
    ):
        raise Malformed
    return found, ours


def verify(token, anchors, node, epoch, now):
    """"good", or the reason of the first check that fails. `anchors`: thumbprint -> dict."""
    try:
        return judge(token, anchors, node, epoch, now)
    except Malformed:
        return "malformed"
    except Refused as refused:
        return str(refused)


def judge(token, anchors, node, epoch, now):
    reader = Reader(token, 4096)
    reader.array(2)
    reader.array(4)
    header = reader.bytes()
    proof = None
    for _ in reader.exactly(396):
        for _ in reader.exactly(-1):
            reader.array(1)
            proof = reader.bytes()
    reader.null()
    signature = reader.bytes(64)
    leaf = reader.bytes()
    reader.finish()
    if len(header) > 512:
        raise Malformed
    said = read_header(header)

    reader = Reader(proof, 4096)
    reader.array(3)
    size, index = reader.unsigned(), reader.unsigned()
    path = [reader.bytes(32) for _ in range(reader.array(*range(21)))]
    reader.finish()
    if size != said["size"] or index >= size:
        raise Refused("bad_proof")
    root = root_by(leaf_hash(leaf), index, size, path)
    if root is None:
        raise Refused("bad_proof")

    if said["audience"] != node:
        raise Refused("wrong_audience")
    if said["epoch"] != epoch:
        raise Refused("stale_epoch")
    anchor = anchors.get(said["key"])
    if anchor is None:
        raise Refused("unknown_key")
    if anchor["state"] not in ("current", "retiring"):
        raise Refused("key_not_live")
    if "token" not in anchor["uses"]:
        raise Refused("key_not_for_tokens")
    if anchor["issuer"] != said["issuer"]:
        raise Refused("wrong_issuer")
    if said["expires"] <= now:
        raise Refused("head_expired")
    if not is_signed(anchor["key"], to_be_signed(said["kind"], header, root), signature):
        raise Refused("bad_signature")

    try:
        claims, ours = read_claims(leaf, said["kind"])
    except Malformed:
        raise Refused("bad_claims") from None
    if (claims[1], claims[3]) != (said["issuer"], said["audience"]):
        raise Refused("claims_differ")
    if claims[6] > now + SKEW_S:
        raise Refused("issued_in_future")
    if claims[5] > now:
        raise Refused("not_yet_valid")
    if claims[4] <= now:
        raise Refused("expired")
    if claims[4] - claims[6] > LIFE_MAX_S:
        raise Refused("life_too_long")
    if not {"*", ours[TENANT]} & set(anchor["tenants"]):
        raise Refused("tenant_not_allowed")
    if any(not {"*", operation} & set(anchor["operations"]) for operation in ours.get(OPERATIONS, [])):
        raise Refused("operation_not_allowed")
    return "good"
