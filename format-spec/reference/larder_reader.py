#!/usr/bin/env python3
"""Reads a larder v1 repository in a local directory: list, ls, cat, restore, check.

Written from the chapters of format-spec/ alone, as a second opinion on what they say.
It never writes to the repository. Packages: requirements.txt. Clarity first, speed second.
Not restored: owners, extended attributes other than user.*, sockets and devices. Not checked: the store checksum (crc64nvme) of a pack.
The passphrase comes from LARDER_PASSWORD; --key-file names a key file instead, or a file with a paper key.
"""

import argparse
import datetime
import hmac
import os
import re
import struct
import sys
import time
from collections import OrderedDict, namedtuple

import blake3
import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

MIB = 1 << 20
HOLE = bytes(32)
CHUNK_MAX, NODE_MAX, VALUE_MAX, FRAME_MAX = 16 * MIB, 262_144, 65_536, 1 << 25
WRITE, READ_META, READ_DATA, MAINTAIN, FORGET, HOLD, ADMIN, ATTEST = (1 << n for n in range(8))
RUN, OUTCOME, SESSION, GC, DROP, HOLD_OBJECT, GRANT, ATTESTATION = range(1, 9)
CLASS = {RUN: "run", OUTCOME: "outcome", SESSION: "session", GC: "gc", DROP: "drop", HOLD_OBJECT: "hold",
         ATTESTATION: "attest"}
DATA_BLOB, TREE_NODE, LIST_NODE, MANIFEST = range(4)


class Corrupt(Exception):
    """The bytes break a rule of the specification."""


class Unsupported(Exception):
    """The bytes may be right, but need something this reader does not have."""


class Trouble(Exception):
    """The request cannot be met: no such snapshot, wrong passphrase, unusable argument."""


def need(condition, text):
    if not condition:
        raise Corrupt(text)


# ---------------------------------------------------------------- 2 conventions
def h(data):
    return blake3.blake3(data).digest()


def kh(key, data):
    return blake3.blake3(data, key=key).digest()


def dk(context, ikm):
    return blake3.blake3(ikm, derive_key_context=context).digest()


def unseal(key, nonce, sealed, aad, what):
    need(len(sealed) >= 16, f"{what}: shorter than an authentication tag")
    try:
        return AESGCMSIV(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Corrupt(f"{what}: authentication failed") from None


class Cursor:
    """Takes values from the front of some bytes; never past their end."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, n):
        need(n <= len(self.data) - self.at, f"{self.what}: ends too early")
        self.at += n
        return self.data[self.at - n:self.at]

    def byte(self):
        return self.take(1)[0]

    def varint(self, limit=(1 << 64) - 1):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            need(shift < 70, f"{self.what}: varint longer than 10 bytes")
        need(byte != 0 or shift == 0, f"{self.what}: varint not in shortest form")
        need(value < 1 << 64, f"{self.what}: varint above 64 bits")
        need(value <= limit, f"{self.what}: number {value} above {limit}")
        return value

    def zigzag(self):
        n = self.varint()
        return n >> 1 if n & 1 == 0 else -(n >> 1) - 1

    def unpack(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def left(self):
        return len(self.data) - self.at

    def end(self):
        need(self.left() == 0, f"{self.what}: {self.left()} bytes too many")


def cbor_decode(data, what):
    cursor = Cursor(data, what)
    value = _cbor_item(cursor, 0)
    cursor.end()
    return value


def _cbor_item(c, depth):
    first = c.byte()
    major, short = first >> 5, first & 31
    if major == 7:
        need(first in (0xF4, 0xF5, 0xF6), f"{c.what}: CBOR value {first:#x} is not allowed")
        return {0xF4: False, 0xF5: True, 0xF6: None}[first]
    n = short
    if short >= 24:
        need(short <= 27, f"{c.what}: CBOR indefinite or reserved length")
        size = 1 << (short - 24)
        n = int.from_bytes(c.take(size), "big")
        need(n >= (24 if size == 1 else 1 << (4 * size)), f"{c.what}: CBOR number not in shortest form")
    if major == 0:
        return n
    if major == 1:
        need(n < 1 << 63, f"{c.what}: CBOR negative number below 64 bits")
        return -1 - n
    need(n <= c.left(), f"{c.what}: CBOR length beyond the end")
    if major == 2:
        return bytes(c.take(n))
    if major == 3:
        try:
            return bytes(c.take(n)).decode("utf-8")
        except UnicodeDecodeError:
            raise Corrupt(f"{c.what}: CBOR text is not UTF-8") from None
    need(major in (4, 5), f"{c.what}: CBOR tags are not allowed")
    need(depth < 8, f"{c.what}: CBOR nested deeper than 8")
    if major == 4:
        return [_cbor_item(c, depth + 1) for _ in range(n)]
    result, last = {}, -1
    for _ in range(n):
        key = _cbor_item(c, depth + 1)
        need(type(key) is int and key >= 0, f"{c.what}: CBOR map key is not an unsigned number")
        need(key > last, f"{c.what}: CBOR map keys twice or out of order")
        result[key] = _cbor_item(c, depth + 1)
        last = key
    return result


def _cbor_head(major, n):
    if n < 24:
        return bytes([major << 5 | n])
    size = next(s for s in (1, 2, 4, 8) if n < 1 << (8 * s))
    return bytes([major << 5 | 23 + size.bit_length()]) + n.to_bytes(size, "big")


def cbor_encode(v):
    if v is None or isinstance(v, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[v]
    if isinstance(v, int):
        return _cbor_head(0, v) if v >= 0 else _cbor_head(1, -1 - v)
    if isinstance(v, bytes):
        return _cbor_head(2, len(v)) + v
    if isinstance(v, str):
        return _cbor_head(3, len(v.encode())) + v.encode()
    if isinstance(v, list):
        return _cbor_head(4, len(v)) + b"".join(map(cbor_encode, v))
    return _cbor_head(5, len(v)) + b"".join(cbor_encode(k) + cbor_encode(v[k]) for k in sorted(v))


# Types of CBOR fields. Each is a predicate; `fields` applies a table of them.
def is_uint(v):
    return type(v) is int and v >= 0


def is_u32(v):
    return is_uint(v) and v < 1 << 32


def is_names(v):
    """A data map from user or group number to name."""
    return isinstance(v, dict) and all(is_u32(k) and is_text(name) for k, name in v.items())


def is_time(v):
    return type(v) is int and -(1 << 63) <= v < 1 << 63


def is_bytes(n=None):
    return lambda v: isinstance(v, bytes) and (n is None or len(v) == n)


def is_text(v):
    return isinstance(v, str)


def is_bool(v):
    return isinstance(v, bool)


def is_null(v):
    return v is None


def is_list(item):
    return lambda v: isinstance(v, list) and all(item(i) for i in v)


def is_row(*items):
    return lambda v: isinstance(v, list) and len(v) == len(items) and all(p(i) for p, i in zip(items, v))


def is_map(v):
    return isinstance(v, dict)


def either(*choices):
    return lambda v: any(p(v) for p in choices)


def is_version(v):
    return type(v) is int and v == 1


def fields(value, what, required, optional=None):
    """Checks a schema map: known keys have their type, required ones are there."""
    need(isinstance(value, dict), f"{what}: not a map")
    known = {**required, **(optional or {})}
    for key in required:
        need(key in value, f"{what}: key {key} is missing")
    for key, item in value.items():
        if key in known:
            need(known[key](item), f"{what}: key {key} has the wrong type or length")
        elif key >= 0x8000:
            raise Unsupported(f"{what}: unknown critical key {key}")
    return value


SIGNED = {0: is_version, 1: is_bytes(16), 2: is_time, 15: is_bytes(64)}
SIDS = is_list(is_bytes(16))
RANGES = is_list(is_row(is_uint, is_uint))


def verify_signature(body, name, public_key):
    unsigned = {k: v for k, v in body.items() if k != 15}
    message = b"larder v1 sign\0" + name.encode() + b"\0" + cbor_encode(unsigned)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(body[15], message)
    except (InvalidSignature, ValueError):
        raise Corrupt(f"{name}: the signature is wrong") from None


# ---------------------------------------------------------------- 5 envelope
def open_envelope(data, kind, name, key_for):
    """Section plaintexts. `key_for(epoch, object_id)` gives the object key."""
    need(len(data) >= 64 + 8 + 16 + 40, f"{name}: too short for an envelope")
    need(data[-8:] == b"LARDERE1" and h(data[:-40]) == data[-40:-8], f"{name}: footer hash is wrong")
    magic, type_, version, flags, epoch, repo, object_id, count, zero = struct.unpack("<8sBBHI16s16sI12s", data[:64])
    need(magic == b"LARDERO1" and type_ == kind, f"{name}: not an envelope of this kind")
    if version != 1:
        raise Unsupported(f"{name}: version {version}")
    need(flags == 0 and zero == bytes(12), f"{name}: reserved bits are set")
    need(1 <= count <= 65_536 and 64 + 24 * count + 40 <= len(data), f"{name}: section count does not fit")
    key, sections, at, start = key_for(epoch, object_id, repo), [], 0, 64 + 8 * count
    for i in range(count):
        offset, length = struct.unpack_from("<II", data, 64 + 8 * i)
        need(offset == at and length >= 16, f"{name}: section table is not contiguous")
        at += length
        need(start + at <= len(data) - 40, f"{name}: section {i} is beyond the end")
        sections.append((i, data[start + offset:start + at]))
    need(start + at == len(data) - 40, f"{name}: bytes that belong to no section")
    return [unseal(key, struct.pack("<IQ", i, 0), s, data[:64] + struct.pack("<I", i) + name.encode(),
                   f"{name}: section {i}") for i, s in sections]


# ---------------------------------------------------------------- 3, 10 keys
def hpke_open(key_material, psk, psk_id, info, aad, encapsulated, sealed, what):
    """RFC 9180 single-shot Open in mode_psk: DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 0x0001, AES-256-GCM 0x0002."""
    kem, suite = b"KEM\0\x20", b"HPKE\0\x20\0\1\0\2"

    def extract(suite_id, salt, label, ikm):
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite_id + label + ikm, "sha256")

    def expand(suite_id, prk, label, context, length):   # all lengths fit into one block
        text = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + context
        return hmac.digest(prk, text + b"\1", "sha256")[:length]

    private = X25519PrivateKey.from_private_bytes(expand(kem, extract(kem, b"", b"dkp_prk", key_material), b"sk", b"", 32))
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    except ValueError:                                    # a point of low order
        raise Corrupt(f"{what}: does not open") from None
    kem_context = encapsulated + private.public_key().public_bytes_raw()
    shared = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", kem_context, 32)
    context = b"\1" + extract(suite, b"", b"psk_id_hash", psk_id) + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", psk)
    key, nonce = expand(suite, secret, b"key", context, 32), expand(suite, secret, b"base_nonce", context, 12)
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Corrupt(f"{what}: does not open") from None


Epoch = namedtuple("Epoch", "s_id s_idx s_meta s_data id_meta s_psk", defaults=[None])


class Keys:
    """The secrets of a grant, by epoch, bound to one repository."""

    def __init__(self, repo, epochs):
        self.repo, self.epochs = repo, epochs

    def epoch(self, number):
        if number not in self.epochs:
            raise Unsupported(f"no keys for epoch {number}")
        return self.epochs[number]

    def secret(self, number, field):
        value = getattr(self.epoch(number), field)
        if value is None:
            raise Unsupported(f"this grant does not hold {field} of epoch {number}")
        return value + self.repo

    def object_key(self, class_name):
        def key_for(epoch, object_id, repo):
            need(repo == self.repo, "object of another repository")
            return kh(dk("larder v1 object " + class_name, self.secret(epoch, "s_idx")), object_id)
        return key_for

    def unwrap_slot(self, slot):
        """(domain, epoch, blob key) of an 88-byte slot."""
        method, domain, keyset, epoch = struct.unpack("<BBHI", slot[:8])
        need(domain in (1, 2), "slot: unknown domain")
        if method not in (1, 2) or keyset != 0:
            raise Unsupported(f"slot: method {method}, keyset {keyset}")
        word = ("data", "meta")[domain - 1]
        if method == 2:
            need(len(slot) == 88, "slot: length")
            psk = self.secret(epoch, "s_psk")[:32]
            session = hpke_open(dk(f"larder v1 hpke {word}", self.secret(epoch, "s_" + word)), psk, self.repo + slot[4:8],
                                b"larder v1 slot" + self.repo + slot[:8], b"LSLT" + self.repo + slot[:8], slot[8:40], slot[40:],
                                "slot")
            return domain, epoch, dk(f"larder v1 blob {word}", session + self.repo)
        kek = dk(f"larder v1 slot kek {word}", self.secret(epoch, "s_" + word))
        wrap = kh(kek, b"larder v1 slot" + slot[8:40])
        session = unseal(wrap, bytes(12), slot[40:], b"LSLT" + self.repo + slot[:40], "slot")
        return domain, epoch, dk(f"larder v1 blob {word}", session + self.repo)

    def id_key(self, epoch, kind):
        if kind == DATA_BLOB:
            return dk("larder v1 chunk-id data", self.secret(epoch, "s_id"))
        known = self.epoch(epoch)
        return known.id_meta or dk("larder v1 chunk-id meta", self.secret(epoch, "s_id"))


def parse_protector(data):
    need(len(data) <= MIB and len(data) > 40 and data[:8] == b"LARDERK1", "protector: not a protector")
    need(h(data[:-32]) == data[-32:], "protector: hash is wrong")
    body = fields(cbor_decode(data[8:-32], "protector"), "protector",
                  {0: is_version, 1: is_bytes(16), 2: is_time, 3: is_uint, 4: is_map, 5: is_bytes(48), 6: is_bytes(32)},
                  {7: is_text})
    need(1 <= body[3] <= 5, "protector: unknown type")
    if body[3] == 1:
        fields(body[4], "protector parameters", {0: is_bytes(16), 1: is_uint, 2: is_uint, 3: is_uint})
        m, t, p = body[4][1], body[4][2], body[4][3]
        need(1 <= t <= 64 and 1 <= p <= 16 and 8 * p <= m <= 2 * MIB, "protector: Argon2id cost out of bounds")
    elif body[3] in (4, 5):
        fields(body[4], "protector parameters", {})
    return body


def parse_key_file(data):
    if re.fullmatch(rb"[0-9a-fA-F]{64}\n?", data):
        return bytes.fromhex(data[:64].decode())
    return parse_paper_key(data)


BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bech32m_sum(prefix, symbols):
    """BIP 350: 0x2bc830a3 if the checksum is right."""
    total = 1
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + symbols:
        top, total = total >> 25, (total & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            if top >> bit & 1:
                total ^= generator
    return total


def parse_paper_key(data):
    try:
        lines = data.decode("ascii").lower().splitlines()
    except UnicodeDecodeError:
        lines = []
    text = re.sub(r"[\s-]", "", "".join(line for line in lines if not line.lstrip().startswith("#")))
    text = text.removeprefix("larder1")
    symbols = [BECH32.find(c) for c in text]
    if len(symbols) != 58 or -1 in symbols or bech32m_sum("larder", symbols) != 0x2BC830A3 or symbols[51] & 15:
        raise Trouble("neither a key file (64 hexadecimal digits and a newline) nor a paper key without a mistake")
    value = 0
    for symbol in symbols[:52]:
        value = value << 5 | symbol
    return (value >> 4).to_bytes(32, "big")


def open_protector(body, repo, ikm):
    """The kid secret, or None if `ikm` is not the right one."""
    if not hmac.compare_digest(dk("larder v1 protector commit", ikm + repo), body[6]):
        return None
    return unseal(dk("larder v1 protector", ikm + repo), bytes(12), body[5],
                  b"LKEY" + repo + body[1] + bytes([body[3]]), "protector")


def parse_config(data, name):
    need(len(data) <= MIB and len(data) > 40 and data[:8] == b"LARDERC1", f"{name}: not a config")
    need(h(data[:-32]) == data[-32:], f"{name}: hash is wrong")
    c = fields(cbor_decode(data[8:-32], name), name,
               {**SIGNED, 3: is_bytes(16), 4: is_uint, 5: either(is_null, is_bytes(32)),
                6: is_row(is_uint, is_uint, is_uint, is_uint), 7: is_uint, 8: is_list(is_map), 11: is_map,
                17: is_list(is_map)},
               {9: is_map, 10: is_map, 12: is_uint, 13: is_uint, 14: is_map, 16: is_uint, 19: is_map, 20: is_map,
                21: is_bytes(32)})
    need(name == f"config/{c[4]:08d}", f"{name}: sequence differs from the name")
    need((c[5] is None) == (c[4] == 0) and c[7] >= 1, f"{name}: predecessor or epoch is wrong")
    if c[6][3]:
        raise Unsupported(f"{name}: incompatible features {c[6][3]:#x}")
    need(len(c[8]) >= 1, f"{name}: no chunker profile")
    for p in c[8]:
        fields(p, f"{name}: chunker", {i: is_uint for i in range(6)})
        if p[0] in (1, 3):
            need(64 <= p[1] <= p[2] <= p[3] <= CHUNK_MAX and not any(p[i] % 2 for i in (1, 2, 3)),
                 f"{name}: chunker sizes")
            need(all(0 < p[i] < 1 << 63 for i in (4, 5)) and (p[0] == 1 or p[4] == p[5]),
                 f"{name}: chunker masks")
    advice = {9: {i: is_uint for i in range(3)}, 10: {i: is_uint for i in range(2)},
              14: {0: is_uint, 1: is_uint, 2: is_uint, 3: is_bool, 4: is_uint}, 19: {i: is_uint for i in range(3)},
              20: {i: is_uint for i in range(3)}}
    for key, optional in advice.items():
        fields(c.get(key, {}), f"{name}: key {key}", {}, optional)
    packs, codec = c.get(9, {}), c.get(10, {})
    need(all(1 <= packs.get(i, 1) <= 1 << 30 for i in (0, 1)) and 1 <= packs.get(2, 1) <= 64, f"{name}: pack targets")
    need(1 <= codec.get(1, 1) <= 19, f"{name}: compression level")
    lock = c.get(19, {})
    if lock.get(0, 0):
        need(lock[0] <= 2 and 1 <= lock.get(1, 0) <= 36500 and lock.get(2, 0) <= lock[1], f"{name}: object lock")
    need(c.get(12, 0) <= 1 and c.get(13, 0) <= 2 and c.get(16, 0) <= 4, f"{name}: padding, trust or checksum")
    limits = {0: (4, 10), 1: (4, 12), 2: (NODE_MAX, NODE_MAX), 3: (0, 512), 4: (1, 64), 5: (4, 16), 6: (256, 4096)}
    fields(c[11], f"{name}: tree parameters", {i: is_uint for i in limits})
    for i, (low, high) in limits.items():
        need(low <= c[11][i] <= high, f"{name}: tree parameter {i} out of range")
    for w in c[17]:
        fields(w, f"{name}: writer", {0: is_bytes(16), 1: is_bytes(32), 2: is_uint, 3: is_uint},
               {4: is_uint, 5: is_row(is_uint, is_bytes(32))})
        need(5 not in w or 4 in w, f"{name}: chain end of a writer that is not revoked")
    kids = [w[0] for w in c[17]]
    need(len({k[:4] for k in kids}) == len(kids), f"{name}: two writers with one tag")
    return c


def writer_of(config, kid, what):
    for w in config[17]:
        if w[0] == kid:
            return w
    raise Corrupt(f"{what}: signed by an unknown writer {kid.hex()}")


def verify_config(config, name):
    """Self-signed by an unrevoked admin of its own table; returns that admin's public key."""
    signer = writer_of(config, config[1], name)
    need(signer[2] & ADMIN and 4 not in signer, f"{name}: signer is not an admin")
    verify_signature(config, name, signer[1])
    return signer[1]


EPOCH_KEYS = {0: is_uint}, {**{i: is_bytes(32) for i in range(1, 11)}}


def open_grant(data, name, grant_key, repo):
    def key_for(_epoch, object_id, found):
        need(found == repo, f"{name}: of another repository")
        return kh(grant_key, object_id)
    need(len(data) <= MIB, f"{name}: too large")
    sections = open_envelope(data, GRANT, name, key_for)
    need(len(sections) == 1, f"{name}: exactly one section expected")
    g = fields(cbor_decode(sections[0], name), name,
               {**SIGNED, 3: is_uint, 4: is_bytes(16), 5: is_uint, 6: is_list(is_bytes(32)), 7: is_list(is_map)},
               {8: is_text, 9: is_list(is_row(is_bytes(16), is_bytes(32), is_text))})
    need(g[4] == repo, f"{name}: of another repository")
    numbers = [fields(e, f"{name}: epoch", *EPOCH_KEYS)[0] for e in g[7]]
    need(numbers and numbers == sorted(set(numbers)) and numbers[0] >= 1, f"{name}: epochs missing or out of order")
    return g


# ---------------------------------------------------------------- 6, 7 blobs and packs
STEP = 4096      # input given to zstd at once: bounds how far a hostile frame inflates before it is noticed


def decompress(frame, raw_len, base, what):
    """(raw, bytes after the frame): exactly one zstd frame, at most raw_len bytes."""
    need(frame[:4] == b"\x28\xb5\x2f\xfd", f"{what}: no zstd frame")
    try:
        head = zstandard.get_frame_parameters(frame)
        size = zstandard.frame_content_size(frame)
        need(head.dict_id == 0 and head.window_size <= 1 << 27, f"{what}: zstd frame parameters")
        need(size in (-1, raw_len), f"{what}: zstd content size differs from raw_len")
        prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
        work = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << 27).decompressobj()
        out = bytearray()
        for at in range(0, len(frame), STEP):
            out += work.decompress(frame[at:at + STEP])
            need(len(out) <= raw_len, f"{what}: zstd frame gives more than raw_len")
            if work.eof:
                break
        need(work.eof and len(out) == raw_len, f"{what}: zstd frame is cut short or gives too little")
        return bytes(out), work.unused_data + frame[at + STEP:]
    except zstandard.ZstdError as error:
        raise Corrupt(f"{what}: zstd: {error}") from None


def raw_len_max(kind):
    return NODE_MAX if kind in (TREE_NODE, LIST_NODE) else CHUNK_MAX


Opened = namedtuple("Opened", "raw codec base_id")


def open_blob(frame, slots, kind, blob_id, keys, base_of=None):
    """Opens, decodes and verifies one frame. `base_of(id)` gives a delta base's plaintext."""
    what = f"blob {blob_id.hex()[:16]}"
    need(2 + 5 + 16 < len(frame) <= FRAME_MAX, f"{what}: frame length")
    index = struct.unpack("<H", frame[:2])[0]
    need(index < len(slots), f"{what}: slot {index} does not exist")
    domain, epoch, key = keys.unwrap_slot(slots[index])
    need(domain == (1 if kind == DATA_BLOB else 2), f"{what}: slot of the wrong domain")
    plain = unseal(key, blob_id[:12], frame[2:], b"LBLB" + bytes([1, kind]) + keys.repo + blob_id, what)
    codec, raw_len = struct.unpack("<BI", plain[:5])
    need(1 <= raw_len <= raw_len_max(kind), f"{what}: raw_len {raw_len}")
    base_id = None
    if codec == 0:
        need(len(plain) >= 5 + raw_len, f"{what}: shorter than raw_len")
        raw, rest = plain[5:5 + raw_len], plain[5 + raw_len:]
    elif codec == 1:
        raw, rest = decompress(plain[5:], raw_len, None, what)
    elif codec == 2:
        need(kind == DATA_BLOB, f"{what}: only data may be a delta")
        base_id = plain[5:37]
        need(len(base_id) == 32 and base_id not in (HOLE, blob_id), f"{what}: bad base id")
        if base_of is None:
            raise Unsupported(f"{what}: a delta, and its base is not at hand")
        raw, rest = decompress(plain[37:], raw_len, base_of(base_id), what)
    else:
        raise Corrupt(f"{what}: unknown codec {codec}")
    need(not any(rest), f"{what}: padding is not zero")
    need(kh(keys.id_key(epoch, kind), raw) == blob_id, f"{what}: content does not have this id")
    return Opened(raw, codec, base_id)


TRAILER_MIN = 16 + 8 + 88 + 44 + 4                  # tag, counts, one slot, one record, no delta
Record = namedtuple("Record", "kind stored_len raw_len id offset base_id")
PACK_NAME = re.compile(r"(data|meta)/([0-9a-f]{2})/([0-9a-f]{32})-([0-9a-f]{32})")


def parse_trailer(plain, kind, frames_len):
    """(slots, records) of a decrypted pack trailer."""
    c = Cursor(plain, "pack trailer")
    slot_count, zero, blob_count = c.unpack("<HHI")
    need(zero == 0 and slot_count >= 1 and 1 <= blob_count <= 1 << 20, "pack trailer: counts")
    need(c.left() >= 88 * slot_count + 44 * blob_count + 4, "pack trailer: ends too early")
    slots = [c.take(88) for _ in range(slot_count)]
    need(all(s[1] == kind + 1 for s in slots), "pack trailer: slot of the wrong domain")
    records, offset, seen = [], 64, set()
    for _ in range(blob_count):
        type_, flags, zero, stored_len, raw_len, blob_id = c.unpack("<BBHII32s")
        need(type_ in ((DATA_BLOB,), (TREE_NODE, LIST_NODE))[kind], "pack trailer: type does not belong here")
        need(flags == 0 and zero == 0, "pack trailer: reserved bits are set")
        need(23 < stored_len <= FRAME_MAX and 1 <= raw_len <= raw_len_max(type_), "pack trailer: length out of range")
        need(blob_id not in seen and blob_id != HOLE, "pack trailer: id twice or zero")
        seen.add(blob_id)
        records.append(Record(type_, stored_len, raw_len, blob_id, offset, None))
        offset += stored_len
    need(offset - 64 == frames_len, "pack trailer: frames do not add up")
    delta_count, last = c.unpack("<I")[0], -1
    need(delta_count <= blob_count and (kind == 0 or delta_count == 0), "pack trailer: delta count")
    for _ in range(delta_count):
        index, base_id = c.unpack("<I32s")
        need(last < index < blob_count, "pack trailer: delta indexes out of order")
        need(base_id not in (HOLE, records[index].id), "pack trailer: bad base id")
        records[index] = records[index]._replace(base_id=base_id)
        last = index
    c.end()
    return slots, records


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def open_pack_trailer(read, size, name, keys):
    """(slots, records, body hash). `read(offset, length)` reads the object."""
    match = PACK_NAME.fullmatch(name)
    need(match and match[2] == match[3][:2], f"{name}: not a pack name")
    need(64 + 16 + 88 < size < 1 << 32, f"{name}: size")
    foot, head = read(size - 88, 88), read(0, 64)
    trailer_off, trailer_len, zero, body_hash, pack_id, zeros, crc = struct.unpack("<QII32s16s12sI", foot[:80])
    need(foot[80:] == b"LARDERF1" and crc == crc32c(foot[:76] + foot[80:]), f"{name}: footer is damaged")
    need(zero == 0 and zeros == bytes(12), f"{name}: reserved footer bits are set")
    need(64 <= trailer_off and trailer_off + trailer_len == size - 88, f"{name}: trailer is not where the footer says")
    magic, version, kind, flags, epoch, repo, head_id, sid = struct.unpack("<8sBBHI16s16s16s", head)
    need(magic == b"LARDERP1" and flags == 0 and kind in (0, 1), f"{name}: header")
    if version != 1:
        raise Unsupported(f"{name}: version {version}")
    need((("data", "meta")[kind], head_id.hex(), sid.hex()) == (match[1], match[3], match[4]),
         f"{name}: header differs from the name")
    need(pack_id == head_id, f"{name}: footer of another pack")
    key = keys.object_key("trailer")(epoch, pack_id, repo)
    plain = unseal(key, bytes(12), read(trailer_off, trailer_len), head, f"{name}: trailer")
    return *parse_trailer(plain, kind, trailer_off - 64), body_hash


def open_pack(data, name, keys, base_of=None):
    """Verifies a whole pack; yields (record, opened blob)."""
    slots, records, body_hash = open_pack_trailer(lambda at, n: data[at:at + n], len(data), name, keys)
    need(h(data[:-88]) == body_hash, f"{name}: body hash is wrong")
    for r in records:
        opened = open_blob(data[r.offset:r.offset + r.stored_len], slots, r.kind, r.id, keys, base_of)
        need(len(opened.raw) == r.raw_len, f"{name}: raw_len differs from the trailer")
        need(opened.base_id == r.base_id, f"{name}: base differs from the trailer")
        yield r, opened


# ---------------------------------------------------------------- 8 runs
Run = namedtuple("Run", "header slots packs chunks deltas")
PackRecord = namedtuple("PackRecord", "id sid size blob_count kind flags slot_count slot_first crc64 body_hash")


def parse_run(sections, name):
    head = fields(cbor_decode(sections[0], name), name,
                  {**SIGNED, 3: is_uint, 4: is_bytes(16), 5: is_uint, 6: is_row(is_uint, is_uint, is_uint), 9: is_uint,
                   14: is_bytes(32)},
                  {7: is_bytes(), 8: is_bytes(), 10: is_uint, 11: is_uint, 12: is_row(is_uint, is_uint),
                   13: is_bytes()})
    match = re.fullmatch(r"idx/([0-9])-([0-9a-f]{32})-(?:([psc])([0-9]{4,})(?:-[0-9a-f]{4}-[0-9a-f]{4})?|([0-9]{4,}))",
                         name)
    need(match and int(match[1]) == head[3] and match[2] == head[4].hex(), f"{name}: header differs from the name")
    if head[3] == 0:
        need(head[9] == 0 and match[5] == f"{head[5]:04d}", f"{name}: number differs from the name")
    else:
        need(head[9] == {"p": 1, "s": 2, "c": 3}.get(match[3]) and match[4] == f"{head.get(10, -1):04d}",
             f"{name}: part differs from the name")
    need(head[14] == h(b"".join(struct.pack("<Q", len(s)) + s for s in sections[1:])), f"{name}: digest is wrong")
    counts = head[6] + head.get(12, [0, 0])
    shapes = [(512, 88, "<88s"), (512, 80, "<16s16sIIBBHIQ24s"), (1024, 44, "<32sIII"), (512, 68, "<32sI32s"),
              (1024, 56, "<32s3Q")]
    tables, fans, at = [], [], 1
    for count, (per_block, size, form) in zip(counts, shapes):
        number, rows = -(-count // per_block), []
        need(at + number <= len(sections), f"{name}: blocks are missing")
        for i in range(number):
            block = sections[at + i]
            need(len(block) == size * min(per_block, count - i * per_block), f"{name}: block length")
            rows += struct.iter_unpack(form, block)
        fans.append(b"".join(s[:8] for s in sections[at:at + number]))
        tables.append(rows)
        at += number
    need(at == len(sections), f"{name}: sections that belong to nothing")
    for key, fan in ((7, fans[1]), (8, fans[2]), (13, fans[3])):
        need(head.get(key, b"") == fan, f"{name}: fan-out {key} is wrong")
    slots, packs, chunks, deltas = [s[0] for s in tables[0]], [PackRecord(*p) for p in tables[1]], tables[2], tables[3]
    for what, order in (("packs", [p.id for p in packs]), ("chunks", [c[:2] for c in chunks]),
                        ("deltas", [d[:2] for d in deltas]), ("features", [f[0] for f in tables[4]])):
        need(all(a < b for a, b in zip(order, order[1:])), f"{name}: {what} out of order")
    need(all(c[3] >> 28 in (0, 1, 2, 8) for c in chunks), f"{name}: unknown chunk type")
    need([c[:2] for c in chunks if c[3] >> 28 == 8] == [d[:2] for d in deltas], f"{name}: deltas differ from the chunks")
    need(all(d[2] not in (HOLE, d[0]) for d in deltas), f"{name}: bad base id")
    if head[9] == 0:
        need(all(c[1] < len(packs) for c in chunks), f"{name}: chunk in a pack that is not listed")
        need(all(p.slot_first + p.slot_count <= len(slots) for p in packs), f"{name}: slot range")
    need(all(p.kind in (0, 1) and p.flags == 0 and p.slot_count >= 1 and 1 <= p.blob_count <= 1 << 20 for p in packs),
         f"{name}: pack record")
    need(all(c[2] >= 64 and 23 < c[3] & 0xFFFFFFF <= FRAME_MAX for c in chunks), f"{name}: place of a chunk")
    if head[9] == 0:
        check_places(slots, packs, chunks, name)
    return Run(head, slots, packs, chunks, deltas)


def check_places(slots, packs, chunks, name):
    """What a whole run says about its packs fits together."""
    for p in packs:
        own = slots[p.slot_first:p.slot_first + p.slot_count]
        need(all(s[1] == p.kind + 1 and s[2:4] == b"\0\0" for s in own), f"{name}: slot of the wrong domain")
    for _, ix, offset, packed in chunks:
        need((packed >> 28 in (1, 2)) == (packs[ix].kind == 1), f"{name}: chunk type does not fit its pack")
        need(offset + (packed & 0xFFFFFFF) <= packs[ix].size - TRAILER_MIN - 88, f"{name}: chunk beyond its pack")


# ---------------------------------------------------------------- 12 trees, 13 lists, 14 manifest
Entry = namedtuple("Entry", "type mode uid gid mtime ctime ino size content target device tlvs flags")
Content = namedtuple("Content", "inline parts root height count")


def parse_content(c, size):
    form = c.byte()
    if form == 0:
        need(size <= 512, f"{c.what}: inline content above 512 bytes")
        return Content(c.take(size), None, None, None, None)
    need(size > 0, f"{c.what}: empty content must be inline")
    if form == 1:
        count = c.varint(64)
        need(count >= 1, f"{c.what}: chunk list without chunks")
        parts = [parse_part(c) for _ in range(count)]
        need(sum(n for _, n in parts) == size, f"{c.what}: chunk lengths do not add up to the size")
        return Content(None, parts, None, None, None)
    need(form == 2, f"{c.what}: unknown content form {form}")
    root, height, count = c.take(32), c.byte(), c.varint()
    need(root != HOLE and height <= 7 and count >= 1, f"{c.what}: list root")
    return Content(None, None, root, height, count)


def parse_part(c):
    blob_id, length = c.take(32), c.varint()
    need(length >= 1 and (length <= CHUNK_MAX or blob_id == HOLE), f"{c.what}: chunk length {length}")
    return blob_id, length


def parse_xattr_name(c):
    length = c.varint(255)
    name = c.take(length)
    need(length >= 1 and 0 not in name, f"{c.what}: attribute name")
    return name


def parse_tlvs(c):
    """({tag: value or list}, flags): flags name what cannot be restored faithfully."""
    tlvs, flags, last = {}, [], (0, b"")
    while c.left():
        tag = c.varint()
        body = Cursor(c.take(c.varint()), f"{c.what}: TLV {tag}")
        name = b""
        if tag in (1, 3):
            name = parse_xattr_name(body)
            if tag == 1:
                value = body.take(body.left())
                need(len(value) <= 4096, f"{c.what}: attribute value above 4096 bytes")
            else:
                value = parse_content_with_size(body)
            tlvs.setdefault(tag, []).append((name, value))
        elif tag == 2:
            tlvs[tag] = body.zigzag(), body.varint(999_999_999)
        elif tag == 4:
            tlvs[tag] = body.varint(), body.varint()
        elif tag in (8, 19):
            tlvs[tag] = body.varint()
            need(tag == 8 or tlvs[tag] >= 1, f"{c.what}: error code 0")
            flags += ["content-incomplete"] if tag == 19 else []
        elif tag == 12:
            tlvs[tag] = True
            flags.append("changed-while-read")
        else:
            body.take(body.left())
            flags += ["unknown-critical-tlv"] if tag % 2 else []
        body.end()
        need(tag >= 1 and (tag, name) > last and (tag != last[0] or tag in (1, 3)), f"{c.what}: TLVs out of order")
        last = (tag, name)
    names = [{n for n, _ in tlvs.get(tag, [])} for tag in (1, 3)]
    need(not names[0] & names[1], f"{c.what}: one attribute name inline and out of line")
    return tlvs, flags


def parse_content_with_size(c):
    size = c.varint()
    return size, parse_content(c, size)


def parse_entry(value, root_kind, what="entry"):
    need(len(value) <= VALUE_MAX, f"{what}: value above 65536 bytes")
    c = Cursor(value, what)
    type_ = c.byte()
    need(type_ in {0: range(1, 8), 1: (8,), 2: (9,), 3: range(1, 8)}[root_kind], f"{what}: type {type_} in this root")
    mode, uid, gid = c.varint(0o7777), c.varint(2**32 - 1), c.varint(2**32 - 1)
    mtime = c.zigzag(), c.varint(999_999_999)
    ctime = mtime[0] + c.zigzag(), c.varint(999_999_999)
    need(-(1 << 63) <= ctime[0] < 1 << 63, f"{what}: ctime out of range")
    ino, size, content, target, device = c.varint(), 0, None, None, None
    if type_ in (1, 8, 9):
        size, content = parse_content_with_size(c)
    elif type_ == 3:
        target = c.take(c.varint())
        need(target and 0 not in target, f"{what}: link target")
    elif type_ in (6, 7):
        device = c.varint(2**32 - 1), c.varint(2**32 - 1)
    return Entry(type_, mode, uid, gid, mtime, ctime, ino, size, content, target, device, *parse_tlvs(c))


def split_key(key, root_kind):
    """Path components of a key; a raw key is one component."""
    need(1 <= len(key) <= 65_535, "tree key: length")
    if root_kind in (1, 2):
        need(root_kind == 1 or len(key) <= 4096, "tree key: stream name above 4096 bytes")
        return (key,)
    if key == b"\0":
        return ()
    dirs, zero, name = key.rpartition(b"\0")
    need(zero and (dirs == b"" or dirs.endswith(b"\0")), "tree key: not of the form c1 00 … ck 00 00 name")
    parts = (*dirs.split(b"\0")[:-1], name)
    for part in parts:
        need(1 <= len(part) <= 4096 and b"/" not in part and part not in (b".", b".."), "tree key: bad path component")
    need(len(parts) <= 4096, "tree key: too deep")
    return parts


def path_key(parts):
    return b"".join(p + b"\0" for p in parts[:-1]) + b"\0" + parts[-1] if parts else b"\0"


def parse_node(data, root_kind):
    """(level, [(key, Entry or (child id, entries, bytes))…])"""
    need(len(data) <= NODE_MAX, "tree node: above 262144 bytes")
    c = Cursor(data, "tree node")
    version, level, count = c.byte(), c.byte(), c.varint()
    if version != 1:
        raise Unsupported(f"tree node: version {version}")
    need(level <= 15 and (count >= 1 or level == 0), "tree node: level or count")
    rows, key = [], None
    for _ in range(count):
        shared, suffix_len = c.varint(), c.varint(65_535)
        suffix, previous = c.take(suffix_len), key or b""
        need(suffix_len >= 1 and shared <= len(previous), "tree node: key")
        need(shared == len(previous) or suffix[0] != previous[shared], "tree node: shared prefix is not the longest")
        key = previous[:shared] + suffix
        need(not rows or key > previous, "tree node: keys out of order")
        value = c.take(c.varint(VALUE_MAX))
        split_key(key, root_kind)
        if level == 0:
            rows.append((key, parse_entry(value, root_kind)))
        else:
            v = Cursor(value, "tree node: child")
            rows.append((key, (v.take(32), v.varint(), v.varint())))
            need(rows[-1][1][1] >= 1, "tree node: child without entries")
            v.end()
    c.end()
    return level, rows


def parse_list_node(data):
    need(len(data) <= NODE_MAX, "list node: above 262144 bytes")
    c = Cursor(data, "list node")
    version, level, count = c.byte(), c.byte(), c.varint(4096)
    if version != 1:
        raise Unsupported(f"list node: version {version}")
    need(level <= 7 and count >= 1, "list node: level or count")
    rows = []
    for _ in range(count):
        rows.append(parse_part(c) if level == 0 else (c.take(32), c.varint()))
        need(rows[-1][1] >= 1, "list node: empty element")
        need(level == 0 or rows[-1][0] != HOLE, "list node: hole above level 0")
    c.end()
    return level, rows


def parse_manifest(raw):
    need(len(raw) <= CHUNK_MAX, "manifest: too large")
    m = fields(cbor_decode(raw, "manifest"), "manifest",
               {0: is_version, 1: is_map, 2: is_time, 3: is_time, 4: is_list(is_map)},
               {5: is_list(is_text), 6: SIDS, 7: is_names, 8: is_names, 9: is_row(is_uint, is_list(is_row(
                   is_bytes(), is_text, is_text))), 10: is_list(is_row(is_bytes(16), is_u32, is_u32, is_bytes(32),
                                                                       is_bytes(16), is_u32, is_bytes(88))),
                11: is_map, 12: is_map, 13: is_list(is_row(is_text, either(is_text, is_bytes()))), 14: SIDS,
                15: is_text, 17: is_bytes(32)})
    fields(m[1], "manifest: source", {0: is_bytes(16), 1: is_uint}, {2: is_text, 3: is_text, 4: is_text})
    fields(m.get(11, {}), "manifest: statistics", {}, {i: is_uint for i in range(13)})
    fields(m.get(12, {}), "manifest: resume", {},
           {0: is_uint, 1: is_bytes(), 2: is_list(is_row(is_bytes(32), is_uint))})
    total, listed = m.get(9, [0, []])
    need(len(listed) <= min(total, 1000), "manifest: listed errors")
    for root in m[4]:
        fields(root, "manifest: root", {0: is_bytes(), 1: is_uint, 2: is_bytes(32), 3: is_uint, 4: is_uint, 5: is_uint},
               {6: is_uint})
        need(root[1] <= 3 and root[3] <= 15, "manifest: root kind or height")
    return m


# ---------------------------------------------------------------- 9 sessions, outcomes, drops
PART_SUFFIX = re.compile(r"[ps]([0-9]{4}|[1-9][0-9]{4,})|c([0-9]{4}|[1-9][0-9]{4,})-[0-9a-f]{4}-[0-9a-f]{4}")


def parse_outcome(sections, name):
    o = fields(cbor_decode(sections[0], name), name,
               {**SIGNED, 3: is_uint, 4: is_bytes(16), 5: RANGES, 9: is_uint, 10: either(is_null, is_bytes(32))},
               {6: is_map, 7: is_bytes(32), 8: is_uint, 11: SIDS, 12: SIDS, 13: is_bytes(16), 14: is_uint,
                16: is_list(is_row(is_bytes(16), is_uint, is_bytes(32)))})
    need(name == f"snap/{o[4].hex()}", f"{name}: sid differs from the name")
    need(1 <= o[3] <= 5 and (o[10] is None) == (o[9] == 0), f"{name}: kind or predecessor")
    flat = [n for pair in o[5] for n in pair]
    need(all(a <= b for a, b in o[5]) and all(a < b for a, b in zip(flat[1::2], flat[2::2])), f"{name}: accepted runs")
    if o[3] in (1, 2):
        need(all(k in o for k in (7, 8, 13)) and len(sections) == 2, f"{name}: manifest is missing")
    else:
        need(not any(k in o for k in (7, 8, 13)) and len(sections) == 1, f"{name}: manifest where none belongs")
    if 6 in o:
        fields(o[6], f"{name}: run descriptor",
               {0: is_uint, 1: is_list(is_row(is_text, is_uint, is_bytes(32)))},
               {2: is_list(is_text), 3: is_bytes()})
        need(1 <= o[6][0] <= 9 and len(o[6].get(3, b"")) % 16 == 0, f"{name}: run descriptor")
        need(all(PART_SUFFIX.fullmatch(suffix) for suffix, _, _ in o[6][1]), f"{name}: name of a part")
    need(not {6, 16} & o.keys() or o[3] == 3, f"{name}: run descriptor or chain floors outside of maintenance")
    floors = [kid for kid, _, _ in o.get(16, [])]
    need(all(a < b for a, b in zip(floors, floors[1:])), f"{name}: chain floors out of order")
    if o[3] != 4:
        need(o[4][:4] == o[1][:4], f"{name}: sid does not carry the signer's tag")
    return o


def parse_drop(sections, name, config):
    body = fields(cbor_decode(sections[0], name), name, {**SIGNED, 3: is_uint, 4: is_bytes(16)}, {5: is_text})
    need(name == f"drop/{body[4].hex()}" and len(sections) == 1, f"{name}: sid differs from the name")
    need(body[3] in (1, 2), f"{name}: kind")
    check_signer(config, body, name, FORGET if body[3] == 1 else ADMIN)
    return body


def parse_session(sections, name):
    need(len(sections) == 1, f"{name}: exactly one section expected")
    s = fields(cbor_decode(sections[0], name), name, {**SIGNED},
               {3: is_uint, 4: SIDS, 5: is_text, 6: is_text, 7: SIDS, 8: is_uint})
    match = re.fullmatch(r"sess/([0-9a-f]{32})/([0-9]{4,})", name)
    need(match and bytes.fromhex(match[1])[:4] == s[1][:4], f"{name}: sid does not carry the signer's tag")
    if match[2] == "0000":
        need(3 in s and s[3] <= 6, f"{name}: role of the session")
    return s


def check_signer(config, body, name, roles):
    writer = writer_of(config, body[1], name)
    need(writer[2] & (roles | ADMIN), f"{name}: signer lacks the role for this")
    verify_signature(body, name, writer[1])
    return writer


# ---------------------------------------------------------------- a repository in a directory
Place = namedtuple("Place", "pack offset stored_len kind slots is_delta")
Snapshot = namedtuple("Snapshot", "sid outcome manifest dropped")


class Repository:
    def __init__(self, path, ikm_of, from_trailers=False):
        self.path, self.places, self.warnings, self.cache = path, {}, [], OrderedDict()
        self.full_runs = []
        configs = self.names("config", r"config/[0-9]{8}")
        if not configs:
            raise Trouble(f"{path} is not a larder repository")
        config, signer_key = self.load_config(configs[-1])
        self.keys, admins = self.unlock(config, ikm_of)
        self.trust(config, signer_key, admins)
        self.config = config
        self.outcomes = self.load_outcomes()
        self.verify_chains()
        self.drops, self.voids = self.load_drops()
        self.index_trailers() if from_trailers else self.index_runs()

    # ---- files
    def names(self, folder, pattern):
        found = []
        for base, _, files in os.walk(os.path.join(self.path, folder)):
            for file in files:
                name = os.path.relpath(os.path.join(base, file), self.path).replace(os.sep, "/")
                if re.fullmatch(pattern, name):
                    found.append(name)
        return sorted(found, key=lambda n: (len(n), n))

    def read(self, name, limit=1 << 30):
        try:
            with open(os.path.join(self.path, *name.split("/")), "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise Corrupt(f"{name}: cannot be read: {error.strerror}") from None
        need(len(data) <= limit, f"{name}: too large")
        return data

    def read_range(self, name, offset, length):
        try:
            with open(os.path.join(self.path, *name.split("/")), "rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise Corrupt(f"{name}: cannot be read: {error.strerror}") from None
        need(len(data) == length, f"{name}: ends too early")
        return data

    def warn(self, text):
        self.warnings.append(text)
        print(f"warning: {text}", file=sys.stderr)

    # ---- 10 config, protectors, grants
    def load_config(self, name):
        config = parse_config(self.read(name, MIB), name)
        return config, verify_config(config, name)

    def unlock(self, config, ikm_of):
        repo, tried = config[3], 0
        for name in self.names("keys", r"keys/[0-9a-f]{32}/[0-9]{4,}"):
            body = parse_protector(self.read(name, MIB))
            need(name.split("/")[1] == body[1].hex(), f"{name}: kid differs from the name")
            tried += 1
            if tried > 8:
                break
            ikm = ikm_of(body)
            secret = open_protector(body, repo, ikm) if ikm else None
            if secret:
                return self.load_grant(body[1].hex(), secret, config)
        raise Trouble("no protector opens with this passphrase or key file")

    @staticmethod
    def grant_fits(grant, config, repo):
        """Whether a grant holds the secrets of the epoch that the config names."""
        held = [e for e in grant[7] if e[0] == config[7]]
        return any(21 not in config or (4 in e and dk("larder v1 epoch check", e[4] + repo) == config[21]) for e in held)

    def load_grant(self, kid, secret, config):
        repo = config[3]
        for name in reversed(self.names(f"grants/{kid}", r"grants/[0-9a-f]{32}/[0-9]{8}")):
            try:
                grant = open_grant(self.read(name, MIB), name, dk("larder v1 grant key", secret + repo), repo)
                issuer = check_signer(config, grant, name, ADMIN)
                need(issuer[1] in grant[6], f"{name}: issuer is not among its admin keys")
            except Corrupt as error:
                self.warn(str(error))
                continue
            if not self.grant_fits(grant, config, repo):
                continue                    # of a rotation that has not come to its end, or came second
            epochs = {e[0]: Epoch(e.get(1), e.get(4), e.get(5), e.get(6), e.get(10), e.get(7)) for e in grant[7]}
            return Keys(repo, epochs), grant[6]
        raise Corrupt(f"no grant for {kid} opens")

    def trust(self, config, signer_key, admins):
        """Walks down from the newest config until an admin key of the grant has signed."""
        while signer_key not in admins:
            need(config[4] > 0, "the config is not signed by an admin this grant knows")
            name = f"config/{config[4] - 1:08d}"
            data = self.read(name, MIB)
            need(h(data) == config[5], f"{name}: is not the predecessor that its successor names")
            older, older_key = self.load_config(name)
            signer = writer_of(older, config[1], name)
            need(signer[1] == signer_key and signer[2] & ADMIN and 4 not in signer,
                 f"config {config[4]}: its signer was not an admin before")
            config, signer_key = older, older_key

    # ---- 9 outcomes
    def sealed(self, name, kind):
        data = self.read(name)
        return data, open_envelope(data, kind, name, self.keys.object_key(CLASS[kind]))

    def load_outcomes(self):
        outcomes = {}
        for name in self.names("snap", r"snap/[0-9a-f]{32}"):
            try:
                data, sections = self.sealed(name, OUTCOME)
                outcome = parse_outcome(sections, name)
                writer = check_signer(self.config, outcome, name, MAINTAIN if outcome[3] in (3, 4) else WRITE)
                if 4 in writer:
                    end = writer.get(5, [-1, b""])
                    need(outcome[9] < end[0] or [outcome[9], h(data)] == end, f"{name}: signed after its writer was revoked")
                outcomes[outcome[4]] = (outcome, h(data), sections[1:])
            except (Corrupt, Unsupported) as error:
                self.warn(f"snapshot or session end unreadable: {error}")
        return outcomes

    def verify_chains(self):
        chains, floors = {}, {}
        for outcome, digest, _ in self.outcomes.values():
            chains.setdefault(outcome[1], []).append((outcome[9], digest, outcome[10]))
            for kid, seq, floor_hash in outcome.get(16, []):
                floors[kid] = max(floors.get(kid, (-1, b"")), (seq, floor_hash))
        for kid, chain in chains.items():
            seen, last = {}, max(chain)[0]
            for seq, digest, prev in sorted(chain):
                if seq in seen:
                    self.warn(f"writer {kid.hex()[:8]} has two outcomes with number {seq}: cloned or rolled back")
                seen.setdefault(seq, []).append((digest, prev))
            floor_seq, floor_hash = floors.get(kid, (-1, None))
            for seq in range(last + 1):
                if seq not in seen and seq > floor_seq:
                    self.warn(f"outcome {seq} of writer {kid.hex()[:8]} is missing: stale list, rollback or tampering")
                before = {d for d, _ in seen.get(seq - 1, [])} | ({floor_hash} if seq - 1 == floor_seq else set())
                if seq in seen and before and not before & {p for _, p in seen[seq]}:
                    self.warn(f"outcome {seq} of writer {kid.hex()[:8]} does not follow its predecessor")

    def load_drops(self):
        """(forgotten snapshots, sessions that an admin declared void)"""
        drops, voids = set(), set()
        for name in self.names("drop", r"drop/[0-9a-f]{32}"):
            try:
                _, sections = self.sealed(name, DROP)
                body = parse_drop(sections, name, self.config)
                (drops if body[3] == 1 else voids).add(body[4])
            except (Corrupt, Unsupported) as error:
                self.warn(f"ignored: {error}")
        return drops, voids

    def held(self, sid):
        for name in self.names(f"hold/{sid.hex()}", r"hold/[0-9a-f]{32}/(?!\.\.?$)[a-z0-9._-]{1,64}"):
            try:
                _, sections = self.sealed(name, HOLD_OBJECT)
                body = fields(cbor_decode(sections[0], name), name,
                              {**SIGNED, 4: is_bytes(16)}, {5: either(is_null, is_time), 6: is_text})
                need(body[4] == sid and len(sections) == 1, f"{name}: sid differs from the name")
                check_signer(self.config, body, name, HOLD)
                if body.get(5) is None or body[5] > time.time_ns():
                    return True
            except (Corrupt, Unsupported) as error:
                self.warn(f"ignored: {error}")
        return False

    # ---- 8 index
    def index_runs(self):
        counted = [o for o, _, _ in self.outcomes.values() if o[4] not in self.voids]
        absorbed = {name for o in counted for name in o.get(6, {}).get(2, [])}
        for outcome in counted:
            sid = outcome[4].hex()
            for first, last in outcome[5]:
                for number in range(first, last + 1):
                    name = f"idx/0-{sid}-{number:04d}"
                    self.try_run([(name, None, None)], name in absorbed)
            if 6 in outcome:
                name = f"idx/{outcome[6][0]}-{sid}"
                self.try_run([(f"{name}-{suffix}", size, digest) for suffix, size, digest in outcome[6][1]],
                             name in absorbed)

    def try_run(self, parts, absorbed):
        """Adds a run; one that others have absorbed may be gone, or damaged."""
        if absorbed and not all(os.path.lexists(os.path.join(self.path, *name.split("/"))) for name, *_ in parts):
            return
        try:
            self.add_run(parts)
        except (Corrupt, Unsupported) as error:
            if not absorbed:
                self.warn(f"index run: {error}")

    def add_run(self, parts):
        slots, packs, chunks = [], [], []
        for name, size, expected in sorted(parts):
            data, sections = self.sealed(name, RUN)
            need(expected is None or (size, expected) == (len(data), h(data)), f"{name}: is not the object that was accepted")
            run = parse_run(sections, name)
            roles = WRITE | MAINTAIN if run.header[3] == 0 else MAINTAIN
            writer = check_signer(self.config, run.header, name, roles)
            need(run.header[4][:4] == run.header[1][:4], f"{name}: sid does not carry the signer's tag")
            if not writer[2] & (MAINTAIN | ADMIN):
                need(all(p.sid[:4] == run.header[1][:4] for p in run.packs), f"{name}: lists packs of another writer")
            slots += run.slots
            packs += run.packs
            chunks += run.chunks
        names = [f"{('data', 'meta')[p.kind]}/{p.id.hex()[:2]}/{p.id.hex()}-{p.sid.hex()}" for p in packs]
        for blob_id, pack_ix, offset, packed in chunks:
            need(pack_ix < len(packs), f"{parts[0][0]}: chunk in a pack that is not listed")
            p, nibble = packs[pack_ix], packed >> 28
            place = Place(names[pack_ix], offset, packed & 0xFFFFFFF, 0 if nibble == 8 else nibble,
                          slots[p.slot_first:p.slot_first + p.slot_count], nibble == 8)
            self.places.setdefault(blob_id, []).append(place)
        self.full_runs.append((list(zip(names, packs)), chunks))

    def index_trailers(self):
        for name in self.names("data", PACK_NAME) + self.names("meta", PACK_NAME):
            try:
                size = os.path.getsize(os.path.join(self.path, *name.split("/")))
                slots, records, _ = open_pack_trailer(lambda at, n: self.read_range(name, at, n), size, name, self.keys)
            except (Corrupt, Unsupported) as error:
                self.warn(str(error))
                continue
            for r in records:
                self.places.setdefault(r.id, []).append(
                    Place(name, r.offset, r.stored_len, r.kind, slots, r.base_id is not None))

    # ---- reading
    def blob(self, blob_id, kind, full_only=False):
        """Verified plaintext from the first copy that resolves; full copies before deltas."""
        if (blob_id, kind) in self.cache:
            self.cache.move_to_end((blob_id, kind))
            return self.cache[blob_id, kind]
        problem = Corrupt(f"no copy of {blob_id.hex()} is known")
        for place in sorted(self.places.get(blob_id, []), key=lambda p: p.is_delta):
            if place.kind != kind or (full_only and place.is_delta):
                continue
            try:
                frame = self.read_range(place.pack, place.offset, place.stored_len)
                base_of = None if full_only else (lambda base_id: self.blob(base_id, DATA_BLOB, full_only=True))
                raw = open_blob(frame, place.slots, kind, blob_id, self.keys, base_of).raw
            except (Corrupt, Unsupported) as error:
                problem = error
                continue
            if not place.is_delta:
                self.cache[blob_id, kind] = raw
                while len(self.cache) > 64:
                    self.cache.popitem(last=False)
            return raw
        raise problem

    def snapshots(self):
        result = []
        for sid, (outcome, _, rest) in self.outcomes.items():
            if outcome[3] not in (1, 2) or sid in self.voids:
                continue
            section = rest[0]
            try:
                need(len(section) > 88, f"snap/{sid.hex()}: manifest section too short")
                opened = open_blob(section[88:], [section[:88]], MANIFEST, outcome[7], self.keys)
                need(len(opened.raw) == outcome[8], f"snap/{sid.hex()}: manifest length")
                manifest = parse_manifest(opened.raw)
            except (Corrupt, Unsupported) as error:
                self.warn(str(error))
                continue
            result.append(Snapshot(sid, outcome, manifest, sid in self.drops and not self.held(sid)))
        return sorted(result, key=lambda s: (s.manifest[2], s.sid))

    def snapshot(self, text):
        alive = [s for s in self.snapshots() if not s.dropped]
        if text == "latest" and alive:
            return alive[-1]
        found = [s for s in alive if s.sid.hex().startswith(text)]
        if len(found) != 1:
            raise Trouble(f"{len(found)} snapshots are called {text!r}")
        return found[0]

    def walk(self, root):
        """Yields (components, entry) in key order, after checking shape and totals."""
        directories, last = set(), None
        for key, entry in self._walk(root[2], root[3], root[1], None, (root[4], root[5])):
            need(last is None or key > last, "tree: keys out of order between nodes")
            parts, first = split_key(key, root[1]), last is None
            last = key
            if root[1] in (0, 3):
                need(first == (parts == ()), "tree: the root entry is missing or not first")
                need(not parts or parts[:-1] in directories, f"tree: {b'/'.join(parts)!r} has no parent directory")
                if entry.type == 2:
                    directories.add(parts)
            yield parts, entry

    def _walk(self, node_id, level, kind, first_key, totals):
        found, rows = parse_node(self.blob(node_id, TREE_NODE), kind)
        need(found == level, "tree: a node is on the wrong level")
        need(first_key is None or (rows and rows[0][0] == first_key), "tree: first key differs from the parent's")
        if level == 0:
            sums = len(rows), sum(e.size for _, e in rows if e.type in (1, 8, 9))
            yield from rows
        else:
            sums = sum(v[1] for _, v in rows), sum(v[2] for _, v in rows)
            for key, (child, entries, size) in rows:
                yield from self._walk(child, level - 1, kind, key, (entries, size))
        need(sums == tuple(totals), "tree: totals of a node do not add up")

    def find(self, root, key):
        node_id = root[2]
        for level in range(root[3], -1, -1):
            found, rows = parse_node(self.blob(node_id, TREE_NODE), root[1])
            need(found == level, "tree: a node is on the wrong level")
            row = next((r for r in reversed(rows) if r[0] <= key), None)
            if row is None:
                return None
            if level == 0:
                return row[1] if row[0] == key else None
            node_id = row[1][0]

    def parts(self, content, size):
        """Yields (chunk id, length) of a content; nothing for inline content."""
        if content.root is None:
            yield from content.parts or ()
            return
        count = 0
        for part in self._list(content.root, content.height, size):
            count += 1
            yield part
        need(count == content.count, "list: number of chunks differs from the entry")

    def _list(self, node_id, level, total):
        found, rows = parse_list_node(self.blob(node_id, LIST_NODE))
        need(found == level and sum(n for _, n in rows) == total, "list: level or total of a node is wrong")
        for blob_id, length in rows:
            if level == 0:
                yield blob_id, length
            else:
                yield from self._list(blob_id, level - 1, length)

    def content(self, entry):
        """Yields pieces of a file: bytes, or an int for a hole of that length."""
        if entry.content.inline is not None:
            yield entry.content.inline
            return
        for blob_id, length in self.parts(entry.content, entry.size):
            if blob_id == HOLE:
                yield length
                continue
            raw = self.blob(blob_id, DATA_BLOB)
            need(len(raw) == length, f"chunk {blob_id.hex()[:16]}: length differs from the list")
            yield raw


# ---------------------------------------------------------------- commands
def show_time(ns):
    try:
        return datetime.datetime.fromtimestamp(ns // 10**9, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{ns // 10**9}s"


def show_path(raw):
    return raw.decode("utf-8", "backslashreplace")


def command_list(repo, _args):
    for s in repo.snapshots():
        if s.dropped:
            continue
        roots = ", ".join(show_path(r[0]) for r in s.manifest[4])
        mark = " (partial)" if s.outcome[3] == 2 or s.outcome.get(14, 0) & 1 else ""
        entries, size = sum(r[4] for r in s.manifest[4]), sum(r[5] for r in s.manifest[4])
        print(f"{s.sid.hex()}  {show_time(s.manifest[2])}  {s.manifest[1].get(2, '-')}  "
              f"{entries} entries  {size} bytes  {roots}{mark}")


LETTERS = {1: "-", 2: "d", 3: "l", 4: "p", 5: "s", 6: "c", 7: "b", 8: "o", 9: "="}


def command_ls(repo, args):
    for root in repo.snapshot(args.snapshot).manifest[4]:
        for parts, e in repo.walk(root):
            path = (b"/".join(parts) or b".") + (b" -> " + e.target if e.target else b"")
            flags = f" [{', '.join(e.flags)}]" if e.flags else ""
            line = f"{LETTERS[e.type]}{e.mode:04o} {e.uid} {e.gid} {e.size:>12} {show_time(e.mtime[0] * 10**9)} "
            sys.stdout.buffer.write(line.encode() + path + flags.encode() + b"\n")


def command_cat(repo, args):
    wanted = os.fsencode(args.path)
    for root in repo.snapshot(args.snapshot).manifest[4]:
        key = wanted if root[1] in (1, 2) else path_key([p for p in wanted.split(b"/") if p not in (b"", b".")])
        entry = repo.find(root, key)
        if entry is not None:
            if entry.content is None:
                raise Trouble(f"{args.path} is not a file")
            for piece in repo.content(entry):
                while isinstance(piece, int) and piece > 0:
                    sys.stdout.buffer.write(bytes(min(piece, MIB)))
                    piece -= min(piece, MIB)
                sys.stdout.buffer.write(piece or b"")
            return
    raise Trouble(f"no {args.path} in this snapshot")


def restore_file(repo, entry, path):
    with open(path, "xb") as out:
        for piece in repo.content(entry):
            if isinstance(piece, int):
                out.seek(piece, os.SEEK_CUR)
            else:
                out.write(piece)
        out.truncate(entry.size)


def safe_name(raw):
    """A raw object or stream name as one file name."""
    text = "".join(chr(b) if chr(b).isalnum() and b < 128 or b in b"_-." else f"%{b:02X}" for b in raw)
    return os.fsencode(text if text not in (".", "..") else text.replace(".", "%2E"))


def restore_root(repo, root, target):
    directories, groups = [], {}
    for parts, e in repo.walk(root):
        if root[1] in (1, 2):
            parts = (safe_name(parts[0]),)
        elif parts == () and e.type != 2:               # a root that is a single file
            parts = (safe_name(os.path.basename(root[0].rstrip(b"/")) or b"file"),)
        path = os.path.join(target, *parts)
        for flag in e.flags:
            repo.warn(f"{show_path(path)}: {flag}")
        if e.type == 2:
            os.makedirs(path, exist_ok=parts == ())
            directories.append((path, e))
            continue
        group = (*e.tlvs[4][:1], e.ino) if 4 in e.tlvs else None
        if group and group in groups:
            os.link(groups[group], path, follow_symlinks=False)
            continue
        if e.content is not None:
            restore_file(repo, e, path)
        elif e.type == 3:
            os.symlink(e.target, path)
        elif e.type == 4:
            os.mkfifo(path)
        else:
            repo.warn(f"{show_path(path)}: sockets and devices are not restored")
            continue
        if group:
            groups[group] = path
        finish(repo, path, e)
    for path, e in reversed(directories):
        finish(repo, path, e)


def set_attributes(repo, path, e):
    values = list(e.tlvs.get(1, []))
    for name, (size, content) in e.tlvs.get(3, []):
        whole = e._replace(size=size, content=content)
        values.append((name, b"".join(bytes(p) if isinstance(p, int) else p for p in repo.content(whole))))
    for name, value in values:
        if name.startswith(b"user.") and hasattr(os, "setxattr"):
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                repo.warn(f"{show_path(path)}: attribute {show_path(name)}: {error.strerror}")


def finish(repo, path, e):
    set_attributes(repo, path, e)
    if e.type != 3 and (e.mode or e.type not in (8, 9)):
        os.chmod(path, e.mode)
    stamp = e.mtime[0] * 10**9 + e.mtime[1]
    try:
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    except OverflowError:
        raise Trouble(f"{show_path(path)}: this system has no such time as {e.mtime[0]} s") from None


def command_restore(repo, args):
    snapshot, target = repo.snapshot(args.snapshot), os.fsencode(args.directory)
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise Trouble(f"{args.directory} is not an empty directory")
    os.makedirs(target, exist_ok=True)
    roots = snapshot.manifest[4]
    for number, root in enumerate(roots):
        place = target if len(roots) == 1 else os.path.join(target, b"%d" % number)
        os.makedirs(place, exist_ok=True)
        restore_root(repo, root, place)


def command_check(repo, _args):
    errors, blobs, packs = [], 0, 0
    for listed, chunks in repo.full_runs:
        by_pack = {}
        for blob_id, pack_ix, offset, packed in chunks:
            by_pack.setdefault(pack_ix, []).append((offset, blob_id, packed))
        for ix, (name, record) in enumerate(listed):
            try:
                data = repo.read(name, 1 << 32)
                need(len(data) == record.size and data[-72:-48] == record.body_hash, f"{name}: differs from the index")
                found = []
                for r, opened in open_pack(data, name, repo.keys,
                                           lambda i: repo.blob(i, DATA_BLOB, full_only=True)):
                    found.append((r.offset, r.id, (8 if opened.codec == 2 else r.kind) << 28 | r.stored_len))
                need(found == sorted(by_pack.get(ix, [])) and len(found) == record.blob_count,
                     f"{name}: trailer and index list different blobs")
                blobs, packs = blobs + len(found), packs + 1
            except (Corrupt, Unsupported) as error:
                errors.append(str(error))
    for s in repo.snapshots():
        if s.dropped:
            continue
        try:
            for root in s.manifest[4]:
                for parts, e in repo.walk(root):
                    where = f"snapshot {s.sid.hex()[:8]}: {b'/'.join(parts)!r}"
                    contents = [(e.content, e.size)] if e.content else []
                    contents += [(content, size) for _, (size, content) in e.tlvs.get(3, [])]
                    for content, size in contents:
                        for blob_id, _ in repo.parts(content, size):
                            need(blob_id == HOLE or blob_id in repo.places,
                                 f"{where}: chunk {blob_id.hex()[:16]} is lost")
        except (Corrupt, Unsupported) as error:
            errors.append(str(error))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(f"{packs} packs and {blobs} blobs verified, {len(errors)} errors, {len(repo.warnings)} warnings")
    return 1 if errors else 3 if repo.warnings else 0


def main(arguments=None):
    parser = argparse.ArgumentParser(description="reference reader of larder repository format 1")
    parser.add_argument("--repo", required=True, help="directory of the repository")
    parser.add_argument("--key-file", help="open with a key file, a paper key, or a file with what a key command prints, instead of LARDER_PASSWORD")
    parser.add_argument("--from-trailers", action="store_true", help="find chunks by pack trailers, not by the index")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, words in (("list", command_list, ()), ("ls", command_ls, ("snapshot",)),
                             ("cat", command_cat, ("snapshot", "path")),
                             ("restore", command_restore, ("snapshot", "directory")), ("check", command_check, ())):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        for word in words:
            sub.add_argument(word)
    args = parser.parse_args(arguments)

    def ikm_of(protector):
        if args.key_file:
            with open(args.key_file, "rb") as file:
                return parse_key_file(file.read(4096)) if protector[3] in (4, 5) else None
        passphrase = os.environb.get(b"LARDER_PASSWORD")
        if passphrase is None:
            raise Trouble("set LARDER_PASSWORD or give --key-file")
        if protector[3] != 1:
            return None
        p = protector[4]
        return Argon2id(salt=p[0], length=32, iterations=p[2], lanes=p[3], memory_cost=p[1]).derive(passphrase)

    for stream in (sys.stdout, sys.stderr):          # names may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        repo = Repository(args.repo, ikm_of, args.from_trailers)
        return args.run(repo, args) or 0
    except BrokenPipeError:
        return 0
    except (Corrupt, Unsupported, Trouble, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
