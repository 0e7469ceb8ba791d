#!/bin/sh
# Builds an engine of every model of this bundle, on the device it is for.
#   ./build.sh [fp32] [fp16] [int8] [--replicates N]     only those precisions; N engines of each
# Engines of one file differ, for TensorRT times kernels anew for each; bench.sh measures all N as one row.
# msn-deploy builds where install.sh could install it; trtexec of JetPack does where Python is too old.
# shellcheck disable=SC1091,SC2034 # device_build.sh reads what is set here; options.sh is written with the bundle
set -eu
. "$(dirname -- "$0")/common.sh"
. "$here/options.sh"
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
timing_cache=''
if [ -n "$TIMING_CACHE" ] && [ "$replicates" = 1 ]; then  # with one, all replicates would be the same engine
    timing_cache=$here/engines/timing.cache
    [ -f "$timing_cache" ] || cp "$here/$TIMING_CACHE" "$timing_cache"  # a copy, for builds add to it
fi
route=''
if [ ! -x "$msn_deploy" ]; then
    trtexec=$(find_trtexec) || fail 3 "trtexec is not here; it comes with JetPack: sudo apt install tensorrt"
    find_route
fi

build() {  # build PRECISION ONNX NAME
    precision=$1 onnx=$here/$2 name=$3 stem=$here/engines/$3 suffix=.engine
    if [ -x "$msn_deploy" ]; then
        each_engine remove
        by_msn_deploy "$msn_deploy" || exit $?
    else
        check_dla
    fi
    each_engine build_one
}

remove() { rm -f "$engine"; }

build_one() {
    if [ -z "$route" ]; then
        [ -f "$engine" ] || fail 3 "$engine was not built (see above)."
    else
        by_trtexec >"$engine.log" 2>&1 ||
            fail 3 "trtexec built no $engine; the end of $engine.log:" "$(tail -n 3 "$engine.log")"
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
                    is_wanted fp16 && build fp16 "$model" "$name.fp16"
                    ;;
                int8) is_wanted int8 && build int8 "$model" "$name" ;;
            esac ;;
        *) is_wanted "$precision" && build "$precision" "$model" "$name" ;;
    esac || :
done 3<"$here/models.list"
[ "$built" -gt 0 ] || fail 2 "No model of this bundle has one of these precisions: $wanted."
say "Next: ./bench.sh"
