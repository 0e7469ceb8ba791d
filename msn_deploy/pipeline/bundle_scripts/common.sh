# Read by the other scripts once all is verified: which device this is, which TensorRT it has. here: where the bundle lies.
# shellcheck shell=sh disable=SC1091,SC2034,SC2154

. "$here/bundle.env"
. "$here/device_build.sh"
root=''  # where /proc, /etc and /usr lie
python=$here/.venv/bin/python
msn_deploy=$here/.venv/bin/msn-deploy
installed=''  # not empty: install.sh has finished here
cut_short=''  # not empty: build.sh has not
states=$("$here/verify" --states)
case $states in *'made .venv'*) installed=yes ;; esac
case $states in *'begun engines'*) cut_short=yes ;; esac
export PYTHONDONTWRITEBYTECODE=1  # .venv has to stay as it is

tree() {  # the strings of $1 (model or compatible) in the root of the device tree, a line each
    copy=''  # counts where it is mounted, in a container; elsewhere anyone can put one into /tmp
    ! grep -q " $TREE_COPY$1 " "$root/proc/self/mountinfo" 2>/dev/null || copy=$root$TREE_COPY$1
    for file in "$root/proc/device-tree/$1" "$root/sys/firmware/devicetree/base/$1" "$copy"; do
        if [ -f "$file" ] && [ -r "$file" ]; then
            tr '\000' '\n' <"$file"
            return
        fi
    done
}

part_of() {  # the module of the first line of $compatible that names one; the last of a line is what "-as-" emulates
    module=''
    while read -r line && [ -z "$module" ]; do
        for part in $(say "$line" | grep -o 'p[0-9]\{4\}-[0-9]\{4\}'); do
            case " $TARGET_PARTS $TARGET_NOT_PARTS " in *" $part "*) module=$part ;; esac
        done
    done <<EOF
$compatible
EOF
    say "$module"
}

is_target() {  # by the part number of the module; the text of a carrier may be any, so it counts only without one
    part=$(part_of)
    case " $TARGET_PARTS " in *" ${part:-none} "*) return 0 ;; esac
    [ -z "$part" ] || return 1
    lower=$(printf %s "$model" | tr '[:upper:]' '[:lower:]')
    for words in "$TARGET_BOARD" "$TARGET_BOARD_TOO"; do
        # shellcheck disable=SC2254 # patterns
        case $lower in
            $TARGET_NOT_BOARD) ;;
            $words) return 0 ;;
        esac
    done
    return 1
}

check_device() {  # a plan runs only where it was built, so that a bundle on the wrong board ends before any work
    compatible=$(tree compatible)
    model=$(tree model)
    model=${model:-$(say "$compatible" | head -n 1)}
    release=$(sed -n 's/^# R\([0-9][0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' \
        "$root/etc/nv_tegra_release" 2>/dev/null | head -n 1)
    if [ -z "$model" ]; then
        fail 3 "This bundle is for $TARGET_TITLE, and which device this is can't be told: no /proc/device-tree." \
            "In a container mount copies of compatible and model: -v ${TREE_COPY}compatible:${TREE_COPY}compatible:ro" \
            "-v ${TREE_COPY}model:${TREE_COPY}model:ro"
    fi
    if is_target; then
        check_release
        return
    fi
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

imports() { "$python" -c "import $1" >/dev/null 2>&1; }

builds_engines() { [ -n "$installed" ] && imports tensorrt; }

runs_engines() { builds_engines && { imports pycuda.driver || imports cuda.bindings.driver; }; }

have_engines() { ls "$here"/engines/*.engine >/dev/null 2>&1; }

check_built() {
    [ -z "$cut_short" ] || fail 3 "build.sh was cut short here; type: ./build.sh"
}

engines_of() {  # what TensorRT $1 makes of this bundle, a line each: PRECISION ONNX NAME
    while read -r precision model name <&3; do
        case ${1%%.*}:$precision in
            # 4 to 8 take the precision from flags and are unsafe with FP16 scales: FP16 comes from the FP32 file.
            [4-8]:fp32) say "fp32 $model $name" "fp16 $model $name.fp16" ;;
            [4-8]:fp16) ;;
            *) say "$precision $model $name" ;;
        esac
    done 3<"$here/models.list"
}

subjects() {  # what bench.sh and eval.sh look at, a line each: engines, or the ONNX files where nothing was built
    if ! have_engines; then  # engines and ONNX files do not run in the same runtime
        while read -r _ model _; do say "$model"; done <"$here/models.list"
        return
    fi
    engines_of "$(tensorrt_version)" | while read -r _ _ name; do
        found=''
        for engine in "$here/engines/$name.engine" "$here/engines/$name".r[0-9]*.engine; do
            if [ -f "$engine" ]; then
                say "engines/${engine##*/}"
                found=yes
            fi
        done
        [ -n "$found" ] || say "$name has no engine here and is left out." >&2
    done
}

export ORT_DISABLE_TELEMETRY=1  # ONNX Runtime would upload from within the process that is measured
