#!/bin/sh
# Run the on-board tests, as an unprivileged user, on a platform that this machine is not.
#   sh tests/platforms/run.sh aarch64    Debian 12, Python 3.11, under qemu-user
#   sh tests/platforms/run.sh py314      Debian testing, Python 3.14
# Run as root. The Debian root and the wheels stay in /var/cache/drone_kd: a second run, or one
# after an interruption, continues from there. PLATFORM_CACHE names another folder, PYTEST_OPTIONS
# more options of pytest.
set -eu
cd "$(dirname "$0")/../.."

platform=${1:-}
case $platform in
aarch64) suite=bookworm arch=arm64 machine=aarch64 python=3.11 ;;
py314) suite=testing arch=amd64 machine=x86_64 python=3.14 ;;
*)
    echo "platforms: expected aarch64 or py314, got '$platform'" >&2
    exit 2
    ;;
esac
host_python=${PYTHON:-.venv/bin/python}
cache=${PLATFORM_CACHE:-/var/cache/drone_kd/platforms}
root=$cache/$platform
wheels=$cache/wheels-$platform
interpreter=/proc/sys/fs/binfmt_misc/qemu-aarch64

fail() {
    echo "platforms: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "expected root (chroot and mount need it): sudo make test-$platform"
command -v debootstrap >/dev/null || fail "expected debootstrap, found none: apt install debootstrap"
"$host_python" -m pip --version >/dev/null 2>&1 ||
    fail "expected pip of $host_python, found none: make setup, or set PYTHON"

# Every mount lies in a mount namespace of its own and ends with it, however this script ends.
if [ -z "${PLATFORM_NAMESPACE:-}" ]; then
    exec env PLATFORM_NAMESPACE=1 unshare --mount --propagation private sh "$0" "$platform"
fi

# 1. Emulation, unless the machine is one or emulates already.
if [ "$machine" != "$(uname -m)" ]; then
    description=/usr/lib/binfmt.d/qemu-aarch64.conf
    [ -e /proc/sys/fs/binfmt_misc/register ] ||
        mount -t binfmt_misc none /proc/sys/fs/binfmt_misc ||
        fail "expected a kernel with binfmt_misc, found none: load the module binfmt_misc"
    if [ ! -e "$interpreter" ]; then
        [ -e "$description" ] || fail "expected qemu, found none: apt install qemu-user-static"
        trap 'echo -1 >"$interpreter"' EXIT
        trap 'exit 1' HUP INT TERM
        cat "$description" >/proc/sys/fs/binfmt_misc/register
    fi
fi

# 2. A minimal Debian.
mkdir -p "$cache/debs-$platform" "$wheels"
chmod 700 "$cache"
if [ ! -e "$root.complete" ]; then
    echo "[1/4] installing Debian $suite ($arch) in $root"
    rm -rf --one-file-system "$root"
    debootstrap --arch="$arch" --variant=minbase --cache-dir="$cache/debs-$platform" \
        --include=python3-venv "$suite" "$root" ${MIRROR:+"$MIRROR"} >"$root.log" 2>&1 ||
        fail "debootstrap failed, see $root.log"
    touch "$root.complete"
fi
found=$(chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "$python" ] ||
    fail "expected Python $python in Debian $suite, got $found: adapt tests/platforms/run.sh"

# 3. Its wheels, by this machine's pip and its settings: the tests need no network.
echo "[2/4] downloading wheels for Python $python on $machine"
tags=
for glibc in 17 24 26 27 28 31 34 35; do tags="$tags --platform manylinux_2_${glibc}_$machine"; done
grep -E '^(hypothesis|pytest|setuptools)' requirements/dev.txt >"$wheels/test-tools.txt"
# shellcheck disable=SC2086 # several options
"$host_python" -m pip download -qq --disable-pip-version-check --only-binary=:all: \
    $tags --platform "manylinux2014_$machine" --python-version "$python" --dest "$wheels" \
    -r "$wheels/test-tools.txt" -r requirements/onboard.txt -r requirements/simulation.txt onnx

# 4. The checkout, without what git ignores.
user=1000
# QEMU_CPU: with FP16 arithmetic, in which ONNX Runtime then computes FP16 models.
inside() { chroot --userspec=$user:$user "$root" /usr/bin/env -i HOME=/home/test LANG=C.UTF-8 \
    QEMU_CPU=max PATH=/home/test/venv/bin:/usr/bin:/bin sh -euc "$1"; }
rm -rf --one-file-system "$root/home/test/drone_kd" "$root/home/test/wheels"
mkdir -p "$root/home/test/drone_kd"
git ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null |
    tar -xf - -C "$root/home/test/drone_kd"
cp -r "$wheels" "$root/home/test/wheels"
chown -R $user:$user "$root/home/test"
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"

echo "[3/4] installing them"
# shellcheck disable=SC2016 # expanded inside
inside 'cd
[ -x venv/bin/python ] || python3 -m venv venv
pip="venv/bin/python -m pip install -q --disable-pip-version-check --no-compile --no-index --find-links wheels"
$pip -r wheels/test-tools.txt onnx
$pip --no-build-isolation -e "drone_kd[onboard,simulation]"'

echo "[4/4] running the tests and comparing detections with those of this machine"
image=drone_kd/data/bogota-niza_103-0351.jpg
inside "cd ~/drone_kd
python -m pytest -q -p no:cacheprovider -m 'not slow' --timeout=1200 ${PYTEST_OPTIONS:-}
drone-kd detect $image --json ~/detections.json"
"$host_python" -m drone_kd.cli detect "$image" --json "$cache/detections.json"
"$host_python" tests/platforms/compare.py "$cache/detections.json" "$root/home/test/detections.json"
