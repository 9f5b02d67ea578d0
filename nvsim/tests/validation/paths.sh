#!/bin/sh
# Takes every way by which the kernel stores to, flushes and fences persistent memory, and prints what its trace events told
# of each: `SCENARIO|EVENT KIND|FUNCTION FUNCTION ...`, innermost function first, every distinct line once.
T=/sys/kernel/tracing
[ -d $T/events ] || mount -t tracefs tracefs $T
echo 1 >$T/options/stacktrace
echo 1 >$T/events/pmem/enable

begin() { echo >$T/trace; echo 1 >$T/tracing_on; }
end() {
    echo 0 >$T/tracing_on
    awk -v scenario="$1" '
        function told() { if (event != "") print scenario "|" event "|" stack; event = ""; stack = "" }
        / pmem_[a-z]+: / {
            told()
            for (n = 1; n <= NF; n++) if ($n ~ /^pmem_[a-z]+:$/) break
            event = $n; sub(":", "", event)
            kind = ""
            for (; n <= NF; n++) if ($n ~ /^(cached|nt|user-nt|clwb|clflush-fenced|clflushopt|cpu|host)$/) kind = $n
            event = event " " kind
        }
        /^ => / { stack = stack (stack == "" ? "" : " ") $2 }
        END { told() }' $T/trace | sort -u
}
scenario() { name=$1; shift; begin; "$@" >/tmp/said 2>&1 || { echo 0 >$T/tracing_on; echo "$name failed: $(cat /tmp/said)" >&2; }; end "$name"; }

fill() { dd if=/dev/urandom of="$1" bs=4096 count="$2" conv=notrunc 2>/dev/null; }
ext4=/mnt/pmem0 xfs=/mnt/pmem1 ext2=/mnt/pmem2

# write(2) of whole and of odd bytes, and fsync, on each file system.
write() { fill $1/write 4; printf abcdefghi | dd of=$1/write bs=9 seek=1 conv=notrunc,fsync 2>/dev/null; }
scenario write-ext4 write $ext4
scenario write-xfs write $xfs
scenario write-ext2 write $ext2
# Stores through a mapping, msync, and a synchronous fault.
map() { fill $1/map 4; sync; xfs_io -c 'mmap -rw 0 16k' -c 'mwrite 64 128' -c 'msync -s 0 16k' $1/map; }
scenario msync-ext4 map $ext4
scenario msync-xfs map $xfs
scenario msync-ext2 map $ext2
fault() { rm -f $1/new; truncate -s 64k $1/new; sync; xfs_io -c 'mmap -S -rw 0 64k' -c 'mwrite 0 8' $1/new; }
scenario map-sync-ext4 fault $ext4
scenario map-sync-xfs fault $xfs
# The end of a page is cleared in place.
shorten() { fill $1/short 1; truncate -s 100 $1/short; }
scenario truncate-ext4 shorten $ext4
scenario truncate-xfs shorten $xfs
# Copies on write: of a mapped page, of the edges of an odd write, and of all that is shared.
share() { fill $xfs/one 4; sync; rm -f $xfs/two; xfs_io -f -c "reflink $xfs/one" $xfs/two >/dev/null; }
share; cow_fault() { xfs_io -c 'mmap -rw 0 16k' -c 'mwrite 64 8' $xfs/two; }
scenario cow-fault cow_fault
share; cow_write() { printf abc | dd of=$xfs/two bs=3 seek=100 conv=notrunc; }
scenario cow-write cow_write
share; unshare() { xfs_io -c 'funshare 0 16k' $xfs/two; }
scenario unshare unshare
# Past the file system: the driver itself, BTT, flush hints, taking a region's durability for granted no longer.
scenario direct dd if=/dev/zero of=/dev/pmem4 bs=4096 count=1 oflag=direct conv=fsync
# A map entry has 4 bytes: every other one is not aligned to 8.
scenario btt dd if=/dev/zero of=/dev/pmem3s bs=4096 count=2 oflag=direct
deep() { echo 1 >/sys/bus/nd/devices/region4/deep_flush; }
scenario deep-flush deep
# Poison: a write(2) over it is the driver's recovery, a write of the driver clears it.
poison() { ndctl inject-error --block="$2" --count=1 "$1" >/dev/null; ndctl start-scrub >/dev/null; ndctl wait-scrub >/dev/null; }
namespace() { ndctl list -N | tr -d ' ",' | awk -F: -v device="$1" '/^dev:/ { dev = $2 } /^blockdev:/ { if ($2 == device) print dev }'; }
fill $ext4/poisoned 1; sync
sector=$(xfs_io -c 'fiemap -v' $ext4/poisoned | awk '$1 == "0:" { split($3, r, "."); print r[1] }')
poison "$(namespace pmem0)" "$sector"
recover() { dd if=/dev/zero of=$ext4/poisoned bs=4096 count=1 conv=notrunc; }
scenario recovery recover
poison "$(namespace pmem4)" 64
scenario clear dd if=/dev/zero of=/dev/pmem4 bs=4096 seek=8 count=1 oflag=direct
# dm-writecache: small stores, whole blocks, its commit.
cached_disk() {
    echo "0 $(cat /sys/block/vda/size) writecache p /dev/vda /dev/pmem4 4096 0" | dmsetup --noudevsync create wc && dmsetup mknodes &&
        dd if=/dev/urandom of=/dev/mapper/wc bs=4096 count=4 oflag=direct conv=fsync && dmsetup --noudevsync remove wc
}
dd if=/dev/zero of=/dev/pmem4 bs=64k count=1 2>/dev/null; sync
scenario writecache cached_disk
# The driver goes.
unbind() { cd /sys/bus/nd/drivers/nd_pmem && echo pfn4.* >unbind; }
scenario unbind unbind
exit 0
