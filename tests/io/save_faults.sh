#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# save_faults.sh SAVE_ONCE: every system call of a save is killed, and failed in every way that matters, in turn, and
# every one of a read is failed; then short writes, a full disk, and folders and files without permission. Whatever
# happens there is the old file or the new one, whole, and nothing beside it unless the saver was killed.
source "$(dirname "$0")/faults.sh"
size=5000

letters() { head -c "$size" /dev/zero | tr '\0' "$1"; }
state() {
  if [ ! -e "$folder/dir/file" ]; then echo absent
  elif cmp -s "$folder/dir/file" <(letters o); then echo old
  elif cmp -s "$folder/dir/file" <(letters n); then echo new
  else echo broken; fi
}
expect() { # expect WHAT STATE...: the file is in one of the states, whole
  local what=$1 now
  now=$(state)
  shift
  runs=$((runs + 1))
  [[ " $* " == *" $now "* ]] || fault "$what: the file is $now, wanted one of: $*"
}
beside() { find "$folder/dir" -name '*.tmp' | wc -l; }
fresh() { # fresh old|absent
  rm -rf "$folder/dir"
  mkdir -m 777 "$folder/dir"
  [ "$1" = absent ] || letters o >"$folder/dir/file"
}

if can_trace; then
  for before in old absent; do
    fresh $before
    enumerate "openat write fsync close rename" "$folder/dir/file" n $size
    while read -r call ordinal; do
      fresh $before
      killed "$call" "$ordinal" "$folder/dir/file" n $size
      expect "$call $ordinal killed" $before new
      "$save" "$folder/dir/file" n $size || fault "$call $ordinal killed: the next save failed"
      expect "the save after $call $ordinal was killed" new

      for error in EIO ENOSPC EDQUOT EACCES EROFS EMFILE EXDEV ENOMEM EINTR; do
        fresh $before
        what="$call $ordinal failed with $error"
        failed "$call" "$ordinal" $error "$folder/dir/file" n $size
        case "$status:$text" in
          0:*) expect "$what, saved" new ;;
          2:*"saved, but"*) expect "$what, $text" new ;;
          2:Io*) expect "$what, $text" $before ;;
          *) fault "$what: exit $status, $text" ;;
        esac
        case "$call:$error" in
          write:EINTR | fsync:EINTR | openat:EINTR | close:EINTR) [ $status -eq 0 ] || fault "$what: not taken up again" ;;
          write:* | fsync:EIO | fsync:ENOSPC | rename:*) [ $status -eq 2 ] || fault "$what: nobody was told" ;;
        esac
        case "$call:$error" in
          write:ENOSPC | write:EDQUOT | fsync:ENOSPC) [[ $text == IoNoSpace* || $text == *"saved, but"* ]] || fault "$what: $text" ;;
        esac
        [ "$(beside)" -eq 0 ] || fault "$what: a file was left beside it"
      done
    done <<<"$calls"
  done

  fresh old
  enumerate pread64 "$folder/dir/file"
  while read -r call ordinal; do
    for error in EIO EACCES EMFILE ENOMEM EINTR; do
      what="reading, $call $ordinal failed with $error"
      failed "$call" "$ordinal" $error "$folder/dir/file"
      runs=$((runs + 1))
      case "$call:$error:$status:$text" in
        pread64:EINTR:0:* | openat:EINTR:0:* | close:*:0:*) ;;
        openat:*:2:IoOpen* | pread64:EIO:2:IoRead* | *stat*:*:2:IoRead*) ;;
        openat:* | pread64:EINTR:* | pread64:EIO:* | *stat*) fault "$what: exit $status, $text" ;;
        *:0:* | *:2:Io*) ;;
        *) fault "$what: exit $status, $text" ;;
      esac
    done
  done <<<"$calls"
fi

fresh old
"$save" "$folder/dir/file" n $size --short || fault "short, interrupted writes were not finished"
expect "short writes" new

# A full disk, of every size around the file's own.
if mount_full size=8k; then
  for size in 1000 4096 4097 8192 8193 20000; do
    find "$folder/full" -type f -delete
    letters o | head -c 4000 >"$folder/full/file"
    text=$("$save" "$folder/full/file" n $size)
    status=$?
    runs=$((runs + 1))
    case $status in
      0) cmp -s "$folder/full/file" <(letters n) || fault "disk of 8 KiB, $size bytes: saved another content" ;;
      2) [[ $text == IoNoSpace* ]] && [ "$(stat -c %s "$folder/full/file")" = "$([ $size -lt 4000 ] && echo $size || echo 4000)" ] ||
         fault "disk of 8 KiB, $size bytes: $text" ;;
      *) fault "disk of 8 KiB, $size bytes: exit $status" ;;
    esac
    [ "$(find "$folder/full" -type f | wc -l)" -eq 1 ] || fault "disk of 8 KiB, $size bytes: a file was left beside it"
  done
  size=5000
fi

# Without permission. Root has every one, so it steps down.
if step_down; then
  fresh old
  chmod 555 "$folder/dir"
  text=$("${down[@]}" "$save" "$folder/dir/file" n $size)
  [[ $? -eq 2 && $text == IoOpen* ]] || fault "a read-only folder: $text"
  expect "a read-only folder" old
  chmod 777 "$folder/dir"
  chmod 000 "$folder/dir/file"
  text=$("${down[@]}" "$save" "$folder/dir/file")
  [[ $? -eq 2 && $text == IoOpen* ]] || fault "a file without permission to read: $text"
fi

finish "the file"
