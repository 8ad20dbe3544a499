"""Makes larder v1 bytes for vectors, cases and the reader's test.

It is a writer with fixed "random" values, so that every run gives the same bytes.
It is NOT how a repository may be written: real writers draw every key, salt and id
from the operating system. The reference reader shares no code with this file.
"""

import struct

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

REPO = bytes(range(0x10, 0x20))
S_ID, S_CDC, S_SPLIT, S_IDX, S_META, S_DATA, S_PSK = (bytes([n]) * 32 for n in range(1, 8))
KID = bytes([0x11] * 4 + [0x22] * 12)
KID_SECRET = bytes([8]) * 32
SID = bytes([0x11]) * 16
PACK_ID = bytes(range(0xC0, 0xD0))
OBJECT_ID = bytes(range(0x80, 0x90))
SK_DATA = bytes(range(0xA0, 0xC0))
SK_META = bytes(range(0x60, 0x80))
SALT_DATA = bytes(range(0x40, 0x60))
SALT_META = bytes(range(0x20, 0x40))
SOURCE = bytes([0x33]) * 16
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND

DATA, META = 1, 2                                   # slot domains
DOMAIN = {DATA: "data", META: "meta"}
ENVELOPE_TYPE = {"run": 1, "outcome": 2, "session": 3, "gc": 4, "drop": 5, "hold": 6, "grant": 7, "attest": 8}


# ---------------------------------------------------------------- primitives
def h(data):
    return blake3.blake3(data).digest()


def kh(key, data, length=32):
    return blake3.blake3(data, key=key).digest(length=length)


def dk(context, ikm, length=32):
    return blake3.blake3(ikm, derive_key_context=context).digest(length=length)


def xof(seed, length):
    return blake3.blake3(seed).digest(length=length)


def seal(key, nonce, plaintext, aad):
    return AESGCMSIV(key).encrypt(nonce, plaintext, aad)


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def zigzag(n):
    return varint(n * 2 if n >= 0 else -n * 2 - 1)


def _cbor_head(major, n):
    major <<= 5
    if n < 24:
        return bytes([major | n])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << (8 * size):
            return bytes([major | code]) + n.to_bytes(size, "big")
    raise ValueError("integer too large for CBOR")


def cbor(value):
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        raw = value.encode()
        return _cbor_head(3, len(raw)) + raw
    if isinstance(value, (list, tuple)):
        return _cbor_head(4, len(value)) + b"".join(map(cbor, value))
    if isinstance(value, dict):
        return _cbor_head(5, len(value)) + b"".join(sorted(cbor(k) + cbor(v) for k, v in value.items()))
    raise TypeError(value)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def crc64nvme(data):
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x9A6C9329AC4BC9B5 if crc & 1 else 0)
    return crc ^ ((1 << 64) - 1)


# ---------------------------------------------------------------- keys
K_ID_DATA = dk("larder v1 chunk-id data", S_ID + REPO)
K_ID_META = dk("larder v1 chunk-id meta", S_ID + REPO)
K_SPLIT = dk("larder v1 tree split", S_SPLIT + REPO)
K_GRANT = dk("larder v1 grant key", KID_SECRET + REPO)
SIGNER = Ed25519PrivateKey.from_private_bytes(dk("larder v1 ed25519 seed", KID_SECRET + REPO))
PUBLIC = SIGNER.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
GEAR = list(struct.unpack("<256Q", dk("larder v1 gear table", S_CDC + REPO, 2048)))


def object_key(kind, object_id):
    return kh(dk("larder v1 object " + kind, S_IDX + REPO), object_id)


def data_id(raw):
    return kh(K_ID_DATA, raw)


def meta_id(raw):
    return kh(K_ID_META, raw)


def blob_key(session_key, domain):
    return dk("larder v1 blob " + DOMAIN[domain], session_key + REPO)


def slot(domain, session_key=None, salt=None, epoch=1, keyset=0):
    session_key = session_key or {DATA: SK_DATA, META: SK_META}[domain]
    salt = salt or {DATA: SALT_DATA, META: SALT_META}[domain]
    secret = {DATA: S_DATA, META: S_META}[domain]
    wrap = kh(dk("larder v1 slot kek " + DOMAIN[domain], secret + REPO), b"larder v1 slot" + salt)
    head = struct.pack("<BBHI", 1, domain, keyset, epoch)
    return head + salt + seal(wrap, bytes(12), session_key, b"LSLT" + REPO + head + salt)


def sign(body, name, signer=SIGNER):
    """CBOR of `body` with the signature under key 15."""
    return cbor({**body, 15: signer.sign(b"larder v1 sign\0" + name.encode() + b"\0" + cbor(body))})


# ---------------------------------------------------------------- envelope
def envelope(kind, name, sections, object_id=OBJECT_ID, key=None, epoch=1, type_byte=None, version=1, flags=0,
             repo=REPO, reserved=bytes(12), table=None, magic=b"LARDERO1"):
    key = key or object_key(kind, object_id)
    head = struct.pack("<8sBBHI16s16sI12s", magic, type_byte or ENVELOPE_TYPE[kind], version, flags, epoch, repo,
                       object_id, len(sections), reserved)
    sealed = [seal(key, struct.pack("<IQ", i, 0), s, head + struct.pack("<I", i) + name.encode())
              for i, s in enumerate(sections)]
    if table is None:
        table, at = b"", 0
        for s in sealed:
            table += struct.pack("<II", at, len(s))
            at += len(s)
    front = head + table + b"".join(sealed)
    return front + h(front) + b"LARDERE1"


# ---------------------------------------------------------------- blobs and packs
def blob_plain(codec, raw_len, payload, base=b"", padding=0):
    return struct.pack("<BI", codec, raw_len) + base + payload + bytes(padding)


def blob_frame(kind, blob_id, plaintext, slot_index=0, session_key=None):
    domain = DATA if kind == 0 else META
    session_key = session_key or {DATA: SK_DATA, META: SK_META}[domain]
    aad = b"LBLB" + bytes([1, kind]) + REPO + blob_id
    return struct.pack("<H", slot_index) + seal(blob_key(session_key, domain), blob_id[:12], plaintext, aad)


class Blob:
    """One frame of a pack: `codec` 0 raw, 1 and 2 with the zstd frame given."""

    def __init__(self, kind, raw, codec=0, frame=None, base=b""):
        self.kind, self.raw, self.base = kind, raw, base
        self.id = data_id(raw) if kind == 0 else meta_id(raw)
        self.plain = blob_plain(codec, len(raw), raw if codec == 0 else frame, base)
        self.frame = blob_frame(kind, self.id, self.plain)


def trailer_plain(slots, blobs):
    """`blobs`: [(type, stored_len, raw_len, id, base_id or b"")…]"""
    out = struct.pack("<HHI", len(slots), 0, len(blobs)) + b"".join(slots)
    for kind, stored, raw_len, blob_id, _ in blobs:
        out += struct.pack("<BBHII32s", kind, 0, 0, stored, raw_len, blob_id)
    deltas = [(i, b[4]) for i, b in enumerate(blobs) if b[4]]
    return out + struct.pack("<I", len(deltas)) + b"".join(struct.pack("<I", i) + base for i, base in deltas)


def pack_header(kind, pack_id=PACK_ID, sid=SID, version=1, flags=0, epoch=1, repo=REPO, magic=b"LARDERP1"):
    return struct.pack("<8sBBHI16s16s16s", magic, version, kind, flags, epoch, repo, pack_id, sid)


def pack_footer(trailer_off, trailer_len, body_hash, pack_id=PACK_ID, reserved=0, reserved12=bytes(12)):
    foot = struct.pack("<QII32s16s12s", trailer_off, trailer_len, reserved, body_hash, pack_id, reserved12)
    return foot + struct.pack("<I", crc32c(foot + b"LARDERF1")) + b"LARDERF1"


def pack_bytes(header, frames, trailer, pack_id=PACK_ID):
    sealed = seal(object_key("trailer", pack_id), bytes(12), trailer, header)
    body = header + frames + sealed
    return body + pack_footer(len(header) + len(frames), len(sealed), h(body), pack_id)


class Pack:
    def __init__(self, kind, blobs, pack_id=PACK_ID, sid=SID):
        self.kind, self.blobs, self.id, self.sid = kind, blobs, pack_id, sid
        self.slots = [slot(DATA if kind == 0 else META)]
        records = [(b.kind, len(b.frame), len(b.raw), b.id, b.base) for b in blobs]
        self.bytes = pack_bytes(pack_header(kind, pack_id, sid), b"".join(b.frame for b in blobs),
                                trailer_plain(self.slots, records), pack_id)

    @property
    def name(self):
        text = self.id.hex()
        return f"{('data', 'meta')[self.kind]}/{text[:2]}/{text}-{self.sid.hex()}"

    def record(self, slot_first):
        body_hash = self.bytes[-72:-40]
        return struct.pack("<16s16sIIBBHIQ24s", self.id, self.sid, len(self.bytes), len(self.blobs), self.kind, 0,
                           len(self.slots), slot_first, crc64nvme(self.bytes), body_hash[:24])


def chunk_record(blob_id, pack_ix, offset, nibble, stored_len):
    return struct.pack("<32sIII", blob_id, pack_ix, offset, nibble << 28 | stored_len)


# ---------------------------------------------------------------- runs
def blocks(records, per_block):
    return [b"".join(records[i:i + per_block]) for i in range(0, len(records), per_block)]


def digest(sections):
    return h(b"".join(struct.pack("<Q", len(s)) + s for s in sections))


def run_sections(packs, features=()):
    """Sections after the header, and the header keys that describe them."""
    packs = sorted(packs, key=lambda p: p.id)
    slots, pack_records, chunks, deltas = [], [], [], []
    for ix, pack in enumerate(packs):
        pack_records.append(pack.record(len(slots)))
        slots += pack.slots
        offset = 64
        for blob in pack.blobs:
            nibble = 8 if blob.base else blob.kind
            chunks.append((blob.id, ix, chunk_record(blob.id, ix, offset, nibble, len(blob.frame))))
            if blob.base:
                deltas.append((blob.id, ix, blob.id + struct.pack("<I", ix) + blob.base))
            offset += len(blob.frame)
    chunk_records = [c[2] for c in sorted(chunks)]
    delta_records = [d[2] for d in sorted(deltas)]
    feature_records = [i + struct.pack("<3Q", *f) for i, f in sorted(features)]
    slot_b, pack_b = blocks(slots, 512), blocks(pack_records, 512)
    chunk_b, delta_b = blocks(chunk_records, 1024), blocks(delta_records, 512)
    keys = {6: [len(slots), len(pack_records), len(chunk_records)],
            7: b"".join(b[:8] for b in pack_b), 8: b"".join(b[:8] for b in chunk_b)}
    if delta_records or feature_records:
        keys[12] = [len(delta_records), len(feature_records)]
    if delta_records:
        keys[13] = b"".join(b[:8] for b in delta_b)
    return keys, slot_b + pack_b + chunk_b + delta_b + blocks(feature_records, 1024)


def run_header(keys, sections, sid=SID, number=0, created=START + SECOND):
    return {0: 1, 1: KID, 2: created, 3: 0, 4: sid, 5: number, **keys, 9: 0, 14: digest(sections)}


def run_object(packs, sid=SID, number=0, features=(), object_id=OBJECT_ID):
    keys, sections = run_sections(packs, features)
    name = f"idx/0-{sid.hex()}-{number:04d}"
    head = sign(run_header(keys, sections, sid, number), name)
    return name, envelope("run", name, [head] + sections, object_id)


# ---------------------------------------------------------------- trees and lists
def path_key(path):
    if path == b"":
        return b"\0"
    *dirs, name = path.split(b"/")
    return b"".join(d + b"\0" for d in dirs) + b"\0" + name


def common(mode=0o644, uid=1000, gid=1000, mtime=(1_700_000_001, 0), ctime=(1_700_000_001, 0), ino=1):
    return (varint(mode) + varint(uid) + varint(gid) + zigzag(mtime[0]) + varint(mtime[1])
            + zigzag(ctime[0] - mtime[0]) + varint(ctime[1]) + varint(ino))


def tlv(tag, body):
    return varint(tag) + varint(len(body)) + body


def xattr(name, value, tag=1):
    return tlv(tag, varint(len(name)) + name + value)


def inline(content):
    return b"\0" + content


def chunk_list(parts):
    return b"\1" + varint(len(parts)) + b"".join(i + varint(n) for i, n in parts)


def file_value(size, content, tlvs=b"", kind=1, **fields):
    return bytes([kind]) + common(**fields) + varint(size) + content + tlvs


def dir_value(mode=0o755, tlvs=b"", **fields):
    return b"\2" + common(mode=mode, **fields) + tlvs


def link_value(target, tlvs=b"", **fields):
    return b"\3" + common(mode=0o777, **fields) + varint(len(target)) + target + tlvs


def node(level, entries, version=1):
    out, previous = bytes([version, level]) + varint(len(entries)), b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + key[shared:] + varint(len(value)) + value
        previous = key
    return out


def raw_node(entries, level=0, count=None):
    """A node from (shared, suffix, value): for the forms a writer must not make."""
    out = bytes([1, level]) + varint(len(entries) if count is None else count)
    return out + b"".join(varint(s) + varint(len(x)) + x + varint(len(v)) + v for s, x, v in entries)


def list_node(level, elements):
    return bytes([1, level]) + varint(len(elements)) + b"".join(i + varint(n) for i, n in elements)


def boundary(level, key):
    value = struct.unpack("<Q", kh(K_SPLIT, bytes([level]) + key, 8))[0]
    return value < 1 << (58 if level == 0 else 56)


def build_tree(entries, sizes):
    """Nodes of the canonical tree: (root id, height, entry count, bytes, [node bytes…])."""
    made = []
    level, items = 0, [(k, v, 1, sizes.get(k, 0)) for k, v in sorted(entries)]
    while True:
        groups, current = [], []
        for item in items:
            trial = [(i[0], i[1]) for i in current + [item]]
            if current and len(node(level, trial)) > 262144:
                groups.append(current)
                current = []
            current.append(item)
            if boundary(level, item[0]) and len(current) >= (1 if level == 0 else 2):
                groups.append(current)
                current = []
        if current or not groups:
            groups.append(current)
        upper = []
        for group in groups:
            raw = node(level, [(i[0], i[1]) for i in group])
            made.append(raw)
            entry_count, size = sum(i[2] for i in group), sum(i[3] for i in group)
            first = group[0][0] if group else b""
            upper.append((first, meta_id(raw) + varint(entry_count) + varint(size), entry_count, size))
        if len(upper) == 1:
            return meta_id(made[-1]), level, upper[0][2], upper[0][3], made
        level, items = level + 1, upper


def build_list(elements):
    """Nodes of the canonical list: (root id, height, [node bytes…])."""
    made, level = [], 0
    while True:
        groups, current = [], []
        for blob_id, size in elements:
            current.append((blob_id, size))
            closes = any(blob_id) and struct.unpack("<Q", blob_id[:8])[0] < 1 << 54
            if len(current) == 4096 or (closes and len(current) >= (1 if level == 0 else 2)):
                groups.append(current)
                current = []
        if current:
            groups.append(current)
        raws = [list_node(level, g) for g in groups]
        made += raws
        elements = [(meta_id(r), sum(n for _, n in g)) for r, g in zip(raws, groups)]
        if len(elements) == 1:
            return elements[0][0], level, made
        level += 1


# ---------------------------------------------------------------- small objects
MASK_SMALL, MASK_LARGE = ((1 << 22) - 1) << 41, ((1 << 18) - 1) << 45
LOWEST_MASK = ((1 << 14) - 1) << 49
PROFILE_0 = {0: 1, 1: 524288, 2: 1048576, 3: 4194304, 4: MASK_SMALL, 5: MASK_LARGE}


def config_body(sequence=0, previous=None):
    return {0: 1, 1: KID, 2: START, 3: REPO, 4: sequence, 5: previous, 6: [0, 0, 0, 0], 7: 1, 8: [PROFILE_0],
            9: {0: 33554432, 1: 8388608, 2: 2}, 10: {0: 1, 1: 3},
            11: {0: 6, 1: 8, 2: 262144, 3: 512, 4: 64, 5: 10, 6: 4096}, 12: 0, 13: 0,
            14: {0: 259200, 1: 0, 2: 259200, 3: True, 4: 86400}, 16: 1,
            17: [{0: KID, 1: PUBLIC, 2: 0x40, 3: 0}]}


def framed(magic, body):
    return magic + body + h(magic + body)


def config_object(body=None, name="config/00000000", signer=SIGNER):
    return framed(b"LARDERC1", sign(body or config_body(), name, signer))


def grant_body():
    epoch = {0: 1, 1: S_ID, 2: S_CDC, 3: S_SPLIT, 4: S_IDX, 5: S_META, 6: S_DATA, 7: S_PSK, 10: K_ID_META}
    return {0: 1, 1: KID, 2: START, 3: 0x40, 4: REPO, 5: 0, 6: [PUBLIC], 7: [epoch], 8: "first key",
            9: [[KID, K_GRANT, "first key"]]}


def grant_object(body=None, number=0):
    name = f"grants/{KID.hex()}/{number:08d}"
    section = sign(body or grant_body(), name)
    return name, envelope("grant", name, [section], key=kh(K_GRANT, OBJECT_ID))


def argon2(passphrase, salt, m=65536, t=3, p=4):
    return Argon2id(salt=salt, length=32, iterations=t, lanes=p, memory_cost=m).derive(passphrase)


def protector_body(kind, ikm, params):
    wrapped = seal(dk("larder v1 protector", ikm + REPO), bytes(12), KID_SECRET, b"LKEY" + REPO + KID + bytes([kind]))
    return {0: 1, 1: KID, 2: START, 3: kind, 4: params, 5: wrapped, 6: dk("larder v1 protector commit", ikm + REPO)}


def protector_object(kind, ikm, params):
    return framed(b"LARDERK1", cbor(protector_body(kind, ikm, params)))


def session_object(sid=SID, object_id=OBJECT_ID, body=None):
    name = f"sess/{sid.hex()}/0000"
    body = body or {0: 1, 1: KID, 2: START, 3: 0, 4: [], 5: "larder/1"}
    return name, envelope("session", name, [sign(body, name)], object_id)


def manifest_section(manifest):
    blob_id = meta_id(manifest)
    return slot(META) + blob_frame(3, blob_id, blob_plain(0, len(manifest), manifest))


def outcome_body(manifest, sid=SID, sequence=0, previous=None, accepted=((0, 0),), kind=1):
    return {0: 1, 1: KID, 2: START + 2 * SECOND, 3: kind, 4: sid, 5: [list(a) for a in accepted], 7: meta_id(manifest),
            8: len(manifest), 9: sequence, 10: previous, 11: [], 12: [], 13: SOURCE}


def outcome_object(manifest, sid=SID, object_id=OBJECT_ID, body=None, **fields):
    name = f"snap/{sid.hex()}"
    body = body or outcome_body(manifest, sid, **fields)
    return name, envelope("outcome", name, [sign(body, name), manifest_section(manifest)], object_id)
