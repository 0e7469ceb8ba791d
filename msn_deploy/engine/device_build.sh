# Builds engines on the device they are for, with what is there: msn-deploy, its container, or NVIDIA's trtexec.
# shellcheck shell=sh disable=SC2034,SC2154
# NAME.build.sh holds a copy of this, a bundle has it as a file. Whoever reads it defines with_options, which knows the
# options of msn-deploy and of each release of trtexec, with those releases ($routes), and sets:
#   name, onnx, stem, suffix, precision   what is built: $onnx into $stem$suffix, $stem.r2$suffix, ...
#   replicates, timing_cache, dla         how: so many, a file or '', a core or ''
#   table, quantised                      for INT8 on a DLA: a calibration table for $onnx, a file with Q/DQ nodes; or ''
#   dla_releases                          from the first on TensorRT has no DLA, from the second on it has one
#   docker_...                            how the image is started, as machine/containers.py says
#   root                                  where /usr and /etc lie; empty

say() { printf '%s\n' "$@"; }

fail() {  # fail CODE LINE...
    code=$1
    shift
    say "$@" >&2
    exit "$code"
}

find_trtexec() {
    for trtexec in "${TRTEXEC:-}" "$root/usr/src/tensorrt/bin/trtexec" "$(command -v trtexec)"; do
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
    if [ "$number" -ge "${dla_releases% *}" ] && [ "$number" -lt "${dla_releases#* }" ]; then
        fail 3 "this TensorRT ($number) has no DLA: 8 to 10.7 have it, and 11.4.1 and later on AGX Orin."
    fi
    [ "$precision" = int8 ] || return 0
    if [ "$number" -lt "${dla_releases#* }" ]; then
        [ -n "${table:-}" ] || fail 3 "this TensorRT ($number) takes no Q/DQ network on DLA: 11.4.1 does, on AGX Orin." \
            "Up to 10.7 it takes the FP32 file with a calibration table: msn-deploy build-engine NAME.onnx" \
            "--precision int8 --dla $dla makes both, with a script for them."
    elif [ -n "${table:-}" ]; then
        [ -n "${quantised:-}" ] || fail 3 "this TensorRT ($number) takes no calibration table: it takes the INT8 file."
        onnx=$quantised table=''
    fi
}

each_engine() {  # each_engine COMMAND...: run it with every $engine
    at=1
    while [ "$at" -le "$replicates" ]; do
        engine=$stem$suffix
        [ "$at" = 1 ] || engine=$stem.r$at$suffix
        "$@" || exit $?
        at=$((at + 1))
    done
}

by_msn_deploy() {  # by_msn_deploy COMMAND...: all engines at once, with the command that is msn-deploy here
    many=''
    [ "$replicates" = 1 ] || many=$replicates
    engine=$stem$suffix
    with_options "$name" msn-deploy "$@" build-engine "$onnx"
}

by_trtexec() {  # one $engine, written whole or not at all
    calib='' code=0
    set --
    if [ -n "${table:-}" ]; then  # its scales hold for every release, its header names the one that reads it
        calib=$engine.calib
        sed "1s/^TRT-[0-9]*-/TRT-$number-/" "$table" >"$calib"
        set -- --calib="$calib"
    fi
    with_options "$name" "$route" "$trtexec" --onnx="$onnx" --saveEngine="$engine.partial" \
        ${timing_cache:+--timingCacheFile="$timing_cache"} "$@" || code=$?
    [ -z "$calib" ] || rm -f "$calib"
    [ "$code" = 0 ] || return "$code"
    mv "$engine.partial" "$engine"
    say "$engine: built with trtexec"
}

identity() {  # of $engine, where there is one: a file that is written anew has another
    [ ! -f "$engine" ] || say "[$(ls -di -- "$engine")]"
}

is_new() {  # was $engine written since $before was taken?
    [ -f "$engine" ] || return 1
    case $before in *"$(identity)"*) return 1 ;; esac
}

tried() {  # tried WAY CODE: ends the script where that way has built the engine, or has failed for good
    case $2 in
        0)
            if is_new; then exit 0; fi
            # elsewhere than on the device msn-deploy only writes the script again
            [ -e "$root/etc/nv_tegra_release" ] || fail 3 "no $engine was built: this is no $title."
            ;;
        3 | 125 | 126 | 127) ;;  # something is missing there, or docker started nothing
        *) exit "$2" ;;
    esac
    say "$1 has built no engine (see above)." >&2
}

by_container() {
    # shellcheck disable=SC2086 # several words
    set -- --rm $docker_options -v "$PWD":/data
    for file in $docker_files; do
        [ ! -e "$file" ] || set -- "$@" -v "$file:$file:ro"
    done
    for node in $docker_nodes; do
        if [ -e "$node" ]; then
            set -- "$@" --group-add "$(stat -c %g "$node")"
            break
        fi
    done
    trap 'rm -rf "${copies:-}"' EXIT  # however it ends
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    copies=$(mktemp -d)
    chmod a+rx "$copies"  # the container runs as another user
    for file in $docker_copies; do  # no file below /proc can be mounted
        if [ -r "$root/proc/device-tree/$file" ]; then
            tr '\000' '\n' <"$root/proc/device-tree/$file" >"$copies/$file"
            chmod a+r "$copies/$file"
            set -- "$@" -v "$copies/$file:$docker_copy$file:ro"
        fi
    done
    code=0
    for gpu in $docker_gpus; do
        code=0
        by_msn_deploy docker run "$gpu" "$@" "$image" || code=$?
        [ "$code" -ge 125 ] || break  # docker itself failed: its daemon knows no such way
        say "docker starts no container with $gpu." >&2
    done
    tried "docker" "$code"
}

build_here() {  # all that NAME.build.sh does
    for each in "$onnx" ${table:+"$table"} ${quantised:+"$quantised"}; do
        [ -f "$each" ] || fail 2 "$each is not here: copy it beside this script."
    done
    if [ -n "${quantised:-}" ] && trtexec=$(find_trtexec); then  # its version is that of the TensorRT that builds
        find_route
        check_dla
    fi
    engine=$stem$suffix
    before=$(identity)
    if command -v msn-deploy >/dev/null 2>&1; then
        code=0
        by_msn_deploy msn-deploy || code=$?
        tried msn-deploy "$code"
    fi
    if command -v docker >/dev/null 2>&1 && docker image inspect "$image" >/dev/null 2>&1; then
        by_container
    fi
    trtexec=$(find_trtexec) || fail 3 "neither msn-deploy, nor the image $image, nor trtexec builds it here." \
        "JetPack brings trtexec: sudo apt install tensorrt"
    find_route
    check_dla
    each_engine by_trtexec
}
