#!/bin/sh
# Installs msn-deploy from the wheels of this bundle into .venv beside this script. Needs no network.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
is_packed() { sum=$(sha256sum <"$here/$1") && grep -qx "${sum%% *}  $1" "$here/SHA256SUMS"; }
if [ ! -f "$here/SHA256SUMS" ] || [ ! -f "$here/verify" ] || ! is_packed verify; then
    echo "changed: verify. Nothing of this bundle was run." >&2
    exit 1
fi
"$here/verify"
. "$here/common.sh"

"$here/verify" --begin .venv
rm -rf "$here/.venv"  # what was cut short before

# JetPack's bindings of TensorRT are for the system's Python; a python3 that comes earlier in PATH, such as conda's, has
# none of them. PYTHON: the one to take.
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- "$root/usr/bin/python3" python3 python3.12 python3.10
fi
fits='import sys; known = sys.argv[1].split()
sys.exit("%d.%d" % sys.version_info[:2] not in known if known else sys.version_info < (3, 10))'
found=''
# shellcheck disable=SC2153 # of bundle.env, which common.sh reads
for candidate; do
    "$candidate" -c "$fits" "$PYTHONS" 2>/dev/null || continue
    if "$candidate" -c 'import tensorrt' 2>/dev/null; then
        found=$candidate
        break
    fi
    found=${found:-$candidate}
done
if [ -z "$found" ]; then
    say "No Python ${PYTHONS:-3.10 or later} is here: msn-deploy is not installed." \
        "build.sh and bench.sh drive trtexec instead; they need no Python."
    exit 0
fi
ls "$here"/wheels/msn_deploy-*.whl >/dev/null 2>&1 || fail 2 "This bundle holds no wheels: it was made with --no-wheels." \
    "Install msn-deploy by pip where there is a network, or pack the bundle again."
# The system's packages stay visible, because JetPack's TensorRT is among them.
"$found" -m venv --system-site-packages "$here/.venv" ||
    fail 3 "$found makes no environment; type: sudo apt install python3-venv"
offline() {
    PIP_CONFIG_FILE=/dev/null "$python" -m pip --isolated --disable-pip-version-check install --quiet --no-index \
        --no-cache-dir --find-links "$here/wheels" "$@"
}
offline --ignore-installed "$(ls "$here"/wheels/msn_deploy-*.whl)[runtime]" ||
    fail 3 "pip could not install the wheels of this bundle (see above)."
if "$python" -m pip list --local --format=freeze 2>/dev/null | grep -iE '^(tensorrt|torch|nvidia)'; then
    rm -rf "$here/.venv"
    fail 1 "The wheels brought what has to come from JetPack (above); the environment was removed."
fi
if ls "$here"/wheels/pycuda-*.tar.gz >/dev/null 2>&1; then
    PATH=$PATH:/usr/local/cuda/bin
    if command -v nvcc >/dev/null; then
        offline pycuda || say "pycuda was not built: engines do not run from Python, all else does." >&2
    else
        say "pycuda was not built, for nvcc is not here: sudo apt install nvidia-jetpack" >&2
    fi
fi
imports tensorrt ||
    say "$found finds no TensorRT (sudo apt install python3-libnvinfer): trtexec builds and measures engines." >&2
"$msn_deploy" --version
"$python" -m compileall -q "$here/.venv/lib" >/dev/null 2>&1 || :  # so that nothing is compiled into it later
"$here/verify" --made .venv
say "Next: ./build.sh"
