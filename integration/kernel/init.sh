#!/bin/sh
# PID 1 of a guest. /dev/tty1 is the command's output, /dev/console the kernel's log and the channel to the runner;
# both are pipes on the host.
# `vars` beside this file sets COMMAND, DIRECTORY, SHARES and MODULES, and exports the command's environment.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. "${0%/*}/vars"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
  ln -sfn "${link#*:}" "/dev/${link%%:*}"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/host /run/lock /run/netns
mount -t hostfs none /run/host -o /
mount -t tmpfs -o mode=1777 tmpfs /tmp
[ -L /var/run ] || mount --bind /run /var/run
# Folders that the new /tmp and /run hide come back as binds.
for share in $SHARES; do
  [ -d "$share" ] || { mkdir -p "$share" && mount --bind "/run/host$share" "$share"; }
done
# A folder of modules at the usual place, so that the kernel loads what it lacks (Debian's kernel; ours has all built in).
modules=$(readlink -f /lib/modules || echo /lib/modules)
release=$(uname -r)
if [ -d "$MODULES/$release" ] && [ -d "$modules" ]; then
  mount -t tmpfs tmpfs "$modules"
  ln -s "$MODULES/$release" "$modules/$release"
  for module in ipv6 tun veth sch_netem; do modprobe "$module"; done 2>/dev/null
fi
for limit in /proc/sys/net/core/rmem_max /proc/sys/net/core/wmem_max; do echo 16777216 >"$limit"; done
echo lab >/proc/sys/kernel/hostname
ip link set lo up
ulimit -n 65536
for tty in 0 1; do stty -F /dev/tty$tty raw -echo; done
# A pipe between command and console: the command sees no terminal.
mkfifo /run/output
cat /run/output >/dev/tty1 &
cat=$!
echo "@lab up" >/dev/console
(cd "$DIRECTORY" && eval "exec $COMMAND") </dev/null >/run/output 2>&1
status=$?
sync                                        # hostfs keeps dirty pages: write them to the host
tries=0
while kill -0 $cat 2>/dev/null && [ $tries -lt 20 ]; do sleep 0.1; tries=$((tries + 1)); done
for tty in 0 1; do stty -F /dev/tty$tty raw; done   # waits until the host has taken all output
echo "@lab status $status" >/dev/console
while :; do sleep 60; done                  # the runner ends the guest now
