# SPDX-License-Identifier: MIT
# Sourced by save_faults.sh and save_adapter_faults.sh, which are given a program that saves: a folder of its own with a
# copy of the program as $save, its system calls one by one, small disks, and the verdict.
set -uo pipefail
folder=$(mktemp -d)
mounted=
trap '[ -z "$mounted" ] || umount "$folder/full"; rm -rf "$folder"' EXIT
chmod 711 "$folder"
cp "$1" "$folder/save"
chmod 755 "$folder/save"
save=$folder/save
runs=0 faults=0 skipped=

fault() {
  faults=$((faults + 1))
  echo "$*"
}
can_trace() {
  command -v strace >/dev/null && strace -o /dev/null true 2>/dev/null && return
  skipped+=" system calls (no strace, or no right to trace);"
  return 1
}
enumerate() { # enumerate NEEDED ARGUMENT...: $calls are those of a run between its marks, as lines "name ordinal"
  local needed=$1 call
  shift
  calls=$(strace -o "$folder/trace" "$save" "$@" >/dev/null &&
    awk -F'(' '/^getppid/ { inside = !inside; next }
               /^[a-z]/ { ++count[$1]; if (inside) print $1, count[$1] }' "$folder/trace")
  for call in $needed; do
    grep -q "^$call " <<<"$calls" || fault "no $call between the marks: $(tr '\n' ';' <<<"$calls")"
  done
}
killed() { # killed CALL ORDINAL ARGUMENT...: a run that is killed there
  { strace -o /dev/null -e "inject=$1:signal=KILL:when=$2" "$save" "${@:3}"; status=$?; } &>/dev/null
  [ $status -eq 137 ] || fault "$1 $2 was not killed"
}
failed() { # failed CALL ORDINAL ERROR ARGUMENT...: a run that gets the error there; its $status and $text
  text=$(strace -o /dev/null -e "inject=$1:error=$3:when=$2" "$save" "${@:4}")
  status=$?
}
mount_full() { # mount_full OPTIONS: $folder/full as a disk of its own, or as it was with other options
  mkdir -p "$folder/full"
  if [ -n "$mounted" ]; then
    mount -o "remount,$1" "$folder/full"
  elif mount -t tmpfs -o "$1" tmpfs "$folder/full" 2>/dev/null; then
    mounted=yes
  else
    skipped+=" a full disk (no right to mount one);"
    return 1
  fi
}
step_down() { # makes "${down[@]}" what runs a program without root's rights
  down=()
  [ "$(id -u)" -ne 0 ] || down=(setpriv --reuid=65534 --regid=65534 --clear-groups)
  "${down[@]}" test -x "$save" 2>/dev/null && return
  skipped+=" permissions (root, and no setpriv);"
  return 1
}
finish() { # finish WHAT: the last line
  echo "$runs states of $1 checked, $faults faults"
  [ $faults -eq 0 ] || exit 1
  [ -z "$skipped" ] || echo "SKIPPED:$skipped"
  echo "All tests passed"
}
