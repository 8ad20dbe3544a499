-- cache.db: tree nodes of the newest snapshots of the local sources, everything sealed with a key derived from kid_secret
-- (format-spec chapter on client-local state).
CREATE TABLE meta (
  k TEXT PRIMARY KEY, v BLOB NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE node (
  h INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE INDEX node_used ON node(used);
CREATE TABLE root (                      -- newest root of each path of each source; k is a keyed hash of both, v is sealed
  k BLOB PRIMARY KEY, v BLOB NOT NULL
) WITHOUT ROWID, STRICT;
