#!/bin/bash
# One task of a job step: srun starts it once for each device, with the words of a poro command. It holds what differs
# from task to task and nothing else. What it learns of how its command ended it notes in the folder $PORO_ATTEMPT.
set -euo pipefail

# shellcheck source=inside.sh
source "$PORO_JOB_FOLDER/inside.sh"
# shellcheck source=sites/generic.sh
source "$PORO_JOB_FOLDER/site.sh"

# Here and not in the job script: only a task has a number of its own.
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
site_task "$@"

# A signal to the step reaches this shell too. It stays and waits; the command decides what the signal means.
trap : USR1 TERM
code=0
poro "$@" || code=$?

if ((RANK == 0)); then
    echo "$code" >"$PORO_ATTEMPT/$PORO_STEP.code"
fi
case $code in
    0 | 75) exit 0 ;; # 75, "saved, start again", is no failure: srun would kill the tasks that are a moment behind
esac
printf '%s %s %s %s\n' "$EPOCHREALTIME" "${SLURMD_NODENAME:-$HOSTNAME}" "$RANK" "$code" \
    >>"$PORO_ATTEMPT/$PORO_STEP.failures"
exit "$code"
