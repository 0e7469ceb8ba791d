#!/usr/bin/env bash
# Builds Dockerfile.jetson for arm64 and runs it, by emulation: `make container-test`. Needs root and, beside the
# environment of `make setup`, debootstrap, qemu-user-static and buildah, and a network for packages and wheels.
# What runs in the image has none of that: user 1000, read-only root, its own network namespace without a network.
# Some of it runs on a fake Jetson (board.py): its files are mounted where the runtime and `docker run -v` mount the true
# ones, so that neither package nor image knows of it.
# Under emulation a program hangs now and then, in other places each time: what hangs is killed and run once more, and the
# summary says so. A run that passes leaves its summary in benchmarks/results/container.txt.
#   CONTAINER_SCRATCH   where base, wheels and image are kept (default /var/tmp/msn-deploy-container); base and wheels
#                       serve the next run as well
#   CONTAINER_SUITE     what debootstrap installs (default bookworm); CONTAINER_MIRROR: from where
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=${CONTAINER_SCRATCH:-/var/tmp/msn-deploy-container}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot PIP_DISABLE_PIP_VERSION_CHECK=1
summary=$scratch/summary.txt

declare -A at mb
containers=()
clean() {
    local each
    for each in "${containers[@]}"; do build rm "$each" >/dev/null; done
}
trap clean EXIT
missing=()
for tool in debootstrap qemu-aarch64-static buildah unshare; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ "$(id -u)" != 0 ] || [ ${#missing[@]} -gt 0 ]; then
    echo "container-test needs root${missing[*]:+, and lacks: ${missing[*]}}." >&2
    echo "Install them with: apt-get install debootstrap qemu-user-static buildah" >&2
    exit 3
fi
mkdir -p "$scratch"
: >"$summary"

note() { printf '%s\n' "$*" | tee -a "$summary"; }
die() { note "FAILED: $*"; exit 1; }
msn() { "$python" -m msn_deploy --quiet "$@"; }
build() { buildah --root "$scratch/store" --runroot "$scratch/runroot" "$@"; }

# twice LIMIT NAME COMMAND...: once more, and said, where it has hung for LIMIT seconds; LIMIT is known to the command
twice() {
    local name=$2 code=0 limit=$1
    shift 2
    for _ in 1 2; do
        code=0
        limit=$limit "$@" || code=$?
        case $code in
            124 | 137) note "$name: hung for $limit s and was killed" ;;
            *) break ;;
        esac
    done
    return "$code"
}

# 1. The kernel hands arm64 programs to qemu; F: also inside of a chroot that has no qemu.
if [ ! -e /proc/sys/fs/binfmt_misc/register ]; then
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
fi
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    ones='\xff\xff\xff\xff\xff\xff\xff'
    magic='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask="$ones\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff"
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):OCF" \
        >/proc/sys/fs/binfmt_misc/register
fi

# 2. A base with Python, as the bases on a Jetson have it.
suite=${CONTAINER_SUITE:-bookworm}
if ! build inspect --type image localhost/arm64-base >/dev/null 2>&1; then
    rm -rf "$scratch/base"
    debootstrap --arch=arm64 --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" \
        "$scratch/base" ${CONTAINER_MIRROR:+"$CONTAINER_MIRROR"} >"$scratch/debootstrap.log"
    base=$(build from scratch)
    build add -q "$base" "$scratch/base" /
    build config --arch arm64 --env LANG=C.UTF-8 "$base"
    build commit -q --rm "$base" localhost/arm64-base
fi
version=$(chroot "$scratch/base" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
note "base: Debian $suite arm64 under $(qemu-aarch64-static --version | head -n 1), Python $version"

# 3. A small run on this machine: the demo's networks, FP32 and INT8.
data=$scratch/data
if [ ! -f "$data/runs/cnn3_msn.int8.onnx" ]; then
    mkdir -p "$data"
    for name in cnn3_msn cnn3_bn; do
        msn train "$name" --epochs 2 --out "$data/runs"
        msn export "$data/runs/$name.safetensors" --out "$data/runs/$name.onnx"
    done
    msn calibrate "$data/runs/cnn3_msn.onnx" --samples 64 --out "$data/runs/cnn3_msn.int8.onnx"
fi >/dev/null
"$python" tests/container/images.py "$data/images" 10
for name in cnn3_msn cnn3_msn.int8 cnn3_bn; do
    msn eval "$data/runs/$name.onnx" --data digits --threads 1 --json - >"$scratch/$name.x86.json"
done

# 4. The bundle, its wheels chosen by pip; the image is built from the same wheels, without the index. They are kept as
# long as nothing else is asked for.
wheels=$scratch/wheels
asked="$(sha256sum <pyproject.toml) $version"
rm -rf "$data/orin"* "$data/agx"*
pack() {
    msn bundle "$data/runs" --target orin-nano --python "$version" --out "$data/orin.tar" --json "$scratch/bundle.json" "$@"
}
if [ "$(cat "$scratch/wheels.of" 2>/dev/null)" = "$asked" ]; then
    rm -f "$wheels"/msn_deploy-*.whl
    pack --wheels "$wheels"
else
    rm -rf "$wheels"
    pack
fi
digest=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["digest"])' "$scratch/bundle.json")
tar xf "$data/orin.tar" -C "$data"
msn bundle "$data/runs" --target agx-orin --no-wheels --out "$data/agx.tar"
tar xf "$data/agx.tar" -C "$data"
mkdir -p "$wheels"
cp "$data/orin/wheels"/* "$wheels"
if [ ! -e "$scratch/wheels.of" ] || [ "$(cat "$scratch/wheels.of")" != "$asked" ]; then
    "$python" -m pip download -q -d "$wheels" --only-binary=:all: hatchling
    "$python" -m pip download -q -d "$wheels" --only-binary=:all: --no-deps --python-version "$version" \
        --platform manylinux_2_28_aarch64 opencv-python-headless
    printf %s "$asked" >"$scratch/wheels.of"
fi
note "bundle: $(du -m "$data/orin.tar" | cut -f1) MiB, $(find "$data/orin/wheels" -name '*.whl' | wc -l) wheels"

image_of() {  # image_of TAG OPTION...
    local tag=$1
    shift
    # shellcheck disable=SC2154 # of twice
    timeout --kill-after=10 "$limit" buildah --root "$scratch/store" --runroot "$scratch/runroot" bud --arch arm64 \
        --format docker --timestamp 1580601600 --no-cache --layers --tag "$tag" --file Dockerfile.jetson \
        --volume "$wheels:/wheelhouse:ro" --build-arg BASE_IMAGE=localhost/arm64-base --build-arg WITH_PYCUDA=0 \
        --build-arg WITH_HASHES=0 --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheelhouse "$@" . \
        >"$scratch/build-$tag.log" 2>&1
}

layers_of() { build inspect --type image --format '{{range .OCIv1.RootFS.DiffIDs}}{{println .}}{{end}}' "localhost/$1"; }

for tag in msn-deploy msn-deploy-again msn-deploy-video; do
    options=()
    [ "$tag" != msn-deploy-video ] || options=(--build-arg WITH_VIDEO=1)
    twice 1800 "build of $tag" image_of "$tag" "${options[@]}" ||
        die "$tag was not built: $(tail -n 3 "$scratch/build-$tag.log")"
    container=$(build from --arch arm64 --pull-never "localhost/$tag")
    containers+=("$container")
    at[$tag]=$(build mount "$container")
    mb[$tag]=$((($(du -sb "${at[$tag]}" | cut -f1) - $(du -sb "$scratch/base" | cut -f1)) / 1000000))
done
base_mb=$(($(du -sb "$scratch/base" | cut -f1) / 1000000))
note "image: our layers ${mb[msn-deploy]} MB (at most 150), unpacked, over a base of $base_mb MB"
[ "${mb[msn-deploy]}" -le 150 ] || die "our layers are too large"
note "  with WITH_VIDEO=1: ${mb[msn-deploy-video]} MB"
layers=$(layers_of msn-deploy)
[ "$layers" = "$(layers_of msn-deploy-again)" ] || die "a second build made other layers:
$(diff -rq --no-dereference "${at[msn-deploy]}" "${at[msn-deploy-again]}" 2>&1 | head -n 20)"
ours=$(printf '%s\n' "$layers" | tail -n +2)
[ -n "$ours" ] || die "the image has no layer of ours"
note "  built twice without a cache: all of our layers are the same, $(printf %s "$ours" | cut -c8-19 | paste -sd ' ')"
cut -d: -f3 "${at[msn-deploy]}/etc/shadow" | grep -q "^$((1580601600 / 86400))$" || die "/etc/shadow notes the day of the build"

# 5. Inside: read-only root, user 1000, no network; /data and /cache are the volumes. No /sys: it describes the x86 cores
# of this machine, over which ONNX Runtime for arm64 stumbles (under qemu 7.2 it crashed); without, it warns and goes on.
chown -R 1000:1000 "$data"
mkdir -p "$scratch/cache" "$scratch/root"
chown 1000:1000 "$scratch/cache"
# An Orin's cores are of the generation of this one. The default of qemu is a core with everything, on which libraries
# choose instructions that are slow to emulate.
export data scratch board='' cpu=cortex-a76
export image=${at[msn-deploy]}
inside() {
    # shellcheck disable=SC2016 # for the inner shell
    timeout --kill-after=10 "$limit" unshare --mount --net --pid --fork --kill-child bash -c '
        set -e
        root=$image
        if [ -n "${board:-}" ]; then
            root=$scratch/root
            mount -t overlay -o "lowerdir=$scratch/board/layer:$image" overlay "$root"
        else
            mount --bind "$image" "$image"
        fi
        mount --bind "$data" "$root/data"
        mount --bind "$scratch/cache" "$root/cache"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -t proc proc "$root/proc"
        if [ -n "${board:-}" ]; then
            mount --bind "$scratch/board/layer/sys" "$root/sys"
            mount -o remount,bind,ro "$root/sys"
            (cd "$scratch/board/proc" && find . -type f) | while read -r file; do
                mount --bind "$scratch/board/proc/$file" "$root/proc/$file"
            done
            (cd "$scratch/board/copies" && find . -type f) | while read -r file; do
                : >"$root/tmp/$file"
                mount --bind "$scratch/board/copies/$file" "$root/tmp/$file"
            done
            mount -t tmpfs tmpfs "$root/dev/shm"
        else
            mount --rbind /dev "$root/dev"
            mount -o remount,bind,ro "$root"
        fi
        exec chroot --userspec=1000:1000 --groups=44 "$root" /usr/bin/env -i PATH=/opt/msn-deploy/bin:/usr/bin:/bin \
            HOME=/cache XDG_CACHE_HOME=/cache LANG=C.UTF-8 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 QEMU_CPU="$cpu" \
            COLUMNS=250 \
            sh -c "cd /data && exec \"\$@\"" sh "$@"
    ' inside "$@"
}
export -f inside

step() {  # of `board`, where one is named
    if [ -n "${board:-}" ]; then
        PYTHONPATH=$PWD:$PWD/tests:$PWD/tests/machine "$python" tests/container/board.py "$board" "$scratch/board" \
            bash -c 'inside "$@"' inside "$@"
    else
        inside "$@"
    fi >"$scratch/$name.log" 2>&1
}

expect() {  # expect CODE NAME COMMAND...: the exit code has to be one of CODE (such as 0 or 0,3)
    local codes=$1 name=$2 code=0
    shift 2
    twice 900 "$name" step "$@" || code=$?
    case ",$codes," in
        *",$code,"*) note "$name: exit $code" ;;
        *)
            tail -n 20 "$scratch/$name.log" >&2
            die "$name: exit $code, not $codes"
            ;;
    esac
}

says() { grep -qF -- "$2" "$scratch/$1.log" || die "$1 does not say: $2"; }

# shellcheck disable=SC2016 # for the shell in there
expect 0 who sh -c 'test "$(id -u)" = 1000 && ! touch /root-is-read-only 2>/dev/null && ! touch /opt/x 2>/dev/null'
# shellcheck disable=SC2016
expect 0 no-network sh -c 'test "$(grep -c : /proc/net/dev)" = 1 && grep -q lo: /proc/net/dev'
expect 0 doctor msn-deploy doctor
says doctor "no NVIDIA GPU"
expect 0 verify msn-deploy verify runs
for name in cnn3_msn cnn3_msn.int8 cnn3_bn; do
    expect 0 "eval-$name" msn-deploy eval "runs/$name.onnx" --data digits --threads 1 --json "$name.arm.json"
    note "  $("$python" tests/container/same.py "$scratch/$name.x86.json" "$data/$name.arm.json")"
done
expect 0 bench msn-deploy bench runs/cnn3_msn.onnx runs/cnn3_msn.int8.onnx --baseline runs/cnn3_bn.onnx --threads 1 \
    --seconds 4 --json bench.json --html bench.html
expect 0 infer msn-deploy infer runs/cnn3_msn.onnx images --json
[ "$(grep -c '"label"' "$scratch/infer.log")" = 10 ] || die "infer has not answered for each image"
# No TensorRT is here: the typed ONNX file and the script that builds the engine on the device.
expect 0 build-engine msn-deploy build-engine runs/cnn3_msn.onnx --precision fp32 --target orin-nano --out x.engine
says build-engine "Orin Nano"
[ -s "$data/x.build.sh" ] || die "build-engine left no script for the device"

expect 0 bundle-verify orin/verify "$digest"
expect 0 bundle-install orin/install.sh
expect 0 bundle-doctor orin/.venv/bin/msn-deploy doctor
expect 0 bundle-eval orin/eval.sh digits
expect 0 bundle-bench orin/bench.sh --threads 1 --seconds 4
[ -s "$data/orin/report/bench.html" ] || die "bench.sh left no report"
expect 3 bundle-no-board orin/build.sh
says bundle-no-board "which device this is can't be told"

printf '\001' | dd of="$data/orin/models/cnn3_msn.int8.onnx" bs=1 seek=5000 conv=notrunc status=none
expect 1 bundle-flipped orin/verify
says bundle-flipped "changed: models/cnn3_msn.int8.onnx"

# 6. On fake boards: an Orin Nano with JetPack 6.2 and an AGX Orin with JetPack 6.0, which has three rails.
of_boards() { PYTHONPATH=$PWD:$PWD/tests:$PWD/tests/machine "$python" "$@"; }
tar xf "$data/orin.tar" -C "$data"
chown -R 1000:1000 "$data"
for board in orin-nano agx-orin; do
    case $board in
        orin-nano)
            its=orin other=agx of='Jetson Orin Nano Super' l4t=36.4.3 tensorrt=10.3.0
            rail=VDD_IN
            ;;
        agx-orin)
            its=agx other=orin of='Jetson AGX Orin 64GB' l4t=36.3.0 tensorrt=8.6.2
            rail='VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0'
            ;;
    esac
    expect 0 "$board-doctor" msn-deploy doctor
    note "$(sed -nE 's/^((ok|warning|problem) +(gpu|rights|jetson|image|power mode|clocks) .*[^ ]) *$/  \1/p' \
        "$scratch/$board-doctor.log")"
    says "$board-doctor" "($of), L4T $l4t (JetPack 6)"
    expect 0 "$board-energy" msn-deploy bench runs/cnn3_msn.onnx --threads 1 --seconds 20 --energy --json energy.json
    note "  $(of_boards tests/container/energy.py "$data/energy.json" "$rail")"
    expect 0 "$board-bundle" "$its/build.sh" fp32
    says "$board-bundle" "TensorRT $tensorrt"
    [ -s "$data/$its/engines/cnn3_msn.engine" ] || die "$its/build.sh wrote no file in the place of the engine"
    expect 3 "$board-other-bundle" "$other/build.sh" fp32
    says "$board-other-bundle" "this is NVIDIA Jetson"
done
# The same board in a container without the mounts that `doctor` names.
board=orin-nano-bare
expect 0 bare-doctor msn-deploy doctor
says bare-doctor "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
says bare-doctor "-v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"
expect 3 bare-bundle orin/build.sh
says bare-bundle "-v /tmp/nv_jetson_compatible:/tmp/nv_jetson_compatible:ro"
board=
expect 3 no-sensor msn-deploy bench runs/cnn3_msn.onnx --energy
says no-sensor "/sys/bus/i2c shows no rail"

# 7. The variant that reads videos, and what each command costs to start.
image=${at[msn-deploy-video]} expect 0 video sh -c 'python3 -c "
import cv2, pathlib
frames = [cv2.imread(str(path)) for path in sorted(pathlib.Path(\"images\").glob(\"*.png\"))]
film = cv2.VideoWriter(\"digits.avi\", cv2.VideoWriter_fourcc(*\"MJPG\"), 5, frames[0].shape[1::-1])
for frame in frames:
    film.write(frame)
film.release()
" && msn-deploy infer runs/cnn3_msn.onnx digits.avi --json'
[ "$(grep -c '"label"' "$scratch/video.log")" = 10 ] || die "infer has not answered for each frame"
# shellcheck disable=SC2016 # for the shell inside
expect 0 startup python3 -c '
import statistics, subprocess, time
def seconds(*command):
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
pairs = [(seconds("msn-deploy", "--help"), seconds("python3", "-c", "import numpy")) for _ in range(7)]
ratio = statistics.median(ours / numpy for ours, numpy in pairs)
print(f"msn-deploy --help: {ratio:.2f} times the time of import numpy (at most 1.5)")
assert ratio <= 1.5
'
note "  $(cat "$scratch/startup.log")"
note "container-test: all passed"
cp "$summary" benchmarks/results/container.txt
