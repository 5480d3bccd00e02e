"""Stand-ins for slurm's commands: they start the processes on this machine."""

from pathlib import Path

# Starts all tasks at once, as machines of one task each, with what slurm sets.
SRUN = """#!/usr/bin/env bash
echo "srun $*"
for argument; do
    shift
    case $argument in --ntasks=*) tasks=${argument#*=};; python) break;; esac
done
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_NTASKS=$tasks SLURM_LOCALID=0 SLURM_NODEID=$i SLURM_JOB_ID=1 \\
        SLURM_NODELIST="node[1-$tasks]" python "$@" &
    running+=($!)
done
for process in "${running[@]}"; do wait "$process" || exit $?; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostname node[1-2]" ] && printf 'localhost\\nlocalhost\\n'
"""
# Runs the job now, what follows --wrap.
SBATCH = """#!/usr/bin/env bash
echo "sbatch $*"
SLURM_JOB_ID=1 bash -c "${!#}"
"""


def write_stand_ins(folder: Path) -> None:
    """Write srun, sbatch and scontrol into a folder for PATH."""
    folder.mkdir(exist_ok=True)
    for name, text in {'srun': SRUN, 'scontrol': SCONTROL, 'sbatch': SBATCH}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
