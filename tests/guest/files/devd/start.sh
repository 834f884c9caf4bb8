# Starts the device manager $1 in place of any other, with nothing left of one, and waits until all devices are set up.
export PATH=$PATH:/usr/sbin:/usr/lib/systemd
mountpoint -q /sys || mount -t sysfs sysfs /sys

stop_manager() {
    udevadm control --exit 2>/dev/null
    for _ in $(seq 100); do pgrep -x 'ursa-devd|systemd-udevd|udevadm' >/dev/null || break; sleep 0.1; done
}

start_manager() {
    mkdir -p /run/udev
    case $1 in
    devd)
        ursa-devd 2>/tmp/devd.log &
        for _ in $(seq 600); do grep -q 'all devices are set up' /tmp/devd.log && break; sleep 0.1; done
        ;;
    udevd)
        systemd-udevd --daemon 2>/tmp/udevd.log
        udevadm trigger --type=subsystems --action=add
        udevadm trigger --type=devices --action=add
        ;;
    esac
    udevadm settle --timeout=60
}

forget_all() {
    find /run/udev -mindepth 1 -maxdepth 1 -not -name rules.d -exec rm -rf {} +
    find /dev -type l \( -path '*/by-*' -o -path '/dev/char/*' -o -path '/dev/block/*' -o -name rtc \) -delete
}

# What clients see of the devices: the database, and nodes with owner, mode and links.
dump() {
    udevadm info --export-db > "$1.db"
    find /dev \( -name pts -o -name shm -o -name mqueue -o -name fd \) -prune -o \
        \( -type c -o -type b -o -type l \) -not -name '.*' -printf '%p %y %m %u:%g %l\n' | sort > "$1.nodes"
}
