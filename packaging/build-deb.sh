#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds Aspen's Debian packages from this source tree.
#   packaging/build-deb.sh [OUTPUT]          default: packaging/out
#   ASPEN_DEB_VERSION=1.0.1                  another version than the changelog's (tests of upgrades)
#   ASPEN_DEB_SCRATCH=/var/tmp/aspen-deb     where it builds: a Swift program holds its build path,
#                                            so equal bytes need equal paths (reproducible builds)
# What is built is what git knows of, with the changes in the working tree.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
output=$(realpath -m "${1:-packaging/out}")
scratch=${ASPEN_DEB_SCRATCH:-/var/tmp/aspen-deb}

need=(dpkg-dev debhelper lintian patchelf python3 fakeroot)
missing=()
for package in "${need[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "Building packages needs: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >&2 ||
        { apt-get update -q >&2 &&
            apt-get install -y -q --no-install-recommends "${missing[@]}" >&2; }
fi
scripts/bootstrap

mkdir -p "$scratch" "$output"
exec 9>"$scratch/lock"
flock -n 9 || { echo "Another build is going on in $scratch" >&2 && exit 1; }
# The tree itself is made anew; what the compiler has built before is kept beside it.
# packaging/check-reproducible compares two builds from nothing.
rm -rf "$scratch/aspen"
mkdir -p "$scratch/aspen" "$scratch/build"
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar -c --null --files-from=- | tar -x -C "$scratch/aspen"
cd "$scratch/aspen"
mv packaging/debian debian
ln -s "$scratch/build" .build

if [ -n "${ASPEN_DEB_VERSION:-}" ]; then
    sed -i -E "s/(static let text = \")[^\"]*/\1$ASPEN_DEB_VERSION/" \
        Sources/Foundations/AspenTypes/ProgramVersion.swift
    {
        printf 'aspen (%s) unstable; urgency=medium\n\n  * A build for tests.\n\n' \
            "$ASPEN_DEB_VERSION"
        sed -n 's/^ -- .*/&\n/p' debian/changelog | head -n 2
        cat debian/changelog
    } >debian/changelog.new
    mv debian/changelog.new debian/changelog
fi

rm -f "$scratch"/*.deb "$scratch"/*.ddeb "$scratch"/*.changes "$scratch"/*.buildinfo
dpkg-buildpackage -us -uc -b >&2
lintian --pedantic --fail-on error,warning,pedantic --allow-root "$scratch"/aspen_*.changes >&2
rm -f "$output"/aspen*.deb
cp "$scratch"/*.deb "$output/"
cp "$scratch"/*.changes "$scratch"/*.buildinfo "$output/"
cd "$source"
ls -l "$output"/*.deb | awk '{ printf "%8.1f MB  %s\n", $5 / 1e6, $9 }' >&2
