#!/bin/sh
# What busybox's udhcpc calls when something happens: the address, the way out and the name server as the server gave them.
case $1 in
bound | renew)
    ip addr replace "$ip/$mask" dev "$interface"
    [ -n "$router" ] && ip route replace default via "${router%% *}" dev "$interface"
    printf 'nameserver %s\n' $dns >/etc/resolv.conf
    ;;
esac
