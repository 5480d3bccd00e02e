#!/usr/bin/env bash
# slurm_run.sh PARTITION JOB_NAME SCRIPT [arguments]: what slurm_train.sh and slurm_test.sh share.
# SUBMIT=1 makes it a batch job, which slurm can requeue; docs/training.md, "Preemption".
set -euo pipefail
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# USR1 comes 2 minutes before the time limit: train.py saves a checkpoint and ends.
job=(-p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node"
    --cpus-per-task="${CPUS_PER_TASK:-5}" --signal=USR1@120)
if [[ ${SUBMIT:-0} == 1 ]]; then
    # slurm runs a copy of a script, which would not find its neighbors; a wrapped command can.
    # shellcheck disable=SC2016,SC2086  # The job expands its id; SRUN_ARGS is several words.
    exec env -u SUBMIT sbatch "${job[@]}" --requeue --open-mode=append ${SRUN_ARGS:-} \
        --wrap 'SWINV2_REQUEUE=$SLURM_JOB_ID exec bash'"$(printf ' %q' "$0" "$@")"
fi
# A job that slurm has started again goes on where it was.
resume=()
[[ $3 == train.py && -n ${SLURM_RESTART_COUNT:-} ]] && resume=(--resume)
# shellcheck disable=SC2086  # SRUN_ARGS is several words
exec srun "${job[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/$3" "${@:4}" ${resume[@]+"${resume[@]}"} --launcher slurm
