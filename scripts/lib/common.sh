# shellcheck shell=bash
# shellcheck disable=SC2034  # what is defined here is used by the scripts that source it
# What the scripts share: where things are, the larder binary, a private environment, PASS and FAIL lines.
# Sourced, never run:  . "$(dirname "$0")/lib/common.sh"

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scripts=$checkout/scripts
tools=${LARDER_TOOLS:-${HOME:-/root}/.cache/larder-tools}

note() { printf '%s\n' "$*" >&2; }
die() { note "error: $*"; exit 1; }

# Numbers for people: 1234567 -> 1.2 MiB
human() { numfmt --to=iec-i --suffix=B --format='%.1f' "$1"; }

# Sum of the sizes of the files below a directory: what is stored, not how many blocks it takes.
stored_bytes() { du -sb --apparent-size "$1" | cut -f1; }

# Seconds with two digits since $1 (a value of $EPOCHREALTIME).
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'; }

# The release binary: LARDER_BIN, or the one of this checkout, built when missing or LARDER_REBUILD is set.
larder_binary() {
  if [ -n "${LARDER_BIN:-}" ]; then
    [ -x "$LARDER_BIN" ] || die "LARDER_BIN=$LARDER_BIN is not a program"
    realpath "$LARDER_BIN"
    return
  fi
  local built=${CARGO_TARGET_DIR:-$checkout/target}/release/larder
  if [ ! -x "$built" ] || [ -n "${LARDER_REBUILD:-}" ]; then
    (cd "$checkout" && cargo build --release --locked --bin larder) >&2 || die "the release build failed"
  fi
  realpath "$built"
}

# A work directory that goes away at the end unless LARDER_KEEP is set.
# Below /var/tmp, because /tmp may live in memory. Mode 0711, so that postgres may enter.
make_work_dir() { # NAME
  local base=${LARDER_WORK_DIR:-/var/tmp}
  mkdir -p "$base"
  local dir
  dir=$(mktemp -d "$base/larder-$1.XXXXXX")
  chmod 0711 "$dir"
  printf '%s\n' "$dir"
}

# Nothing of the caller's configuration, caches or state takes part, and nothing is left in the home directory.
private_environment() { # DIRECTORY
  unset LARDER_REPO LARDER_CONFIG LARDER_PROFILE LARDER_KEY_FILE LARDER_PASSWORD_FILE LARDER_PASSWORD_COMMAND
  LARDER_PASSWORD=$(head -c 24 /dev/urandom | base64 | tr -d '/+=')
  mkdir -p "$1/cache" "$1/xdg"
  chmod 0700 "$1/cache" "$1/xdg"
  export LARDER_PASSWORD LARDER_CACHE_DIR=$1/cache
  export XDG_CACHE_HOME=$1/xdg/cache XDG_CONFIG_HOME=$1/xdg/config XDG_STATE_HOME=$1/xdg/state XDG_DATA_HOME=$1/xdg/data
}

# claim TEXT COMMAND…  runs the command; prints PASS or FAIL and counts. The output of a failed command is shown.
claims_passed=0
claims_failed=0
claim() {
  local text=$1 claim_log status=0
  shift
  claim_log=$(mktemp)
  "$@" >"$claim_log" 2>&1 || status=$?
  if [ "$status" = 0 ]; then
    printf 'PASS  %s\n' "$text"
    claims_passed=$((claims_passed + 1))
  else
    printf 'FAIL  %s (exit %s)\n' "$text" "$status"
    tail -n 30 "$claim_log" | LC_ALL=C cut -c1-300 | sed 's/^/        /'
    claims_failed=$((claims_failed + 1))
  fi
  rm -f "$claim_log"
  return 0
}

# The last line of every script that makes claims; its status is the verdict.
claims_verdict() {
  printf '%s passed, %s failed\n' "$claims_passed" "$claims_failed"
  [ "$claims_failed" = 0 ] && [ "$claims_passed" != 0 ]
}

# One field of the last line of a file of JSON lines:  json_field FILE KEY
json_field() {
  python3 - "$1" "$2" <<'PY'
import json, sys
lines = [line for line in open(sys.argv[1], encoding="utf-8", errors="replace") if line.strip()]
if not lines:
    sys.exit(f"{sys.argv[1]} is empty")
print(json.loads(lines[-1])[sys.argv[2]])
PY
}
