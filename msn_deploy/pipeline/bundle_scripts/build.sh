#!/bin/sh
# Builds an engine of every model of this bundle, on the device it is for.
#   ./build.sh [fp32] [fp16] [int8]     only those precisions
# msn-deploy builds where install.sh could install it; trtexec of JetPack does where Python is too old.
set -eu
. "$(dirname -- "$0")/common.sh"
wanted=${*:-fp32 fp16 int8}
for each in $wanted; do
    case $each in
        fp32 | fp16 | int8) ;;
        *) fail 2 "build.sh knows fp32, fp16 and int8, not '$each'." ;;
    esac
done
check_device
"$here/verify"
version=$(tensorrt_version)
[ -n "$version" ] || fail 3 "TensorRT is not here; it comes with JetPack: sudo apt install tensorrt python3-libnvinfer"
say "TensorRT $version"
mkdir -p "$here/engines"
built=0

build() {  # build PRECISION ONNX ENGINE TRTEXEC-OPTION...
    precision=$1 onnx=$here/$2 engine=$here/engines/$3
    shift 3
    if [ -x "$msn_deploy" ]; then
        rm -f "$engine"
        "$msn_deploy" build-engine "$onnx" --precision "$precision" --target "$TARGET" --out "$engine" || exit $?
        [ -f "$engine" ] || fail 3 "$engine was not built (see above)."
    else
        trtexec=$(find_trtexec) || fail 3 "trtexec is not here; it comes with JetPack: sudo apt install tensorrt"
        # Written whole, or not at all.
        "$trtexec" --onnx="$onnx" --saveEngine="$engine.partial" "$@" >"$engine.log" 2>&1 ||
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
                    is_wanted fp32 && build fp32 "$model" "$name.engine"
                    is_wanted fp16 && build fp16 "$model" "$name.fp16.engine" --fp16
                    ;;
                int8) is_wanted int8 && build int8 "$model" "$name.engine" --int8 --fp16 ;;
            esac ;;
        9 | 10) is_wanted "$precision" && build "$precision" "$model" "$name.engine" --stronglyTyped ;;
        *) is_wanted "$precision" && build "$precision" "$model" "$name.engine" ;;
    esac || :
done 3<"$here/models.list"
[ "$built" -gt 0 ] || fail 2 "No model of this bundle has one of these precisions: $wanted."
say "Next: ./bench.sh"
