#!/bin/sh
# The first process of a virtual machine: it runs the scripts that come over the serial line, one a line in base64,
# and answers with what each printed, in base64, and "END STATUS".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home TMPDIR=/run/tmp LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir /run/home /run/tmp
if [ -d /usr/lib/uml ]; then # the root directory is the host's, read-only
  mkdir /run/etc
  for file in passwd group hosts nsswitch.conf services protocols ld.so.cache; do
    cp /etc/$file /run/etc # all of them would take a second
  done
  mount --bind /run/etc /etc
else
  mount -t devtmpfs dev /dev
  for module in $(cat /modules/order); do insmod /modules/"$module"; done
fi
ip link set lo up
stty -F /dev/ttyS0 raw -echo
exec 3<>/dev/ttyS0
echo READY >&3
while read -r line <&3; do
  echo "$line" | base64 -d >/run/script
  sh /run/script >/run/output 2>&1 </dev/null 3>&-
  status=$?
  base64 /run/output >&3
  echo "END $status" >&3
done
poweroff -f
