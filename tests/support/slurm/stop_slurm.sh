#!/usr/bin/env bash
# stop_slurm.sh - ends the cluster that start_slurm.sh started; idempotent.
# It kills only process 1 of each simulated machine, by its recorded pid and
# start time; the kernel then ends everything inside that machine's PID namespace
# and takes its network links away.
set -euo pipefail

DIR=${SLURM_SIM_DIR:-/tmp/slurm-sim}
PURGE=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --dir)
            [[ -n ${2:-} ]] || {
                echo "stop-slurm: error: --dir needs a value" >&2
                exit 1
            }
            DIR=$2
            shift 2
            ;;
        --purge)
            PURGE=1
            shift
            ;;
        -h | --help)
            echo "Usage: $0 [--dir DIR] [--purge]"
            echo "  --dir DIR   the cluster's directory (default $DIR, or \$SLURM_SIM_DIR)"
            echo "  --purge     also delete the directory (jobs, logs, state)"
            exit 0
            ;;
        *)
            echo "stop-slurm: error: unknown option: $1" >&2
            exit 1
            ;;
    esac
done
if [[ ! -e $DIR ]]; then
    echo "stop-slurm: nothing in $DIR"
    exit 0
fi
[[ -f $DIR/run/settings ]] || {
    echo "stop-slurm: error: $DIR is not a directory of start_slurm.sh" >&2
    exit 1
}
[[ $EUID -eq 0 ]] || {
    echo "stop-slurm: error: must run as root" >&2
    exit 1
}
exec 9>"$DIR/.lock"
flock -w 60 9 || {
    echo "stop-slurm: error: another start or stop is busy in $DIR" >&2
    exit 1
}

alive() { # alive FILE: prints the pid recorded in FILE ("pid starttime") if that process lives
    local pid start now
    [[ -r $1 ]] && read -r pid start <"$1" || return 1
    now=$(awk '{sub(/^.*\) /, ""); print $20}' "/proc/$pid/stat" 2>/dev/null) || return 1
    [[ -n $start && $now == "$start" ]] && echo "$pid"
}

# Cancel all jobs, so that waiting clients (srun, sbatch --wait) end, too; then let
# slurmctld (and slurmdbd) save what they have, where they still run.
for f in "$DIR"/run/*.init; do
    [[ -e $f ]] || continue
    name=${f##*/}
    name=${name%.init}
    [[ -e $DIR/munge/$name ]] && continue # a compute node
    pid=$(alive "$f") || continue
    slurm() { timeout 10 nsenter -t "$pid" -n -u -- env SLURM_CONF="$DIR/etc/slurm.conf" "$@" 2>/dev/null 9>&-; }
    mapfile -t jobs < <(slurm squeue -h -o %A | sort -u)
    if ((${#jobs[@]})); then
        slurm scancel --full --signal=KILL "${jobs[@]}" || true
        slurm scancel "${jobs[@]}" || true
        for _ in {1..50}; do
            [[ -n $(slurm squeue -h -o %A) ]] || break
            sleep 0.1
        done
    fi
    # shellcheck disable=SC2016
    nsenter -t "$pid" -m -p -- bash -c '
        for d in slurmctld slurmdbd mariadb; do # the pids are as the login node counts them
            p=$(cat "$1/run/$d.inner-pid" 2> /dev/null) || continue
            [[ $(cat "/proc/$p/comm" 2> /dev/null) == "$d"* ]] || continue
            kill -TERM "$p"
            for _ in {1..100}; do kill -0 "$p" 2> /dev/null || break; sleep 0.1; done
        done' - "$DIR" 9>&- || true
done
left=0 stopped=0
for f in "$DIR"/run/*.init; do
    [[ -e $f ]] || continue
    if pid=$(alive "$f"); then
        kill -KILL "$pid"
        stopped=$((stopped + 1))
        for _ in {1..200}; do
            alive "$f" >/dev/null || break
            sleep 0.05
        done
        if alive "$f" >/dev/null; then
            echo "stop-slurm: error: pid $pid (${f##*/}) does not end" >&2
            left=1
            continue
        fi
    fi
    rm -f "$f"
done
((left == 0)) || exit 1
rm -f "$DIR"/run/*.ready "$DIR"/run/*.uts "$DIR"/run/*.inner-pid
if ((PURGE)); then rm -rf --one-file-system "$DIR"; fi
echo "stop-slurm: stopped $stopped machines$( ((PURGE)) && echo ", deleted $DIR" || echo "; logs stay in $DIR/log")"
