# Makes a host of the namespaces that this shell was started in, and becomes its
# pid 1. Its arguments are in the environment: ROOT, NAME, LINK, PROGRAMS, SHARED,
# STORAGE (a directory, or a size), BOOT_ID.
set -e
mount --make-rprivate /
new=$(mktemp -d "$LINK/root.XXXXXX")
mount --rbind "$ROOT" "$new"
mount -o remount,bind,ro "$new"
mount -t proc proc "$new/proc"
mount -t tmpfs -o mode=755 dev "$new/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
    path=$new/dev/${node%%:*} numbers=${node#*:}
    mkdir -p "${path%/*}"
    mknod -m 666 "$path" c "${numbers%:*}" "${numbers#*:}"
done
mkdir "$new/dev/pts" "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$new/dev/pts"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"
mount -t tmpfs shm "$new/dev/shm"
mount -t sysfs -o ro sys "$new/sys"
mount -t cgroup2 cgroup "$new/sys/fs/cgroup"
for place in run tmp root usr/local; do
    mount -t tmpfs -o mode=755 tmpfs "$new/$place"
done
mkdir -p "$new/usr/local/bin"
case $STORAGE in
/*) mount --bind "$STORAGE" "$new/var/lib/migrator" ;;
*) mount -t tmpfs -o "size=$STORAGE" tmpfs "$new/var/lib/migrator" ;;
esac
mount --bind "$SHARED" "$new/mnt/shared"
mount --bind "$LINK" "$new/mnt/link"
mount --bind "$PROGRAMS" "$new/mnt/programs"
echo "$BOOT_ID" >"$new/run/boot_id"
mount --bind "$new/run/boot_id" "$new/proc/sys/kernel/random/boot_id"
hostname "$NAME"
ip link set lo up
cd "$new"
pivot_root . mnt/old
umount -l mnt/old
cp /mnt/programs/migrator /usr/local/bin/migrator
echo booted >"/mnt/link/$NAME.booted"
exec tini -- sleep infinity
