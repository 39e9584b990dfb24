#!/usr/bin/env bash
# bench/peers.sh PEER[,PEER...] COMMAND [ARGUMENT...]
#
# Brings up other systems from Debian's packages in $SCRATCH (see disk.sh), all copies on that disk, and runs a command with
# PEER=DIRECTORY appended for each; then takes everything down again. Peers:
#   gluster   GlusterFS, replica 3            (glusterfs-server glusterfs-client)
#   moosefs   MooseFS, goal 3                 (moosefs-master moosefs-chunkserver moosefs-client moosefs-cli iproute2)
#   bindfs    bindfs over a plain directory   (bindfs)
# Needs root. Traffic stays on the loopback device and, for MooseFS, which refuses that, in a network namespace of its own.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
: "${SCRATCH:?run it under bench/disk.sh}"
peers=${1//,/ }
shift
P=$SCRATCH/peers
mkdir -p "$P/log"
pids=()
mounts=()
targets=()

until_true() { local n; for n in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "not true in time: $*" >&2; return 1; }
daemon() { local name=$1; shift; setsid "$@" >"$P/log/$name" 2>&1 </dev/null & pids+=($!); }

up_gluster() {
    local b="" i
    cat >"$P/glusterd.vol" <<VOL
volume management
  type mgmt/glusterd
  option working-directory $P/gluster/work
  option run-directory $P/gluster/run
  option transport-type socket
  option transport.socket.listen-port 24007
  option transport.socket.bind-address 127.0.0.1
  option ping-timeout 0
end-volume
VOL
    mkdir -p "$P/gluster/work" "$P/gluster/run" "$P/gluster/mount"
    daemon glusterd glusterd -N -f "$P/glusterd.vol" -l "$P/log/glusterd.log" -p "$P/gluster/pid"
    until_true gluster --mode=script volume info || return
    for i in 1 2 3; do mkdir -p "$P/gluster/b$i"; b="$b $(hostname):$P/gluster/b$i"; done
    # shellcheck disable=SC2086
    gluster --mode=script volume create peer replica 3 $b force >&2 && gluster --mode=script volume start peer >&2 || return
    daemon gluster-mount glusterfs -N --volfile-server=127.0.0.1 --volfile-id=peer -l "$P/log/gluster-mount.log" "$P/gluster/mount"
    mounts+=("$P/gluster/mount")
    until_true mountpoint -q "$P/gluster/mount" && until_true touch "$P/gluster/mount/.ok" || return
    targets+=("gluster=$P/gluster/mount")
}

down_gluster() {
    gluster --mode=script volume stop peer force >/dev/null 2>&1
    local f
    for f in "$P"/gluster/run/gluster/*.pid "$P"/gluster/run/gluster/*/*.pid; do [ ! -e "$f" ] || kill "$(cat "$f")" 2>/dev/null; done
}

up_moosefs() {
    local i M=$P/moosefs in=(nsenter --net=/run/netns/ice-bench)
    ip netns add ice-bench && "${in[@]}" ip link set lo up && "${in[@]}" ip addr add 10.99.0.1/24 dev lo || return
    mkdir -p "$M/m" "$M/mount"
    printf 'MFSM NEW' >"$M/m/metadata.mfs"
    printf '%s\n' "WORKING_USER = root" "WORKING_GROUP = root" "DATA_PATH = $M/m" "EXPORTS_FILENAME = $M/m/exports" \
        "TOPOLOGY_FILENAME = $M/m/topology" "LOCK_MEMORY = 0" "MATOML_LISTEN_HOST = 10.99.0.1" "MATOCS_LISTEN_HOST = 10.99.0.1" \
        "MATOCL_LISTEN_HOST = 10.99.0.1" >"$M/m/cfg"
    printf '%s\n' "* / rw,alldirs,admin,maproot=0:0" "* . rw,admin" >"$M/m/exports"
    : >"$M/m/topology"
    daemon mfsmaster "${in[@]}" mfsmaster -a -c "$M/m/cfg" -f start
    sleep 1
    for i in 1 2 3; do
        mkdir -p "$M/c$i" "$M/d$i"
        echo "$M/d$i 8GiB" >"$M/c$i/hdd"
        printf '%s\n' "WORKING_USER = root" "WORKING_GROUP = root" "DATA_PATH = $M/c$i" "HDD_CONF_FILENAME = $M/c$i/hdd" \
            "LOCK_MEMORY = 0" "MASTER_HOST = 10.99.0.1" "BIND_HOST = 10.99.0.1" "CSSERV_LISTEN_HOST = 10.99.0.1" \
            "CSSERV_LISTEN_PORT = $((9500 + i))" "HDD_LEAVE_SPACE_DEFAULT = 256MiB" >"$M/c$i/cfg"
        daemon "mfschunkserver$i" "${in[@]}" mfschunkserver -c "$M/c$i/cfg" -f start
    done
    sleep 4
    daemon mfsmount "${in[@]}" mfsmount -f "$M/mount" -H 10.99.0.1
    mounts+=("$M/mount")
    until_true mountpoint -q "$M/mount" || return
    mkdir -p "$M/mount/three" && mfssetgoal -r 3 "$M/mount/three" >&2 && sleep 2
    targets+=("moosefs=$M/mount/three")
}

up_bindfs() {
    mkdir -p "$P/bindfs/data" "$P/bindfs/mount"
    daemon bindfs bindfs -f "$P/bindfs/data" "$P/bindfs/mount"
    mounts+=("$P/bindfs/mount")
    until_true mountpoint -q "$P/bindfs/mount" || return
    targets+=("bindfs=$P/bindfs/mount")
}

down() {
    local m p
    [[ " $peers " != *" gluster "* ]] || down_gluster
    for m in "${mounts[@]}"; do timeout 20 umount "$m" 2>/dev/null || umount -l "$m" 2>/dev/null; done
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done
    for _ in $(seq 50); do kill -0 "${pids[@]}" 2>/dev/null || break; sleep 0.1; done
    for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null; done
    [[ " $peers " != *" moosefs "* ]] || ip netns del ice-bench 2>/dev/null
    rm -rf "$P"
}
trap down EXIT
trap 'exit 130' INT TERM

for peer in $peers; do
    "up_$peer" || { echo "$peer did not come up:" >&2; tail -n 5 "$P"/log/* >&2; exit 1; }
done
"$@" "${targets[@]}"
