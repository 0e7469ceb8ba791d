# Read by the other scripts: where the bundle lies, which device this is, which TensorRT it has.
# shellcheck shell=sh disable=SC1091,SC2034
# MSN_DEPLOY_ROOT: where /proc, /etc and /usr are looked for; empty on a device.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$here/bundle.env"
. "$here/device_build.sh"
root=${MSN_DEPLOY_ROOT:-}
python=$here/.venv/bin/python
msn_deploy=$here/.venv/bin/msn-deploy

board() {
    for file in "$root/proc/device-tree/model" "$root/sys/firmware/devicetree/base/model" "$root/tmp/nv_jetson_model"; do
        if [ -r "$file" ]; then
            tr -d '\000' <"$file"
            return
        fi
    done
}

check_device() {  # a plan runs only where it was built, so that a bundle on the wrong board ends before any work
    model=$(board)
    lower=$(printf %s "$model" | tr '[:upper:]' '[:lower:]')
    release=$(sed -n 's/^# R\([0-9][0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' \
        "$root/etc/nv_tegra_release" 2>/dev/null | head -n 1)
    if [ -z "$model" ]; then
        fail 3 "This bundle is for $TARGET_TITLE, and which device this is can't be told: no /proc/device-tree/model." \
            "In a container mount a copy of it: -v /tmp/nv_jetson_model:/tmp/nv_jetson_model:ro"
    fi
    for words in "$TARGET_BOARD" "$TARGET_BOARD_TOO"; do
        # shellcheck disable=SC2254 # patterns
        case $lower in
            $TARGET_NOT_BOARD) ;;
            $words) check_release; return ;;
        esac
    done
    fail 3 "This bundle is for $TARGET_TITLE; this is $model${release:+, L4T $release}." \
        "Nothing was built. On the workstation type: msn-deploy bundle RUN --target NAME   (msn-deploy targets)"
}

check_release() {
    case " $TARGET_L4T " in
        *" ${release%%.*} "*) ;;
        *)
            if [ -n "$release" ]; then
                fail 3 "L4T $release is no release for $TARGET_TITLE (known: $TARGET_L4T)." "Nothing was built."
            fi
            say "L4T is unknown here; in a container add: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro" >&2
            ;;
    esac
    say "$model${release:+, L4T $release}"
}

tensorrt_version() {  # 10.3.0, 8 (where only the link is there), or nothing
    for file in "$root"/usr/lib/*-linux-gnu/libnvinfer.so.*.* "$root"/usr/lib/*-linux-gnu/libnvinfer.so.*; do
        if [ -e "$file" ]; then
            say "${file##*/libnvinfer.so.}"
            return
        fi
    done
}

subjects() {  # what bench.sh and eval.sh look at, a line each: engines, or the ONNX files where nothing was built
    while read -r _ model name <&3; do
        if ls "$here"/engines/*.engine >/dev/null 2>&1; then  # engines and ONNX files do not run in the same runtime
            for engine in "$here/engines/$name.engine" "$here/engines/$name".r[0-9]*.engine; do
                [ ! -f "$engine" ] || say "engines/${engine##*/}"
            done
        else
            say "$model"
        fi
    done 3<"$here/models.list"
}
