#!/bin/sh
# Installs Zydis, the instruction decoder that the shim is linked with, as a static library below
# /usr/local/lib/timeshim/zydis, or where TIMESHIM_ZYDIS says. Debian's libzydis-dev has a shared one
# only, and a shim that moves from host to host can depend on nothing but libc. So Debian's own
# sources are fetched, checked by apt against its keys, and of them the decoder is compiled.
set -eu

prefix=${TIMESHIM_ZYDIS:-/usr/local/lib/timeshim/zydis}
[ -e "$prefix/lib/libZydis.a" ] && exit 0

die() {
    echo "zydis-install: $*" >&2
    exit 1
}
for tool in apt-get cc ar tar; do
    command -v $tool >/dev/null || die "there is no $tool here: install Zydis 4 as a static library yourself and name its prefix in TIMESHIM_ZYDIS"
done
[ -e /usr/include/Zycore/Types.h ] || die "Zycore's headers are missing: install what Debian calls libzycore-dev"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$work"

# This system's own package sources, asked for sources instead of packages.
mkdir -p "$work/sources" "$work/lists/partial"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -e "$list" ] && sed -n 's/^deb /deb-src /p' "$list" >>"$work/sources/all.list"
done
for list in /etc/apt/sources.list.d/*.sources; do
    [ -e "$list" ] && sed 's/^Types:.*/Types: deb-src/' "$list" >"$work/sources/$(basename "$list")"
done
apt() {
    apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/sources" \
        -o Dir::State::Lists="$work/lists" -o APT::Sandbox::User=root "$@"
}
cd "$work"
apt update || die "apt-get update failed"
apt source --download-only zydis || die "Debian's sources of zydis cannot be fetched"
mkdir source
tar -xf zydis_*.orig.tar.* -C source --strip-components 1

# The decoder alone, without libc: it allocates nothing and calls nobody.
for file in Decoder DecoderData SharedData Register; do
    cc -O2 -fPIC -fno-stack-protector -ffunction-sections -fdata-sections -DNDEBUG -DZYAN_NO_LIBC \
        -DZYDIS_STATIC_BUILD -DZYCORE_STATIC_BUILD -DZYDIS_DISABLE_FORMATTER -DZYDIS_DISABLE_ENCODER \
        -Isource/include -Isource/src -c "source/src/$file.c" -o "$file.o"
done
ar -rcs libZydis.a ./*.o
mkdir -p "$prefix/lib" "$prefix/include"
cp -r source/include/Zydis "$prefix/include/"
cp source/LICENSE "$prefix/"
cp libZydis.a "$prefix/lib/libZydis.a.new"
mv "$prefix/lib/libZydis.a.new" "$prefix/lib/libZydis.a"
