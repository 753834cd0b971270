#!/bin/sh
# What udhcpc calls in a virtual machine.
case $1 in
  deconfig)
    ip address flush dev "$interface"
    ip link set "$interface" up
    ;;
  bound | renew)
    ip address replace "$ip/$mask" dev "$interface"
    for address in $router; do ip route replace default via "$address" dev "$interface"; done
    : >/etc/resolv.conf
    for address in $dns; do echo "nameserver $address" >>/etc/resolv.conf; done
    ;;
esac
