#!/bin/sh
# Makes the folder of tools that builds the module and boots it: Debian trixie's compiler, Rust, kernel source, headers
# and QEMU, unpacked below target/kernel-vm/root. Packages are unpacked, never installed, so this needs no root and
# changes nothing on the host. Mirror, proxy and keys are those that the host's apt is set up with.
#
#   kernel/vm/root.sh            does nothing if the root is already there
set -eu
. "$(dirname "$0")/env.sh"

if [ -e "$ROOT/.complete" ] && [ "$(cat "$ROOT/.complete")" = "$PACKAGES" ]; then
    exit 0
fi
command -v apt-get >/dev/null || skip "apt-get is missing: the tools come from Debian packages"
command -v dpkg-deb >/dev/null || skip "dpkg-deb is missing: the tools come from Debian packages"

APT=$VM/apt
mkdir -p "$APT/lists/partial" "$APT/archives/partial" "$APT/etc"
: >"$APT/status"
MIRROR=$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/\?$' | sort -u | head -n 1)
[ -n "$MIRROR" ] || skip "apt has no Debian mirror configured"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in trixie trixie-backports; do
    echo "deb [arch=amd64 signed-by=$KEYRING] $MIRROR $suite main"
done >"$APT/etc/sources.list"

# PACKAGES are names without spaces in them, to be split here.
# shellcheck disable=SC2086
run_apt() {
    apt-get -q -o Dir::State="$APT" -o Dir::State::lists="$APT/lists" -o Dir::State::status="$APT/status" \
        -o Dir::Cache="$APT" -o Dir::Cache::archives="$APT/archives" \
        -o Dir::Etc::sourcelist="$APT/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Install-Recommends=false \
        -o APT::Sandbox::User= -o Debug::NoLocking=true "$@"
}
run_apt update
run_apt install -y --download-only $PACKAGES || {
    echo "error: the mirror lacks a package; if it is the kernel, name a newer one in RUSTAI_KERNEL" >&2
    exit 1
}

rm -rf "$ROOT.new"
mkdir -p "$ROOT.new"
# base-files owns the links /bin -> usr/bin that the others unpack through.
unpack='for deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$ROOT.new" --no-same-owner --keep-directory-symlink \
        --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale || exit 255
done'
export ROOT
sh -c "$unpack" sh "$APT"/archives/base-files_*.deb
printf '%s\n' "$APT"/archives/*.deb | xargs -P "$JOBS" -n 4 sh -c "$unpack" sh
# What maintainer scripts would do and a build needs.
ln -sf mawk "$ROOT.new/usr/bin/awk"
mkdir -p "$ROOT.new/vm" "$ROOT.new/src" "$ROOT.new/proc" "$ROOT.new/dev" "$ROOT.new/tmp" "$ROOT.new/root"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$ROOT.new/etc/passwd"
printf 'root:x:0:\n' >"$ROOT.new/etc/group"
printf '%s' "$PACKAGES" >"$ROOT.new/.complete"
rm -rf "$ROOT"
mv "$ROOT.new" "$ROOT"
rm -rf "$APT/archives"
