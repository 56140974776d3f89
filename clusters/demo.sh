#!/usr/bin/env bash
# The demo as a cluster runs it: a head and two workers on this machine, token authentication on, and pretraining and
# fine-tuning of the synthetic recipe submitted as jobs, one after the other, with their progress shown.
#
#   bring up, submit, watch and take down    clusters/demo.sh RUNS [key=value of pretraining …]
#   the same from the lock's environment     make cluster-demo
#
# The cluster has ports, temporary folder and token of its own. However this ends (Ctrl-C and failures too), its
# processes are taken down, and nobody else's. Run again, it goes on from what is done.
set -euo pipefail
umask 077

[ $# -ge 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
RUNS=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."

free_ports() { # two ports of 127.0.0.1 that nobody listens on
    python -c '
import socket
pair = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in pair))'
}

end() {
    local code=$?
    trap - EXIT INT TERM
    clusters/local.sh down || code=1
    [ "$code" -ne 0 ] || rm -rf "$MANYVIEW_LOCAL"
    [ "$code" -eq 0 ] || echo "stopped (exit code $code); logs of the nodes: $MANYVIEW_LOCAL" >&2
    exit "$code"
}

export RAY_AUTH_MODE=token
# Short, since Ray's sockets lie below it and their names may have 107 characters.
MANYVIEW_LOCAL=$(mktemp -d /tmp/manyview-XXXXXX)
read -r MANYVIEW_PORT MANYVIEW_DASHBOARD_PORT < <(free_ports)
export MANYVIEW_LOCAL MANYVIEW_PORT MANYVIEW_DASHBOARD_PORT MANYVIEW_WORKERS=2
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

unset RAY_ADDRESS # another cluster's
python -m data import source=synthetic out="$RUNS/data"
clusters/local.sh up
clusters/local.sh submit python -m pretrain pretrain/recipes/synthetic.yaml \
    data="$RUNS/data" run="$RUNS/pretrain" cluster.num_workers=2 "$@"
echo "pretrained after $SECONDS s"
clusters/local.sh submit python -m finetune finetune/recipes/synthetic.yaml \
    data="$RUNS/data" encoder="$RUNS/pretrain" out="$RUNS/finetune" cluster.num_workers=2
echo "fine-tuned after $SECONDS s; report: $RUNS/finetune/report.html"
