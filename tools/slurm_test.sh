#!/usr/bin/env bash
# slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# Set GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS to change the defaults.
exec bash "$(dirname "$0")/slurm_run.sh" "${1:?PARTITION}" "${2:?JOB_NAME}" \
    test.py "${3:?CONFIG}" "${4:?CHECKPOINT}" "${@:5}"
