#!/bin/bash
# A cluster that needs nothing. A site file defines what is defined here; slurm/sites/lumi.sh is a full one.

# Options of every srun.
# shellcheck disable=SC2034 # read by the job script
srun_options=()

# Run once by the job script, on the first node: modules, and variables for all tasks.
site_setup() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
}

# Run by each task before its command, whose words it is given: variables that differ from task to task.
site_task() {
    :
}
