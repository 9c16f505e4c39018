#!/bin/sh
# Makes FOLDER an AArch64 Debian with Python and ikpy's dependencies, which qemu-user runs on any Linux, and prints the
# command that runs the tests with it. Needs root (debootstrap) and, from Debian: qemu-user debootstrap python3-pip.
#   tests/qemu_aarch64.sh FOLDER [WHEEL]      WHEEL: ikpy itself is installed too, as a user would
set -eu
root=$(realpath -m "$1")
suite=bookworm version=3.11
debootstrap --arch=arm64 --variant=minbase --include=python3 --download-only "$suite" "$root"
for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
# Python under the emulator, by a script: what it takes for itself it can start again, as for compilers.
cat >"$root/usr/bin/python-qemu" <<SCRIPT
#!/bin/sh
export PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}$root/site"
exec qemu-aarch64 -L "$root" -0 "\$0" "$root/usr/bin/python$version" "\$@"
SCRIPT
chmod +x "$root/usr/bin/python-qemu"
checkout=$(realpath "$(dirname "$0")/..")
platforms="--platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64"
wanted=$(python3 -c "
import sys, tomllib
project = tomllib.load(open(sys.argv[1], 'rb'))['project']
print(*project['dependencies'], 'pytest', 'hypothesis', sep='\n')" "$checkout/pyproject.toml")
printf '%s\n' "$wanted" ${2:+"$(realpath "$2")"} >"$root/wanted.txt"
# shellcheck disable=SC2086
python3 -m pip install --quiet --target "$root/site" --only-binary=:all: --implementation cp \
    --python-version "$version" $platforms -r "$root/wanted.txt"
echo "IKPY_QEMU=$root/usr/bin/python-qemu pytest tests/test_qemu.py"
