#!/bin/busybox sh
# The first process of the emulated machine: mounts what programs expect, runs the suite, writes the kernel's log.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mkdir -p /dev/shm /tmp
mount -t tmpfs tmp /tmp
ip link set lo up
echo "booted: $(uname -r), $(cut -d' ' -f1 /proc/uptime) s"
/bin/suite "$@"
[ ! -e /runtime ] || /runtime
# What the module's own tests said, which the debug kernel runs whenever the module is loaded: not loud enough for the console.
if [ -e /sys/kernel/debug/kunit ]; then
    dmesg | grep -E '(not )?ok [0-9]+ rustai$' || echo "BUG: KUnit has not run the module's tests"
    dmesg | grep 'not ok [0-9]'
fi
# A leak that the debug kernel knows of; it looks twice, since what was freed lately may look like one.
if [ -e /sys/kernel/debug/kmemleak ]; then
    for _ in 1 2; do
        echo scan >/sys/kernel/debug/kmemleak
        sleep 6
    done
    cat /sys/kernel/debug/kmemleak || echo "BUG: kmemleak has given up"
fi
echo "ended: $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
