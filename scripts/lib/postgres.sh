# shellcheck shell=bash
# A PostgreSQL server of its own for a script: made by initdb in a temporary directory, on loopback, ended with the script.
# Sourced after common.sh.   pg_start DIRECTORY; pg_stop; psql_, pg_dump_ and pgbench_ reach it.
#
# fsync is off: the database is scratch data. Needs the Debian package postgresql (scripts/install-deps test).

pg_bin=
pg_dir=
pg_port=

pg_start() { # DIRECTORY
  pg_bin=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin | sort -V | tail -n 1)
  if [ -z "$pg_bin" ] || [ ! -x "$pg_bin/initdb" ]; then die "no PostgreSQL server; run scripts/install-deps test"; fi
  pg_dir=$1
  mkdir -p "$pg_dir"
  chown postgres: "$pg_dir"
  as_postgres "$pg_bin/initdb" -D "$pg_dir/data" -A trust -N -E UTF8 --locale=C >"$pg_dir.initdb.log"
  pg_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  cat >>"$pg_dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $pg_port
unix_socket_directories = ''
fsync = off
synchronous_commit = off
full_page_writes = off
max_wal_size = '2GB'
shared_buffers = '256MB'
autovacuum = off
CONF
  as_postgres "$pg_bin/pg_ctl" -D "$pg_dir/data" -w -l "$pg_dir/log" start >/dev/null </dev/null
  export PGHOST=127.0.0.1 PGPORT=$pg_port PGUSER=postgres
}

# The server refuses to run as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

pg_stop() {
  [ -n "$pg_dir" ] || return 0
  as_postgres "$pg_bin/pg_ctl" -D "$pg_dir/data" -m immediate stop >/dev/null 2>&1 || :
  pg_dir=
}

psql_() { psql -X -q -v ON_ERROR_STOP=1 "$@"; }

# Newer versions put a random word into every plain dump; a fixed one makes two dumps of the same data equal.
pg_dump_command() {
  local help
  # Not through a pipe to grep -q: pipefail would see pg_dump die of the closed pipe, sometimes.
  help=$("$pg_bin/pg_dump" --help)
  if [[ $help == *--restrict-key* ]]; then
    echo "$pg_bin/pg_dump --restrict-key=larder"
  else
    echo "$pg_bin/pg_dump"
  fi
}

# Rows and a hash of all rows of every table, in an order that does not depend on where the rows lie.
pg_fingerprint() { # DATABASE
  local table
  for table in $(psql_ -At -d "$1" -c "select quote_ident(tablename) from pg_tables where schemaname = 'public' order by 1"); do
    psql_ -At -d "$1" -c "select '$table', count(*), md5(string_agg(h, '' order by h)) from (select md5(t::text) h from $table t) x"
  done
}
