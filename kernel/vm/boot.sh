#!/bin/sh
# Boots the unmodified stock kernel under emulation with a folder as its root, and passes on what it writes to its serial
# port: kernel/vm/boot.sh FOLDER [KERNEL_PARAMETER...]. The folder lies below target/kernel-vm and holds /init.
#
# Hardware virtualization is not used: hosts that build this are often guests themselves. BOOT_TIMEOUT bounds it all.
set -eu
. "$(dirname "$0")/env.sh"

FOLDER=$(cd "$1" && pwd)
shift
case $FOLDER in "$VM"/*) ;; *) echo "error: $FOLDER does not lie below $VM" >&2 && exit 2 ;; esac
IMAGE=${IMAGE:-/usr/lib/modules/$KERNEL/vmlinuz}
# On a busy host the emulated processors stand still now and then; the kernel must not take that for broken timers or
# for processors that hang. Tests have watchdogs of their own.
PATIENCE="no_timer_check tsc=reliable rcupdate.rcu_cpu_stall_timeout=300 watchdog_thresh=60"
mkdir -p "$VM/boot"
# `-R` makes root the owner of all files, whoever runs this.
inside sh -c "cd '/vm${FOLDER#"$VM"}' && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet >/vm/boot/initramfs"
inside timeout "${BOOT_TIMEOUT:-900}" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max \
    -smp "${CPUS:-2}" -m "${MEMORY:-1024}" -nodefaults -no-user-config -display none -serial stdio -no-reboot \
    -kernel "$IMAGE" -initrd /vm/boot/initramfs \
    -append "console=ttyS0 panic=-1 oops=panic loglevel=6 log_buf_len=4M $PATIENCE $*" </dev/null
