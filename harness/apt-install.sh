#!/bin/sh
# Installs the Debian packages named as arguments, as root, without starting any service: this
# project runs its own copies of what they bring, and a host's ports are not ours to take.
set -eu
export DEBIAN_FRONTEND=noninteractive

policy=/usr/sbin/policy-rc.d
work=$(mktemp -d)

restore() {
    rm -f "$policy"
    if [ -e "$work/policy-rc.d" ]; then mv "$work/policy-rc.d" "$policy"; fi
    rm -rf "$work"
}
trap restore EXIT
trap 'exit 1' HUP INT TERM

if [ -e "$policy" ]; then mv "$policy" "$work/"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy" # 101: action forbidden, see invoke-rc.d(8)
chmod 755 "$policy"

# Thrice, for a mirror that fails once and for another apt that holds the lists: unlike dpkg's
# lock, apt does not wait for theirs.
attempt=1
until {
    timeout 300 apt-get -o Acquire::Retries=3 -o APT::Update::Error-Mode=any update &&
        timeout 900 apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 \
            install --yes --no-install-recommends "$@"
} </dev/null >"$work/log" 2>&1; do
    if [ "$attempt" -eq 3 ]; then
        tail -n 20 "$work/log" >&2
        exit 1
    fi
    attempt=$((attempt + 1))
    sleep 10
done

# Nor shall any start at the next boot; for systemd's units too, this is the command that also works
# where systemd is not running.
for service in redis-server nginx postgresql; do
    case " $* " in *" $service "*) update-rc.d "$service" disable ;; esac
done
