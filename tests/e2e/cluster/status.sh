#!/bin/bash
# Says what runs; exit code 0 when everything does and the node is ready.
. "$(dirname "$0")/lib.sh"
code=0
for name in $ALL; do
  if alive "$name"; then echo "$name: runs"; else echo "$name: does not run"; code=1; fi
done
if [ $code = 0 ] && node_ready; then echo "node1: ready"; else echo "node1: not ready"; code=1; fi
echo "kubeconfig: $KUBECONFIG"
exit $code
