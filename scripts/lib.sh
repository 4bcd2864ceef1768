# Sourced by the scripts beside it: where things are, headings with times, and the counting of results.
# shellcheck shell=bash disable=SC2034
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CLUSTER=$ROOT/e2e/cluster
TOOLS=${XDG_CACHE_HOME:-$HOME/.cache}/kiln/tools
LOGS=$ROOT/target/logs
# One line per phase: passed, failed and ignored tests. A script that calls another one shares its file.
export KILN_RESULTS=${KILN_RESULTS:-}
set -o pipefail
cd "$ROOT" || exit 1
[ "${CARGO_TERM_COLOR:-}" ] || [ -t 1 ] || export CARGO_TERM_COLOR=never

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'; else bold='' red='' plain=''; fi
heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# start_results: begins counting, unless the caller has begun. Prints nothing.
start_results() {
  [ -z "$KILN_RESULTS" ] || return 0
  mkdir -p "$LOGS"
  KILN_RESULTS=$LOGS/results
  : > "$KILN_RESULTS"; rm -f "$KILN_RESULTS.failed"
  counts_here=yes
}

# phase TITLE COMMAND...: runs it under a heading, keeps its output, counts its tests. Goes on after a failure, and
# returns it.
phase() {
  local title=$1 began=$SECONDS code=0 log; shift
  log=$LOGS/$(tr -cs 'a-zA-Z0-9\n' - <<< "$title").log
  heading "$title"
  "$@" 2>&1 | tee "$log" || code=$?
  "$ROOT/scripts/count-results" "$code" "$log" >> "$KILN_RESULTS"
  if [ "$code" = 0 ]; then
    printf -- '-- ok: %s (%d s)\n' "$title" "$((SECONDS - began))"
  else
    printf -- '%s-- FAILED: %s (exit code %d, %d s; output: %s)%s\n' "$red" "$title" "$code" "$((SECONDS - began))" "${log#"$ROOT/"}" "$plain"
    echo "$title" >> "$KILN_RESULTS.failed"
  fi
  return "$code"
}

# not_run TITLE WHY: a phase that something before it made impossible counts as failed.
not_run() {
  heading "$1"
  echo "-- FAILED: not run, because $2"
  echo "0 1 0" >> "$KILN_RESULTS"
  echo "$1" >> "$KILN_RESULTS.failed"
}

# finish: prints the sum and exits with it, in the script that began counting; in others it only returns.
finish() {
  [ "${counts_here:-}" = yes ] || { [ ! -s "$KILN_RESULTS.failed" ]; return; }
  local passed failed ignored
  read -r passed failed ignored < <(awk '{p += $1; f += $2; i += $3} END {print p + 0, f + 0, i + 0}' "$KILN_RESULTS")
  heading "Result after $((SECONDS / 60)) min $((SECONDS % 60)) s"
  [ ! -s "$KILN_RESULTS.failed" ] || sed 's/^/failed: /' "$KILN_RESULTS.failed"
  if [ "$ignored" -gt 0 ]; then
    echo "$passed passed, $failed failed, $ignored skipped"
  else
    echo "$passed passed, $failed failed"
  fi
  [ "$failed" = 0 ] || exit 1
}
