#!/usr/bin/env bash
# A run on a Slurm allocation: Ray on every node, the pipeline on the first, all gone at the end.
#
#   sbatch cluster/slurm/nncift.sh recipe.yaml [-s key=value ...]
#
# Directives below are a four-node example of four GPUs each: give your own on sbatch's command line.
# `ray symmetric-run` ends with `ray stop`, which ends every Ray of the node: hence --exclusive.
#SBATCH --job-name=nncift
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --output=nncift-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [ "$#" -lt 1 ]; then
    echo "usage: sbatch [options] $0 recipe.yaml [-s key=value ...]" >&2
    exit 2
fi

# Near the time limit the job is put back into the queue; the run goes on from its finished shards.
requeue() {
    echo "time is nearly up: job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

# Everybody on the cluster's network can reach Ray's ports: a token, in a home that all nodes share and
# that only you can read, keeps the others out.
export RAY_AUTH_MODE=token
if [ ! -s "$HOME/.ray/auth_token" ]; then
    (umask 077 && ray get-auth-token --generate >/dev/null)
fi

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"
export RAY_USAGE_STATS_ENABLED=0
# Children of a Ray worker that dies (vLLM's engine on its GPUs) are to die with it.
export RAY_process_group_cleanup_enabled=1
# Not through head: it leaves after a line, and what scontrol still writes would end the script.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${nodes%%$'\n'*}
# A port of its own for each job, in the range that Ray's workers (10002 to 19999) leave free.
port=$((20000 + SLURM_JOB_ID % 10000))

srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "$head_node:$port" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "${SLURM_CPUS_ON_NODE:-1}" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    --dashboard-host 127.0.0.1 \
    -- python -m nncift_ray.cli run "$@" -s cluster.address=auto &
# bash runs a trap only between commands, and `wait` is the one that a signal interrupts.
wait "$!"
