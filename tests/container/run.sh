#!/usr/bin/env bash
# Builds Dockerfile.jetson for arm64 and runs it, by emulation: `make container-test`. Needs root and, beside the
# environment of `make setup`, debootstrap, qemu-user-static and buildah, and a network for packages and wheels.
# What runs in the image has none of that: user 1000, read-only root, its own network namespace without a network.
# A run that passes leaves its summary in benchmarks/results/container.txt.
#   CONTAINER_SCRATCH   where base, wheels and image are kept (default /var/tmp/msn-deploy-container)
#   CONTAINER_SUITE     what debootstrap installs (default bookworm); CONTAINER_MIRROR: from where
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=${CONTAINER_SCRATCH:-/var/tmp/msn-deploy-container}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot PIP_DISABLE_PIP_VERSION_CHECK=1
summary=$scratch/summary.txt

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

# 4. The bundle, its wheels chosen by pip; the image is built from the same wheels, without the index.
rm -rf "$scratch/wheels" "$data/orin"*
msn bundle "$data/runs" --target orin-nano --python "$version" --out "$data/orin.tar" --json "$scratch/bundle.json"
digest=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["digest"])' "$scratch/bundle.json")
tar xf "$data/orin.tar" -C "$data"
cp -r "$data/orin/wheels" "$scratch/wheels"
"$python" -m pip download -q -d "$scratch/wheels" --only-binary=:all: hatchling
note "bundle: $(du -m "$data/orin.tar" | cut -f1) MiB, $(find "$data/orin/wheels" -name '*.whl' | wc -l) wheels"

build bud --arch arm64 --format docker --timestamp 1580601600 --tag msn-deploy --file Dockerfile.jetson \
    --volume "$scratch/wheels:/wheelhouse:ro" --build-arg BASE_IMAGE=localhost/arm64-base --build-arg WITH_PYCUDA=0 \
    --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheelhouse . >"$scratch/build.log" 2>&1 ||
    die "the image was not built: $(tail -n 3 "$scratch/build.log")"
container=$(build from --arch arm64 --pull-never localhost/msn-deploy)
trap 'build rm "$container" >/dev/null' EXIT
image=$(build mount "$container")
before=$(du -sb "$scratch/base" | cut -f1)
after=$(du -sb "$image" | cut -f1)
ours=$(((after - before) / 1000000))
note "image: our layers $ours MB (at most 150), unpacked, over a base of $((before / 1000000)) MB"
[ "$ours" -le 150 ] || die "our layers are too large"

# 5. Inside: read-only root, user 1000, no network; /data and /cache are the volumes. No /sys: it describes the x86 cores
# of this machine, over which ONNX Runtime for arm64 stumbles (under qemu 7.2 it crashed); without, it warns and goes on.
chown -R 1000:1000 "$data"
mkdir -p "$scratch/cache"
chown 1000:1000 "$scratch/cache"
export image data scratch
inside() {
    # shellcheck disable=SC2016 # for the inner shell
    timeout --kill-after=10 900 unshare --mount --net --pid --fork bash -c '
        set -e
        mount --bind "$image" "$image"
        mount --bind "$data" "$image/data"
        mount --bind "$scratch/cache" "$image/cache"
        mount -t tmpfs tmpfs "$image/tmp"
        if [ -n "${board:-}" ]; then printf "%s" "$board" >"$image/tmp/nv_jetson_model"; fi
        mount -t proc proc "$image/proc"
        mount --rbind /dev "$image/dev"
        mount -o remount,bind,ro "$image"
        exec chroot --userspec=1000:1000 --groups=44 "$image" /usr/bin/env -i PATH=/opt/msn-deploy/bin:/usr/bin:/bin \
            HOME=/cache XDG_CACHE_HOME=/cache LANG=C.UTF-8 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 \
            sh -c "cd /data && exec \"\$@\"" sh "$@"
    ' inside "$@"
}

expect() {  # expect CODE NAME COMMAND...: the exit code has to be one of CODE (such as 0 or 0,3)
    local codes=$1 name=$2 code=0
    shift 2
    inside "$@" >"$scratch/$name.log" 2>&1 || code=$?
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
board='NVIDIA Jetson AGX Orin Developer Kit' expect 3 bundle-other-device orin/build.sh
says bundle-other-device "this is NVIDIA Jetson AGX Orin"
board='NVIDIA Jetson Orin Nano Developer Kit' expect 3 bundle-no-tensorrt orin/build.sh
says bundle-no-tensorrt "TensorRT is not here"
printf '\001' | dd of="$data/orin/models/cnn3_msn.int8.onnx" bs=1 seek=5000 conv=notrunc status=none
expect 1 bundle-flipped orin/verify
says bundle-flipped "changed: models/cnn3_msn.int8.onnx"

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
