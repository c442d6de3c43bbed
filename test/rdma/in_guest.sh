#!/usr/bin/env bash
# Runs in the guests (scripts/test-rdma): the fabric's contract suites over verbs, against Soft-RoCE; then the whole program. With
# --appliances it is the host that the program's appliances are on.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

address="$(ip -4 -o addr show dev eth0 | awk '{ sub("/.*", "", $4); print $4; exit }')"
[[ -d /sys/class/infiniband/rxe0 && -n "$address" ]] || { echo 'rdma: no RDMA device in the guest'; exit 1; }
# A packet then holds a page, so that writes of pages are one-sided.
ip link set eth0 mtu 4200
# Each process would load every vendor's library.
find /etc/libibverbs.d -name '*.driver' ! -name rxe.driver -delete
ulimit -l unlimited
[[ "${1:-}" == --appliances ]] && exec test/rdma/appliance_host.sh "$address"
export EXTMEM_BIN="$PWD/build/native/plain/bin" EXTMEM_ROOT="$PWD" EXTMEM_TEST_VERBS="$address" EXTMEM_TEST_TRANSPORT=verbs

failures=0
# lane NAME COMMAND...
lane() {
  local name="$1" started=$SECONDS status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  ((status == 0)) || failures=$((failures + 1))
  printf '== %s: exit %d, %d s\n' "$name" "$status" $((SECONDS - started))
}
# Of the failures' suite those cases that do not stand on a tcp proxy; and not what measures CPU time, which means nothing here.
over_verbs='a killed appliance*,a restarted appliance*,a fenced client*,a destroyed region*,a region grows*'

wanted="${*:-contract failures verbs small_packets program}"
for one in $wanted; do
  case "$one" in
    contract) lane "$one" "$EXTMEM_BIN/contract.fabric_contract_test" --no-colors --duration=true ;;
    failures) lane "$one" "$EXTMEM_BIN/contract.failure_contract_test" --no-colors --duration=true --test-case="$over_verbs" ;;
    verbs) lane "$one" "$EXTMEM_BIN/contract.verbs_contract_test" --no-colors --duration=true ;;
    small_packets)  # smaller than a page: then whole pages are written in messages
      ip link set eth0 mtu 1500
      lane "$one" "$EXTMEM_BIN/contract.fabric_contract_test" --no-colors --test-case='a read returns*,scatter lists*,a thousand*'
      ip link set eth0 mtu 4200
      ;;
    program) lane "$one" test/rdma/program.sh "$EXTMEM_RDMA_APPLIANCES" ;;
    *) echo "rdma: unknown part '$one'"; exit 2 ;;
  esac
done
printf '\nrdma: %d of %d parts failed\n' "$failures" "$(wc -w <<<"$wanted")"
((failures == 0))
