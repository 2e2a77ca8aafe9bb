#!/bin/bash
# Starts the single-node cluster, or what of it is not running, in namespaces of its own. Idempotent.
# Further flags from the environment: KUBELET_ARGS, APISERVER_ARGS, SCHEDULER_ARGS, CONTROLLER_MANAGER_ARGS.
# FEATURE_GATES=A=true,B=false goes to all. KUBE_STATUS_SECONDS is how often the kubelet writes its node's status.
. "$(dirname "$0")/lib.sh"

# A cluster that was stopped by down.sh starts again as it was. One that was killed left mounts, sandboxes without
# processes and half-written state: that one is emptied first. A part that was stopped alone leaves its name.
running=0 crashed=
for name in $ALL; do
  if alive "$name"; then running=$((running + 1)); elif [ -e "$RUN/$name.pid" ]; then crashed=1; fi
done
if [ $running = 0 ] && { [ -n "$crashed" ] || [ -e "$RUN/up" ]; }; then
  echo "cluster: the last one was not stopped in order; starting an empty one"
  "$HERE/down.sh" --wipe >/dev/null
fi

mkdir -p "$RUN" "$LOG" "$B/data/volume-plugins" "$B/etc/cni/net.d" "$B/images" $NODE_FOLDERS
touch "$RUN/up"
for name in kubelet.yaml containerd.toml admission.yaml webhooks.kubeconfig; do
  sed "s#@KUBE_HOME@#$B#g; s#@STATUS_SECONDS@#${KUBE_STATUS_SECONDS:-10}#" "$HERE/templates/$name" >"$B/etc/$name"
done
[ -z "$KUBE_CGROUP" ] || for folder in /sys/fs/cgroup/*; do
  mkdir -p "$folder$KUBE_CGROUP" 2>/dev/null || continue
  for file in cpuset.cpus cpuset.mems; do
    [ -e "$folder/$file" ] && cat "$folder/$file" >"$folder$KUBE_CGROUP/$file"
  done
done
sed "s#@KUBE_HOME@#$B#g" "$HERE/templates/10-ptp.conflist" >"$B/etc/cni/net.d/10-ptp.conflist"
echo "nameserver 10.96.0.10" >"$B/etc/resolv.conf"
for name in kubelet kube-apiserver kube-scheduler kube-controller-manager kube-proxy kubectl; do ln -sf kube "$BIN/$name"; done
# What a version does not know yet: the kubelet refuses fields that it cannot read.
MINOR=$("$BIN/kubelet" --version | sed 's/.* v1\.\([0-9]*\).*/\1/')
[ "$MINOR" -ge 31 ] || sed -i /failCgroupV1/d "$B/etc/kubelet.yaml"
[ "$MINOR" -ge 35 ] || sed -i /crashLoopBackOff/d "$B/etc/kubelet.yaml"
"$HERE/gencerts.sh" "$B" "$PORT" || exit 1
sed -i "s#127.0.0.1:[0-9]*#127.0.0.1:$API_PORT#" "$B"/kubeconfig/*.kubeconfig

# Sysctls that the kubelet sets: down.sh sets them back.
[ -f "$RUN/sysctl.saved" ] || for name in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
  echo "$name $(cat /proc/sys/$name)" >>"$RUN/sysctl.saved"
done
nsenter --net=/run/netns/$NS true 2>/dev/null || {
  rm -f /run/netns/$NS
  ip netns add $NS || exit 1
}
N="nsenter --net=/run/netns/$NS --"
$N ip link set lo up
if ! $N ip link show node0 >/dev/null 2>&1; then
  $N ip link add node0 type bridge && $N ip addr add $NODE_ADDRESS/24 dev node0 && $N ip link set node0 up &&
    $N ip route add default dev node0 || exit 1
fi
$N sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet' 2>/dev/null

# Mounts live in a namespace that ends with its last process, so that even a hard end leaves none. They are shared in it
# as on any systemd host: hostPath volumes with mountPropagation need that.
cat >"$BIN/holder" <<'HOLDER'
#!/bin/bash
# FOLDER: binds what is in FOLDER/data/node over the node's folders, and holds the namespace.
mount --make-rprivate / && mount --make-rshared / || exit 1
for folder in $NODE_FOLDERS; do
  mkdir -p "$1/data/node$folder" && mount --bind "$1/data/node$folder" "$folder" || exit 1
done
mount -t tmpfs netns /run/netns && touch "$1/run/held" && exec -a "$0" sleep infinity
HOLDER
chmod 755 "$BIN/holder"
alive holder || rm -f "$RUN/held"
NODE_FOLDERS=$NODE_FOLDERS launch holder unshare --mount "$BIN/holder" "$B"
waitfor 10 "the mount namespace" test -e "$RUN/held" || exit 1

GATES=${FEATURE_GATES:+--feature-gates=$FEATURE_GATES}
PKI=$B/pki CONFIGS=$B/kubeconfig
start etcd "$BIN/etcd" --name n1 --data-dir "$B/data/etcd" --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster n1=http://127.0.0.1:2380 \
  --unsafe-no-fsync --quota-backend-bytes 4294967296 --auto-compaction-retention 5m --log-level warn
start containerd "$BIN/containerd" --config "$B/etc/containerd.toml"
start kube-apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address=$NODE_ADDRESS \
  --bind-address=0.0.0.0 --secure-port=$API_PORT --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC \
  --enable-admission-plugins=NodeRestriction --admission-control-config-file=$B/etc/admission.yaml --allow-privileged=true --client-ca-file=$PKI/ca.crt \
  --tls-cert-file=$PKI/apiserver.crt --tls-private-key-file=$PKI/apiserver.key \
  --kubelet-client-certificate=$PKI/kubelet-client.crt --kubelet-client-key=$PKI/kubelet-client.key \
  --kubelet-certificate-authority=$PKI/ca.crt --kubelet-preferred-address-types=InternalIP \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file=$PKI/sa.pub --service-account-signing-key-file=$PKI/sa.key \
  --proxy-client-cert-file=$PKI/front-proxy-client.crt --proxy-client-key-file=$PKI/front-proxy-client.key \
  --requestheader-client-ca-file=$PKI/front-ca.crt --requestheader-allowed-names=front-proxy-client \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- \
  --enable-aggregator-routing=true --anonymous-auth=true --v=2 $GATES $APISERVER_ARGS
waitfor 120 "the API server" kapi get --raw /readyz || exit 1
# Controllers that neither wait for their own limit of requests, nor look at metrics more rarely than these change.
start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig=$CONFIGS/kcm.kubeconfig \
  --authentication-kubeconfig=$CONFIGS/kcm.kubeconfig --authorization-kubeconfig=$CONFIGS/kcm.kubeconfig \
  --leader-elect=false --use-service-account-credentials=true --root-ca-file=$PKI/ca.crt \
  --service-account-private-key-file=$PKI/sa.key --client-ca-file=$PKI/ca.crt \
  --cluster-signing-cert-file=$PKI/ca.crt --cluster-signing-key-file=$PKI/ca.key --bind-address=127.0.0.1 \
  --kube-api-qps=200 --kube-api-burst=400 --horizontal-pod-autoscaler-sync-period=3s \
  --v=2 $GATES $CONTROLLER_MANAGER_ARGS
start kube-scheduler "$BIN/kube-scheduler" --kubeconfig=$CONFIGS/scheduler.kubeconfig \
  --authentication-kubeconfig=$CONFIGS/scheduler.kubeconfig \
  --authorization-kubeconfig=$CONFIGS/scheduler.kubeconfig --leader-elect=false --bind-address=127.0.0.1 \
  --v=2 $GATES $SCHEDULER_ARGS
start kube-proxy "$BIN/kube-proxy" --kubeconfig=$CONFIGS/proxy.kubeconfig --proxy-mode=iptables \
  --cluster-cidr=10.244.0.0/22 --hostname-override=node1 --conntrack-max-per-core=0 \
  --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --bind-address=$NODE_ADDRESS --v=2 $GATES

CTR="$BIN/ctr --address $RUN/containerd/containerd.sock -n k8s.io"
waitfor 60 containerd $CTR version || exit 1
$CTR images ls -q | grep -qx localhost/pause:1 || $CTR images import --local "$B/images/pause.tar" || exit 1
start kubelet "$BIN/kubelet" --config="$B/etc/kubelet.yaml" --kubeconfig=$CONFIGS/kubelet.kubeconfig \
  --hostname-override=node1 --node-ip=$NODE_ADDRESS --root-dir=/var/lib/kubelet --cgroup-root=${KUBE_CGROUP:-/} \
  --tls-cert-file=$PKI/kubelet-server.crt --tls-private-key-file=$PKI/kubelet-server.key --v=${KUBELET_V:-2} $GATES $KUBELET_ARGS
launch forward python3 "$HERE/../../../scripts/testcluster/forward.py" /run/netns/$NS "$PORT" "$API_PORT"
waitfor 60 "the way to the API server" "$BIN/kubectl" get --raw /readyz || exit 1
waitfor 180 "the node to be ready" node_ready || exit 1
waitfor 60 "the default service account" kapi get sa default || exit 1
kapi get nodes -o wide
