#!/bin/sh
# Builds what the virtual machines of harness/machines.py boot from, into directory $1:
#   vmlinuz     Debian 12's cloud kernel, in which NVMe and ext4 are built in: no initramfs
#   root.ext4   Debian 13 with criu, sshd and what timeshim imports; mounted read-only by all machines
# Packages are unpacked, not configured, so all that a maintainer script would do here is below. Takes
# root, mmdebstrap and e2fsprogs.
#   machine-image.sh DIRECTORY
set -eu
umask 022
export LC_ALL=C # tools' words are shown to people who may have to search for them

die() { echo "machine-image: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || die "only root can make files that belong to others: run this as root."
target=$1
mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
root=$work/root

packages=base-files,criu,python3-pycriu,python3,python3-cffi-backend,python3-click,python3-protobuf
packages=$packages,python3-pyelftools,python3-pyroute2,python3-rich,openssh-server,openssh-client
packages=$packages,redis-server,redis-tools,bash,coreutils,dash,findutils,grep,iproute2,kmod
packages=$packages,libc-bin,mount,procps,sed,util-linux

# unpack DIRECTORY SUITE PACKAGES, from the one of this machine's mirrors that has the suite
unpack() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirrors=$(apt-get indextargets --format "\$(REPO_URI)" "Created-By: Packages" "Component: main")
    for mirror in $(printf '%s\n' "$mirrors" | sort -u); do
        rm -rf "$1"
        timeout 900 mmdebstrap --quiet --variant=extract --include="$3" "$2" "$1" \
            "deb [signed-by=$keyring] $mirror $2 main" >"$work/log" 2>&1 && return
    done
    die "no package mirror of this machine has Debian $2. The last words:
$(tail -n 5 "$work/log")"
}

unpack "$root" trixie "$packages"
unpack "$work/kernel" bookworm linux-image-cloud-amd64
release=$(ls "$work/kernel/lib/modules")
cp "$work/kernel/boot/vmlinuz-$release" "$work/vmlinuz"
cp -R "$work/kernel/lib/modules" "$root/usr/lib/"
chroot "$root" depmod "$release"

cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
redis:x:101:101::/var/lib/redis:/usr/sbin/nologin
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
END
printf 'root:x:0:\nredis:x:101:\nnogroup:x:65534:\n' >"$root/etc/group"
echo 'root:*:1::::::' >"$root/etc/shadow"
ldconfig -r "$root"

# Each machine's own part is its second drive, /seed: see harness/machines.py.
for path in dev etc proc root run seed sys tmp usr/local/bin var/lib var/tmp; do
    mkdir -p "$root/$path"
done
cat >"$root/etc/ssh/sshd_config" <<'END'
HostKey /seed/ssh/host_key
AuthorizedKeysFile /seed/ssh/authorized_keys
UsePAM no
UseDNS no
MaxStartups 100
END
cat >"$root/etc/ssh/ssh_config" <<'END'
Host *
    IdentityFile /seed/ssh/client_key
    GlobalKnownHostsFile /seed/ssh/known_hosts
    BatchMode yes
END
cat >"$root/usr/local/bin/timeshim" <<'END'
#!/usr/bin/python3 -XPpycache_prefix=/run/pycache
import sys

sys.path.insert(0, "/seed/site")
from harness.cli import main

main()
END
cat >"$root/usr/sbin/init" <<'END'
#!/bin/sh
# Process 1 of a test machine: mounts, loads the modules that CRIU asks for, and becomes sshd.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for path in /dev/shm /run /tmp /var/tmp /var/lib /root; do mount -t tmpfs tmpfs $path; done
mkdir -m 755 /run/sshd
chmod 1777 /tmp /var/tmp
mount -o ro /dev/nvme0n2 /seed
cat /seed/name >/proc/sys/kernel/hostname
modprobe -a virtio_pci virtio_net nf_tables tun veth unix_diag tcp_diag udp_diag raw_diag \
    inet_diag af_packet_diag netlink_diag
read -r address </seed/address
ip link set lo up
ip link set eth0 up
ip addr add "$address" dev eth0
cp /seed/hosts /run/hosts
/usr/sbin/sshd -e
while :; do sleep 3600; done # waiting for a child, the shell reaps orphans too
END
chmod 755 "$root/usr/sbin/init" "$root/usr/local/bin/timeshim"
ln -s /run/hosts "$root/etc/hosts"

# Without it every start of Python would compile what it imports, slowly, and keep nothing.
chroot "$root" python3 -m compileall -q /usr/lib/python3 /usr/lib/python3.13 >"$work/log" 2>&1 ||
    die "Python's modules cannot be compiled: $(tail -n 3 "$work/log")"

size=$(du -sm "$root" | cut -f1)
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$work/root.ext4" "$((size + size / 4 + 32))M"
rm -rf "$root" "$work/kernel" "$work/log"
rm -rf "$target"
mv -T "$work" "$target"
