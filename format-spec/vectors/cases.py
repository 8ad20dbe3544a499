"""Writes cases/*.vec: good and must-fail inputs, one defect each.

A case is a text file of `key: value` lines. Keys:
  kind    what the bytes are: varint zigzag cbor envelope slot blob trailer pack run session outcome drop config
          protector grant key-file tree-key entry node list manifest
  expect  ok | fail; `fail` means: refuse, whatever the message
  why     the rule that is kept or broken
  name    key name of the object, where the rule needs one (an `envelope` is of type 3, session, and not looked into)
  value   (varint, zigzag, ok) the number
  flag    (entry, ok) what a reader must report although it may go on
  root    (tree-key, entry, node) kind of the root, 0 … 3
  id, type, slots, base   (blob) blob id, type byte, slots one after the other, plaintext of the delta base
  pack-kind, frames       (trailer) 0 data / 1 meta, bytes between header and trailer
  bytes   the input in hex; may be empty
All secrets are those of vectors.txt: epoch 1, one writer (kid, an admin) in config/00000000.
"""

import os
import shutil
import struct

from forge import *  # noqa: F403
from vec import (DELTA_BASE, DELTA_FRAME, DELTA_RAW, EPHEMERAL, ZEROS_1000, ZSTD_FRAME, hpke_public, hpke_slot)

CASES = {}
HELLO = Blob(0, b"hello larder\n")


def case(label, kind, why, data, expect="fail", /, **context):
    assert label not in CASES, label
    lines = [f"kind: {kind}", f"expect: {expect}", f"why: {why}"]
    lines += [f"{k.replace('_', '-')}: {v.hex() if isinstance(v, bytes) else v}" for k, v in context.items()]
    CASES[label] = "\n".join(lines + [f"bytes: {data.hex()}"]) + "\n"


def ok(label, kind, why, data, /, **context):
    case(label, kind, why, data, "ok", **context)


def flip(data, at, bit=1):
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]


def varints():
    for value in (0, 127, 128, 300, (1 << 32) - 1, (1 << 64) - 1):
        ok(f"varint-{value}", "varint", "shortest form", varint(value), value=value)
    case("varint-padded-zero", "varint", "0 in two bytes", b"\x80\x00")
    case("varint-padded", "varint", "trailing zero group", b"\xac\x82\x00")
    case("varint-eleven-bytes", "varint", "longer than ten bytes", b"\x80" * 10 + b"\x01")
    case("varint-above-64-bits", "varint", "tenth byte above 1", b"\xff" * 9 + b"\x02")
    case("varint-cut", "varint", "ends in a continuation", b"\xff\xff")
    case("varint-empty", "varint", "no byte at all", b"")
    case("varint-trailing", "varint", "a byte after the number", b"\x01\x00")
    for value in (0, -1, 1, -(1 << 63), (1 << 63) - 1):
        ok(f"zigzag-{value}", "zigzag", "signed number", zigzag(value), value=value)


def cbors():
    ok("cbor-plain", "cbor", "every allowed type", cbor({0: [1, -1, b"\1", "ä", True, False, None], 1: {0: 1 << 63}}))
    ok("cbor-depth-8", "cbor", "eight containers deep", b"\x81" * 7 + b"\x80")
    for name, why, text in (
            ("number-not-shortest", "23 in two bytes", "1817"), ("number-16-not-shortest", "255 in three bytes", "1900ff"),
            ("length-not-shortest", "byte string length in two bytes", "580100"),
            ("float", "half-precision float", "f93c00"), ("double", "double", "fb3ff0000000000000"),
            ("tag", "tag 1", "c100"), ("undefined", "undefined", "f7"), ("simple", "simple value 32", "f820"),
            ("indefinite-array", "indefinite array", "9f01ff"), ("indefinite-map", "indefinite map", "bf0001ff"),
            ("indefinite-bytes", "indefinite byte string", "5f4101ff"), ("break", "break outside", "ff"),
            ("reserved-length", "length code 28", "1c"),
            ("duplicate-key", "one key twice", "a200010002"), ("unsorted-keys", "keys descending", "a201010002"),
            ("text-key", "a text as map key", "a1616100"), ("negative-key", "a negative map key", "a12000"),
            ("bytes-key", "bytes as map key", "a1410000"),
            ("trailing", "a byte after the item", "a000"), ("empty", "nothing", ""), ("cut-map", "map of two with one", "a20001"),
            ("cut-number", "number without its bytes", "1a0000"),
            ("bad-utf8", "text that is not UTF-8", "62c328"), ("utf8-surrogate", "text with a surrogate", "63eda080"),
            ("huge-bytes", "length beyond the end", "5b7fffffffffffffff"),
            ("huge-array", "array length beyond the end", "9b00000001ffffffff"),
            ("huge-map", "map length beyond the end", "bb00000001ffffffff"),
            ("negative-below-64-bits", "-2^64", "3bffffffffffffffff")):
        case(f"cbor-{name}", "cbor", why, bytes.fromhex(text))
    case("cbor-depth-9", "cbor", "nine containers deep", b"\x81" * 8 + b"\x80")


def slots():
    good = slot(DATA)
    ok("slot-symmetric", "slot", "method 1", good)
    case("slot-wrong-epoch", "slot", "epoch changed", flip(good, 4, 3))
    case("slot-wrong-domain", "slot", "data slot called meta", flip(good, 1, 3))
    case("slot-domain-0", "slot", "domain 0 does not exist", flip(good, 1, 1))
    case("slot-keyset-1", "slot", "keysets are reserved", slot(DATA, keyset=1))
    case("slot-method-3", "slot", "method 3 is reserved", b"\3" + good[1:])
    case("slot-sealed-flip", "slot", "one bit of the sealed key", flip(good, 87))
    case("slot-cut", "slot", "87 bytes", good[:-1])
    wrapped = hpke_slot(DATA, EPHEMERAL)
    ok("slot-hpke", "slot", "method 2", wrapped)
    ok("slot-hpke-meta", "slot", "method 2, of metadata", hpke_slot(META, EPHEMERAL))
    case("slot-hpke-cut", "slot", "method 2, 87 bytes", wrapped[:-1])
    case("slot-hpke-called-symmetric", "slot", "method 2 called 1", b"\1" + wrapped[1:])
    case("slot-symmetric-called-hpke", "slot", "method 1 called 2", b"\2" + good[1:])
    case("slot-hpke-keyset-1", "slot", "keysets are reserved", hpke_slot(DATA, EPHEMERAL, keyset=1))
    case("slot-hpke-wrong-domain", "slot", "wrapped for data, called meta", flip(wrapped, 1, 3))
    case("slot-hpke-other-recipient", "slot", "wrapped for the public key of the other domain",
         hpke_slot(DATA, EPHEMERAL, recipient=hpke_public(META)))
    case("slot-hpke-wrong-epoch", "slot", "epoch changed", flip(wrapped, 4, 3))
    case("slot-hpke-psk", "slot", "another shared secret", hpke_slot(DATA, EPHEMERAL, psk=bytes([9]) * 32))
    case("slot-hpke-psk-epoch", "slot", "the shared secret of another epoch is named", hpke_slot(DATA, EPHEMERAL, psk_epoch=2))
    case("slot-hpke-other-repository", "slot", "wrapped in another repository", hpke_slot(DATA, EPHEMERAL, repo=bytes(16)))
    case("slot-hpke-enc-flip", "slot", "one bit of enc", flip(wrapped, 8))
    case("slot-hpke-enc-high-bit", "slot", "the bit of enc that X25519 ignores", flip(wrapped, 39, 128))
    case("slot-hpke-enc-zero", "slot", "enc of low order", wrapped[:8] + bytes(32) + wrapped[40:])
    case("slot-hpke-sealed-flip", "slot", "one bit of the sealed key", flip(wrapped, 87))


def blobs():
    def blob(name, why, raw, plain, kind=0, expect="fail", slot_bytes=None, base=None, index=0, frame=None):
        blob_id = data_id(raw) if kind == 0 else meta_id(raw)
        context = {"id": blob_id, "type": kind, "slots": slot_bytes or slot(DATA if kind == 0 else META)}
        if base is not None:
            context["base"] = base
        case(f"blob-{name}", "blob", why, frame or blob_frame(kind, blob_id, plain, index), expect, **context)

    raw = HELLO.raw
    base_id = data_id(DELTA_BASE)
    good = HELLO.plain
    blob("raw", "codec 0", raw, good, expect="ok")
    blob("raw-padded", "codec 0 with zero padding", raw, good + bytes(9), expect="ok")
    blob("zstd", "codec 1", ZEROS_1000, blob_plain(1, 1000, ZSTD_FRAME), expect="ok")
    blob("zstd-padded", "codec 1 with zero padding", ZEROS_1000, blob_plain(1, 1000, ZSTD_FRAME, padding=100), expect="ok")
    blob("delta", "codec 2", DELTA_RAW, blob_plain(2, len(DELTA_RAW), DELTA_FRAME, base_id), expect="ok", base=DELTA_BASE)
    blob("delta-padded", "codec 2 with zero padding", DELTA_RAW,
         blob_plain(2, len(DELTA_RAW), DELTA_FRAME, base_id, padding=7), expect="ok", base=DELTA_BASE)
    node_raw = node(0, [(b"\0", dir_value())])
    blob("tree-node", "type 1 under the meta key", node_raw, blob_plain(0, len(node_raw), node_raw), kind=1, expect="ok")
    blob("padding-not-zero", "padding ends in 01", raw, good + b"\0\0\1")
    blob("zstd-padding-not-zero", "padding ends in 01", ZEROS_1000, blob_plain(1, 1000, ZSTD_FRAME) + b"\0\1")
    blob("raw-len-too-long", "raw_len beyond the plaintext", raw, blob_plain(0, 14, raw))
    blob("raw-len-too-short", "raw_len leaves content in the padding", raw, blob_plain(0, 12, raw))
    blob("raw-len-zero", "a blob is never empty", b"", blob_plain(0, 0, b"", padding=1))
    blob("raw-len-huge", "raw_len above 16 MiB", raw, blob_plain(0, (16 << 20) + 1, raw))
    blob("zstd-raw-len-larger", "zstd gives less than raw_len", ZEROS_1000, blob_plain(1, 1001, ZSTD_FRAME))
    blob("zstd-raw-len-smaller", "zstd gives more than raw_len", ZEROS_1000[:999], blob_plain(1, 999, ZSTD_FRAME))
    blob("zstd-two-frames", "a second frame follows", ZEROS_1000, blob_plain(1, 1000, ZSTD_FRAME * 2))
    blob("zstd-skippable-frame", "a skippable frame first", ZEROS_1000,
         blob_plain(1, 1000, bytes.fromhex("502a4d1801000000ff") + ZSTD_FRAME))
    blob("zstd-cut", "the frame is cut short", ZEROS_1000, blob_plain(1, 1000, ZSTD_FRAME[:-1]))
    blob("zstd-window-256-mib", "window above 2^27", ZEROS_1000,
         blob_plain(1, 1000, bytes.fromhex("28b52ffd00900100") + bytes(1)))
    blob("codec-3", "unknown codec", raw, blob_plain(3, 13, raw))
    blob("delta-of-a-node", "codec 2 for type 1", node_raw, blob_plain(2, len(node_raw), DELTA_FRAME, base_id), kind=1)
    blob("delta-base-zero", "base id of zeros", DELTA_RAW, blob_plain(2, len(DELTA_RAW), DELTA_FRAME, bytes(32)), base=DELTA_BASE)
    blob("delta-of-itself", "base id is the own id", DELTA_RAW,
         blob_plain(2, len(DELTA_RAW), DELTA_FRAME, data_id(DELTA_RAW)), base=DELTA_RAW)
    blob("delta-wrong-base", "decodes, but not to this id", DELTA_RAW,
         blob_plain(2, len(DELTA_RAW), DELTA_FRAME, base_id), base=bytes(512))
    blob("delta-cut-base-id", "plaintext ends in the base id", DELTA_RAW, struct.pack("<BI", 2, len(DELTA_RAW)) + base_id[:20])
    blob("wrong-content", "authentic frame of other content: poisoned", raw, blob_plain(0, 13, b"HELLO larder\n"))
    blob("slot-index", "slot that does not exist", raw, good, index=1)
    blob("wrong-type", "sealed as type 0, opened as type 1", raw, None, kind=1, frame=HELLO.frame, slot_bytes=slot(META))
    blob("flip", "one bit of the ciphertext", raw, None, frame=flip(HELLO.frame, 10))
    blob("cut", "last byte missing", raw, None, frame=HELLO.frame[:-1])
    blob("long", "one byte more", raw, None, frame=HELLO.frame + b"\0")


def trailers():
    base, delta = Blob(0, DELTA_BASE), Blob(0, DELTA_RAW, 2, DELTA_FRAME, data_id(DELTA_BASE))
    both = [base, delta]
    rows = [(b.kind, len(b.frame), len(b.raw), b.id, b.base) for b in both]
    frames = sum(len(b.frame) for b in both)
    good = trailer_plain([slot(DATA)], rows)
    plain = trailer_plain([slot(DATA)], [(*r[:4], b"") for r in rows])

    def trailer(name, why, data, expect="fail", kind=0, total=frames):
        case(f"trailer-{name}", "trailer", why, data, expect, pack_kind=kind, frames=total)

    trailer("delta", "two blobs, one delta", good, "ok")
    trailer("no-delta", "delta_count 0", plain, "ok")
    trailer("without-delta-count", "the layout before deltas", plain[:-4])
    trailer("trailing", "a byte after the last delta", good + b"\0")
    trailer("cut", "last byte missing", good[:-1])
    trailer("reserved", "reserved u16 is 1", flip(good, 2))
    trailer("no-slot", "slot_count 0", trailer_plain([], rows))
    trailer("no-blob", "blob_count 0", trailer_plain([slot(DATA)], []), total=0)
    trailer("huge-blob-count", "blob_count 2^32-1", good[:4] + b"\xff" * 4 + good[8:])
    trailer("sum", "stored lengths do not add up", good, total=frames + 1)
    trailer("record-flags", "record flags are 1", flip(good, 8 + 88 + 1))
    trailer("record-reserved", "record reserved is 1", flip(good, 8 + 88 + 2))
    trailer("meta-slot", "meta slot in a data pack", trailer_plain([slot(META)], rows))
    trailer("node-in-data-pack", "type 1 in a data pack", trailer_plain([slot(DATA)], [(1, *rows[0][1:]), rows[1]]))
    trailer("manifest-in-meta-pack", "type 3 in a pack", trailer_plain([slot(META)], [(3, *rows[0][1:])]), kind=1,
            total=rows[0][1])
    trailer("raw-len-zero", "raw_len 0", trailer_plain([slot(DATA)], [(0, rows[0][1], 0, rows[0][3], b""), rows[1]]))
    trailer("raw-len-huge", "raw_len above 16 MiB",
            trailer_plain([slot(DATA)], [(0, rows[0][1], (16 << 20) + 1, rows[0][3], b""), rows[1]]))
    trailer("stored-len-short", "frame of 23 bytes cannot hold content", trailer_plain([slot(DATA)], [(0, 23, 1, HELLO.id, b"")]),
            total=23)
    trailer("id-twice", "one id in two records", trailer_plain([slot(DATA)], [rows[0], rows[0]]), total=2 * rows[0][1])
    trailer("delta-index", "record index is blob_count", plain[:-4] + struct.pack("<II", 1, 2) + base.id)
    trailer("delta-unsorted", "record indexes descend",
            plain[:-4] + struct.pack("<I", 2) + struct.pack("<I", 1) + HELLO.id + struct.pack("<I", 0) + HELLO.id)
    trailer("delta-twice", "one record index twice",
            plain[:-4] + struct.pack("<I", 2) + (struct.pack("<I", 1) + base.id) * 2)
    trailer("delta-of-itself", "base is the record's own id", plain[:-4] + struct.pack("<II", 1, 1) + delta.id)
    trailer("delta-base-zero", "base of zeros", plain[:-4] + struct.pack("<II", 1, 1) + bytes(32))
    node_row = [(1, 100, 50, HELLO.id, b"")]
    trailer("delta-in-meta-pack", "deltas are for data only",
            trailer_plain([slot(META)], node_row)[:-4] + struct.pack("<II", 1, 0) + base.id, kind=1, total=100)


def packs():
    pack = Pack(0, [HELLO])
    good, name = pack.bytes, pack.name

    def one(case_name, why, data, at=name, expect="fail"):
        case(f"pack-{case_name}", "pack", why, data, expect, name=at)

    def rebuilt(header=None, frames=HELLO.frame, trailer=None):
        rows = [(0, len(HELLO.frame), 13, HELLO.id, b"")]
        return pack_bytes(header or pack_header(0), frames, trailer or trailer_plain([slot(DATA)], rows))

    def with_footer(**changes):
        body = good[:-88]
        args = {"trailer_off": 64 + len(HELLO.frame), "trailer_len": len(body) - 64 - len(HELLO.frame),
                "body_hash": h(body), **changes}
        return body + pack_footer(**args)

    one("good", "one blob", good, expect="ok")
    many = Pack(0, [Blob(0, DELTA_BASE), HELLO, Blob(0, ZEROS_1000, 1, ZSTD_FRAME)])
    one("three-blobs", "raw and zstd", many.bytes, many.name, "ok")
    one("renamed", "name of another pack", good, name.replace("c0c1", "c0c2"))
    one("wrong-sid-in-name", "sid in the name differs", good, name[:-1] + "2")
    one("wrong-folder", "data pack under meta/", good, name.replace("data", "meta"))
    one("wrong-prefix", "two-digit folder differs", good, name.replace("/c0/", "/c1/"))
    one("magic", "bad magic", rebuilt(pack_header(0, magic=b"LARDERP2")))
    one("version-2", "pack version 2", rebuilt(pack_header(0, version=2)))
    one("flags", "header flags are 1", rebuilt(pack_header(0, flags=1)))
    one("kind-2", "kind 2 does not exist", rebuilt(pack_header(2)))
    one("other-repository", "R of another repository", rebuilt(pack_header(0, repo=bytes(16))))
    one("unknown-epoch", "epoch without keys", rebuilt(pack_header(0, epoch=9)))
    one("footer-crc", "crc does not match", flip(good, len(good) - 12))
    one("footer-magic", "bad footer magic", good[:-1] + b"2")
    one("footer-reserved", "reserved u32 is 1", with_footer(reserved=1))
    one("footer-reserved-12", "reserved 12 bytes are not zero", with_footer(reserved12=bytes(11) + b"\1"))
    one("footer-body-hash", "body hash of something else", with_footer(body_hash=bytes(32)))
    one("footer-pack-id", "footer of another pack", with_footer(pack_id=bytes(16)))
    one("trailer-off", "trailer one byte late", with_footer(trailer_off=65 + len(HELLO.frame)))
    one("trailer-past-end", "trailer_off + trailer_len overflows",
        with_footer(trailer_off=(1 << 64) - 1, trailer_len=1 + len(good) - 88))
    one("gap", "a byte between frames and trailer", rebuilt(frames=HELLO.frame + b"\0"))
    one("cut", "last byte missing", good[:-1])
    one("cut-front", "first byte missing", good[1:])
    one("short", "footer only", good[-88:])
    one("frame-flip", "one bit of a frame; body hash also wrong", flip(good, 70))
    flipped = flip(good[:-88], 70)
    one("frame-flip-hash-mended", "one bit of a frame, body hash made to fit",
        flipped + pack_footer(64 + len(HELLO.frame), len(flipped) - 64 - len(HELLO.frame), h(flipped)))
    one("raw-len-differs", "raw_len in the trailer differs from the frame",
        rebuilt(trailer=trailer_plain([slot(DATA)], [(0, len(HELLO.frame), 14, HELLO.id, b"")])))
    one("delta-not-a-delta", "listed as a delta, stored raw",
        rebuilt(trailer=trailer_plain([slot(DATA)], [(0, len(HELLO.frame), 13, HELLO.id, data_id(b"x"))])))
    delta = Blob(0, DELTA_RAW, 2, DELTA_FRAME, data_id(DELTA_BASE))
    base = Blob(0, DELTA_BASE)
    row = [(0, len(b.frame), len(b.raw), b.id, b"") for b in (base, delta)]
    one("delta-not-listed", "stored as a delta, not in the trailer's delta table",
        rebuilt(frames=base.frame + delta.frame, trailer=trailer_plain([slot(DATA)], row)))


def envelopes():
    name = f"sess/{SID.hex()}/0000"
    body = {0: 1, 1: KID, 2: START, 3: 0, 4: [], 5: "larder/1"}
    section = sign(body, name)
    good = envelope("session", name, [section])

    def one(case_name, why, data, at=name, kind="session", expect="fail"):
        case(f"{kind}-{case_name}", kind, why, data, expect, name=at)

    def signed(changes, remove=(), **more):
        new = {k: v for k, v in {**body, **changes}.items() if k not in remove}
        return envelope("session", name, [sign(new, name)], **more)

    one("good", "a registration", good, expect="ok")
    one("pins-only", "a session that only pins", signed({3: 6, 4: [SID]}), expect="ok")
    one("unknown-key", "unknown key below 0x8000 is ignored", signed({100: "new"}), expect="ok")
    one("unknown-critical-key", "unknown key 0x8000", signed({0x8000: 1}))
    one("missing-key", "created is missing", signed({}, remove=(2,)))
    one("version-key-2", "key 0 is 2", signed({0: 2}))
    one("kid-short", "kid of 15 bytes", signed({1: KID[:15]}))
    one("role-7", "session role 7 does not exist", signed({3: 7}))
    one("renamed", "copied to another name", good, f"sess/{SID.hex()}/0001")
    one("tag", "sid does not carry the signer's tag", envelope("session", f"sess/{'22' * 16}/0000",
        [sign(body, f"sess/{'22' * 16}/0000")]), f"sess/{'22' * 16}/0000")
    one("signature", "one bit of the signature", envelope("session", name, [flip(section, len(section) - 1)]))
    one("signature-other-name", "signed for another name", envelope("session", name, [sign(body, name + "1")]))
    stranger = forge_key(9)
    one("signature-stranger", "signed by a key that is not in the config", envelope("session", name, [sign(body, name, stranger)]))
    one("unknown-kid", "kid is not in the config", envelope("session", name, [sign({**body, 1: bytes([0x11] * 16)}, name)]))
    one("two-sections", "a session has one section", envelope("session", name, [section, b"x"]))
    one("cbor-trailing", "a byte after the map", envelope("session", name, [section + b"\0"]))
    one("no-section", "nsections 0", envelope("session", name, []))
    one("magic", "bad magic", signed({}, magic=b"LARDERO2"))
    one("type", "type says outcome", signed({}, type_byte=2))
    one("version", "envelope version 2", signed({}, version=2))
    one("flags", "flags are 1", signed({}, flags=1))
    one("reserved", "reserved bytes are not zero", signed({}, reserved=bytes(11) + b"\1"))
    one("other-repository", "R of another repository", signed({}, repo=bytes(16)))
    one("unknown-epoch", "epoch without keys", signed({}, epoch=9))
    n = len(section) + 16
    one("table-gap", "section starts at 1", signed({}, table=struct.pack("<II", 1, n)))
    one("table-short", "section shorter than the body", signed({}, table=struct.pack("<II", 0, n - 1)))
    one("table-long", "section longer than the body", signed({}, table=struct.pack("<II", 0, n + 1)))
    one("table-tiny", "section shorter than a tag", signed({}, table=struct.pack("<II", 0, 15)))
    one("footer-hash", "one bit of the footer hash", flip(good, len(good) - 20))
    one("footer-magic", "bad footer magic", good[:-1] + b"2")
    one("trailing", "a byte after the footer", good + b"\0")
    one("cut", "last byte missing", good[:-1])
    one("half", "half of it", good[:len(good) // 2])
    bad = flip(good[:-40], 100)
    one("section-flip-hash-mended", "one bit of the section, footer hash made to fit", bad + h(bad) + b"LARDERE1")
    counted = good[:48] + struct.pack("<I", 65536) + good[52:-40]
    one("huge-section-count", "65536 sections in a small object", counted + h(counted) + b"LARDERE1")
    for structural in ("good", "renamed", "no-section", "magic", "type", "version", "flags", "reserved", "other-repository",
                       "unknown-epoch", "table-gap", "table-short", "table-long", "table-tiny", "footer-hash", "footer-magic",
                       "trailing", "cut", "half", "section-flip-hash-mended", "huge-section-count"):
        CASES[f"envelope-{structural}"] = CASES[f"session-{structural}"].replace("kind: session", "kind: envelope", 1)


def forge_key(n):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    return Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)


def runs():
    base, delta = Blob(0, DELTA_BASE), Blob(0, DELTA_RAW, 2, DELTA_FRAME, data_id(DELTA_BASE))
    keys, sections = run_sections([Pack(0, [base, delta, HELLO])], [(base.id, (1, 2, 3))])
    name = f"idx/0-{SID.hex()}-0000"

    def one(case_name, why, header=None, parts=None, at=name, expect="fail", digest_=None):
        parts = sections if parts is None else parts
        body = run_header(keys, parts)
        body.update(header or {})
        body = {k: v for k, v in body.items() if v is not None}
        if digest_:
            body[14] = digest_
        case(f"run-{case_name}", "run", why, envelope("run", at, [sign(body, at)] + parts), expect, name=at)

    slot_b, pack_b, chunk_b, delta_b, feature_b = sections
    one("good", "slots, packs, chunks, a delta, a feature", expect="ok")
    one("without-features", "feature blocks are optional", {12: [1, 0]}, sections[:4], expect="ok")
    one("digest", "digest of something else", digest_=bytes(32))
    one("level", "level differs from the name", {3: 1})
    one("sid", "sid differs from the name", {4: bytes([0x11] * 15 + [0])})
    one("number", "number differs from the name", {5: 1})
    one("chunk-count", "one chunk more than there is", {6: [1, 1, 4]})
    one("chunk-count-less", "one chunk fewer than there is", {6: [1, 1, 2]})
    one("huge-count", "counts of 2^63", {6: [1 << 63, 1, 3]})
    one("delta-count-missing", "key 12 absent, delta block present", {12: None})
    one("fan-out", "chunk fan-out differs from the block", {8: bytes(8)})
    one("delta-fan-out", "delta fan-out differs from the block", {13: bytes(8)})
    one("spare-section", "a section that belongs to nothing", parts=sections + [bytes(56)])
    one("short-block", "chunk block one byte short", parts=[slot_b, pack_b, chunk_b[:-1], delta_b, feature_b])
    rows = [chunk_b[i:i + 44] for i in range(0, len(chunk_b), 44)]
    unsorted = b"".join(reversed(rows))
    one("chunks-unsorted", "chunk records descend", {8: unsorted[:8]}, [slot_b, pack_b, unsorted, delta_b, feature_b])
    twice = rows[0] + rows[0] + rows[1]
    one("chunk-twice", "one (id, pack) twice", {8: twice[:8]}, [slot_b, pack_b, twice, delta_b, feature_b])
    def patched(ix, form):
        return b"".join(r[:36 + 4] + struct.pack("<I", form(r)) if i == ix else r for i, r in enumerate(rows))
    at_delta = next(i for i, r in enumerate(rows) if r[:32] == delta.id)
    length = struct.unpack("<I", rows[at_delta][40:])[0] & 0xFFFFFFF
    one("delta-not-marked", "nibble 0 for a chunk with a delta record",
        parts=[slot_b, pack_b, patched(at_delta, lambda r: length), delta_b, feature_b])
    one("nibble-9", "unknown chunk type", parts=[slot_b, pack_b, patched(at_delta, lambda r: 9 << 28 | length), delta_b, feature_b])
    one("nibble-3", "a manifest is in no pack", parts=[slot_b, pack_b, patched(at_delta, lambda r: 3 << 28 | length), delta_b, feature_b])
    one("delta-base-zero", "base of zeros", parts=[slot_b, pack_b, chunk_b, delta_b[:36] + bytes(32), feature_b])
    one("delta-of-itself", "base is the own id", parts=[slot_b, pack_b, chunk_b, delta_b[:36] + delta.id, feature_b])
    one("delta-of-nothing", "delta record for a full copy", {13: base.id[:8]},
        [slot_b, pack_b, chunk_b, base.id + delta_b[32:], feature_b])
    far = rows[0][:32] + struct.pack("<I", 1) + rows[0][36:] + rows[1] + rows[2]
    one("pack-ix", "chunk in a pack that is not listed", parts=[slot_b, pack_b, far, delta_b, feature_b])
    one("slot-range", "pack with a slot that is not listed", {},
        [slot_b, pack_b[:44] + struct.pack("<I", 1) + pack_b[48:], chunk_b, delta_b, feature_b])
    at_hello = next(i for i, r in enumerate(rows) if r[:32] == HELLO.id)
    one("node-in-data-pack", "a tree node in a data pack", parts=[
        slot_b, pack_b, patched(at_hello, lambda r: 1 << 28 | len(HELLO.frame)), delta_b, feature_b])
    one("chunk-offset", "a chunk in the pack's header", parts=[slot_b, pack_b, rows[0][:36] + struct.pack("<I", 63) + rows[0][40:]
                                                                + rows[1] + rows[2], delta_b, feature_b])
    one("chunk-beyond-pack", "a chunk that ends in the trailer", parts=[
        slot_b, pack_b, rows[0][:36] + struct.pack("<I", len(Pack(0, [base, delta, HELLO]).bytes) - 200) + rows[0][40:]
        + rows[1] + rows[2], delta_b, feature_b])
    one("stored-len", "a frame of 23 bytes", parts=[slot_b, pack_b, patched(at_hello, lambda r: 23), delta_b, feature_b])
    one("slot-domain", "meta slot of a data pack", parts=[slot(META), pack_b, chunk_b, delta_b, feature_b])
    one("foreign-writer", "signer's tag is not in the sid", {4: bytes([0x22]) * 16}, at=f"idx/0-{'22' * 16}-0000")


def outcomes():
    manifest = cbor({0: 1, 1: {0: SOURCE, 1: 0, 2: "host"}, 2: START, 3: START, 4: []})
    name = f"snap/{SID.hex()}"

    def one(case_name, why, changes=None, remove=(), sections=None, expect="fail", raw=manifest):
        body = {k: v for k, v in {**outcome_body(manifest), **(changes or {})}.items() if k not in remove}
        parts = [sign(body, name)] + ([manifest_section(raw)] if sections is None else sections)
        case(f"outcome-{case_name}", "outcome", why, envelope("outcome", name, parts), expect, name=name)

    one("commit", "a commit", expect="ok")
    one("checkpoint", "a checkpoint", {3: 2}, expect="ok")
    one("abandon", "no manifest", {3: 5, 5: []}, (7, 8, 13), [], expect="ok")
    one("fence-by-admin", "sid may be another writer's in a fence", {3: 4}, (7, 8, 13), [], expect="ok")
    one("floors", "chain floors of maintenance", {3: 3, 16: [[KID, 4, bytes(32)]]}, (7, 8, 13), [], expect="ok")
    one("kind-0", "kind 0 does not exist", {3: 0})
    one("kind-6", "kind 6 does not exist", {3: 6})
    one("sid", "sid differs from the name", {4: bytes([0x11] * 15 + [0])})
    one("no-manifest", "commit without its section", sections=[])
    one("no-manifest-id", "commit without manifest id", remove=(7,))
    one("abandon-with-manifest", "abandon with a manifest", {3: 5})
    one("first-with-prev", "sequence 0 with a predecessor", {10: bytes(32)})
    one("later-without-prev", "sequence 1 without a predecessor", {9: 1})
    one("range-descends", "accepted range 2…1", {5: [[2, 1]]})
    one("ranges-overlap", "accepted 0…2 and 2…3", {5: [[0, 2], [2, 3]]})
    one("range-of-three", "a range with three numbers", {5: [[0, 1, 2]]})
    one("floors-of-abandon", "only maintenance sets chain floors", {3: 5, 5: [], 16: [[KID, 4, bytes(32)]]}, (7, 8, 13), [])
    floor = [[bytes([n]) * 16, 4, bytes(32)] for n in (1, 2)]
    one("floors-unsorted", "chain floors descend by kid", {3: 3, 16: floor[::-1]}, (7, 8, 13), [])
    part = [["p0000", 100, bytes(32)], ["c0000-0000-ffff", 100, bytes(32)]]
    one("run-descriptor", "maintenance with a run", {3: 3, 6: {0: 1, 1: part, 2: [f"idx/0-{SID.hex()}-0000"], 3: bytes(32)}},
        (7, 8, 13), [], "ok")
    one("run-descriptor-level-0", "level 0 has no descriptor", {3: 3, 6: {0: 0, 1: part}}, (7, 8, 13), [])
    one("run-descriptor-name", "part that is not the name of a run", {3: 3, 6: {0: 1, 1: [["../x", 100, bytes(32)]]}},
        (7, 8, 13), [])
    one("run-descriptor-of-commit", "only maintenance describes runs", {6: {0: 1, 1: part}})
    one("floors-as-map", "chain floors in a map", {3: 3, 16: {0: 1}}, (7, 8, 13), [])
    one("manifest-length", "length differs from the blob", {8: len(manifest) + 1})
    one("manifest-other", "section holds another manifest", raw=cbor({0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: []}))
    one("manifest-short", "section shorter than a slot", sections=[bytes(80)])
    for case_name, why, value in (
            ("manifest-good", None, {0: 1, 1: {0: SOURCE, 1: 2}, 2: -1, 3: 0, 4: [
                {0: b"dump", 1: 2, 2: bytes(32), 3: 0, 4: 1, 5: 3}], 7: {0: "root", 70000: "high"}, 13: [["lsn", b"\1"]]}),
            ("manifest-version", "version 2", {0: 2, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: []}),
            ("manifest-no-roots", "roots are missing", {0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0}),
            ("manifest-uuid", "source uuid of 15 bytes", {0: 1, 1: {0: SOURCE[:15], 1: 0}, 2: 0, 3: 0, 4: []}),
            ("manifest-path-text", "root path as text", {0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: [
                {0: "dump", 1: 2, 2: bytes(32), 3: 0, 4: 1, 5: 3}]}),
            ("manifest-root-kind", "root kind 4", {0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: [
                {0: b"x", 1: 4, 2: bytes(32), 3: 0, 4: 1, 5: 3}]}),
            ("manifest-critical", "unknown critical key", {0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: [], 0x9000: 1})):
        case(case_name, "manifest", why or "data maps may have keys above 0x8000; time before 1970", cbor(value),
             "fail" if why else "ok")
    plain = {0: 1, 1: {0: SOURCE, 1: 0}, 2: 0, 3: 0, 4: []}
    hint = [PACK_ID, 64, 300, bytes([7]) * 32, SID, 5000, slot(META)]
    full = {**plain, 5: ["a", "b"], 6: [SID], 8: {0: "root"}, 9: [3, [[b"/x", "denied", "no permission"]]], 10: [hint],
            11: {i: i for i in range(13)}, 12: {0: 0, 1: b"\0a"}, 14: [SID], 15: "forge", 17: bytes(32)}
    ok("manifest-everything", "manifest", "every optional key", cbor(full))
    for case_name, why, changes in (
            ("manifest-hint-old", "a hint of four fields, without pack name, size and slot", {10: [hint[:4]]}),
            ("manifest-hint-slot", "a hint with a slot of 87 bytes", {10: [[*hint[:6], hint[6][:87]]]}),
            ("manifest-hint-offset", "a hint beyond 4 GiB", {10: [[PACK_ID, 1 << 32, *hint[2:]]]}),
            ("manifest-error-number", "the code of an error is a text", {9: [1, [[b"/x", 13, "no permission"]]]}),
            ("manifest-error-total", "fewer errors than are listed", {9: [0, [[b"/x", "denied", "no permission"]]]}),
            ("manifest-statistics-text", "a statistic is a number", {11: {12: "3"}}),
            ("manifest-user-name", "a user's name is a text", {7: {0: b"root"}})):
        case(case_name, "manifest", why, cbor({**full, **changes}))
    drop_name = f"drop/{SID.hex()}"
    drop = {0: 1, 1: KID, 2: START, 3: 1, 4: SID, 5: "keep policy"}
    ok("drop-good", "drop", "forget", envelope("drop", drop_name, [sign(drop, drop_name)]), name=drop_name)
    for kind, expect in ((2, "ok"), (3, "fail")):
        case(f"drop-kind-{kind}", "drop", "void, by an admin" if kind == 2 else "kind 3 does not exist",
             envelope("drop", drop_name, [sign({**drop, 3: kind}, drop_name)]), expect, name=drop_name)
    case("drop-other-snapshot", "drop", "sid differs from the name",
         envelope("drop", drop_name, [sign({**drop, 4: bytes(16)}, drop_name)]), name=drop_name)


def configs():
    name = "config/00000000"

    def one(case_name, why, changes=None, remove=(), expect="fail", data=None, at=name):
        body = {k: v for k, v in {**config_body(), **(changes or {})}.items() if k not in remove}
        case(f"config-{case_name}", "config", why, data or config_object(body), expect, name=at)

    good = config_object()
    tree = config_body()[11]
    one("good", "all defaults", expect="ok")
    one("compat-bit", "unknown compat bit", {6: [1 << 40, 0, 0, 0]}, expect="ok")
    one("second-profile", "a profile of an unknown algorithm is not an error", {8: [PROFILE_0, {**PROFILE_0, 0: 2}]}, expect="ok")
    one("incompat-bit", "unknown incompat bit", {6: [0, 0, 0, 1 << 40]})
    one("keysets", "incompat bit 0 is reserved", {6: [0, 0, 0, 1]})
    one("magic", "bad magic", data=b"LARDERC2" + good[8:])
    one("hash", "hash does not match", data=flip(good, 60))
    one("cut", "last byte missing", data=good[:-1])
    one("trailing", "a byte after the hash", data=good + b"\0")
    one("sequence", "sequence differs from the name", {4: 1, 5: bytes(32)})
    one("first-with-prev", "sequence 0 with a predecessor", {5: bytes(32)})
    one("epoch-0", "epochs start at 1", {7: 0})
    one("no-chunker", "no chunker profile", {8: []})
    one("chunker-order", "min above center", {8: [{**PROFILE_0, 1: 2 << 20}]})
    one("chunker-max", "max above 16 MiB", {8: [{**PROFILE_0, 3: 32 << 20}]})
    one("chunker-odd", "odd min", {8: [{**PROFILE_0, 1: 524289}]})
    one("chunker-mask", "mask uses bit 63", {8: [{**PROFILE_0, 4: 1 << 63}]})
    one("lowest-hash", "chunker 3", {8: [{**PROFILE_0, 0: 3, 4: LOWEST_MASK, 5: LOWEST_MASK}]}, expect="ok")
    one("lowest-hash-masks", "chunker 3 has one mask", {8: [{**PROFILE_0, 0: 3}]})
    one("chunker-mask-0", "mask 0 cuts everywhere", {8: [{**PROFILE_0, 5: 0}]})
    one("inline", "inline limit above 512", {11: {**tree, 3: 513}})
    one("node-max", "node limit other than 262144", {11: {**tree, 2: 1 << 20}})
    one("no-tree-parameters", "key 11 is missing", remove=(11,))
    other = {0: bytes([0x11] * 4 + [0x33] * 12), 1: PUBLIC, 2: 1, 3: 0}
    one("tag-twice", "two writers with one tag", {17: [*config_body()[17], other]})
    one("signer-not-admin", "signer has no admin role", {17: [{0: KID, 1: PUBLIC, 2: 1, 3: 0}]})
    one("signer-revoked", "signer is revoked in it", {17: [{0: KID, 1: PUBLIC, 2: 0x40, 3: 0, 4: 0}]})
    gone = {**other, 0: bytes([0x22] * 16), 4: 0}
    one("chain-end", "a revoked writer with the end of its chain", {17: [*config_body()[17], {**gone, 5: [7, bytes(32)]}]}, expect="ok")
    one("chain-end-null", "chain end that is no row", {17: [*config_body()[17], {**gone, 5: None}]})
    one("chain-end-not-revoked", "chain end of a writer that is not revoked",
        {17: [*config_body()[17], {k: v for k, v in {**gone, 5: [7, bytes(32)]}.items() if k != 4}]})
    one("pack-target", "pack target above 1 GiB", {9: {0: (1 << 30) + 1, 1: 1, 2: 1}})
    one("padding", "unknown padding", {12: 2})
    one("object-lock", "locked for 30 days, extended below the default", {19: {0: 2, 1: 30}}, expect="ok")
    one("object-lock-none", "mode none: the other numbers do not count", {19: {0: 0, 1: 0, 2: 7}}, expect="ok")
    one("object-lock-mode", "unknown mode of object lock", {19: {0: 3, 1: 30}})
    one("object-lock-days", "a lock without days", {19: {0: 1}})
    one("object-lock-long", "a lock of more than a hundred years", {19: {0: 1, 1: 36501}})
    one("object-lock-below", "extended below more than its days", {19: {0: 1, 1: 30, 2: 31}})
    one("signer-unknown", "signer is not in the table", {1: bytes(16)})
    one("signature", "signed by a stranger", data=config_object(signer=forge_key(9)))
    one("renamed", "signed for another name", data=config_object(name="config/00000001"))
    one("critical-key", "unknown critical key", {0x8001: 1})


def protectors():
    salt, ikm = bytes(range(16)), bytes(range(32))
    cost = {0: salt, 1: 65536, 2: 3, 3: 4}

    def one(case_name, why, kind=1, params=None, expect="fail", changes=None, data=None):
        body = {**protector_body(kind, ikm, cost if params is None else params), **(changes or {})}
        case(f"protector-{case_name}", "protector", why, data or framed(b"LARDERK1", cbor(body)), expect)

    good = framed(b"LARDERK1", cbor(protector_body(1, ikm, cost)))
    one("good", "Argon2id", expect="ok")
    one("key-file", "type 4, no parameters", 4, {}, "ok")
    one("hint", "with a hint", expect="ok", changes={7: "the usual one"})
    one("bounds", "the highest cost that is allowed", params={0: salt, 1: 2 << 20, 2: 64, 3: 16}, expect="ok")
    one("memory", "m above 2 GiB", params={**cost, 1: (2 << 20) + 1})
    one("time", "t above 64", params={**cost, 2: 65})
    one("lanes", "p above 16", params={**cost, 3: 17})
    one("memory-small", "m below 8 p", params={**cost, 1: 31})
    one("time-0", "t of 0", params={**cost, 2: 0})
    one("lanes-0", "p of 0", params={**cost, 3: 0})
    one("salt", "salt of 15 bytes", params={**cost, 0: salt[:15]})
    one("no-params", "Argon2id without parameters", params={})
    one("type-0", "type 0 does not exist", changes={3: 0})
    one("wrapped", "wrapped secret of 47 bytes", changes={5: bytes(47)})
    one("commitment", "commitment of 31 bytes", changes={6: bytes(31)})
    one("kid", "kid of 17 bytes", changes={1: bytes(17)})
    one("magic", "bad magic", data=b"LARDERK2" + good[8:])
    one("hash", "hash does not match", data=flip(good, 30))
    one("cut", "last byte missing", data=good[:-1])
    one("trailing", "a byte after the hash", data=good + b"\0")
    inner = cbor(protector_body(1, ikm, cost)) + b"\0"
    one("cbor-trailing", "a byte after the map", data=framed(b"LARDERK1", inner))
    digits = ikm.hex().encode()
    ok("key-file-good", "key-file", "64 digits and a newline", digits + b"\n")
    ok("key-file-upper", "key-file", "upper case, no newline", digits.upper())
    for case_name, why, data in (("short", "62 digits", digits[:62] + b"\n"), ("long", "66 digits", digits + b"00\n"),
                                 ("binary", "32 raw bytes", ikm), ("two-newlines", "a second newline", digits + b"\n\n"),
                                 ("not-hex", "a letter g", b"g" + digits[1:] + b"\n"), ("empty", "nothing", b"")):
        case(f"key-file-{case_name}", "key-file", why, data)
    name, grant = grant_object()
    ok("grant-good", "grant", "admin", grant, name=name)
    put_only = {0: 1, 1: S_ID, 2: S_CDC, 3: S_SPLIT, 4: S_IDX, 7: S_PSK, 8: hpke_public(META), 9: hpke_public(DATA)}
    ok("grant-put-only", "grant", "a writer that reads nothing back",
       grant_object({**grant_body(), 3: 1, 7: [put_only], 9: []})[1], name=name)
    case("grant-public-key", "grant", "public key of 31 bytes",
         grant_object({**grant_body(), 7: [{**put_only, 8: bytes(31)}]})[1], name=name)
    case("grant-renamed", "grant", "copied to another number", grant, name=name[:-1] + "1")
    for case_name, why, changes in (("repo", "R of another repository", {4: bytes(16)}), ("no-epoch", "no epoch", {7: []}),
                                    ("secret", "secret of 31 bytes", {7: [{0: 1, 4: bytes(31)}]}),
                                    ("epoch-0", "epochs start at 1", {7: [{0: 0, 4: bytes(32)}]}),
                                    ("epochs-unsorted", "epochs descend", {7: [{0: 2}, {0: 1}]}),
                                    ("issuer-key", "issuer is not among the admin keys", {6: [bytes(32)]})):
        case(f"grant-{case_name}", "grant", why, grant_object({**grant_body(), **changes})[1], name=name)


def keys():
    for name, key in (("root", b"\0"), ("top", b"\0a"), ("nested", b"a\0b\0\0c"), ("high-bytes", b"\xff\0\0\x01")):
        ok(f"tree-key-{name}", "tree-key", "a path", key, root=0)
    ok("tree-key-raw", "tree-key", "object keys are not paths", b"/a//../", root=1)
    for name, why, key in (("empty", "no byte", b""), ("dot", "component .", b"\0."), ("dot-dot", "component ..", b"..\0\0a"),
                           ("dot-dot-name", "name ..", b"a\0\0.."), ("slash", "component with a slash", b"\0a/b"),
                           ("empty-component", "empty component", b"a\0\0\0b"), ("no-marker", "no 00 before the name", b"a"),
                           ("one-zero", "one 00 after a component", b"a\0b"), ("no-name", "no name after the marker", b"a\0\0"),
                           ("leading-zero", "empty first component", b"\0\0a"), ("long-component", "4097 bytes", b"\0" + b"a" * 4097)):
        case(f"tree-key-{name}", "tree-key", why, key, root=0)
    case("tree-key-raw-empty", "tree-key", "object key without a byte", b"", root=1)


def entries():
    hello = data_id(b"hello larder\n")
    hole = bytes(32)
    part = chunk_list([(hello, 13)])

    def one(case_name, why, data, expect="fail", root=0, **more):
        case(f"entry-{case_name}", "entry", why, data, expect, root=root, **more)

    one("inline", "three bytes", file_value(3, inline(b"abc")), "ok")
    one("empty", "size 0", file_value(0, inline(b"")), "ok")
    one("chunks", "one chunk", file_value(13, part), "ok")
    one("holes", "a hole of 1 TiB", file_value(13 + (1 << 40), chunk_list([(hole, 1 << 40), (hello, 13)])), "ok")
    one("list", "form 02", file_value(10**9, b"\2" + bytes([1]) * 32 + b"\1" + varint(1000)), "ok")
    one("directory", "type 2", dir_value(), "ok")
    one("link", "type 3", link_value(b"../x"), "ok")
    one("device", "type 7", b"\7" + common() + varint(8) + varint(1), "ok")
    one("before-1970", "negative seconds", file_value(0, inline(b""), mtime=(-5, 1), ctime=(-7, 0)), "ok")
    one("object", "type 8 in an object map", file_value(3, inline(b"abc"), kind=8), "ok", root=1)
    one("stream", "type 9 in a stream set", file_value(3, inline(b"abc"), kind=9), "ok", root=2)
    known = (xattr(b"user.a", b"1") + xattr(b"user.b", b"") + tlv(2, zigzag(-5) + varint(1))
             + tlv(3, varint(1) + b"c" + varint(13) + part) + tlv(4, varint(1) + varint(2)) + tlv(8, varint(16)))
    one("tlvs", "every TLV that needs no report", dir_value(tlvs=known), "ok")
    one("unknown-even-tlv", "unknown even tag is ignored", dir_value(tlvs=tlv(100, b"x")), "ok")
    one("unknown-critical-tlv", "unknown odd tag: parse, but report", dir_value(tlvs=tlv(101, b"x")), "ok",
        flag="unknown-critical-tlv")
    one("changed-while-read", "tag 12", file_value(0, inline(b""), tlv(12, b"")), "ok", flag="changed-while-read")
    one("content-incomplete", "tag 19", file_value(0, inline(b""), tlv(19, varint(5))), "ok", flag="content-incomplete")
    for name, why, data in (
            ("type-0", "type 0", b"\0" + common()), ("type-10", "type 10", b"\x0a" + common()),
            ("type-8-in-files", "object in a path root", file_value(0, inline(b""), kind=8)),
            ("mode", "mode above 07777", dir_value(0o10755)), ("uid", "uid of 33 bits", dir_value(uid=1 << 32)),
            ("mtime-ns", "10^9 nanoseconds", dir_value(mtime=(0, 10**9))),
            ("ctime-ns", "10^9 nanoseconds", dir_value(ctime=(0, 10**9))),
            ("ctime-overflow", "ctime above 64 bits", b"\2" + varint(0o755) + varint(0) * 2 + zigzag((1 << 63) - 1)
             + varint(0) + zigzag(1) + varint(0) + varint(1)),
            ("sum-short", "chunks give less than the size", file_value(14, part)),
            ("sum-long", "chunks give more than the size", file_value(12, part)),
            ("inline-513", "513 bytes inline", file_value(513, inline(bytes(513)))),
            ("inline-cut", "fewer bytes than the size", file_value(4, inline(b"abc"))),
            ("no-chunks", "form 01 with no chunk", file_value(1, chunk_list([]))),
            ("65-chunks", "form 01 with 65 chunks", file_value(65, chunk_list([(hello, 1)] * 65))),
            ("chunk-zero", "chunk of length 0", file_value(13, chunk_list([(hello, 13), (hello, 0)]))),
            ("chunk-17-mib", "chunk above 16 MiB", file_value(17 << 20, chunk_list([(hello, 17 << 20)]))),
            ("sum-overflow", "lengths overflow 64 bits", file_value(13, chunk_list([(hole, (1 << 64) - 1), (hello, 14)]))),
            ("empty-as-list", "size 0 in form 01", file_value(0, chunk_list([(hello, 0)]))),
            ("form-3", "unknown form", file_value(1, b"\3a")),
            ("list-height", "list height 8", file_value(10**9, b"\2" + bytes([1]) * 32 + b"\x08" + varint(1000))),
            ("list-of-hole", "list root of zeros", file_value(10**9, b"\2" + bytes(32) + b"\0" + varint(1000))),
            ("link-empty", "empty target", link_value(b"")), ("link-zero", "00 in the target", link_value(b"a\0b")),
            ("cut", "ends in the fixed fields", dir_value()[:-1]), ("trailing", "a byte that is no TLV", dir_value(tlvs=b"\0")),
            ("tlv-unsorted", "tag 8 before tag 2", dir_value(tlvs=tlv(8, varint(1)) + tlv(2, zigzag(1) + varint(0)))),
            ("tlv-twice", "tag 2 twice", dir_value(tlvs=tlv(2, zigzag(1) + varint(0)) * 2)),
            ("tlv-unknown-twice", "tag 100 twice", dir_value(tlvs=tlv(100, b"") * 2)),
            ("tlv-0", "tag 0", dir_value(tlvs=tlv(0, b"x"))), ("tlv-cut", "longer than the entry", dir_value(tlvs=b"\x64\x05abc")),
            ("xattr-unsorted", "names descend", dir_value(tlvs=xattr(b"b", b"") + xattr(b"a", b""))),
            ("xattr-twice", "one name twice", dir_value(tlvs=xattr(b"a", b"") * 2)),
            ("xattr-no-name", "name of 0 bytes", dir_value(tlvs=xattr(b"", b"v"))),
            ("xattr-name-256", "name of 256 bytes", dir_value(tlvs=xattr(b"n" * 256, b"v"))),
            ("xattr-name-zero", "00 in the name", dir_value(tlvs=xattr(b"a\0b", b"v"))),
            ("xattr-4097", "value of 4097 bytes", dir_value(tlvs=xattr(b"a", bytes(4097)))),
            ("xattr-out-trailing", "a byte after the content form",
             dir_value(tlvs=tlv(3, varint(1) + b"c" + varint(13) + part + b"\0"))),
            ("xattr-out-sum", "content does not add up", dir_value(tlvs=tlv(3, varint(1) + b"c" + varint(14) + part))),
            ("xattr-in-and-out", "one name inline and out of line",
             dir_value(tlvs=xattr(b"c", b"") + tlv(3, varint(1) + b"c" + varint(13) + part))),
            ("btime-ns", "10^9 nanoseconds", dir_value(tlvs=tlv(2, zigzag(1) + varint(10**9)))),
            ("btime-trailing", "a byte after btime", dir_value(tlvs=tlv(2, zigzag(1) + varint(0) + b"\0"))),
            ("changed-not-empty", "tag 12 with a byte", dir_value(tlvs=tlv(12, b"\0"))),
            ("incomplete-0", "error code 0", dir_value(tlvs=tlv(19, varint(0)))),
            ("non-canonical-varint", "uid in two bytes", b"\2" + varint(0o755) + b"\x80\x00" + common()[4:]),
            ("value-too-long", "value above 65536 bytes", dir_value(tlvs=tlv(100, bytes(65536))))):
        one(name, why, data)


def nodes():
    d, f = dir_value(), file_value(0, inline(b""))

    def one(case_name, why, data, expect="fail", root=0):
        case(f"node-{case_name}", "node", why, data, expect, root=root)

    child = bytes([1]) * 32 + varint(3) + varint(16)
    one("leaf", "root, directory, file", node(0, [(b"\0", d), (b"\0a", d), (b"a\0\0b", f)]), "ok")
    one("inner", "two children", node(1, [(b"\0", child), (b"a\0\0b", child)]), "ok")
    one("empty-map", "an object map without objects", node(0, []), "ok", root=1)
    one("raw-keys", "a and a/b are two objects",
        node(0, [(b"a", file_value(0, inline(b""), kind=8)), (b"a/b", file_value(0, inline(b""), kind=8))]), "ok", root=1)
    for name, why, data in (
            ("version", "version 2", node(0, [(b"\0", d)], version=2)),
            ("level-16", "level above 15", node(16, [(b"\0", child)])),
            ("inner-empty", "inner node without children", node(1, [])),
            ("unsorted", "keys descend", raw_node([(0, b"\0b", d), (1, b"a", d)])),
            ("key-twice", "one key twice", raw_node([(0, b"\0a", d), (1, b"a", d)])),
            ("shared-too-short", "shared prefix is not the longest", raw_node([(0, b"\0a", d), (0, b"\0b", d)])),
            ("shared-too-long", "shared longer than the previous key", raw_node([(0, b"\0a", d), (3, b"b", d)])),
            ("shared-first", "first entry shares", raw_node([(1, b"\0a", d)])),
            ("empty-suffix", "suffix of 0 bytes", raw_node([(0, b"\0a", d), (2, b"", d)])),
            ("count-more", "count says two", raw_node([(0, b"\0", d)], count=2)),
            ("count-less", "count says one", raw_node([(0, b"\0", d), (1, b"a", d)], count=1)),
            ("trailing", "a byte after the last entry", node(0, [(b"\0", d)]) + b"\0"),
            ("cut", "last byte missing", node(0, [(b"\0", d)])[:-1]),
            ("dot-dot", "name ..", node(0, [(b"\0..", d)])), ("slash", "name with a slash", node(0, [(b"\0a/b", d)])),
            ("child-long", "a byte after a child", node(1, [(b"\0", child + b"\0")])),
            ("child-short", "child without totals", node(1, [(b"\0", child[:32])])),
            ("child-empty", "child with 0 entries", node(1, [(b"\0", bytes([1]) * 32 + b"\0\0")])),
            ("bad-entry", "an entry of type 0", node(0, [(b"\0", b"\0" + d[1:])])),
            ("huge-count", "count of 2^62", bytes([1, 0]) + varint(1 << 62)),
            ("too-long", "above 262144 bytes", node(0, [(b"\0", d)] + [
                (b"\0f%02d" % i, dir_value(tlvs=tlv(100, bytes(60000)))) for i in range(5)])),
            ("empty", "no byte", b"")):
        one(name, why, data)
    a = bytes([1]) * 32
    ok("list-leaf", "list", "chunk, hole, chunk", list_node(0, [(a, 5), (bytes(32), 1 << 40), (a, 5)]))
    ok("list-inner", "list", "two children", list_node(1, [(a, 1 << 40), (a, 5)]))
    for name, why, data in (("empty", "no element", list_node(0, [])), ("version", "version 2", b"\2" + list_node(0, [(a, 5)])[1:]),
                            ("level-8", "level above 7", list_node(8, [(a, 5)])), ("zero-length", "chunk of length 0", list_node(0, [(a, 0)])),
                            ("chunk-17-mib", "chunk above 16 MiB", list_node(0, [(a, 17 << 20)])),
                            ("4097", "more than 4096 elements", list_node(0, [(a, 5)] * 4097)),
                            ("hole-above-leaves", "a hole above level 0", list_node(1, [(bytes(32), 5)])),
                            ("trailing", "a byte after the last", list_node(0, [(a, 5)]) + b"\0"),
                            ("cut", "last byte missing", list_node(0, [(a, 500)])[:-1])):
        case(f"list-{name}", "list", why, data)


def make_all():
    for make in (varints, cbors, slots, blobs, trailers, packs, envelopes, runs, outcomes, configs, protectors, keys,
                 entries, nodes):
        make()


def main():
    make_all()
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for name, text in CASES.items():
        with open(os.path.join(folder, name + ".vec"), "w") as out:
            out.write(text)
    print(f"{len(CASES)} cases")


if __name__ == "__main__":
    main()
