# Watches one test process from outside. When it ends, however it ends, or takes too long, this ends what it started and removes
# what it mounted and created.
#
# The end cannot be noticed by a pipe that closes: a process that serves a mount and waits in that mount at once does not let
# go of its descriptors when it is killed. The mount has to be taken away by force, and that is done here.
#
#   guardian.sh PID MARK LIMIT_SECONDS ROOT...
pid=$1 mark=$2 limit=$3
shift 3
roots=("$@")

# Neither gone, nor a zombie, nor about to be killed.
alive() {
    local key value _
    while read -r key value _; do
        case $key in
        State:) [ "$value" != Z ] && [ "$value" != X ] || return 1 ;;
        # SIGKILL is the ninth bit.
        SigPnd:) [ $((16#${value: -3} & 16#100)) = 0 ] || return 1 ;;
        esac
    done <"/proc/$pid/status"
} 2>/dev/null

# Every process that has the mark in its environment, which it hands on to those that it starts.
marked() {
    grep -lzxsF -e "$mark" /proc/[0-9]*/environ | sed -n 's|^/proc/\([0-9]*\)/environ$|\1|p' | grep -vxF -e "$pid"
}

mounts() {
    local root _ point
    while read -r _ _ _ _ point _; do
        point=$(printf '%b' "$point")
        for root in "${roots[@]}"; do
            case $point in "$root"/*) printf '%s\n' "$point" ;; esac
        done
    done </proc/self/mountinfo
}

sweep() {
    local _ found point
    for _ in {1..50}; do
        found=$(marked)
        [ -n "$found" ] || break
        # shellcheck disable=SC2086
        kill -9 $found
        sleep 0.1
    done
    for _ in {1..20}; do
        found=$(mounts)
        [ -n "$found" ] || break
        while read -r point; do
            timeout 5 umount -c -f -l "$point" || timeout 5 fusermount3 -uz "$point"
        done <<<"$found"
    done
} >/dev/null 2>&1

while alive && [ "$SECONDS" -lt "$limit" ]; do sleep 0.5; done
if alive; then
    # Without its helpers and mounts a test that waits for them fails by itself, and says more than we can.
    echo "TEST LIMIT: process $pid runs for $limit s: ending what it started" >"/proc/$pid/fd/2"
    sweep
    for _ in {1..40}; do alive && sleep 0.5; done
    if alive; then
        echo "TEST LIMIT: process $pid goes on: killing it" >"/proc/$pid/fd/2"
        kill -9 "$pid"
        for _ in {1..20}; do alive && sleep 0.1; done
    fi
fi 2>/dev/null
sweep
[ -n "$(mounts)" ] || rm -rf --one-file-system "${roots[@]}"
