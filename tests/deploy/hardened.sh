# Run a command as a hardened container does: hardened.sh FOLDER "PATH PATH …" COMMAND …
#
# A root file system of its own, mounted at the empty FOLDER, that nobody can write: the system's folders, the paths named,
# and at /kit the kit that the variable KIT names. /kit/state and /tmp in memory, /kit/state the user's own; uid 10001, no
# capability, none to be had, only the environment that the images set; ports from 443 on may be listened on.
# To be started in namespaces of its own: unshare --mount --net --pid --fork --kill-child bash …
set -e
root=$1
shift
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir "$root/proc" "$root/kit" "$root/tmp" "$root/dev"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp" # first: what is named may lie in it
for path in /usr /lib /lib64 /bin /sbin /etc $1; do
    if [ -L "$path" ]; then
        ln -sn "$(readlink "$path")" "$root$path"
    elif [ -e "$path" ]; then
        mkdir -p "$root$path"
        mount --rbind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    fi
done
mount -t proc proc "$root/proc"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
mkdir "$root/kit/state"
if [ -n "$KIT" ]; then # as the manifests' first container unpacks it
    cp -r "$KIT/." "$root/kit"
    chown -R 10001:10001 "$root/kit"
fi
mount -t tmpfs -o mode=0700,uid=10001,gid=10001,nosuid,nodev tmpfs "$root/kit/state"
ip link set lo up
echo 443 >/proc/sys/net/ipv4/ip_unprivileged_port_start
mount -o remount,ro "$root"
shift
exec chroot "$root" /usr/bin/setpriv --reuid 10001 --regid 10001 --clear-groups --inh-caps=-all --bounding-set=-all \
    --no-new-privs env -i -C /kit/state HOME=/tmp PATH=/usr/sbin:/usr/bin:/bin XDG_CACHE_HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2 "$@"
