# Overwrites blocks that exist, each by another way to store, and sets a mark when the data is acknowledged: as the kernel
# does it by default, and with each of three faults. $1 is a file system's number, $2 a name for what is wrong.
cd /mnt
for n in 0 1; do
  for v in base nocache through nobarrier; do for w in write mmap sync; do
    head -c 4096 /dev/zero | tr '\0' o > pmem$n/$v-$w
  done; done
done
sync
for f in pmem0/* pmem1/*; do
  [ -f $f ] && echo $f $(filefrag -v $f | awk '$1=="0:"{print $4}' | tr -d .:)
done
nvsim-mark begin
run() { for w in write mmap sync; do nvsim-store $w pmem$1/$2-$w 0 4096 N $1-$2-$w || exit 1; done; }
for n in 0 1; do
  run $n base
  sync
  b=/sys/block/pmem$n
  c=$(cat $b/dax/write_cache)
  echo 0 > $b/dax/write_cache; run $n nocache; echo $c > $b/dax/write_cache; sync
  echo 'write through' > $b/queue/write_cache; run $n through; echo 'write back' > $b/queue/write_cache; sync
done
mount -o remount,nobarrier /mnt/pmem0 && run 0 nobarrier
nvsim-mark end
