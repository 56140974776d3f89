#!/usr/bin/env bash
# A Ray cluster on this one Linux machine: a head and some workers, token authentication on, on 127.0.0.1 only.
#
#   bring up    clusters/local.sh up
#   submit      clusters/local.sh submit python -m pretrain RECIPE.yaml data=/abs/ham run=/abs/run cluster.num_workers=2
#   watch       clusters/local.sh watch       # resources and jobs; `clusters/local.sh ray job logs -f ID` follows one
#   take down   clusters/local.sh down             # this cluster's own processes, and no other Ray's
#
# Run it with the environment activated: a job's `python` is the one on PATH. Paths in a submitted command are
# absolute, since a job runs in a copy of the current folder. MANYVIEW_WORKERS (2), MANYVIEW_WORKER_CPUS (1) and
# MANYVIEW_WORKER_GPUS (0) say what to start. Token, process ids and logs lie in MANYVIEW_LOCAL, readable by you
# alone. `ray stop` is never called: it would stop every Ray on the machine.
set -euo pipefail
umask 077

STATE=${MANYVIEW_LOCAL:-$HOME/.cache/manyview/local-cluster}
WORKERS=${MANYVIEW_WORKERS:-2}
WORKER_CPUS=${MANYVIEW_WORKER_CPUS:-1}
WORKER_GPUS=${MANYVIEW_WORKER_GPUS:-0}
PORT=${MANYVIEW_PORT:-6399}
DASHBOARD_PORT=${MANYVIEW_DASHBOARD_PORT:-8299}

export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$STATE/token
export RAY_USAGE_STATS_ENABLED=0
export RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9  # that nothing is reported is reported too
export RAY_JOB_STOP_WAIT_TIME_S=180  # `ray job stop` kills a driver after 3 s otherwise, before its step is saved
# A proxy would be shown the token, and what is submitted.
export no_proxy=127.0.0.1${no_proxy:+,$no_proxy} NO_PROXY=127.0.0.1${NO_PROXY:+,$NO_PROXY}
export RAY_ADDRESS=127.0.0.1:$PORT
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD_PORT
# As on a Mac: 127.0.0.1 is left as it is, where Ray on Linux would replace it by an address that others can reach.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

# Several nodes on 127.0.0.1 are what Ray refuses then, so that it is told otherwise once its address is settled.
RAY_START='
import ray._private.ray_constants as constants
import ray._private.services as services
import ray.scripts.scripts as scripts
constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
scripts.main()'

mine() { # the folder is this user's, and so is a link to it: else somebody else could read the token, or give one
    [ -O "$STATE" ] && [ "$(stat -c %u "$STATE")" = "$UID" ] ||
        { echo "$STATE belongs to somebody else; set MANYVIEW_LOCAL to a folder of yours" >&2; exit 2; }
}

processes() { # ids of this cluster's processes, one a line: they inherit a mark that no other process has
    grep -lzxF "MANYVIEW_LOCAL_CLUSTER=$STATE" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
}

start() { # start NAME option…: one Ray node in a session of its own, until it is killed; returns once it runs
    local name=$1 attempt
    shift
    rm -f "$STATE/$name.log"
    for attempt in 1 2 3; do # Ray gives a node half a minute, which a busy machine may need more than
        MANYVIEW_LOCAL_CLUSTER=$STATE setsid python -c "$RAY_START" start --block --node-ip-address=127.0.0.1 \
            --dashboard-agent-listen-port=0 --object-store-memory="${MANYVIEW_OBJECT_STORE:-500000000}" \
            "$@" >"$STATE/$name.log" 2>&1 </dev/null &
        echo $! >>"$STATE/ids"
        for _ in $(seq 240); do
            ! grep -q "runtime started" "$STATE/$name.log" || return 0
            kill -0 $! 2>/dev/null || break
            sleep 0.5
        done
        # With all that it has started, and gone before the next, which wants the same port.
        kill -KILL -- "-$!" 2>/dev/null || true
        wait $! 2>/dev/null || true
        echo "the $name did not start (attempt $attempt of 3); all of it: $STATE/$name.log" >&2
    done
    down
    exit 1
}

up() {
    [ -z "$(processes)" ] || { echo "this cluster is up already; take it down with: $0 down" >&2; exit 2; }
    mkdir -p "$STATE"
    mine
    chmod 700 "$STATE"
    # Files of before would keep their modes, and links would be followed.
    rm -rf "$STATE/ray" "$STATE/ids" "$RAY_AUTH_TOKEN_PATH"
    : >"$STATE/ids"
    head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
    # A head without cores: only the drivers of jobs run there.
    start head --head --port="$PORT" --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 \
        --dashboard-port="$DASHBOARD_PORT" --temp-dir="$STATE/ray"
    for worker in $(seq "$WORKERS"); do
        start "worker-$worker" --address="$RAY_ADDRESS" --num-cpus="$WORKER_CPUS" --num-gpus="$WORKER_GPUS"
    done
    echo "a head and $WORKERS workers are up on 127.0.0.1; next: $0 submit python -m pretrain …"
}

down() {
    # First the three `ray start`, which end their own nodes; then whatever of this cluster is left.
    if [ -f "$STATE/ids" ]; then
        comm -12 <(sort "$STATE/ids") <(processes | sort) | xargs -r kill 2>/dev/null || true
    fi
    for second in $(seq 20); do
        [ -n "$(processes)" ] || break
        [ "$second" -ne 10 ] || processes | xargs -r kill 2>/dev/null || true
        [ "$second" -ne 16 ] || processes | xargs -r kill -KILL 2>/dev/null || true
        sleep 1
    done
    [ -z "$(processes)" ] || { echo "still there: $(processes | tr '\n' ' ')" >&2; exit 1; }
    rm -rf "$STATE/ray" "$STATE/ids" "$RAY_AUTH_TOKEN_PATH"
    echo "all processes of this cluster are gone"
}

[ ! -e "$STATE" ] || mine
case ${1:-} in
    up) up ;;
    down) down ;;
    submit)
        shift
        exec ray job submit --working-dir . -- "$@"
        ;;
    watch)
        ray status
        ray job list
        ;;
    ray)
        shift
        exec ray "$@"
        ;;
    *)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 2
        ;;
esac
