"""Writes vectors.txt: `name = value`, the same bytes on every run.

Usage: python vec.py [OUTPUT]      (default: vectors.txt beside this file)
Packages: ../reference/requirements.txt
"""

import hashlib
import hmac
import os
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from forge import *  # noqa: F403  the whole toolkit, by its own names

LINES = []


def put(name, value):
    LINES.append(f"{name} = {value.hex() if isinstance(value, bytes) else value}")


# zstd frames are stored, not made: another version of the library may choose other bytes.
DELTA_BASE = xof(b"larder delta base", 512)
DELTA_RAW = DELTA_BASE[:256] + b"one changed row\n" + DELTA_BASE[256:]
DELTA_FRAME = bytes.fromhex("28b52ffd601001e50000806f6e65206368616e67656420726f770a0200fa1304b5fd01940002")
ZEROS_1000 = bytes(1000)
ZSTD_FRAME = bytes.fromhex("28b52ffd60e8024d00001000000100e32b8005")


def bech32m(prefix, data):
    """BIP 350, by polynomial division over GF(32) as BIP 173 writes it."""
    bits = int.from_bytes(data, "big") << (-8 * len(data) % 5)
    count = -(-8 * len(data) // 5)
    symbols = [bits >> 5 * (count - 1 - i) & 31 for i in range(count)]
    total = 1
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + symbols + [0] * 6:
        top, total = total >> 25, (total & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            total ^= generator if top >> bit & 1 else 0
    total ^= 0x2BC830A3
    symbols += [total >> 5 * (5 - i) & 31 for i in range(6)]
    return prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[s] for s in symbols)


def keys():
    put("repo_id", REPO)
    put("S_id/S_cdc/S_split/S_idx/S_meta/S_data/S_psk", "32 bytes each of 0x01..0x07")
    put("K_id_data", K_ID_DATA)
    put("K_id_meta", K_ID_META)
    put('id(data,"")', data_id(b""))
    put('id(data,"hello larder\\n")', data_id(b"hello larder\n"))
    put('id(meta,"hello larder\\n")', meta_id(b"hello larder\n"))
    put("id(data,1MiB zeros)", data_id(bytes(1 << 20)))
    for i in (0, 1, 255):
        put(f"gear[{i}]", f"{GEAR[i]:016x}")
    put("session_key", SK_DATA)
    put("slot(method=1,domain=data,epoch=1)", slot(DATA))
    put("slot_id", h(slot(DATA))[:16])
    put("blob_key(data)", blob_key(SK_DATA, DATA))


def blobs_and_packs():
    hello = Blob(0, b"hello larder\n")
    put("blob plaintext", hello.plain)
    put("blob aad", b"LBLB" + bytes([1, 0]) + REPO + hello.id)
    put("blob frame", hello.frame)
    empty = envelope("session", f"sess/{SID.hex()}/0000", [b"\xa0"])
    put("envelope(session, section0 = CBOR {} ) len", len(empty))
    put("envelope(session, section0 = CBOR {} )", empty)
    pack = Pack(0, [hello])
    put("footer len", 88)
    put("pack (complete, 1 blob) len", len(pack.bytes))
    put("pack hex", pack.bytes)
    put("pack blake3", h(pack.bytes))
    put("pack crc64nvme", f"{crc64nvme(pack.bytes):016x}")
    return pack


def zstd_and_deltas():
    zeros = Blob(0, ZEROS_1000, 1, ZSTD_FRAME)
    put("zstd raw", "1000 zero bytes")
    put("zstd id", zeros.id)
    put("zstd blob plaintext", zeros.plain)
    put("zstd blob frame", zeros.frame)
    base = Blob(0, DELTA_BASE)
    delta = Blob(0, DELTA_RAW, 2, DELTA_FRAME, base.id)
    put("delta base", 'BLAKE3-XOF("larder delta base")[0..512]')
    put("delta base id", base.id)
    put("delta raw", 'base[0..256] || "one changed row\\n" || base[256..512]')
    put("delta id", delta.id)
    put("delta zstd frame", DELTA_FRAME)
    put("delta blob plaintext", delta.plain)
    put("delta blob frame", delta.frame)
    padded = blob_plain(2, len(DELTA_RAW), DELTA_FRAME, base.id, padding=7)
    put("delta blob frame with 7 bytes of padding", blob_frame(0, delta.id, padded))
    pack_id, sid = bytes(range(0xD0, 0xE0)), bytes([0x11] * 4 + [0x44] * 12)
    pack = Pack(0, [base, delta, zeros], pack_id, sid)
    records = [(b.kind, len(b.frame), len(b.raw), b.id, b.base) for b in pack.blobs]
    put("trailer plaintext with a delta", trailer_plain(pack.slots, records))
    put("pack with a delta name", pack.name)
    put("pack with a delta", pack.bytes)
    features = [(base.id, (1, 2, 3)), (delta.id, (1, 2, 0xFFFFFFFFFFFFFFFF))]
    name, run = run_object([pack], sid, 0, features)
    key_map, sections = run_sections([pack], features)
    put("run header with deltas CBOR (signed)", sign(run_header(key_map, sections, sid), name))
    put("chunk records with a delta", sections[2])
    put("delta block", sections[3])
    put("feature block", sections[4])
    put(f"object {name}", run)


def trees():
    paths = {"/a": b"a", "/a.x": b"a.x", "/a/b": b"a/b", "/a/c": b"a/c", "/a/b/d": b"a/b/d", "/a.x/q": b"a.x/q",
             "/z": b"z"}
    for path in sorted(paths, key=lambda p: path_key(paths[p])):
        put(f"key {path}", path_key(paths[path]))
    for path in ("/a", "/a/b", "/z"):
        value = struct.unpack("<Q", kh(K_SPLIT, b"\0" + path_key(paths[path]), 8))[0]
        put(f"split_hash level0 {path}", f"{value:016x} boundary={value < 1 << 58}")
    i = 0
    while not boundary(0, path_key(b"dir/f%06d" % i)):
        i += 1
    value = struct.unpack("<Q", kh(K_SPLIT, b"\0" + path_key(b"dir/f%06d" % i), 8))[0]
    put("first boundary among /dir/f000000.. at level 0", f"f{i:06d} hash={value:016x}")
    t = 1_700_000_000
    hello = data_id(b"hello larder\n")
    entries = [
        (path_key(b"a"), dir_value(0o755, uid=0, gid=0, mtime=(t, 0), ctime=(t, 0), ino=2)),
        (path_key(b"a/hi.txt"), file_value(13, chunk_list([(hello, 13)]), mode=0o644, mtime=(t + 1, 5),
                                           ctime=(t + 2, 6), ino=300)),
        (path_key(b"a/in.txt"), file_value(3, inline(b"abc"), mode=0o600, mtime=(t + 1, 0), ctime=(t + 1, 0),
                                           ino=301))]
    leaf = node(0, entries)
    put("leaf node bytes", leaf)
    put("leaf node id", meta_id(leaf))
    inner = node(1, [(entries[0][0], meta_id(leaf) + varint(3) + varint(16))])
    put("inner node bytes", inner)
    full = (file_value(0, inline(b""), mode=0o4755, mtime=(-2, 999_999_999), ctime=(t, 0), ino=7)
            + xattr(b"user.a", b"1") + xattr(b"user.b", b"")
            + tlv(2, zigzag(t - 5) + varint(17))
            + tlv(3, varint(6) + b"user.c" + varint(5000) + chunk_list([(hello, 5000)]))
            + tlv(4, varint(64769) + varint(2)) + tlv(8, varint(0x10)) + tlv(12, b"") + tlv(19, varint(5)))
    put("entry with every TLV of v1", full)
    put("entry symlink", link_value(b"../target", ino=9, mtime=(t, 0), ctime=(t, 0)))
    put("entry block device", b"\7" + common(mode=0o660, uid=0, gid=6, ino=11) + varint(8) + varint(1))
    put("entry stream", file_value(13, chunk_list([(hello, 13)]), kind=9, mode=0, uid=0, gid=0, mtime=(t, 0),
                                   ctime=(t, 0), ino=0))
    put("entry file with a list", file_value(2 * 65 * 1000, b"\2" + bytes([0xAB]) * 32 + b"\1" + varint(130),
                                             mtime=(t, 0), ctime=(t, 0)))
    put("list node level 0 (data, hole, data)", list_node(0, [(hello, 13), (bytes(32), 1 << 30), (hello, 13)]))
    return leaf


def records(pack):
    blob = pack.blobs[0]
    put("chunk record (pack_ix 0, off 64)", chunk_record(blob.id, 0, 64, 0, len(blob.frame)))
    put("pack record", pack.record(0))


def parity():
    exp, log, x = [0] * 512, [0] * 256, 1
    for i in range(255):
        exp[i], log[x] = x, i
        x <<= 1
        x ^= 0x11D if x & 256 else 0
    exp[255:510] = exp[:255]
    m, k = 2, 3
    matrix = [[exp[255 - log[i ^ (m + j)]] for j in range(k)] for i in range(m)]
    data = [bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8]), bytes([9, 10, 11, 12])]
    parts = []
    for row in matrix:
        out = bytearray(4)
        for factor, block in zip(row, data):
            for i, byte in enumerate(block):
                out[i] ^= exp[log[factor] + log[byte]]
        parts.append(bytes(out).hex())
    put("RS Cauchy m=2 k=3 matrix", matrix)
    put("RS parity of 01020304,05060708,090a0b0c", parts)
    # A whole sidecar: k = 100, m = 4, blocks of 4096 bytes.
    m, k, size = 4, 100, 4096
    data = bytes((i * i >> 5) & 255 for i in range(100_000))
    blocks = [data[i:i + size].ljust(size, b"\0") for i in range(0, len(data), size)]
    stripes = -(-len(blocks) // k)
    sums = [bytearray(size) for _ in range(m * stripes)]
    for b, block in enumerate(blocks):
        stripe, j = b % stripes, b // stripes
        for i in range(m):
            factor = exp[255 - log[i ^ (m + j)]]
            table = bytes(exp[log[factor] + log[x]] if x else 0 for x in range(256))
            total = int.from_bytes(sums[i * stripes + stripe], "big") ^ int.from_bytes(block.translate(table), "big")
            sums[i * stripes + stripe] = total.to_bytes(size, "big")
    head = b"LARDERX1" + k.to_bytes(2, "little") + m.to_bytes(2, "little") + size.to_bytes(4, "little")
    head += len(data).to_bytes(8, "little") + h(data) + bytes(8)
    sidecar = head + b"".join(h(block)[:8] for block in blocks + sums) + b"".join(sums) + head
    sidecar += h(sidecar)
    put("parity sidecar of 100000 bytes (i*i >> 5) & 255, len", len(sidecar))
    put("parity sidecar of 100000 bytes (i*i >> 5) & 255, blake3", h(sidecar))


# ---------------------------------------------------------------- HPKE (slot method 2)
def _two(n):
    return n.to_bytes(2, "big")


def _extract(salt, ikm):
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def _expand(prk, info, length):
    out = last = b""
    i = 1
    while len(out) < length:
        last = hmac.new(prk, last + info + bytes([i]), hashlib.sha256).digest()
        out += last
        i += 1
    return out[:length]


def _labeled_extract(suite, salt, label, ikm):
    return _extract(salt, b"HPKE-v1" + suite + label + ikm)


def _labeled_expand(suite, prk, label, info, length):
    return _expand(prk, _two(length) + b"HPKE-v1" + suite + label + info, length)


KEM = b"KEM" + _two(0x20)


def _public(key):
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _derive_key_pair(ikm):
    prk = _labeled_extract(KEM, b"", b"dkp_prk", ikm)
    return X25519PrivateKey.from_private_bytes(_labeled_expand(KEM, prk, b"sk", b"", 32))


def hpke_psk_seal(ephemeral, recipient, psk, psk_id, info, aad, plaintext, aead=2):
    suite = b"HPKE" + _two(0x20) + _two(1) + _two(aead)
    enc = _public(ephemeral)
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    secret = _labeled_expand(KEM, _labeled_extract(KEM, b"", b"eae_prk", shared), b"shared_secret",
                             enc + recipient, 32)
    context = (b"\1" + _labeled_extract(suite, b"", b"psk_id_hash", psk_id)
               + _labeled_extract(suite, b"", b"info_hash", info))
    mixed = _labeled_extract(suite, secret, b"secret", psk)
    key = _labeled_expand(suite, mixed, b"key", context, 32 if aead == 2 else 16)
    return enc, AESGCM(key).encrypt(_labeled_expand(suite, mixed, b"base_nonce", context, 12), plaintext, aad)


def hpke_public(domain):
    secret = {DATA: S_DATA, META: S_META}[domain]
    return _public(_derive_key_pair(dk("larder v1 hpke " + DOMAIN[domain], secret + REPO)))


def hpke_slot(domain, ephemeral, psk=S_PSK, epoch=1, psk_epoch=None, recipient=None, keyset=0, repo=REPO):
    """A slot of method 2, with one thing other than it must be where a case wants that."""
    head = struct.pack("<BBHI", 2, domain, keyset, epoch)
    enc, sealed = hpke_psk_seal(ephemeral, recipient or hpke_public(domain), psk,
                                repo + struct.pack("<I", psk_epoch or epoch), b"larder v1 slot" + repo + head,
                                b"LSLT" + repo + head, {DATA: SK_DATA, META: SK_META}[domain])
    return head + enc + sealed


EPHEMERAL_RAW = X25519PrivateKey.from_private_bytes(bytes([0x77]) * 32)
EPHEMERAL = _derive_key_pair(bytes(range(0x40, 0x60)))


def hpke():
    # RFC 9180 A.1.2 first: mode_psk, X25519, HKDF-SHA256, AES-128-GCM.
    enc, sealed = hpke_psk_seal(
        X25519PrivateKey.from_private_bytes(
            bytes.fromhex("463426a9ffb42bb17dbe6044b9abd1d4e4d95f9041cef0e99d7824eef2b6f588")),
        bytes.fromhex("9fed7e8c17387560e92cc6462a68049657246a09bfa8ade7aefe589672016366"),
        bytes.fromhex("0247fd33b913760fa1fa51e1892d9f307fbe65eb171e8132c2af18555a738b82"),
        b"Ennyn Durin aran Moria", b"Ode on a Grecian Urn", b"Count-0", b"Beauty is truth, truth beauty", aead=1)
    assert enc.hex().startswith("0ad0950d9fb9588e59690b74f1237ecd"), "HPKE differs from RFC 9180 A.1.2"
    assert sealed.hex().startswith("e52c6fed7f758d0cf7145689f21bc1be6ec9ea097fef4e959440012f4feb73fb")
    put("pk_data", hpke_public(DATA))
    put("slot(method=2 HPKE mode_psk, domain=data, epoch=1, skE=77*32)", hpke_slot(DATA, EPHEMERAL_RAW))
    put("pk_meta", hpke_public(META))
    put("slot(method=2 HPKE mode_psk, domain=meta, epoch=1, skE=DeriveKeyPair(40..5f))", hpke_slot(META, EPHEMERAL))


def objects(pack, leaf):
    put("kid", KID)
    put("writer ed25519 pk (kid_secret = 08*32)", PUBLIC)
    name, session = session_object()
    put("session CBOR (signed)", sign({0: 1, 1: KID, 2: START, 3: 0, 4: [], 5: "larder/1"}, name))
    put(f"object {name}", session)
    name, run = run_object([pack])
    key_map, sections = run_sections([pack])
    put("run header CBOR (signed)", sign(run_header(key_map, sections), name))
    put(f"object {name} len", len(run))
    put(f"object {name} blake3", h(run))
    put(f"object {name}", run)
    manifest = cbor({0: 1, 1: {0: SOURCE, 1: 0, 2: "host"}, 2: START, 3: START + 2 * SECOND,
                     4: [{0: b"/", 1: 0, 2: meta_id(leaf), 3: 0, 4: 3, 5: 16}], 5: []})
    put("manifest CBOR", manifest)
    put("manifest id", meta_id(manifest))
    body = outcome_body(manifest)
    name, outcome = outcome_object(manifest)
    put("outcome CBOR (signed)", sign(body, name))
    put(f"object {name} len", len(outcome))
    put(f"object {name}", outcome)
    put("outcome hash (next prev)", h(outcome))
    salt = bytes(range(16))
    ikm = argon2(b"correct horse battery staple", salt)
    put("argon2id(m=65536KiB,t=3,p=4,salt=000102..0f,\"correct horse battery staple\")", ikm)
    put("protector key", dk("larder v1 protector", ikm + REPO))
    put("protector commitment", dk("larder v1 protector commit", ikm + REPO))
    put(f"object keys/{KID.hex()}/0000", protector_object(1, ikm, {0: salt, 1: 65536, 2: 3, 3: 4}))
    put("key file", "".join(f"{i:02x}" for i in range(32)) + "\\n")
    put("paper key", bech32m("larder", bytes(range(32))))
    put(f"object keys/{KID.hex()}/0001", protector_object(4, bytes(range(32)), {}))
    put("config CBOR (signed)", sign(config_body(), "config/00000000"))
    put("object config/00000000", config_object())
    put("config hash (next key 5)", h(config_object()))
    put("K_g", K_GRANT)
    name, grant = grant_object()
    put("grant CBOR (signed)", sign(grant_body(), name))
    put(f"object {name}", grant)


def cut_lengths(data, profile):
    """Chunker 1, written as the specification writes it."""
    low, center, high, small, large = (profile[i] for i in range(1, 6))
    wrap = (1 << 64) - 1
    lengths, at = [], 0
    while at < len(data):
        rest = len(data) - at
        if rest <= low:
            lengths.append(rest)
            break
        end = min(rest, high)
        middle, cut, hash_, i = min(center, end), None, 0, low // 2
        for limit, mask in ((middle // 2, small), (end // 2, large)):
            while cut is None and i < limit:
                hash_ = ((hash_ << 2) + (GEAR[data[at + 2 * i]] << 1)) & wrap
                if hash_ & (mask << 1) & wrap == 0:
                    cut = 2 * i
                    break
                hash_ = (hash_ + GEAR[data[at + 2 * i + 1]]) & wrap
                if hash_ & mask == 0:
                    cut = 2 * i + 1
                    break
                i += 1
        lengths.append(end if cut is None else cut)
        at += lengths[-1]
    return lengths


def candidates(data, q, mask):
    """Chunker 3: the places behind q that may be cuts, as (hash, place)."""
    found, h, p = [], 0, q + 64
    while p < len(data):
        h = (2 * h + GEAR[data[p]]) & ((1 << 64) - 1)
        if h & mask == 0:
            found.append((h & ((1 << 63) - 1), p))
            p, h = p + 63, 0
        p += 1
    return found


def lowest_lengths(data, profile):
    """Chunker 3."""
    (low, center, high), mask = (profile[i] for i in (1, 2, 3)), profile[4]
    start, lengths, places = 0, [], candidates(data, 0, mask)
    while len(data) - start > center:
        end = min(len(data), start + high)
        possible = [(h, -q) for h, q in places if start + low <= q <= end]
        cut = -min(possible)[1] if possible else end
        if not possible:
            places = candidates(data, cut, mask)
        lengths.append(cut - start)
        start = cut
    return lengths + [len(data) - start] * (start < len(data))


def chunking():
    data = xof(b"larder cdc test", 8 << 20)
    put("cdc profile 0 (min center max mask_s mask_l)",
        f"524288 1048576 4194304 {MASK_SMALL:016x} {MASK_LARGE:016x}")
    put("cdc input", 'BLAKE3-XOF("larder cdc test")[0..8MiB], lengths')
    put("cdc lengths", cut_lengths(data, PROFILE_0))
    put("cdc lengths of the first 524288 bytes", cut_lengths(data[:524288], PROFILE_0))
    put("cdc lengths of the first 524289 bytes", cut_lengths(data[:524289], PROFILE_0))
    put("cdc lengths of 5 MiB zeros", cut_lengths(bytes(5 << 20), PROFILE_0))
    text = b"".join(b"%08d\tthe quick brown fox\n" % i for i in range(100_000))
    put("cdc text input", '"%08d\\tthe quick brown fox\\n" for 0 <= i < 100000, concatenated')
    put("cdc text lengths", cut_lengths(text, PROFILE_0))
    tiny = {0: 1, 1: 64, 2: 256, 3: 1024, 4: ((1 << 10) - 1) << 53, 5: ((1 << 6) - 1) << 57}
    put("cdc small profile (min center max mask_s mask_l)", f"64 256 1024 {tiny[4]:016x} {tiny[5]:016x}")
    put("cdc small profile lengths of the first 8192 bytes", cut_lengths(data[:8192], tiny))
    lowest = {0: 3, 1: 524288, 2: 1572864, 3: 3145728, 4: LOWEST_MASK, 5: LOWEST_MASK}
    put("cdc lowest profile (min center max mask)", f"524288 1572864 3145728 {LOWEST_MASK:016x}")
    put("cdc lowest lengths", lowest_lengths(data, lowest))
    put("cdc lowest lengths of 5 MiB zeros", lowest_lengths(bytes(5 << 20), lowest))
    put("cdc lowest text lengths", lowest_lengths(text, lowest))
    tiny = {0: 3, 1: 64, 2: 256, 3: 1024, 4: 0xF << 59}
    put("cdc lowest small profile (min center max mask)", f"64 256 1024 {tiny[4]:016x}")
    put("cdc lowest small profile lengths of the first 8192 bytes", lowest_lengths(data[:8192], tiny))


def make():
    assert crc32c(b"123456789") == 0xE3069283 and crc64nvme(b"123456789") == 0xAE8B14860A799888
    keys()
    pack = blobs_and_packs()
    zstd_and_deltas()
    leaf = trees()
    records(pack)
    parity()
    hpke()
    objects(pack, leaf)
    chunking()


def main():
    make()
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.txt")
    with open(target, "w") as out:
        out.write("\n".join(LINES) + "\n")


if __name__ == "__main__":
    main()
