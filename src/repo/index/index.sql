-- index.db: local, disposable, derivable from the repository (format-spec chapter on client-local state).
-- Pragmas are set by edge/localdb.rs. Numbers for states are wide apart, so that no single flipped bit turns one into another.

CREATE TABLE meta (                      -- repo_id, filter_generation, and what callers remember under "m/…"
  k TEXT PRIMARY KEY, v BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE head (                      -- rollback memory: highest outcome seen per writer
  kid BLOB PRIMARY KEY, seq INTEGER NOT NULL, hash BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE run (
  h      INTEGER PRIMARY KEY,
  name   TEXT    NOT NULL UNIQUE,        -- 'idx/0-<sid>-0003' or, for level >= 1, 'idx/2-<sid>' (all its parts together)
  level  INTEGER NOT NULL,
  sid    BLOB    NOT NULL,
  kid    BLOB    NOT NULL,               -- signer
  number INTEGER NOT NULL,               -- of an L0 run in its session; only used while it is listed
  state  INTEGER NOT NULL,               -- LISTED: written by this machine, session not ended; IMPORTED: accepted, usable; IMPORTING
  nchunk INTEGER NOT NULL DEFAULT 0,
  npack  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX run_sid ON run(sid);

CREATE TABLE run_pack (                  -- which runs describe a pack: it is usable while at least one of them is valid
  pack INTEGER NOT NULL, run INTEGER NOT NULL, PRIMARY KEY (pack, run)
) WITHOUT ROWID, STRICT;
CREATE INDEX run_pack_run ON run_pack(run);

CREATE TABLE slot (                      -- wrapped session keys, 88 bytes each
  h INTEGER PRIMARY KEY, slot BLOB NOT NULL UNIQUE
) STRICT;

CREATE TABLE pack (                      -- handles are never given out twice: other processes remember them
  h      INTEGER PRIMARY KEY AUTOINCREMENT,
  id     BLOB    NOT NULL UNIQUE,        -- 16 bytes
  sid    BLOB    NOT NULL,               -- 16 bytes, part of the object name
  kind   INTEGER NOT NULL,               -- 0 data, 1 meta
  state  INTEGER NOT NULL,               -- LIVE, CONDEMNED, GONE, MINE: follows from run_pack, gc_pack and owner; ABSENT: seen
  size   INTEGER NOT NULL,
  nblob  INTEGER NOT NULL,
  slots  BLOB    NOT NULL,               -- LE32 slot.h, in frame order
  crc64  INTEGER NOT NULL,               -- crc64nvme as i64
  bhash  BLOB    NOT NULL,               -- first 24 bytes of body_hash
  owner  BLOB                            -- own session that will list it in a run of its own, or has but is not accepted yet
) STRICT;
CREATE INDEX pack_owner ON pack(owner) WHERE owner IS NOT NULL;
CREATE INDEX pack_absent ON pack(h) WHERE state = 1094865733;  -- ABSENT; normally empty

CREATE TABLE own_pack (                  -- the records of packs that no accepted run lists yet
  pack INTEGER PRIMARY KEY, records BLOB NOT NULL
) STRICT;

CREATE TABLE chunk (                     -- one preferred copy per chunk id; THE hot table
  id   BLOB    NOT NULL PRIMARY KEY,     -- 32 bytes
  pack INTEGER NOT NULL,
  off  INTEGER NOT NULL,                 -- offset | check of the row << 32
  tl   INTEGER NOT NULL                  -- type << 28 | stored_len
) WITHOUT ROWID, STRICT;

CREATE TABLE chunk_dup (                 -- every further copy (concurrent writers, repack overlap); only for ids in chunk
  id BLOB NOT NULL, pack INTEGER NOT NULL, off INTEGER NOT NULL, tl INTEGER NOT NULL,
  PRIMARY KEY (id, pack)
) WITHOUT ROWID, STRICT;

CREATE TABLE delta (                     -- what a copy that is stored as a delta is a delta against
  id BLOB NOT NULL, pack INTEGER NOT NULL, base BLOB NOT NULL,
  PRIMARY KEY (id, pack)
) WITHOUT ROWID, STRICT;

CREATE TABLE gc (                        -- condemnations seen; never forgotten, because they are irrevocable
  sid BLOB PRIMARY KEY, kid BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE gc_pack (
  pack_id BLOB NOT NULL, gc BLOB NOT NULL, PRIMARY KEY (pack_id, gc)
) WITHOUT ROWID, STRICT;
CREATE TABLE lost (                      -- chunk ids declared lost by quarantine objects: re-read files that use them
  id BLOB PRIMARY KEY
) WITHOUT ROWID, STRICT;

CREATE TABLE snap (                      -- mirror of the outcomes
  sid     BLOB PRIMARY KEY,
  kind    INTEGER NOT NULL,              -- 1 commit 2 checkpoint 3 maintenance 4 fence 5 abandon
  kid     BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
  source  BLOB, created INTEGER NOT NULL, flags INTEGER NOT NULL,
  dropped INTEGER NOT NULL DEFAULT 0,    -- 0 no, 1 yes, 2 yes but held
  accepted BLOB NOT NULL,                -- LE32 pairs: L0 runs that count, first and last; 8 bytes of check
  start   INTEGER                        -- of the snapshot, from the manifest; NULL if there is none or it does not open
) WITHOUT ROWID, STRICT;

CREATE TABLE snap_object (               -- the objects as stored, sealed
  h INTEGER PRIMARY KEY, sid BLOB NOT NULL UNIQUE, object BLOB NOT NULL
) STRICT;

CREATE TABLE mysession (                 -- sessions that this machine started
  sid BLOB PRIMARY KEY, started_ns INTEGER NOT NULL,
  machine BLOB NOT NULL,                 -- whose session it is, should this file have been copied with its machine
  boot_id BLOB NOT NULL, pid INTEGER NOT NULL,
  state INTEGER NOT NULL,                -- 0 open, 1 ended, 2 superseded
  next_run INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;

CREATE TABLE scrub (                     -- verification ledger
  pack INTEGER PRIMARY KEY, depth INTEGER NOT NULL, verified_ns INTEGER NOT NULL, sound INTEGER NOT NULL
) STRICT;
