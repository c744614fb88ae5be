#!/usr/bin/env bash
# Brings this machine to where ./demo can run: Debian packages, .venv, a CRIU that works. With the
# argument "test", to where ./test can, which takes more: programs in several languages, servers.
# Whatever is there already is left alone, so a second run only looks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }
die() { say "$@"; exit 1; }

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo ${TIMESHIM_CRIU_DIR:+env "TIMESHIM_CRIU_DIR=$TIMESHIM_CRIU_DIR"} \
            ${TIMESHIM_ZYDIS:+env "TIMESHIM_ZYDIS=$TIMESHIM_ZYDIS"} "$@"
    else
        die "there is no sudo here; run this as root in $PWD, then repeat: $*"
    fi
}

# need PACKAGE WHY TEST...: the package is missing if the test fails. Tests look for files, not for
# packages, so that what was installed in another way counts too.
missing=()
need() {
    local package=$1 why=$2
    shift 2
    "$@" &>/dev/null || { missing+=("$package"); say "needs $package: $why"; }
}

if command -v python3 >/dev/null; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$(command -v python3) is $(python3 --version), and Python 3.11 or newer is needed."
fi
need python3 "runs everything but the shim" command -v python3
need python3-venv "keeps our Python packages apart, in .venv" python3 -c 'import ensurepip, venv'
need python3-dev "headers for the shim's Python module" \
    python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
need gcc "compiles the shim" command -v gcc
need libc6-dev "the C library's headers" test -e /usr/include/stdio.h
need libzycore-dev "headers for the instruction decoder, Zydis" test -e /usr/include/Zycore/Types.h
need util-linux "nsenter, unshare and setsid" command -v nsenter
need iproute2 "shows the network between test hosts" command -v ip
need redis-server "the server that the demo moves" command -v redis-server
if [[ "${1:-}" == test ]]; then
    need musl-tools "builds a program for the tests that the shim does not reach" command -v musl-gcc
    need libfaketime "the peer that the shim is measured against" \
        compgen -G '/usr/lib*/*/faketime/libfaketime.so.1'
    need qemu-system-x86 "the virtual machines that tests move tasks between" \
        command -v qemu-system-x86_64
    need mmdebstrap "fetches what they boot from" command -v mmdebstrap
    need e2fsprogs "makes their file systems" command -v mke2fs
    need openssh-client "the carrier between them" command -v ssh
    need g++ "compiles a C++ program that is moved" command -v g++
    need golang-go "compiles one in Go" command -v go
    need default-jdk-headless "compiles and runs one in Java" command -v javac
    need nodejs "runs one in JavaScript" command -v node
    need postgresql "a server that is moved, and pgbench, its client" \
        compgen -G '/usr/lib/postgresql/*/bin/pgbench'
    need nginx "another server" command -v nginx
    need wrk "and its client" command -v wrk
    need fio "reads the TSC by itself" command -v fio
    need haproxy "so does it" test -e /usr/sbin/haproxy
    need stress-ng "and it" command -v stress-ng
    need '^libpython3[.][0-9]+-testsuite$' "CPython's own tests" /usr/bin/python3 -c 'import test.test_time'
fi
if ((${#missing[@]})); then
    command -v apt-get >/dev/null ||
        die "please install what Debian calls ${missing[*]}: only apt is known here."
    say "installing ${missing[*]}"
    as_root sh harness/apt-install.sh "${missing[@]}"
fi

as_root sh harness/zydis-install.sh

# What .venv was made from: pip builds the shim, so its sources count.
made_from=$PWD$'\n'$(
    find pyproject.toml preload -type f ! -path '*/__pycache__/*' ! -name '*.so' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum
)
made_before=$(cat .venv/made-from 2>/dev/null || true)
if [[ ! -x .venv/bin/python || "$made_from" != "$made_before" ]]; then
    say "installing timeshim, what it imports and what checks it into .venv, with pip"
    # A .venv that was moved, left half made or lost its Python is of no use.
    if [[ ! -x .venv/bin/python || "${made_before%%$'\n'*}" != "$PWD" ]]; then
        python3 -m venv --clear .venv
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    # 25.1 is the first pip that knows dependency groups.
    timeout 300 .venv/bin/python -m pip install -qq --upgrade 'pip>=25.1'
    timeout 900 .venv/bin/python -m pip install -qq --editable . --group dev
    echo "$made_from" >.venv/made-from
fi

# Only root can try a CRIU; for others, one that root has installed here is proof enough.
if ((EUID == 0)) || [[ ! -x "${TIMESHIM_CRIU_DIR:-/usr/local/lib/timeshim/criu}/criu" ]]; then
    as_root sh harness/criu-install.sh
fi
