# Common to the cluster's scripts. KUBE_HOME holds everything that the cluster is made of; KUBE_NAME is its network
# namespace and KUBE_PORT its port on the host, so that two clusters can run side by side. KUBE_API_PORT is where the API
# server listens in its namespace, and what the endpoints of the Service "kubernetes" say.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
B=${KUBE_HOME:-$HOME/.cache/confcom-kubernetes}
BIN=$B/bin RUN=$B/run LOG=$B/logs NS=${KUBE_NAME:-kube} PORT=${KUBE_PORT:-6443} API_PORT=${KUBE_API_PORT:-6443} NODE_ADDRESS=10.240.0.1
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export KUBECONFIG=$B/admin.kubeconfig
# A parent's socket activation or proxies are not for the cluster's programs.
unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy NOTIFY_SOCKET LISTEN_FDS
# What pods and the kubelet leave on a node: folders of this cluster's own, seen in its mount namespace alone.
NODE_FOLDERS="/var/lib/kubelet /var/log/pods /var/log/containers /var/lib/confcom /run/aesmd /run/cdi /etc/cdi"
ALL="holder etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy containerd kubelet forward"

# Whether the process of the name's pid file is ours and lives: pids are given out again after a hard end.
alive() {
  local pid
  pid=$(cat "$RUN/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
  tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE -- "^($BIN/$1|.*/testcluster/$1\.py)$"
}

start() { # NAME COMMAND...: in the cluster's namespaces
  local name=$1
  shift
  launch "$name" nsenter --net=/run/netns/$NS --mount=/proc/$(cat "$RUN/holder.pid")/ns/mnt -- "$@"
}

launch() { # NAME COMMAND...
  local name=$1
  shift
  alive "$name" && return 0
  [ -f "$LOG/$name.log" ] && mv -f "$LOG/$name.log" "$LOG/$name.log.old"
  setsid "$@" >"$LOG/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/$name.pid"
  echo "started $name"
}

stop() { # NAME
  local pid
  pid=$(cat "$RUN/$1.pid" 2>/dev/null)
  if alive "$1"; then
    kill "$pid"
    for _ in $(seq 100); do
      alive "$1" || break
      sleep 0.1
    done
    alive "$1" && kill -9 "$pid"
    echo "stopped $1"
  fi
  rm -f "$RUN/$1.pid"
}

waitfor() { # SECONDS WHAT COMMAND...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ $SECONDS -ge $deadline ]; then
      echo "cluster: gave up waiting for $what; the logs are in $LOG" >&2
      return 1
    fi
    sleep 0.2
  done
}

kapi() { nsenter --net=/run/netns/$NS -- "$BIN/kubectl" --kubeconfig "$B/kubeconfig/admin.kubeconfig" "$@"; }
node_ready() { kapi get node node1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null | grep -q True; }
