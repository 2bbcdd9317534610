#!/bin/sh
# Boots the debug kernel with a module that has one bug after the other, and fails unless the log tells of all of them.
# Called by debug.sh, which sets OBJ, TOOLS and IMAGE.
set -eu
. "$(dirname "$0")/env.sh"

rm -rf "$VM/src/planted"
mkdir -p "$VM/src" "$VM/boot"
cp -r "$HERE/planted" "$VM/src/planted"
# TOOLS are words for make.
# shellcheck disable=SC2086
inside make -s -C "/vm/$OBJ" M=/vm/src/planted $TOOLS modules
FOLDER=$VM/planted
rm -rf "$FOLDER"
mkdir -p "$FOLDER/bin" "$FOLDER/dev" "$FOLDER/proc" "$FOLDER/sys" "$FOLDER/tmp"
cp "$ROOT/usr/bin/busybox" "$FOLDER/bin/busybox"
cp "$VM/src/planted/planted.ko" "$FOLDER/"
cat >"$FOLDER/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debug /sys/kernel/debug
# Lock order first: the report of a memory error turns the checker of locks off.
for i in 2 1 3 4; do insmod /planted.ko bug=$i && rmmod planted; done
for i in 1 2; do echo scan >/sys/kernel/debug/kmemleak; sleep 6; done
cat /sys/kernel/debug/kmemleak
poweroff -f
INIT
chmod +x "$FOLDER/init"
"$HERE/boot.sh" "$FOLDER" >"$VM/boot/planted.log"
for sign in 'KASAN: slab-use-after-free' 'possible circular locking' 'sleeping function called from invalid' \
    'unreferenced object'; do
    grep -aq "$sign" "$VM/boot/planted.log" || {
        echo "error: the debug kernel overlooks a planted bug: $sign" >&2
        exit 1
    }
done
echo "the debug kernel catches all planted bugs"
