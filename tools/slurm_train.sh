#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# Set GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS to change the defaults, SUBMIT=1 for a batch
# job: slurm requeues it when it is preempted or its time is over, and it goes on where it was.
exec bash "$(dirname "$0")/slurm_run.sh" "${1:?PARTITION}" "${2:?JOB_NAME}" \
    train.py "${3:?CONFIG}" --work-dir "${4:?WORK_DIR}" "${@:5}"
