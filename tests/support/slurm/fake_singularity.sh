#!/usr/bin/env bash
# fake_singularity.sh - a test double for `singularity exec` and `singularity run`.
#
# The command runs with the machine's own programs (the image's content is not
# used), but in a root directory of its own: only the system directories, $HOME,
# /tmp, the current directory, and what -B/--bind, SINGULARITY_BIND or
# SINGULARITY_BINDPATH name are visible there. So a script that forgets a bind,
# an --env or the image fails here as on the real machine. As with the real one,
# no process stays between the caller and the command: signals and the exit
# status go straight through. Nor do Slurm's commands work inside.
#   FAKE_SINGULARITY_INSIDE  more paths that count as lying in the image, ':' between
#   FAKE_SINGULARITY_LOG     a file to which every call is appended
set -euo pipefail
die() {
    echo "FATAL:   $*" >&2
    exit 255
}

case ${1:-} in
    exec | run) ;;
    --version | version)
        echo "singularity-ce version 4.1.3 (fake)"
        exit 0
        ;;
    *) die "fake_singularity knows exec and run, not '${1:-}'" ;;
esac
if [[ ${FAKE_SINGULARITY_INNER:-} != "$$" ]]; then # first pass: get a mount namespace
    [[ -z ${FAKE_SINGULARITY_LOG:-} ]] || printf "%s\n" "$*" >>"$FAKE_SINGULARITY_LOG"
    flags=(--mount --propagation private)
    [[ $EUID -eq 0 ]] || flags+=(--map-root-user)
    FAKE_SINGULARITY_INNER=$$ exec unshare "${flags[@]}" "$BASH" "$(readlink -f "$0")" "$@"
fi
unset FAKE_SINGULARITY_INNER

action=$1 binds=() envs=() clean='' home=1 pwd=$PWD
shift
add_binds() {
    local IFS=, b
    for b in $1; do binds+=("$b"); done
}
add_envs() {
    local IFS=, e
    for e in $1; do envs+=("$e"); done
}
add_binds "${SINGULARITY_BIND:-}"
add_binds "${SINGULARITY_BINDPATH:-}"
while [[ ${1:-} == -* ]]; do
    case $1 in
        -B | --bind)
            add_binds "${2:?}"
            shift 2
            ;;
        --bind=*)
            add_binds "${1#*=}"
            shift
            ;;
        --env)
            add_envs "${2:?}"
            shift 2
            ;;
        --env=*)
            add_envs "${1#*=}"
            shift
            ;;
        --pwd | --cwd)
            pwd=${2:?}
            shift 2
            ;;
        --pwd=* | --cwd=*)
            pwd=${1#*=}
            shift
            ;;
        -e | --cleanenv)
            clean=-i
            shift
            ;;
        --no-home)
            home=0
            shift
            ;;
        --rocm | --nv | -c | --contain | --writable-tmpfs) shift ;;
        *) die "fake_singularity does not know the option $1" ;;
    esac
done
image=${1:-}
[[ -n $image ]] || die "no image given"
[[ -e $image ]] || die "could not open image $image: no such file or directory"
image=$(readlink -f "$image")
shift
[[ $# -gt 0 ]] || { [[ $action == run ]] && set -- true; } || die "no command given"

root=/media # becomes the new root, in this mount namespace only (an empty directory of every Debian)
[[ $pwd != "$root"* ]] || die "fake_singularity cannot work in $root"
mount -t tmpfs -o mode=755 tmpfs "$root"
put() { # put SOURCE TARGET [ro]
    [[ -e $1 ]] || die "container creation failed: mount $1->$2 error: no such file or directory"
    if [[ -d $1 ]]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}" && touch "$root$2"; fi
    mount --rbind "$1" "$root$2"
    [[ ${3:-} != ro ]] || mount -o remount,bind,ro "$root$2"
}
mkdir -p "$root"/{run,var/tmp}
put /proc /proc
put /sys /sys
put /dev /dev
put /tmp /tmp
put /usr /usr ro
put /etc /etc ro
for d in bin sbin lib lib32 lib64 libx32; do
    if [[ -L /$d ]]; then ln -s "usr/$d" "$root/$d"; elif [[ -d /$d ]]; then put "/$d" "/$d" ro; fi
done
# An image has no Slurm commands: calling one in it fails ("Permission denied").
for c in sacct salloc sbatch scancel scontrol sinfo squeue srun; do
    [[ ! -e /usr/bin/$c ]] || mount --bind /dev/null "$root/usr/bin/$c"
done
IFS=: read -ra inside <<<"${FAKE_SINGULARITY_INSIDE:-}"
for d in ${inside[@]+"${inside[@]}"}; do put "$d" "$d" ro; done
((home == 0)) || put "$HOME" "$HOME"
[[ $pwd != "$PWD" ]] || put "$PWD" "$PWD"
for b in ${binds[@]+"${binds[@]}"}; do
    IFS=: read -r from to mode <<<"$b"
    put "$from" "${to:-$from}" "${mode:-}"
done

vars=()
[[ -z $clean ]] || vars+=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=$HOME" LANG=C)
while IFS='=' read -r -d '' k v; do
    [[ $k != SINGULARITYENV_* ]] || vars+=("${k#SINGULARITYENV_}=$v")
done </proc/self/environ
vars+=(${envs[@]+"${envs[@]}"} "SINGULARITY_CONTAINER=$image" "SINGULARITY_NAME=${image##*/}")
exec chroot "$root" /usr/bin/env ${clean:+"$clean"} -C "$pwd" "${vars[@]}" "$@"
