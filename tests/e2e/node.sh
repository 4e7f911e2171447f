#!/usr/bin/env bash
# The first process of a node, in network, mount, PID, IPC and UTS namespaces of its own: prepares what a kubelet expects of
# a machine, starts containerd, the kubelet and an SSH server (the suite restarts programs over SSH), and waits.
# Killing it ends everything on the node, with all mounts.
#   node.sh NAME ADDRESSES STATE PROGRAMS ZONE
set -euo pipefail
shopt -s nullglob
name=$1 addresses=$2 state=$3 programs=$4 zone=$5
export PATH=$programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
log=$state/log

hostname "$name"
# The sysfs of this network namespace, with the cgroups of the machine.
mkdir -p "$state/cgroups"
mount --rbind /sys/fs/cgroup "$state/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$state/cgroups" /sys/fs/cgroup
umount -l "$state/cgroups"

# Files that the node's programs create below these directories must not appear on the machine.
mkdir -p "$state/overlay"
mount -t tmpfs -o mode=755 tmpfs "$state/overlay"
for directory in etc var/lib var/log; do
  layer=$state/overlay/${directory//\//-}
  mkdir -p "$layer"/{upper,work}
  mount -t overlay -o "lowerdir=/$directory,upperdir=$layer/upper,workdir=$layer/work" overlay "/$directory"
done
# Unpacked images are some 20,000 files, which a disk needs minutes to delete.
mount -t tmpfs tmpfs "$state/containerd"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
# The SSH server reads the keys of the suite in root's home directory, which is another one here.
install -D --mode=600 "$state/../ssh/id.pub" /run/home/.ssh/authorized_keys
sed -i 's#^\(root:[^:]*:0:0:[^:]*\):[^:]*#\1:/run/home#' /etc/passwd
for mounted in kubelet:/var/lib/kubelet pods:/var/log/pods; do
  mkdir -p "$state/${mounted%%:*}" "${mounted#*:}"
  mount --bind "$state/${mounted%%:*}" "${mounted#*:}"
done
# Pods mount the node's modules; the kernel of the tests needs none. The root directory is not ours to create one in.
mkdir -p /etc/cni/net.d /var/lib/cni
printf '127.0.0.1 localhost\n%s %s\n' "${addresses%,*}" "$name" >/etc/hosts
cp "$state/cni.conflist" /etc/cni/net.d/10-bridge.conflist
: >/etc/resolv.conf

# The kubelet sets these for the whole machine: show it files that already have the values it wants.
mkdir -p /run/sysctl
for setting in kernel/panic=10 kernel/panic_on_oops=1 vm/overcommit_memory=1 vm/panic_on_oom=0 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=/run/sysctl/${setting//[\/=]/_}
  echo "${setting#*=}" >"$file"
  [[ ! -e /proc/sys/${setting%=*} ]] || mount --bind "$file" "/proc/sys/${setting%=*}"
done
# Mounts of containers must reach the kubelet and back.
mount --make-rshared /

containerd --config "$state/containerd.toml" >"$log/containerd.log" 2>&1 &
until ctr --address /run/containerd/containerd.sock version >/dev/null 2>&1; do sleep 0.2; done
for archive in "$state"/../images/*.tar; do
  ctr --address /run/containerd/containerd.sock --namespace k8s.io images import "$archive" >>"$log/import.log" 2>&1
done
kubelet --config "$state/kubelet.yaml" --kubeconfig "$state/kubeconfig" --hostname-override "$name" --node-ip "$addresses" \
  --node-labels "topology.kubernetes.io/zone=$zone,topology.kubernetes.io/region=region" >"$log/kubelet.log" 2>&1 &
dropbear -F -E -r "$state/../ssh/host" -p "${addresses%,*}:22" >"$log/ssh.log" 2>&1 &

# A shell that is the first process of its namespace also reaps the processes that are left to it.
while :; do sleep infinity & wait $!; done
