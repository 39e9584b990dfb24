#!/usr/bin/env bash
# bench/disk.sh [GIB] COMMAND...: runs a command with SCRATCH set to a fresh ext4 file system in an image file, and removes both.
#
# On a file system where many files were just deleted ext4 looks for inodes that were not deleted in the last seconds, which
# makes creating files up to thirty times slower. Measurements therefore begin on a new one. Needs root.
set -euo pipefail
gib=20
if [[ ${1:-} =~ ^[0-9]+$ ]]; then gib=$1; shift; fi
[ $# -gt 0 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
image=$(mktemp /var/tmp/ice-disk.XXXXXX)
SCRATCH=$(mktemp -d /var/tmp/ice-bench.XXXXXX)
export SCRATCH
gone() { umount -l "$SCRATCH" 2>/dev/null || true; rmdir "$SCRATCH" 2>/dev/null || true; rm -f "$image"; }
trap gone EXIT
trap 'exit 130' INT TERM
truncate -s "${gib}G" "$image"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$image"
mount -o loop "$image" "$SCRATCH"
"$@"
