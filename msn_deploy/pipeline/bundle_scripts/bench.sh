#!/bin/sh
# Measures what build.sh built (the ONNX files, where nothing was) into report/, to be copied back.
#   ./bench.sh [OPTION...]      options go to `msn-deploy bench`, such as --seconds 10
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
is_packed() { sum=$(sha256sum <"$here/$1") && grep -qx "${sum%% *}  $1" "$here/SHA256SUMS"; }
if [ ! -f "$here/SHA256SUMS" ] || [ ! -f "$here/verify" ] || ! is_packed verify; then
    echo "changed: verify. Nothing of this bundle was run." >&2
    exit 1
fi
"$here/verify"
. "$here/common.sh"
check_built
report=$here/report
"$here/verify" --begin report
mkdir -p "$report"
cp "$here/MANIFEST.json" "$report/"
say "$(tree model)" "$(tree compatible)" "TensorRT $(tensorrt_version)" "$(uname -a)" >"$report/device.txt"

if [ -n "$installed" ] && { ! have_engines || runs_engines; }; then
    "$msn_deploy" doctor --json >"$report/doctor.json" || say "doctor found a problem: $report/doctor.json" >&2
    models=$(subjects)
    baseline=''
    for each in $models; do
        name=${each##*/}
        # shellcheck disable=SC2153 # of bundle.env, which common.sh reads
        [ "${name%.*}" != "$BASELINE" ] || baseline=$each
    done
    cd "$here"
    # shellcheck disable=SC2086 # names in a bundle hold no blanks
    "$msn_deploy" bench $models ${baseline:+--baseline "$baseline"} --json report/bench.json --html report/bench.html "$@"
else
    trtexec=$(find_trtexec) || fail 3 "Neither msn-deploy nor trtexec is here; type: ./install.sh"
    have_engines || fail 2 "There are no engines yet; type: ./build.sh"
    [ -z "$installed" ] || say "Python runs no engine here, for it lacks TensorRT or pycuda; trtexec measures." >&2
    failed=''
    for engine in "$here"/engines/*.engine; do
        name=$(basename "$engine" .engine)
        if "$trtexec" --loadEngine="$engine" --warmUp=500 --duration=10 --exportTimes="$report/$name.times.json" \
            >"$report/$name.log" 2>&1; then
            say "$name: $(sed -n 's/.*GPU Compute Time: \(.*\)/\1/p' "$report/$name.log" | head -n 1)"
        else
            failed="$failed $name"
            say "trtexec could not run $engine; see $report/$name.log" >&2
        fi
    done
    [ -z "$failed" ] || fail 3 "Not measured:$failed."
fi
say "Copy back: $report"
