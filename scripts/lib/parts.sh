# shellcheck shell=bash
# Runs a list of named parts, each with a header and its time, goes on after a failure, ends with a count.
# Sourced after common.sh. Parts are functions part_NAME; a part that cannot run calls  skip WHY.

parts_passed=0
parts_failed=0
parts_skipped=0
parts_report=()

# Ends the part loudly, without counting it as passed.
skip() { note "SKIPPED: $*"; exit 77; }

run_part() { # NAME
  local name=$1 begun=$EPOCHREALTIME status=0 verdict
  printf '\n######## %s\n' "$name"
  # A process of its own: set -e works in it, and what it changes ends with it.
  set +e
  (set -e; "part_$name")
  status=$?
  set -e
  case $status in
  0) verdict=passed parts_passed=$((parts_passed + 1)) ;;
  77) verdict=SKIPPED parts_skipped=$((parts_skipped + 1)) ;;
  *) verdict=FAILED parts_failed=$((parts_failed + 1)) ;;
  esac
  parts_report+=("$(printf '%-14s %-8s %8s s' "$name" "$verdict" "$(since "$begun")")")
  printf '######## %s: %s in %s s\n' "$name" "$verdict" "$(since "$begun")"
}

# Runs the named parts, or all of them. Prints the report; the last line is the count, the status the verdict.
run_parts() { # ALL-PARTS… -- WANTED…
  local all=() name known
  while [ "$1" != -- ]; do all+=("$1"); shift; done
  shift
  [ $# != 0 ] || set -- "${all[@]}"
  for name in "$@"; do
    known=
    for known in "${all[@]}" ''; do [ "$known" = "$name" ] && break; done
    [ -n "$known" ] || die "unknown part '$name'; one of: ${all[*]}"
  done
  for name in "$@"; do run_part "$name"; done
  printf '\n'
  printf '%s\n' "${parts_report[@]}"
  [ "$parts_skipped" = 0 ] || printf 'SKIPPED: %s parts; what they show has not been shown\n' "$parts_skipped"
  printf '%s passed, %s failed\n' "$parts_passed" "$parts_failed"
  [ "$parts_failed" = 0 ] && [ "$parts_passed" != 0 ]
}
