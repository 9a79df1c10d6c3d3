#!/usr/bin/env bash
# Runs a few tests on a GPU under each tool of compute-sanitizer, and a mistake that the tool must find.
#
#     tests/gpu/sanitize.sh BINARY
#
# BINARY is what `cargo test -p ihip-tests --no-run` makes. A tool that is missing, or that does not find its mistake, is
# a failure: a clean run says something only where the tool was at work. The tools run side by side, for most of what
# they do is done by a processor.
set -uo pipefail
binary=$(realpath "${1:?the test binary}")
cd "$(dirname "$0")/.."
export IHIP_TEST_DEVICE=cuda RUST_BACKTRACE=0
# What a tool exits with when it found something, and no test ever does.
found=9
clean_tests=(proof::a_few_calls gpu::model)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

command -v compute-sanitizer > /dev/null || { echo "sanitize: compute-sanitizer is not installed" >&2; exit 1; }

# TOOL's own `ERROR SUMMARY` in a log, or `RACECHECK SUMMARY`.
summary() {
    grep -m1 -oE '(ERROR|RACECHECK) SUMMARY.*' "$1" || echo "no summary"
}

# Runs TOOL over the mistake made for it, and then over a few tests.
sanitize() {
    local tool=$1 start=$SECONDS failed=0 status mistake=$logs/$1-mistake clean=$logs/$1-clean
    local check=(compute-sanitizer --tool "$tool" --error-exitcode "$found")
    if [ "$tool" = initcheck ]; then
        # It has to see that nobody wrote; elsewhere every buffer is filled with a pattern first. Tests read back whole
        # buffers, of which kernels wrote a part: only what kernels read counts.
        export IHIP_TEST_UNWRITTEN=1
        check+=(--check-api-memory-access no)
    fi
    check+=("$binary" --test-threads 1)
    "${check[@]}" --ignored "gpu::seeded::$tool" > "$mistake" 2>&1
    status=$?
    if [ "$status" -ne "$found" ]; then
        echo "sanitize: $tool did not find the mistake made for it: exit status $status"
        tail -30 "$mistake"
        failed=1
    fi
    "${check[@]}" "${clean_tests[@]}" > "$clean" 2>&1
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "sanitize: $tool, ${clean_tests[*]}: exit status $status"
        head -60 "$clean"
        failed=1
    elif ! grep -q "test result: ok. [1-9]" "$clean"; then
        echo "sanitize: $tool ran no test"
        failed=1
    fi
    echo "$tool: $((SECONDS - start)) s, $(summary "$clean") in ${clean_tests[*]}, $(summary "$mistake") in the mistake made for it"
    return "$failed"
}

declare -A running
for tool in memcheck racecheck initcheck synccheck; do
    sanitize "$tool" > "$logs/$tool" &
    running[$tool]=$!
done
failed=0
for tool in "${!running[@]}"; do
    wait "${running[$tool]}" || failed=1
    cat "$logs/$tool"
done
exit "$failed"
