#!/bin/sh
# Beam's boot program as user 1000, whoever starts the container.
#
# Dataflow starts it as root, and hands it a folder that root owns (--semi_persist_dir, /var/opt/google there): boot
# stores there what is staged, and ends if it cannot. Flink on Kubernetes starts it as user 1000 (runAsUser).
set -eu
boot=${PCONV_BOOT:-/opt/apache/beam/boot}

[ "$(id -u)" = 0 ] || exec "$boot" "$@"

folder=
for word; do
    case ${next-}$word in
        next* | --semi_persist_dir=* | -semi_persist_dir=*) folder=${word#*semi_persist_dir=} ;;
    esac
    next=
    case $word in --semi_persist_dir | -semi_persist_dir) next=next ;; esac
done
drop() { exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs "$@"; }
# The folder itself and nothing in it, and only where it is needed: boot's own default is /tmp.
if [ -n "$folder" ]; then
    mkdir -p "$folder"
    (drop test -w "$folder") || chown 1000:1000 "$folder"
fi
export HOME=/home/pconv USER=pconv LOGNAME=pconv
drop "$boot" "$@"
