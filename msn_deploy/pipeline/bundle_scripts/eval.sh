#!/bin/sh
# How often is each model right, as built here? Answers go into report/, beside those of bench.sh.
#   ./eval.sh DATA      a name that msn-deploy knows, or a folder of images (`msn-deploy eval --help`)
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
is_packed() { sum=$(sha256sum <"$here/$1") && grep -qx "${sum%% *}  $1" "$here/SHA256SUMS"; }
if [ ! -f "$here/SHA256SUMS" ] || [ ! -f "$here/verify" ] || ! is_packed verify; then
    echo "changed: verify. Nothing of this bundle was run." >&2
    exit 1
fi
"$here/verify"
. "$here/common.sh"
[ $# = 1 ] || fail 2 "Type: ./eval.sh DATA"
[ -n "$installed" ] || fail 3 "msn-deploy is not here; type: ./install.sh" "trtexec measures no accuracy."
check_built
! have_engines || runs_engines || fail 3 "Python runs no engine here, for it lacks TensorRT or pycuda." \
    "Type: sudo apt install python3-libnvinfer && ./install.sh"
case $1 in
    /*) data=$1 ;;
    *) if [ -e "$1" ]; then data=$PWD/$1; else data=$1; fi ;;
esac
"$here/verify" --begin report
mkdir -p "$here/report"
cd "$here"
failed=''
code=0
for model in $(subjects); do
    name=${model##*/}
    say "$name"
    "$msn_deploy" eval "$model" --data "$data" --json "report/${name%.*}.eval.json" || { code=$? failed="$failed $name"; }
done
[ -z "$failed" ] || fail "$code" "No answers of these, for the reasons above:$failed."
say "Next: ./bench.sh"
