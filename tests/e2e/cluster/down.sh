#!/bin/bash
# down.sh            stops everything that up.sh started and removes what it left; data is kept
# down.sh NAME...    stops only these (kubelet, containerd, kube-apiserver, etcd, ...); up.sh starts them again
# down.sh --wipe     as the first, and removes the data: the next up.sh starts an empty cluster
. "$(dirname "$0")/lib.sh"
WIPE=
[ "$1" = --wipe ] && { WIPE=1; shift; }
if [ $# -gt 0 ]; then
  for name in "$@"; do stop "$name"; done
  exit 0
fi

stop kubelet
if alive containerd; then
  CTR="$BIN/ctr --address $RUN/containerd/containerd.sock -n k8s.io"
  for task in $($CTR tasks ls -q 2>/dev/null); do $CTR tasks kill -s KILL "$task" >/dev/null 2>&1; done
  sleep 1
  for task in $($CTR tasks ls -q 2>/dev/null); do $CTR tasks delete -f "$task" >/dev/null 2>&1; done
  for container in $($CTR containers ls -q 2>/dev/null); do $CTR containers rm "$container" >/dev/null 2>&1; done
fi
for name in kube-proxy kube-scheduler kube-controller-manager kube-apiserver etcd containerd forward holder; do stop $name; done

# Shims that are left, and what runs under them: exactly those whose command line names our containerd's socket.
for entry in /proc/[0-9]*; do
  words=$(tr '\0' ' ' 2>/dev/null <"$entry/cmdline")
  case "$words" in
  *containerd-shim-runc-v2*"-address $RUN/containerd/containerd.sock"*)
    pid=${entry#/proc/}
    kill -9 $(cat "$entry"/task/*/children 2>/dev/null) "$pid" 2>/dev/null
    ;;
  esac
done
while umount -l "/run/netns/$NS" 2>/dev/null; do :; done
rm -f "/run/netns/$NS"
rm -rf "$RUN/cni" "$RUN/containerd"
for folder in /sys/fs/cgroup/*"$KUBE_CGROUP"/kubepods "/sys/fs/cgroup$KUBE_CGROUP/kubepods"; do
  [ -d "$folder" ] && find "$folder" -depth -type d -exec rmdir {} \; 2>/dev/null
done
[ -f "$RUN/sysctl.saved" ] && {
  while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$RUN/sysctl.saved"
  rm -f "$RUN/sysctl.saved"
}
[ -n "$WIPE" ] && rm -rf "$B/data"
rm -f "$RUN/up" "$RUN/held" "$RUN"/*.pid
echo "cluster: down"
