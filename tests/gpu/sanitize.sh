#!/usr/bin/env bash
# Runs a few tests on a GPU under each tool of compute-sanitizer, and then a mistake that the tool must find.
#
#     tests/gpu/sanitize.sh BINARY
#
# BINARY is what `cargo test -p ihip-tests --no-run` makes. A tool that is missing, or that does not find its mistake, is
# a failure: a clean run says something only where the tool was at work.
set -uo pipefail
binary=$(realpath "${1:?the test binary}")
cd "$(dirname "$0")/.."
export IHIP_TEST_DEVICE=cuda RUST_BACKTRACE=0
# What a tool exits with when it found something, and no test ever does.
found=9
clean=(proof::a_few_calls)
failed=0

complain() {
    echo "sanitize: $1" >&2
    failed=1
}

command -v compute-sanitizer > /dev/null || { echo "sanitize: compute-sanitizer is not installed" >&2; exit 1; }

for tool in memcheck racecheck initcheck synccheck; do
    start=$SECONDS
    # Initcheck has to see that nobody wrote; elsewhere every buffer is filled with a pattern first.
    if [ "$tool" = initcheck ]; then export IHIP_TEST_UNWRITTEN=1; else unset IHIP_TEST_UNWRITTEN; fi
    check=(compute-sanitizer --tool "$tool" --error-exitcode "$found" "$binary" --test-threads 1)
    log=$("${check[@]}" "${clean[@]}" 2>&1)
    status=$?
    if [ "$status" -ne 0 ]; then
        complain "$tool, ${clean[*]}: exit status $status"
        echo "$log" | head -60 >&2
    elif ! grep -q "test result: ok. [1-9]" <<< "$log"; then
        complain "$tool ran no test"
    fi
    log=$("${check[@]}" --ignored "gpu::seeded::$tool" 2>&1)
    status=$?
    if [ "$status" -ne "$found" ]; then
        complain "$tool did not find the mistake made for it: exit status $status"
        echo "$log" | tail -30 >&2
    fi
    echo "$tool: $((SECONDS - start)) s, $(grep -m1 -E 'ERROR SUMMARY|RACECHECK SUMMARY' <<< "$log") in the mistake made for it"
done
exit "$failed"
