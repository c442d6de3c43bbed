#!/usr/bin/env bash
# The host that the program's appliances are on: a manager and two appliances, until program.sh, on the other host, has had what it
# wants. That asks over tcp, a line a connection (`appliance_host.sh answer` serves one):
#   members       how many appliances are up
#   kill NAME     that appliance, at once
#   watch         from now on, count
#   pairs         the fewest queue pairs that clients have had here since then
#   log           the last lines of what was logged
#   end           that was all
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
port=7999
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

count_pairs() { rdma res show qp | grep -c 'type RC.*state RTS'; }
least=1000
note_pairs() {
  local now
  now="$(count_pairs)"
  ((now >= least)) && return
  least="$now"
  echo "$least" >"$scratch/pairs"
}
answer() {
  local word name
  read -r word name
  case "$word" in
    members) grep -c '^Appliance .* donates' "$scratch/log" ;;
    kill) kill -9 "$(<"$scratch/$name.pid")" && echo killed ;;
    watch) : >"$scratch/watch"; echo watching ;;
    pairs) cat "$scratch/pairs" ;;
    log) tail -n 20 "$scratch/log" ;;
    end) echo ended; : >"$scratch/end" ;;
  esac
}
if [[ "${1:-}" == answer ]]; then answer; exit; fi

address="${1:?usage: appliance_host.sh ADDRESS}"
export scratch="$(mktemp -d)" NODE_NO_WARNINGS=1
busybox nc -ll -p "$port" -e "$0" answer &
export XDG_STATE_HOME="$scratch/state" EXTMEM_RUNTIME_DIR="$scratch/run"
start() { node dist/src/cli/main.js "$@" </dev/null >>"$scratch/log" 2>&1 & }
start manager --listen "$address" --state-dir "$scratch/manager" --log-level info
until ss -Hltn 'sport = :7070' | grep -q .; do sleep 2; done
say 'the manager listens'
# Anew if it must be: an emulated processor that is shared as well may keep a session waiting for longer than its other end believes in it.
up() { grep -q "Appliance $1 donates" "$scratch/log"; }
until up first && up second; do
  for name in first second; do
    up "$name" || kill -0 "$(cat "$scratch/$name.pid" 2>/dev/null)" 2>/dev/null && continue
    start appliance --manager "$address" --listen "$address" --id "$name" --memory 192M
    echo $! >"$scratch/$name.pid"
  done
  sleep 2
done
say 'both appliances are up'
until [[ -e "$scratch/end" ]]; do
  [[ ! -e "$scratch/watch" ]] || note_pairs
  sleep 1
done
