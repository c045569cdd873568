#!/usr/bin/env bash
# start_slurm.sh - a throw-away multi-node Slurm cluster on one Debian machine.
#
# One slurmctld ("login node") and N slurmd ("compute nodes"). Every one of them
# runs in its own network, UTS (hostname), mount, IPC and PID namespace, so a
# "node" has its own hostname, addresses (hsn0..), port space and process table,
# and can be powered off as a whole. Nothing is changed in the machine's own
# network namespace, /etc, or services. Needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN).
#
# Idempotent: a second run with the same options only starts what is missing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where Debian puts the daemons; a PATH may leave it out

DIR=${SLURM_SIM_DIR:-/tmp/slurm-sim}
NODES=2
PREFIX=nid
FIRST=5000
LOGIN=uan01
GPUS=8
HSN=4
KILL_WAIT=30
SLURMD_TIMEOUT=15
CRED_EXPIRE=5
TIMEOUT=120
INSTALL=1
PRIVATE_TMP=0
SACCT=0

usage() {
    cat <<USAGE
Usage: $0 [options]
  --nodes N            compute nodes to start (1-100, default $NODES)
  --dir DIR            state, logs, pids, generated commands (default $DIR,
                       or \$SLURM_SIM_DIR); keep it short: it holds unix sockets
  --gpus N             fake GPUs per node (default $GPUS)
  --hsn N              network interfaces per node, hsn0.. (1-4, default $HSN)
  --kill-wait S        seconds from SIGTERM to SIGKILL (Slurm's default $KILL_WAIT)
  --slurmd-timeout S   seconds after which a silent node is DOWN (default $SLURMD_TIMEOUT)
  --cred-expire S      how long a requeued job waits before it may start again
                       (default $CRED_EXPIRE; a real Slurm: 120)
  --private-tmp        give every node a /tmp of its own, as real nodes have
  --with-sacct         also start MariaDB and slurmdbd, so that sacct works
  --timeout S          seconds to wait for the nodes to be idle (default $TIMEOUT)
  --no-install         fail instead of installing missing Debian packages
  -h, --help           this text
Then:  source $DIR/env.sh  and use sbatch, srun, squeue, ... as on a cluster;
       slurm-node --help  breaks nodes on purpose;  stop_slurm.sh  ends it all.
USAGE
}

die() {
    echo "start-slurm: error: $*" >&2
    exit 1
}
log() { echo "start-slurm: $*"; }

need_arg() { [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value"; }
while [[ $# -gt 0 ]]; do
    case $1 in
        --nodes)
            need_arg "$@"
            NODES=$2
            shift 2
            ;;
        --dir)
            need_arg "$@"
            DIR=$2
            shift 2
            ;;
        --gpus)
            need_arg "$@"
            GPUS=$2
            shift 2
            ;;
        --hsn)
            need_arg "$@"
            HSN=$2
            shift 2
            ;;
        --kill-wait)
            need_arg "$@"
            KILL_WAIT=$2
            shift 2
            ;;
        --slurmd-timeout)
            need_arg "$@"
            SLURMD_TIMEOUT=$2
            shift 2
            ;;
        --cred-expire)
            need_arg "$@"
            CRED_EXPIRE=$2
            shift 2
            ;;
        --timeout)
            need_arg "$@"
            TIMEOUT=$2
            shift 2
            ;;
        --private-tmp)
            PRIVATE_TMP=1
            shift
            ;;
        --with-sacct)
            SACCT=1
            shift
            ;;
        --no-install)
            INSTALL=0
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            die "unknown option: $1"
            ;;
    esac
done
for v in NODES GPUS HSN KILL_WAIT SLURMD_TIMEOUT CRED_EXPIRE TIMEOUT; do
    [[ ${!v} =~ ^[0-9]+$ ]] || die "$v must be a whole number, not '${!v}'"
done
((NODES >= 1 && NODES <= 100)) || die "--nodes must be 1 to 100"
((HSN >= 1 && HSN <= 4)) || die "--hsn must be 1 to 4"
((GPUS >= 1)) || die "--gpus must be at least 1"
[[ $DIR == /* && $DIR != / && $DIR != *[[:space:]]* ]] || die "--dir must be an absolute path without spaces"
((${#DIR} <= 60)) || die "--dir is too long for unix sockets (60 characters at most)"
[[ $EUID -eq 0 ]] || die "must run as root (it makes namespaces and virtual links)"

# ---------------------------------------------------------------- packages
missing_packages() {
    local names=()
    command -v slurmctld >/dev/null || names+=(slurmctld)
    command -v slurmd >/dev/null || names+=(slurmd)
    command -v sbatch >/dev/null || names+=(slurm-client)
    command -v munged >/dev/null || names+=(munge)
    command -v ip >/dev/null || names+=(iproute2)
    command -v pgrep >/dev/null || names+=(procps)
    command -v nsenter >/dev/null || names+=(util-linux)
    if ((SACCT)); then
        command -v slurmdbd >/dev/null || names+=(slurmdbd)
        command -v mariadbd >/dev/null || names+=(mariadb-server-core mariadb-client-core)
        [[ -e $(echo /usr/lib/*/slurm-wlm/accounting_storage_mysql.so) ]] || names+=(slurm-wlm-mysql-plugin)
    fi
    echo "${names[*]}"
}

install_packages() {
    local need=$1 list install policy=/usr/sbin/policy-rc.d made=0 rc=0 out
    command -v apt-get >/dev/null || die "missing: $need (and this machine has no apt-get)"
    ((INSTALL)) || die "missing Debian packages: $need (run without --no-install, or: apt-get install $need)"
    log "installing: $need"
    out=$(mktemp)
    # Keep the packages from starting munge and slurm as services.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=1
    fi
    (
        export DEBIAN_FRONTEND=noninteractive
        read -ra list <<<"$need"
        install=(apt-get -o DPkg::Lock::Timeout=300 -q install -y --no-install-recommends "${list[@]}")
        "${install[@]}" || { # package lists missing or out of date?
            apt-get -o DPkg::Lock::Timeout=300 -q update
            "${install[@]}"
        }
    ) >"$out" 2>&1 </dev/null || rc=$?
    ((made)) && rm -f "$policy"
    if ((rc)); then
        tail -20 "$out" >&2
        rm -f "$out"
        die "installing packages failed (rc $rc)"
    fi
    rm -f "$out"
}

need=$(missing_packages)
[[ -z $need ]] || install_packages "$need"
need=$(missing_packages)
[[ -z $need ]] || die "still missing after the installation: $need"
unshare --net --uts --mount --ipc --pid --fork true 2>/dev/null ||
    die "cannot make namespaces here (a container without CAP_SYS_ADMIN?)"

# ---------------------------------------------------------------- one at a time
mkdir -p "$DIR"
exec 9>"$DIR/.lock"
flock -w 60 9 || die "another start or stop is busy in $DIR"

nodes=()
for ((i = 0; i < NODES; i++)); do nodes+=("$(printf '%s%06d' "$PREFIX" $((FIRST + i)))"); done
range=$(printf '%s[%06d-%06d]' "$PREFIX" "$FIRST" $((FIRST + NODES - 1)))

settings="nodes=$NODES gpus=$GPUS hsn=$HSN kill_wait=$KILL_WAIT slurmd_timeout=$SLURMD_TIMEOUT cred_expire=$CRED_EXPIRE private_tmp=$PRIVATE_TMP sacct=$SACCT"
alive() { # alive FILE: does the process recorded in FILE ("pid starttime") still live?
    local pid start now
    [[ -r $1 ]] && read -r pid start <"$1" || return 1
    now=$(awk '{sub(/^.*\) /, ""); print $20}' "/proc/$pid/stat" 2>/dev/null) || return 1
    [[ -n $start && $now == "$start" ]]
}
if alive "$DIR/run/$LOGIN.init"; then
    old=$(cat "$DIR/run/settings" 2>/dev/null || true)
    [[ $old == "$settings" ]] || die "a cluster with other options runs in $DIR ($old): run stop_slurm.sh first"
fi

# ---------------------------------------------------------------- files
umask 022
mkdir -p "$DIR"/{bin,etc,gpu,log,munge,run,spool,state}
echo "$settings" >"$DIR/run/settings"
if [[ ! -s $DIR/munge.key ]]; then
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")
fi
# Slurm wants the GPUs to be device files: these are the null device by other names.
for ((i = 0; i < GPUS; i++)); do
    [[ -c $DIR/gpu/renderD$i ]] || mknod -m 666 "$DIR/gpu/renderD$i" c 1 3 || die "cannot make device files in $DIR/gpu"
done

{
    echo "127.0.0.1 localhost"
    echo "198.18.0.1 $LOGIN"
    for ((i = 0; i < NODES; i++)); do
        echo "198.18.0.$((i + 10)) ${nodes[i]} ${nodes[i]}-hsn0"
        for ((k = 1; k < HSN; k++)); do echo "198.18.$k.$((i + 10)) ${nodes[i]}-hsn$k"; done
    done
} >"$DIR/etc/hosts"

if ((SACCT)); then
    accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=6819
AccountingStoragePass=$DIR/munge/munge.socket.2
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5"
else
    accounting="AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"
fi

# A node is described as LUMI-G's: 64 cores of which 8 are kept for the system,
# 2 threads a core, 480 GiB, 8 GPUs. config_overrides makes Slurm believe it.
{
    cat <<CONF
ClusterName=lumisim
SlurmctldHost=$LOGIN(198.18.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.socket.2,cred_expire=$CRED_EXPIRE
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.inner-pid
SlurmdPidFile=$DIR/run/%n.slurmd.inner-pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=$KILL_WAIT
SlurmdTimeout=$SLURMD_TIMEOUT
SlurmctldTimeout=30
InactiveLimit=0
MinJobAge=3600
JobRequeue=1
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
$accounting
NodeName=DEFAULT Sockets=8 CoresPerSocket=8 ThreadsPerCore=2 CoreSpecCount=8 RealMemory=491520 TmpDisk=0 Gres=gpu:mi250:$GPUS State=UNKNOWN
CONF
    for ((i = 0; i < NODES; i++)); do
        echo "NodeName=${nodes[i]} NodeHostname=${nodes[i]} NodeAddr=198.18.0.$((i + 10))"
    done
    cat <<CONF
PartitionName=DEFAULT Nodes=ALL State=UP Default=NO DefaultTime=00:30:00
PartitionName=standard-g MaxTime=2-00:00:00 MaxNodes=1024 OverSubscribe=EXCLUSIVE Default=YES
PartitionName=small-g MaxTime=3-00:00:00 MaxNodes=4 OverSubscribe=NO
PartitionName=dev-g MaxTime=03:00:00 MaxNodes=32 OverSubscribe=NO
PartitionName=standard MaxTime=2-00:00:00 MaxNodes=512 OverSubscribe=EXCLUSIVE
PartitionName=small MaxTime=3-00:00:00 MaxNodes=4 OverSubscribe=NO
PartitionName=debug MaxTime=00:30:00 MaxNodes=4 OverSubscribe=NO
CONF
} >"$DIR/etc/slurm.conf"
echo "NodeName=$range Name=gpu Type=mi250 File=$DIR/gpu/renderD[0-$((GPUS - 1))] Flags=amd_gpu_env" >"$DIR/etc/gres.conf"
if ((SACCT)); then
    (
        umask 077 && cat >"$DIR/etc/slurmdbd.conf" <<CONF
DbdHost=$LOGIN
DbdAddr=127.0.0.1
DbdPort=6819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.socket.2
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.inner-pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
    )
fi

# What runs as process 1 of the login node and of each compute node.
cat >"$DIR/bin/.init.new" <<EOF_INIT
#!/usr/bin/env bash
# init of one simulated machine:  .init login|compute NAME INDEX
set -u
DIR=$DIR HSN=$HSN PRIVATE_TMP=$PRIVATE_TMP SACCT=$SACCT
EOF_INIT
cat >>"$DIR/bin/.init.new" <<'EOF_INIT'
role=$1 name=$2 index=$3
fail() { echo "init $name: $*" >&2; exit 1; }
until_true() { # until_true SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@" > /dev/null 2>&1; do ((SECONDS < end)) || return 1; sleep 0.05; done
}
hostname "$name" || fail "hostname"
(echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6) 2> /dev/null
ip link set lo up || fail "lo"
mount --bind "$DIR/etc/hosts" /etc/hosts || fail "/etc/hosts"
export SLURM_CONF=$DIR/etc/slurm.conf

if [[ $role == login ]]; then
    for ((k = 0; k < HSN; k++)); do
        ip link add "hsn$k" type bridge || fail "bridge hsn$k"
        ip addr add "198.18.$k.1/24" dev "hsn$k" || fail "address of hsn$k"
        ip link set "hsn$k" up || fail "hsn$k up"
    done
else
    mkdir -p /etc/slurm "$DIR/munge/$name" "$DIR/spool/$name"
    mount --bind "$DIR/etc" /etc/slurm || fail "/etc/slurm"
    mount --bind "$DIR/munge/$name" "$DIR/munge" || fail "munge directory"
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm || fail "/dev/shm"
    if ((PRIVATE_TMP)); then # keep DIR visible when it lies under /tmp
        exec 8< "$DIR"
        mount -t tmpfs -o mode=1777 tmpfs /tmp || fail "/tmp"
        if [[ $DIR == /tmp/* ]]; then
            mkdir -p "$DIR"
            mount -c --rbind /proc/self/fd/8 "$DIR" || fail "$DIR in the node's own /tmp"
        fi
        exec 8<&-
    fi
    for ((k = 0; k < HSN; k++)); do
        until_true 20 ip link show "hsn$k" || fail "no link hsn$k"
        ip addr add "198.18.$k.$index/24" dev "hsn$k" || fail "address of hsn$k"
        ip link set "hsn$k" up || fail "hsn$k up"
    done
fi

rm -f "$DIR/munge/munge.socket.2" "$DIR/munge/munge.socket.2.lock"
munged -F --force --num-threads=2 --key-file="$DIR/munge.key" --socket="$DIR/munge/munge.socket.2" \
    --pid-file="$DIR/munge/munged.pid" --seed-file="$DIR/munge/munged.seed" \
    --log-file="$DIR/log/munged.$name.log" --origin="198.18.0.$index" &
until_true 20 test -S "$DIR/munge/munge.socket.2" || fail "munged did not start, see $DIR/log/munged.$name.log"

if [[ $role == login ]]; then
    if ((SACCT)); then
        db=$DIR/state/mariadb
        if [[ ! -d $db/mysql ]]; then
            mkdir -p "$db"
            mariadb-install-db --no-defaults --user=root --datadir="$db" \
                --auth-root-authentication-method=socket --skip-test-db > "$DIR/log/mariadb-install.log" 2>&1 ||
                fail "mariadb-install-db, see $DIR/log/mariadb-install.log"
        fi
        mariadbd --no-defaults --user=root --datadir="$db" --socket="$DIR/run/mariadb.sock" \
            --pid-file="$DIR/run/mariadb.inner-pid" --bind-address=127.0.0.1 --port=3306 \
            --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 > "$DIR/log/mariadb.log" 2>&1 &
        sql=(mariadb --no-defaults --socket="$DIR/run/mariadb.sock")
        until_true 60 "${sql[@]}" -e 'select 1' || fail "MariaDB did not start, see $DIR/log/mariadb.log"
        "${sql[@]}" -e "create database if not exists slurm_acct_db;
            create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
            create user if not exists 'slurm'@'localhost' identified by 'slurm';
            grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';
            grant all on slurm_acct_db.* to 'slurm'@'localhost';" || fail "database user"
        slurmdbd -D > "$DIR/log/slurmdbd.out" 2>&1 &
        until_true 60 sacctmgr -n show cluster || fail "slurmdbd did not start, see $DIR/log/slurmdbd.log"
    fi
    slurmctld -D > "$DIR/log/slurmctld.out" 2>&1 &
else
    slurmd -D -N "$name" > "$DIR/log/slurmd.$name.out" 2>&1 &
fi
echo ready > "$DIR/run/$name.ready"
# Stay, and collect whatever is orphaned to this process: bash does both.
while :; do sleep 3600 & wait $!; done
EOF_INIT
chmod 755 "$DIR/bin/.init.new"
mv "$DIR/bin/.init.new" "$DIR/bin/.init"

# Commands for the user: each Slurm command, entered from the login node's network.
cat >"$DIR/bin/.shim.new" <<EOF_SHIM
#!/usr/bin/env bash
# A Slurm command of the simulated cluster in $DIR.
export SLURM_CONF=$DIR/etc/slurm.conf
real=/usr/bin/\${0##*/}
# On a compute node (there /etc/slurm is the cluster's): just the command.
[[ ! /etc/slurm -ef $DIR/etc ]] || exec "\$real" "\$@"
[[ \$EUID -eq 0 ]] || { echo "\${0##*/}: entering the simulated cluster needs root" >&2; exit 1; }
if ! { read -r pid _ < $DIR/run/$LOGIN.init; } 2> /dev/null ||
    [[ \$(readlink "/proc/\$pid/ns/uts" 2> /dev/null) != "\$(cat $DIR/run/$LOGIN.uts)" ]]; then
    echo "\${0##*/}: the simulated cluster in $DIR is not running" >&2
    exit 1
fi
exec nsenter -t "\$pid" -n -u -- "\$real" "\$@"
EOF_SHIM
chmod 755 "$DIR/bin/.shim.new"
mv "$DIR/bin/.shim.new" "$DIR/bin/.shim"
for c in sacct sacctmgr salloc sattach sbatch sbcast scancel scontrol sdiag sinfo sprio squeue sreport srun sstat strigger; do
    ln -sf .shim "$DIR/bin/$c"
done
cat >"$DIR/env.sh" <<EOF_ENV
# source this: Slurm commands of the simulated cluster in $DIR
export SLURM_CONF=$DIR/etc/slurm.conf
case :\$PATH: in *:$DIR/bin:*) ;; *) export PATH=$DIR/bin:\$PATH ;; esac
EOF_ENV

cat >"$DIR/bin/slurm-node.new" <<EOF_NODE
#!/usr/bin/env bash
set -euo pipefail
PATH=\$PATH:/usr/sbin:/sbin
DIR=$DIR LOGIN=$LOGIN HSN=$HSN
nodes=(${nodes[*]})
EOF_NODE
cat >>"$DIR/bin/slurm-node.new" <<'EOF_NODE'
usage() {
    cat << USAGE
Usage: slurm-node COMMAND [NODE [ARGS]]      nodes: ${nodes[*]} (login: $LOGIN)
  list                    the machines and whether they are on
  exec NODE CMD ARGS...   run a command inside a node (or the login node)
  poweroff NODE           its links go down, then every process of it dies
  poweron NODE            boot it again
  kill-slurmd NODE        only slurmd dies; running steps go on
  start-slurmd NODE       start slurmd again
  freeze NODE / thaw NODE SIGSTOP / SIGCONT to every process of the node
  unplug NODE / plug NODE its network links down / up
USAGE
}
die() { echo "slurm-node: error: $*" >&2; exit 1; }
start_of() { awk '{sub(/^.*\) /, ""); print $20}' "/proc/$1/stat" 2> /dev/null; }
init_of() { # prints the pid of the node's process 1 if it lives
    local pid start
    [[ -r $DIR/run/$1.init ]] && read -r pid start < "$DIR/run/$1.init" || return 1
    [[ -n $start && $(start_of "$pid") == "$start" ]] && echo "$pid"
}
inside() { # inside NODE COMMAND...: in the same directory, where the node has it
    local pid
    pid=$(init_of "$1") || die "$1 is off"
    shift
    # shellcheck disable=SC2016
    nsenter -t "$pid" -m -u -i -n -p -- bash -c 'cd "$1" 2> /dev/null || cd /; shift; exec "$@"' - "$PWD" "$@" 9>&-
}
index_of() {
    local i
    [[ $1 != "$LOGIN" ]] || { echo 1; return; }
    for i in "${!nodes[@]}"; do [[ ${nodes[i]} != "$1" ]] || { echo $((i + 10)); return; }; done
    die "no such node: $1"
}
poweron() {
    local name=$1 index role=compute outer='' pid='' end k login
    index=$(index_of "$name")
    [[ $name != "$LOGIN" ]] || role=login
    if pid=$(init_of "$name"); then return 0; fi
    rm -f "$DIR/run/$name".{init,ready}
    # A clean environment: what the caller has in its own is none of a node's business.
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        setsid unshare --net --uts --mount --ipc --pid --fork --kill-child --mount-proc --propagation private \
        "$DIR/bin/.init" "$role" "$name" "$index" > "$DIR/log/init.$name.log" 2>&1 < /dev/null 9>&- &
    outer=$!
    end=$((SECONDS + 20))
    until pid=$(pgrep -P "$outer"); do
        if ! kill -0 "$outer" 2> /dev/null || ((SECONDS >= end)); then die "$name did not start: $(cat "$DIR/log/init.$name.log")"; fi
        sleep 0.05
    done
    echo "$pid $(start_of "$pid")" > "$DIR/run/$name.init"
    readlink "/proc/$pid/ns/uts" > "$DIR/run/$name.uts"
    if [[ $role == compute ]]; then
        login=$(init_of "$LOGIN") || die "the login node is off"
        for ((k = 0; k < HSN; k++)); do
            nsenter -t "$login" -n -- ip link del "n$index-$k" 2> /dev/null || true
            nsenter -t "$login" -n -- ip link add "n$index-$k" type veth peer name "hsn$k" netns "$pid"
            nsenter -t "$login" -n -- ip link set "n$index-$k" master "hsn$k" up
        done
    fi
    end=$((SECONDS + ${2:-60}))
    until [[ -e $DIR/run/$name.ready ]]; do
        if ! init_of "$name" > /dev/null || ((SECONDS >= end)); then die "$name did not come up: $(cat "$DIR/log/init.$name.log")"; fi
        sleep 0.05
    done
}
links() { # links NODE up|down
    local k index login
    index=$(index_of "$1")
    login=$(init_of "$LOGIN") || die "the login node is off"
    for ((k = 0; k < HSN; k++)); do nsenter -t "$login" -n -- ip link set "n$index-$k" "$2"; done
}
poweroff() {
    local pid
    pid=$(init_of "$1") || return 0
    (links "$1" down) 2> /dev/null || true # as with a real power cut, nobody hears of it
    kill -KILL "$pid"
    for _ in {1..200}; do init_of "$1" > /dev/null || return 0; sleep 0.05; done
    die "$1 does not go off"
}
cmd=${1:-help}
case $cmd in
    help | -h | --help) usage; exit 0 ;;
    list)
        for n in "$LOGIN" "${nodes[@]}"; do
            if p=$(init_of "$n"); then echo "$n on (process 1 is pid $p)"; else echo "$n off"; fi
        done
        exit 0 ;;
esac
node=${2:-}
[[ -n $node ]] || { usage >&2; exit 2; }
index_of "$node" > /dev/null
shift 2
slurmd_pid() { cat "$DIR/run/$node.slurmd.inner-pid" 2> /dev/null || echo 0; } # as the node counts
slurmd_runs() { # shellcheck disable=SC2016
    inside "$node" bash -c '[[ $1 != 0 && $(cat "/proc/$1/comm") == slurmd ]]' - "$(slurmd_pid)" 2> /dev/null
}
report() { # have slurmd tell slurmctld at once that it is back, not at the next ping (a minute)
    ! slurmd_runs || inside "$node" kill -HUP "$(slurmd_pid)"
}
signal_all() { # every process of the node's PID namespace but its process 1
    # shellcheck disable=SC2016
    inside "$node" bash -c 'for p in /proc/[0-9]*; do p=${p#/proc/}; [[ $p == 1 || $p == $$ ]] || kill -'"$1"' $p 2> /dev/null; done; true'
}
case $cmd in
    exec) inside "$node" "$@" ;;
    poweron) poweron "$node" "$@" ;;
    poweroff)
        [[ $node != "$LOGIN" ]] || die "not $LOGIN: all depend on it (stop_slurm.sh ends the cluster)"
        poweroff "$node" ;;
    kill-slurmd) ! slurmd_runs || inside "$node" kill -KILL "$(slurmd_pid)" ;;
    start-slurmd)
        slurmd_runs || inside "$node" setsid bash -c "SLURM_CONF=$DIR/etc/slurm.conf slurmd -D -N $node >> $DIR/log/slurmd.$node.out 2>&1 < /dev/null &" ;;
    freeze) signal_all STOP ;;
    thaw) signal_all CONT && report ;;
    unplug) links "$node" down ;;
    plug) links "$node" up && report ;;
    *) usage >&2; die "unknown command: $cmd" ;;
esac
EOF_NODE
chmod 755 "$DIR/bin/slurm-node.new"
mv "$DIR/bin/slurm-node.new" "$DIR/bin/slurm-node"

# ---------------------------------------------------------------- start and wait
began=$SECONDS
boot() { "$DIR/bin/slurm-node" poweron "$1" "$TIMEOUT" 9>&- || die "$1 did not start; logs are in $DIR/log"; }
if ! alive "$DIR/run/$LOGIN.init"; then # nodes left over from a login node that died are cut off
    for n in "${nodes[@]}"; do "$DIR/bin/slurm-node" poweroff "$n" 9>&-; done
fi
boot "$LOGIN"
for n in "${nodes[@]}"; do boot "$n"; done

states() { timeout 15 "$DIR/bin/sinfo" -h -N -o '%N %T' 2>/dev/null | sort -u; }
end=$((SECONDS + TIMEOUT))
while :; do
    idle=$(states | awk '$2 == "idle" || $2 == "allocated" || $2 == "mixed" || $2 == "completing"' | wc -l)
    ((idle == NODES)) && break
    if ((SECONDS >= end)); then
        states >&2
        tail -n 5 "$DIR"/log/slurmctld.log "$DIR"/log/slurmd.*.log >&2 || true
        die "only $idle of $NODES nodes are up after $TIMEOUT s; logs are in $DIR/log"
    fi
    sleep 0.2
done
log "$(slurmctld -V): $NODES nodes up in $((SECONDS - began)) s: ${nodes[*]}"
log "use it:   source $DIR/env.sh && sinfo && srun -p dev-g -N $NODES hostname"
log "break it: slurm-node --help    logs: $DIR/log    end it: stop_slurm.sh --dir $DIR"
