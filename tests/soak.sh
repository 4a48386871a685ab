#!/bin/sh
# The long runs of the random tests, both at once, each on about half a core: tests/soak_wal.rs and tests/soak_backup.rs say what
# they do. SOAK_SECONDS (an hour) and SOAK_SEED (the clock) are theirs. What they print goes to target/soak/.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${SOAK_SECONDS:=3600}"
export SOAK_SECONDS

$CARGO test --locked --no-run --test soak_wal --test soak_backup
mkdir -p target/soak
run() { # run TEST
    $CARGO test --locked --test "$1" whatever -- --nocapture >"target/soak/$1.log" 2>&1
}
run soak_wal & wal=$!
run soak_backup & backup=$!
status=0
wait $wal || status=1
wait $backup || status=1
for test in soak_wal soak_backup; do
    echo "== $test"
    grep -E 'SOAK_SEED=|panicked' "target/soak/$test.log" | tail -n 1
    tail -n 40 "target/soak/$test.log" | grep -E 'compared|test result' || tail -n 40 "target/soak/$test.log"
done
# Alone, because it measures: the agent's memory over 10,000 segments.
$CARGO test --locked --test agent_bounds -- --ignored --nocapture >target/soak/agent_bounds.log 2>&1 || status=1
grep -E 'at the end|test result' target/soak/agent_bounds.log
exit $status
