#!/usr/bin/env bash
# The whole program over RDMA: a mount with --transport verbs, of a manager and two appliances on the host whose address is $1
# (appliance_host.sh). Files are written and read by cp, dd, mmap and sqlite3, the link goes down and comes up, an appliance is killed, and
# nothing of it may have gone by tcp. scripts/test-rdma runs it in a guest; needs root.
set -uo pipefail

address="${1:?usage: program.sh ADDRESS}"
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)"
scratch="$(mktemp -d)"
export XDG_STATE_HOME="$scratch/state" EXTMEM_RUNTIME_DIR="$scratch/run" NODE_NO_WARNINGS=1
mount_point="$scratch/mnt"
failures=0
pids=()

main="$root/dist/src/cli/main.js"
extmem() { node "$main" "$@"; }
# remote WORD...: what the other host answers (appliance_host.sh).
remote() { echo "$*" | busybox nc -w 5 "$address" 7999; }
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
# check WHAT COMMAND...: the command is to succeed.
check() {
  local what="$1"
  shift
  if "$@"; then say "ok: $what"; return; fi
  say "FAILED: $what"
  tail -n 8 "$scratch/log"
  remote log
  failures=$((failures + 1))
}
# start ROLE ARGUMENT...: in the background; sets `pid`. Not --detach, which takes a second process each time.
start() {
  node "$main" "$@" </dev/null >>"$scratch/log" 2>&1 &
  pid=$!
  pids+=("$pid")
}
# await WHAT COMMAND...: until the command succeeds.
await() {
  local what="$1" deadline=$((SECONDS + 240))
  shift
  until "$@" 2>/dev/null; do
    ((SECONDS < deadline)) || { say "FAILED: $what"; tail -n 30 "$scratch/log"; remote log; exit 1; }
    sleep 2
  done
  say "$what"
}
clean_up() {
  remote end >/dev/null
  umount -f "$mount_point" "$mount_point-tcp" 2>/dev/null
  ((${#pids[@]} == 0)) || { disown "${pids[@]}"; kill -9 "${pids[@]}"; } 2>/dev/null
  rm -rf "$scratch"
}
trap clean_up EXIT

# Whether all that the mount of that process moved, at least so many bytes, went over RDMA to two appliances: so the status says, and
# it has no tcp connection to any. went_over_rdma PID BYTES, of the status in $scratch/status.
went_over_rdma() {
  python3 - "$@" "$scratch/status" <<'PYTHON'
import json, re, subprocess, sys
pid, least = map(int, sys.argv[1:3])
status = json.load(open(sys.argv[3]))
rows = [row for mount in status['mounts'] if mount['pid'] == pid for row in mount['fabric'].values() if row['operations'] > 0]
moved = sum(row['bytesRead'] + row['bytesWritten'] for row in rows)
ports = '|'.join(str(appliance['port']) for appliance in status['appliances'])
connections = subprocess.run(['ss', '-Htnp', 'state', 'established'], capture_output=True, text=True, check=True).stdout.splitlines()
tcp = [line for line in connections if f'pid={pid},' in line and re.search(rf':({ports})\s+users', line)]
print(f"       {', '.join(row['transport'] for row in rows) or 'none'}; {moved} bytes, {len(tcp)} tcp connections to appliances")
sys.exit(0 if len(rows) == 2 and all(row['transport'] == 'verbs' for row in rows) and moved >= least and not tcp else 1)
PYTHON
}
ask_status() { extmem status --json --manager "$address" >"$scratch/status"; }
packets_sent() { cat /sys/class/infiniband/*/ports/*/hw_counters/sent_pkts 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }'; }
members() { [[ "$(remote members)" == 2 ]]; }

use_mmap() {
  python3 - "$mount_point/mapped" <<'PYTHON'
import mmap, sys
size = 4 << 20
with open(sys.argv[1], 'w+b') as file:
    file.truncate(size)
    with mmap.mmap(file.fileno(), size) as memory:
        for page in range(0, size, 4096):
            memory[page:page + 8] = page.to_bytes(8, 'little')
        memory.flush()
PYTHON
}
mmap_holds() {
  python3 - "$mount_point/mapped" <<'PYTHON'
import mmap, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
    sys.exit(any(memory[page:page + 8] != page.to_bytes(8, 'little') for page in range(0, len(memory), 4096)))
PYTHON
}
use_sqlite() {
  sqlite3 "$1" 'create table t(n integer primary key, text text); begin; with recursive c(n) as (select 1 union all select n + 1 from c where n < 2000)
    insert into t select n, hex(zeroblob(n % 300)) from c; commit; delete from t where n % 7 = 0;'
}
hashes_equal() { (cd "$mount_point" && sha256sum --quiet -c "$scratch/hashes"); }
databases_equal() { [[ "$(sqlite3 "$mount_point/db" .dump | sha256sum)" == "$(sqlite3 "$scratch/db" .dump | sha256sum)" && "$(sqlite3 "$mount_point/db" 'pragma integrity_check')" == ok ]]; }

await 'two appliances are there' members
start mount --manager "$address" --transport verbs --cache 64M --name rdma --mkdir "$mount_point"
mounted="$pid"
await 'a mount over RDMA' mountpoint -q "$mount_point"
# The canary: the question whether it went over RDMA is to be answered no for this one.
start mount --manager "$address" --transport tcp --cache 64M --name plain --mkdir "$mount_point-tcp"
canary="$pid"
await 'a mount over tcp' mountpoint -q "$mount_point-tcp"
packets="$(packets_sent)"

mkdir "$scratch/plain"
for name in one two three four five six; do head -c 6M /dev/urandom >"$scratch/plain/$name"; done
check 'cp writes' cp "$scratch"/plain/* "$mount_point"
check 'dd writes in pieces' dd if="$scratch/plain/one" of="$mount_point/pieces" bs=64k conv=fsync status=none
check 'mmap writes' use_mmap
check 'sqlite3 writes' use_sqlite "$mount_point/db"
use_sqlite "$scratch/db"
sync "$mount_point"/*
(cd "$scratch/plain" && sha256sum -- *) >"$scratch/hashes"
sha256sum <"$scratch/plain/one" | sed 's/-$/pieces/' >>"$scratch/hashes"
check 'nothing of it stays here' extmem evict "$mount_point"
check 'hashes are equal when it comes back' hashes_equal
check 'what mmap wrote is there' mmap_holds
check 'the database is the same' databases_equal
# A packet holds a page, and this end sends what is written.
check 'the device has sent that much' test "$(($(packets_sent) - packets))" -gt 8000
check 'the mount over tcp reads the same' cmp "$scratch/plain/one" "$mount_point-tcp/one"

# Only when asked for: that reading goes on once the link is back has not been seen to work yet.
if [[ -n "${EXTMEM_RDMA_CUT:-}" ]]; then
# The link goes down: within 5 s who asks is told, and who waits until it is up again finds everything as it was.
exec {read_from}<"$mount_point/two" {written_to}<>"$mount_point/held"
# fails_within S COMMAND...: a dd; it is to fail, and by its own clock within that time.
fails_within() {
  local limit="$1" status=0 took
  shift
  LC_ALL=C "$@" 2>"$scratch/dd" || status=$?
  took="$(sed -n 's/.*copied, \([0-9.e-]*\) s.*/\1/p' "$scratch/dd")"
  say "exit $status after ${took:-?} s"
  ((status != 0 && status != 124)) && awk "BEGIN { exit !(${took:-99} <= $limit) }"
}
read_down() { timeout 30 dd bs=1M count=1 iflag=fullblock of=/dev/null <&"$read_from"; }
# Its output goes into the file, and so only its own may.
write_down() { timeout 30 dd if="$scratch/plain/two" bs=1M count=1 conv=notrunc,fsync >&"$written_to"; }
# By name: where a read that failed left the descriptor is not told.
read_on() { timeout 30 dd if="$mount_point/two" bs=1M skip="$1" count=1 iflag=fullblock of="$scratch/piece" status=none; }
piece_is() { cmp -s --ignore-initial="0:$(($1 * 1048576))" --bytes=1048576 "$scratch/piece" "$scratch/plain/two"; }
write_on() { timeout 30 dd if="$scratch/plain/$1" bs=1M count=1 conv=notrunc,fsync status=none >&"$written_to"; }
again() { until "$@" 2>/dev/null; do ((SECONDS < up_at + 30)) || return 1; sleep 0.5; done; }
check 'a file is written before the link goes' write_on one
check 'and one is read' read_on 0
check 'it is what was written' piece_is 0
check 'nothing of it stays here' extmem evict "$mount_point"
remote watch >/dev/null
ip link set eth0 down
down_at=$SECONDS
check 'a read is told within 5 s that there is no way' fails_within 5 read_down
check 'so is fsync' fails_within 5 write_down
until ((SECONDS >= down_at + 15)); do sleep 0.5; done
ip link set eth0 up
up_at=$SECONDS
check 'the link is back: reading goes on by itself' again read_on 1
check 'where it was' piece_is 1
check 'so does writing' again write_on three
say "it took $((SECONDS - up_at)) s"
exec {read_from}<&- {written_to}<&-
check 'nothing of it stays here' extmem evict "$mount_point"
check 'hashes are equal still' hashes_equal
written_is() { cmp "$mount_point/held" <(head -c 1M "$scratch/plain/one"; head -c 1M "$scratch/plain/two"; head -c 1M "$scratch/plain/three"); }
check 'and what was written is there' written_is
vanished() { [[ "$(remote pairs)" == 0 ]]; }
check 'the appliances had let go of who was cut off' vanished
fi

check 'the status is told' ask_status
check 'everything went over RDMA' went_over_rdma "$mounted" 92000000
told_apart() { ! went_over_rdma "$canary" 6000000; }
check 'a mount over tcp is told from one over RDMA' told_apart

# An appliance dies: what it held is an error for those who ask, soon; what the other holds is read on.
check 'nothing of it stays here' extmem evict "$mount_point"
remote kill second
readable=0 lost=0 wrong=0 hung=0
for name in one two three; do
  for piece in 0 1 2 3 4 5; do
    status=0
    timeout 30 dd if="$mount_point/$name" of="$scratch/piece" bs=1M skip="$piece" count=1 iflag=fullblock status=none 2>/dev/null || status=$?
    if ((status == 124)); then hung=$((hung + 1))
    elif ((status != 0)); then lost=$((lost + 1))
    elif cmp -s --ignore-initial="0:$((piece * 1048576))" --bytes=1048576 "$scratch/piece" "$scratch/plain/$name"; then readable=$((readable + 1))
    else wrong=$((wrong + 1)); fi
  done
done
say "after an appliance was killed: of 18 MiB $readable read, $lost lost, $wrong wrong, $hung hung"
check 'what the other has is read on, the rest is lost and told to be' test "$wrong" = 0 -a "$hung" = 0 -a "$lost" -gt 0 -a "$readable" -gt 0

say "$failures failures"
((failures == 0))
