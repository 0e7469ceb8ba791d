#!/bin/sh
# Builds an engine of every model of this bundle, on the device it is for.
#   ./build.sh [fp32] [fp16] [int8] [fp8] [--replicates N]     only those precisions; N engines of each
# Engines of one file differ, for TensorRT times kernels anew for each; bench.sh measures all N as one row.
# msn-deploy builds where install.sh installed it and it finds TensorRT; elsewhere JetPack's trtexec does.
# A model that cannot be built does not keep the others from it.
# shellcheck disable=SC1091,SC2031,SC2034 # device_build.sh reads what is set here; options.sh is written with the bundle
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
is_packed() { sum=$(sha256sum <"$here/$1") && grep -qx "${sum%% *}  $1" "$here/SHA256SUMS"; }
if [ ! -f "$here/SHA256SUMS" ] || [ ! -f "$here/verify" ] || ! is_packed verify; then
    echo "changed: verify. Nothing of this bundle was run." >&2
    exit 1
fi
"$here/verify"
. "$here/common.sh"
. "$here/options.sh"
wanted=''
replicates=1
while [ $# -gt 0 ]; do
    case $1 in
        fp32 | fp16 | int8 | fp8) wanted="$wanted $1" ;;
        --replicates)
            replicates=${2:-}
            case $replicates in
                '' | 0* | *[!0-9]*) fail 2 "--replicates takes a number of engines, not '$replicates'." ;;
            esac
            shift
            ;;
        *) fail 2 "build.sh knows fp32, fp16, int8, fp8 and --replicates N, not '$1'." ;;
    esac
    shift
done
check_device
version=$(tensorrt_version)
[ -n "$version" ] || fail 3 "TensorRT is not here; it comes with JetPack: sudo apt install tensorrt python3-libnvinfer"
say "TensorRT $version"
"$here/verify" --begin engines
mkdir -p "$here/engines"
rm -f "$here"/engines/*.partial "$here"/engines/*.calib  # of a call that was cut short
timing_cache=''
if [ -n "$TIMING_CACHE" ] && [ "$replicates" = 1 ]; then  # with one, all replicates would be the same engine
    timing_cache=$here/engines/timing.cache
    [ -f "$timing_cache" ] || cp "$here/$TIMING_CACHE" "$timing_cache"  # a copy, for builds add to it
fi
route=''
if ! builds_engines; then
    trtexec=$(find_trtexec) || fail 3 "trtexec is not here; it comes with JetPack: sudo apt install tensorrt"
    [ -z "$installed" ] || say "Python finds no TensorRT here (sudo apt install python3-libnvinfer); trtexec builds." >&2
    find_route
fi

build() (  # build PRECISION ONNX NAME, in a shell of its own: what fails here does not end the script
    precision=$1 onnx=$here/$2 name=$3 stem=$here/engines/$3 suffix=.engine
    if [ -z "$route" ]; then
        before=$(each_engine identity)
        by_msn_deploy "$msn_deploy" || exit $?
    else
        check_dla
    fi
    each_engine build_one
    while [ -f "$stem.r$at$suffix" ]; do  # each_engine has counted so far
        rm -f "$stem.r$at$suffix" "$stem.r$at$suffix.json" "$stem.r$at$suffix.log"
        say "$stem.r$at$suffix of an earlier call is removed."
        at=$((at + 1))
    done
)

build_one() {
    if [ -z "$route" ]; then
        is_new || fail 3 "$engine was not built (see above)."
    else
        by_trtexec >"$engine.log" 2>&1 ||
            fail 3 "trtexec built no $engine; the end of $engine.log:" "$(tail -n 3 "$engine.log")"
    fi
    "$here/verify" --add "engines/${engine##*/}"
    say "$engine"
}

is_wanted() {
    case "${wanted:- $1} " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

asked=''
failed=''
code=0
while read -r precision model name <&3; do
    is_wanted "$precision" || continue
    asked=yes
    build "$precision" "$model" "$name" || { code=$? failed="$failed $name"; }
done 3<<EOF
$(engines_of "$version")
EOF
"$here/verify" --made engines
[ -n "$asked" ] || fail 2 "No model of this bundle has one of these precisions:$wanted."
[ -z "$failed" ] || fail "$code" "Not built, for the reasons above:$failed. All others are in engines/."
say "Next: ./bench.sh"
