# What a driver sees and what it is refused; each line of the kernel's log starts with "rogue".
b=/bin/busybox
say() { echo "rogue $*" > /dev/kmsg; }
refused() { what=$1; shift; if "$@" > /dev/null 2>&1; then say "CAN $what"; else say "cannot $what"; fi; }
say "root: $($b ls / | $b tr '\n' ' ')"
say "dev: $($b ls /dev | $b tr '\n' ' ')"
[ "$($b id -u)" -ge 61184 ] && say "own user"
[ "$($b id -u)" = "$($b id -g)" ] && say "own group"
say "$($b grep NoNewPrivs /proc/self/status | $b tr '\t' ' ')"
say "$($b grep CapEff /proc/self/status | $b tr '\t' ' ')"
say "$($b grep CapBnd /proc/self/status | $b tr '\t' ' ')"
refused "read the passwords" $b cat /etc/shadow
refused "read another's memory" $b dd if=/proc/1/mem bs=1 count=1
refused "read another's root" $b ls /proc/1/root/
refused "kill init" $b kill -CONT 1
refused "kill the device manager" $b kill -CONT "$($b pidof ursa-devd)"
refused "make a device" $b mknod /dev/vfio0 c 511 0
refused "make a device in its root" $b mknod /vfio0 c 511 0
refused "write to its root" $b touch /x
refused "write to its view" $b touch /opt/rogue.sh
refused "mount" $b mount -t proc proc /proc
refused "leave its root" $b chroot /proc $b true
refused "open a device" $b cat /dev/vfio/devices/vfio0
refused "open memory" $b cat /dev/mem
say "open: $($b ls /proc/self/fd | $b wc -l)"
say end
