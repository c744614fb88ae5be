#!/bin/sh
# Makes sure that this host has a CRIU that works on its kernel; run it as root, on every host that
# tasks shall move from or to. It needs nothing else of this tree.
#
# A CRIU older than the kernel passes "criu check" and then fails to dump (Debian 12's 3.17.1 does,
# on kernels from 6.13, and on those from 6.16 Debian 13's 4.1.1 does, on the first TCP or UDP socket:
# checkpoint-restore/criu issue 2705), so a CRIU is judged by a real dump and never by its version.
# If the system's own fails, the one of Debian's next release goes into a private directory with the
# libraries it was built for, and nothing of the system is replaced:
#   $TIMESHIM_CRIU_DIR/criu             runs it (default directory: /usr/local/lib/timeshim/criu)
#   $TIMESHIM_CRIU_DIR/python/pycriu/   its Python module
#   $TIMESHIM_CRIU_DIR/lib/             the program itself, its loader and its libraries
set -eu
umask 022
export LC_ALL=C # apt's words are parsed below

dir=${TIMESHIM_CRIU_DIR:-/usr/local/lib/timeshim/criu}
suite=forky # the first with criu 4.2

say() { echo "criu-install: $*" >&2; }
die() { say "$@"; exit 1; }

# Dumps a process of our own with criu "$1"; its messages are left in $work/trial.log.
can_dump() (
    cd /
    images=$(mktemp -d "$work/images.XXXXXX")
    # A descriptor that we inherited may lead out of the tree that is dumped, or of its mounts.
    # shellcheck disable=SC2016 # expanded by bash, as sh closes only descriptors below 10
    setsid bash -c 'for path in /proc/$$/fd/*; do
            fd=${path##*/}
            if ((fd > 2)); then exec {fd}>&-; fi
        done
        { exec 9<>/dev/udp/127.0.0.1/9; } 2>/dev/null # a socket; nothing is sent
        exec sleep 60' </dev/null >/dev/null 2>&1 &
    sleeper=$!
    trap 'kill -KILL "$sleeper" 2>/dev/null || true' EXIT
    # Before it is "sleep", it may be in our session still, which would have to be dumped with it.
    waited=0
    while [ "$(cat "/proc/$sleeper/comm")" != sleep ] && [ "$waited" -lt 100 ]; do
        sleep 0.02
        waited=$((waited + 1))
    done
    timeout 20 "$1" check >"$work/trial.log" 2>&1 &&
        timeout 20 "$1" dump --tree "$sleeper" --images-dir "$images" >>"$work/trial.log" 2>&1
)

private_is_good() {
    [ -x "$1/criu" ] && [ -d "$1/python/pycriu" ] && can_dump "$1/criu"
}

system_is_good() {
    system=$(command -v criu) || return 1
    # The system's module belongs to the system's Python, whichever comes first on PATH.
    /usr/bin/python3 -c 'import pycriu' 2>/dev/null && can_dump "$system"
}

# Points apt at Debian's $suite, on the mirror that this machine uses already. Everything that apt
# writes or remembers stays in $work, so the machine's own package lists never hear of it; its
# proxy settings apply as always.
private_apt() {
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    cat >"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$work";
Dir::State::status "/dev/null";
Dir::Cache "$work";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
END
    mirrors=$(apt-get indextargets --format "\$(REPO_URI)" "Created-By: Packages" "Component: main")
    export APT_CONFIG="$work/apt.conf"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # Which of the machine's mirrors is Debian's? The one with a $suite signed by Debian.
    for mirror in $(printf '%s\n' "$mirrors" | sort -u); do
        echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
        timeout 300 apt-get update >"$work/apt.log" 2>&1 && return
    done
    return 1
}

# Prints criu and the libraries it depends on, and theirs. Other dependencies (Python, for criu's
# own tools) are not followed.
closure() {
    all=criu
    known=
    while [ "$all" != "$known" ]; do
        known=$all
        # shellcheck disable=SC2086 # a list
        all=$( (printf '%s\n' $known
            apt-cache depends --important $known | sed -n 's/.*Depends: \(lib[^ ]*\)$/\1/p') | sort -u)
    done
    echo "$all"
}

# Fills directory "$1".
build() ( # Called outside of any condition, which would switch "set -e" off in here.
    root=$work/root
    mkdir "$root" "$work/debs"
    cd "$work/debs"
    # shellcheck disable=SC2046 # a list
    timeout 600 apt-get download $(closure) python3-pycriu >"$work/apt.log" 2>&1 ||
        die "could not fetch it. apt's last words:
$(tail -n 3 "$work/apt.log")"
    for deb in *.deb; do dpkg-deb -x "$deb" "$root"; done

    mkdir -p "$1/lib" "$1/python"
    cp -R "$root/usr/lib/python3/dist-packages/pycriu" "$1/python/"
    cp "$root/usr/sbin/criu" "$1/lib/"
    libraries=$(dirname "$(find "$root" -name libc.so.6)")
    loader=$(find "$libraries" -name 'ld-linux*.so.*')
    # The loader lists itself too.
    "$loader" --inhibit-cache --library-path "$libraries" --list "$1/lib/criu" >"$work/list"
    sed -n "s|.* => \($root/[^ ]*\) .*|\1|p" "$work/list" | xargs cp -L -t "$1/lib/"
    cat >"$1/criu" <<END
#!/bin/sh
# Debian $suite's criu, run by the loader and with the libraries it was built for.
lib=\$(dirname "\$(readlink -f "\$0")")/lib
exec "\$lib/$(basename "$loader")" --inhibit-cache --library-path "\$lib" "\$lib/criu" "\$@"
END
    chmod 755 "$1/criu"
)

[ "$(id -u)" -eq 0 ] || die "CRIU works as root only: run this as root."
# Beside the target, because a rename is atomic within one file system only.
mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The private one first: where it exists, it is the one that is used.
if private_is_good "$dir" || { [ ! -e "$dir" ] && system_is_good; }; then
    exit 0
fi
by_hand="install CRIU 4.1 or newer with its Python module pycriu"
command -v dpkg-deb >/dev/null || die "no CRIU here can dump on this kernel: $by_hand."
say "no CRIU here can dump on kernel $(uname -r): installing Debian $suite's into $dir"
private_apt || die "no package mirror of this machine has Debian $suite; $by_hand. apt's last words:
$(tail -n 3 "$work/apt.log")"
build "$work/criu"
private_is_good "$work/criu" || die "this kernel or container does not let CRIU dump. Its last words:
$(tail -n 5 "$work/trial.log")"
[ ! -e "$dir" ] || mv -T "$dir" "$work/broken"
mv -T "$work/criu" "$dir"
