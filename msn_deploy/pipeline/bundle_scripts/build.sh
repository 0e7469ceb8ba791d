#!/bin/sh
# Builds an engine of every model of this bundle, on the device it is for.
#   ./build.sh [fp32] [fp16] [int8] [--replicates N]     only those precisions; N engines of each
# Engines of one file differ, for TensorRT times kernels anew for each; bench.sh measures all N as one row.
# msn-deploy builds where install.sh could install it; trtexec of JetPack does where Python is too old.
set -eu
. "$(dirname -- "$0")/common.sh"
wanted=''
replicates=1
while [ $# -gt 0 ]; do
    case $1 in
        fp32 | fp16 | int8) wanted="$wanted $1" ;;
        --replicates)
            replicates=${2:-}
            case $replicates in
                '' | 0* | *[!0-9]*) fail 2 "--replicates takes a number of engines, not '$replicates'." ;;
            esac
            shift
            ;;
        *) fail 2 "build.sh knows fp32, fp16, int8 and --replicates N, not '$1'." ;;
    esac
    shift
done
wanted=${wanted:-fp32 fp16 int8}
check_device
"$here/verify"
version=$(tensorrt_version)
[ -n "$version" ] || fail 3 "TensorRT is not here; it comes with JetPack: sudo apt install tensorrt python3-libnvinfer"
say "TensorRT $version"
mkdir -p "$here/engines"
built=0
timing=''
if [ -n "$TIMING_CACHE" ] && [ "$replicates" = 1 ]; then  # with one, all replicates would be the same engine
    timing=$here/engines/timing.cache
    [ -f "$timing" ] || cp "$here/$TIMING_CACHE" "$timing"  # a copy, for builds add to it
fi

build() {  # build PRECISION ONNX NAME TRTEXEC-OPTION...
    precision=$1 onnx=$here/$2 name=$3
    shift 3
    number=1
    while [ "$number" -le "$replicates" ]; do
        engine=$here/engines/$name.engine
        [ "$number" = 1 ] || engine=$here/engines/$name.r$number.engine
        build_one "$@"
        number=$((number + 1))
    done
}

build_one() {
    if [ -x "$msn_deploy" ]; then
        rm -f "$engine"
        "$msn_deploy" build-engine "$onnx" --precision "$precision" --target "$TARGET" \
            ${timing:+--timing-cache "$timing"} --out "$engine" || exit $?
        [ -f "$engine" ] || fail 3 "$engine was not built (see above)."
    else
        trtexec=$(find_trtexec) || fail 3 "trtexec is not here; it comes with JetPack: sudo apt install tensorrt"
        # Written whole, or not at all.
        "$trtexec" --onnx="$onnx" --saveEngine="$engine.partial" ${timing:+--timingCacheFile="$timing"} "$@" \
            >"$engine.log" 2>&1 ||
            fail 3 "trtexec built no $engine; the end of $engine.log:" "$(tail -n 3 "$engine.log")"
        mv "$engine.partial" "$engine"
    fi
    built=$((built + 1))
    say "$engine"
}

is_wanted() {
    case " $wanted " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

while read -r precision model name <&3; do
    case ${version%%.*} in
        [4-8])  # takes the precision from flags, FP16 scales are unsafe there: FP16 comes from the FP32 file
            case $precision in
                fp32)
                    is_wanted fp32 && build fp32 "$model" "$name"
                    is_wanted fp16 && build fp16 "$model" "$name.fp16" --fp16
                    ;;
                int8) is_wanted int8 && build int8 "$model" "$name" --int8 --fp16 ;;
            esac ;;
        9 | 10) is_wanted "$precision" && build "$precision" "$model" "$name" --stronglyTyped ;;
        *) is_wanted "$precision" && build "$precision" "$model" "$name" ;;
    esac || :
done 3<"$here/models.list"
[ "$built" -gt 0 ] || fail 2 "No model of this bundle has one of these precisions: $wanted."
say "Next: ./bench.sh"
