# Builds engines on the device they are for, with what is there: msn-deploy, its container, or NVIDIA's trtexec.
# shellcheck shell=sh disable=SC2034,SC2154
# NAME.build.sh holds a copy of this, a bundle has it as a file. Whoever reads it defines with_options, which knows the
# options of msn-deploy and of each release of trtexec, with those releases ($routes), and sets:
#   name, onnx, stem, suffix, precision   what is built: $onnx into $stem$suffix, $stem.r2$suffix, ...
#   replicates, timing_cache, dla         how: so many, a file or '', a core or ''
# root: where /usr is looked for; empty on a device.

say() { printf '%s\n' "$@"; }

fail() {  # fail CODE LINE...
    code=$1
    shift
    say "$@" >&2
    exit "$code"
}

find_trtexec() {
    for trtexec in "${TRTEXEC:-}" "${root:-}/usr/src/tensorrt/bin/trtexec" "$(command -v trtexec)"; do
        if [ -x "$trtexec" ]; then
            say "$trtexec"
            return
        fi
    done
    return 1
}

find_route() {  # which options $trtexec takes; it calls itself "TensorRT v8502" (8.5.2) or "TensorRT v100300" (10.3.0)
    number=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)
    [ -n "$number" ] || fail 3 "$trtexec does not say its version; it should print [TensorRT v...]."
    for each in $routes; do
        [ "$number" -lt "${each%%:*}" ] || route=${each#*:}
    done
}

check_dla() {  # has that trtexec a DLA for $precision?
    [ -n "$dla" ] || return 0
    if [ "$number" -ge 100800 ] && [ "$number" -lt 110401 ]; then
        fail 3 "this TensorRT ($number) has no DLA: 8 to 10.7 have it, and 11.4.1 and later on AGX Orin."
    fi
    if [ "$precision" = int8 ] && [ "$number" -lt 110401 ]; then
        fail 3 "this TensorRT takes no Q/DQ network on DLA: 11.4.1 does, on AGX Orin."
    fi
}

each_engine() {  # each_engine COMMAND...: run it with every $engine
    number=1
    while [ "$number" -le "$replicates" ]; do
        engine=$stem$suffix
        [ "$number" = 1 ] || engine=$stem.r$number$suffix
        "$@" || exit $?
        number=$((number + 1))
    done
}

by_msn_deploy() {  # by_msn_deploy COMMAND...: all engines at once, with the command that is msn-deploy here
    many=''
    [ "$replicates" = 1 ] || many=$replicates
    engine=$stem$suffix
    with_options "$name" msn-deploy "$@" build-engine "$onnx"
}

by_trtexec() {  # one $engine, written whole or not at all
    with_options "$name" "$route" "$trtexec" --onnx="$onnx" --saveEngine="$engine.partial" \
        ${timing_cache:+--timingCacheFile="$timing_cache"} || return
    mv "$engine.partial" "$engine"
    say "$engine: built with trtexec"
}

check_built() {  # elsewhere than on the device msn-deploy would only write the script again
    [ ! -f "$engine" ] || exit 0
    fail 3 "no $engine was built: this is no $title."
}

build_here() {  # all that NAME.build.sh does
    [ -f "$onnx" ] || fail 2 "$onnx is not here: copy it beside this script."
    if command -v msn-deploy >/dev/null 2>&1; then
        by_msn_deploy msn-deploy
        check_built
    fi
    if command -v docker >/dev/null 2>&1 && docker image inspect "$image" >/dev/null 2>&1; then
        set -- -v "$PWD":/data
        if [ -e /etc/nv_tegra_release ]; then
            set -- "$@" -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro
        fi
        if [ -r /proc/device-tree/model ]; then  # files below /proc can't be mounted
            model=$(mktemp)
            tr -d '\000' </proc/device-tree/model >"$model"
            set -- "$@" -v "$model":/tmp/nv_jetson_model:ro
        fi
        by_msn_deploy docker run --rm --runtime nvidia "$@" "$image"
        check_built
    fi
    trtexec=$(find_trtexec) || fail 3 "neither msn-deploy, nor the image $image, nor trtexec is here." \
        "JetPack brings trtexec: sudo apt install tensorrt"
    find_route
    check_dla
    each_engine by_trtexec
}
