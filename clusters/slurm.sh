#!/usr/bin/env bash
# Manyview under Slurm: a Ray cluster of the job's own nodes, which ends with the job (ray symmetric-run).
#
#   once        ray get-auth-token --generate && chmod 600 ~/.ray/auth_token      # home is on every node
#               python -m clusters check clusters/slurm.sh
#   bring up and submit    sbatch --nodes=4 clusters/slurm.sh RECIPE.yaml data=/shared/ham run=/shared/runs/ham
#               MANYVIEW_ROOM=finetune sbatch --nodes=2 clusters/slurm.sh RECIPE.yaml data=… encoder=… out=…
#   watch       tail -f manyview-JOBID.log;  squeue --me
#   take down   scancel JOBID
#
# Run it from the project's folder on storage that every node sees. A job that is preempted is queued again
# (--requeue) and goes on from its newest checkpoint. Three minutes before its time is over, and on
# `scancel --batch --signal=TERM JOBID`, it saves the step that it is at and ends with 143; submit it again to go
# on. `ray symmetric-run` calls `ray stop` at its end, which stops every Ray of yours on these nodes: hence
# --exclusive. A worker a GPU; cluster.num_workers=N says otherwise, and has to on nodes without GPUs. MANYVIEW_ROOM is
# what runs: pretrain, as where it is not set, or finetune.
#SBATCH --job-name=manyview
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --open-mode=append
#SBATCH --output=manyview-%j.log
set -euo pipefail
umask 077

[ $# -ge 1 ] || { echo "usage: sbatch clusters/slurm.sh RECIPE.yaml data=DIR run=DIR [key=value …]" >&2; exit 2; }
room=${MANYVIEW_ROOM:-pretrain}
case "$room" in
    pretrain | finetune) ;;
    *) echo "MANYVIEW_ROOM is pretrain or finetune, not '$room'" >&2; exit 2 ;;
esac
[ -f .venv/bin/activate ] || { echo "no .venv here; make it with: make .venv/installed" >&2; exit 2; }
source .venv/bin/activate

export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_USAGE_STATS_ENABLED=0
export RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9  # that nothing is reported is reported too
# Nodes of a busy cluster start minutes apart; Ray itself would wait for half a minute.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

[ "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 ] || { echo "chmod 600 $RAY_AUTH_TOKEN_PATH first" >&2; exit 2; }

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}  # not by a pipe into head: scontrol may meet it closed, and pipefail would end this script
port=$((20000 + SLURM_JOB_ID % 10000))
gpus=${SLURM_GPUS_ON_NODE:-0}
workers=cluster.num_workers=$((SLURM_JOB_NUM_NODES * gpus))
[ "$gpus" -gt 0 ] || case " $*" in
    *" cluster.num_workers="*) workers= ;;
    *) echo "no GPUs on these nodes; say how many workers, as cluster.num_workers=$SLURM_JOB_NUM_NODES" >&2; exit 2 ;;
esac

# The driver runs on this node, the first. Told to leave, Slurm's processes on all nodes would end at once: it alone is.
driver=$PWD/.manyview-$SLURM_JOB_ID.pid
rm -f "$driver"  # of a job that was queued again it may still name a process, which is a stranger's by now
trap 'rm -f "$driver"' EXIT
srun= told= early=
tell() { # the driver, as soon as there is one; before srun's process is known it is only noted
    told=yes
    [ -n "$srun" ] || { early=yes; return 0; }
    until [ -s "$driver" ] || ! kill -0 "$srun" 2>/dev/null; do sleep 1; done
    [ ! -s "$driver" ] || kill -TERM "$(cat "$driver")" || true
}
trap tell TERM
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$gpus" --disable-usage-stats -- \
    bash -c 'echo $$ > "$0"; exec python -u -m "$@"' "$driver" "$room" "$1" ${workers:+"$workers"} "${@:2}" \
    cluster.address="$head:$port" &
srun=$!
[ -z "$early" ] || tell
while :; do # being told ends a `wait` with a code that is not srun's own, which the next `wait` returns
    told=
    code=0
    wait "$srun" || code=$?
    [ -n "$told" ] || break
done
exit "$code"
