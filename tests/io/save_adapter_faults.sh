#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# save_adapter_faults.sh SAVE_ADAPTER: the save of an adapter's folder, with an old adapter there and without: every system
# call is killed and failed in turn, and every one of a load is failed; then a full disk, two savers at once, devices, and
# folders without permission. Whatever happens there is the old adapter or the new one, to the bit, as the error says, and
# the next save works.
source "$(dirname "$0")/faults.sh"
cd "$folder" || exit 1
tensors=adapter_model.safetensors config=adapter_config.json

state() { "$save" dir | sed 's/:.*//'; } # old, new, IoOpen where there is none, or what must not be
expect() { # expect WHAT STATE...: the folder is in one of the states
  local what=$1 now
  now=$(state)
  shift
  runs=$((runs + 1))
  [[ " $* " == *" $now "* ]] || fault "$what: the folder is $now, wanted one of: $*"
}
fresh() { # fresh old|IoOpen
  rm -rf dir
  mkdir -m 777 dir
  [ "$1" = IoOpen ] || "$save" dir "$1"
}
only() { # only WHAT [FILE]: nothing but the adapter, and the file, is in the folder
  local others
  others=$(find dir -mindepth 1 -not -name $config -not -name $tensors -not -name "${2-}")
  [ -z "$others" ] || fault "$1: left" $others
}
next_save() { # next_save WHAT [FILE]: the save after it works and clears up all but the file
  "$save" dir third || fault "$1: the next save failed"
  expect "the save after $1" third
  only "the save after $1" "${2-}"
}
told() { # told WHAT BEFORE: the error of $status and $text says what is there
  case "$status:$text" in
    0:*) expect "$1, saved" new ;;
    2:*"'dir/$tensors': saved, but"* | 2:Io*"'dir/$config': "*) expect "$1, $text" new ;;
    2:Io*"'dir': "* | 2:Io*"'dir/$config.next.tmp': "* | 2:Io*"'dir/$tensors': "*) expect "$1, $text" "$2" ;;
    *) fault "$1: exit $status, $text" ;;
  esac
  # The config under its first name stays after an error; the next save takes it away.
  case "$1:$status" in
    unlink*:0 | *:2) only "$1" $config.next.tmp ;;
    *) only "$1" ;;
  esac
}

if can_trace; then
  for before in old IoOpen; do
    fresh $before
    enumerate "openat flock write fsync close rename unlink" dir new
    calls=$(grep -v "^getpid " <<<"$calls") # cannot fail
    while read -r call ordinal; do
      fresh $before
      what="$call $ordinal killed"
      killed "$call" "$ordinal" dir new
      expect "$what" $before new
      next_save "$what" '*.[0-9]*-[0-9]*.tmp'

      for error in EIO ENOSPC EACCES EMFILE EINTR; do
        fresh $before
        what="$call $ordinal failed with $error"
        failed "$call" "$ordinal" $error dir new
        told "$what" $before
        case "$call:$error" in
          openat:EINTR | flock:EINTR | write:EINTR | fsync:EINTR | close:EINTR) [ $status -eq 0 ] || fault "$what: not taken up again" ;;
          openat:* | flock:* | write:* | fsync:* | rename:*) [ $status -eq 2 ] || fault "$what: nobody was told" ;;
        esac
        [ $error != EIO ] || next_save "$what"
      done
    done <<<"$calls"
  done

  # A save that is stopped, and then the next one too: everything that the first leaves, and every call of the second.
  declare -A seen=()
  fresh old
  enumerate "" dir new
  first=$calls
  while read -r call ordinal; do
    fresh old
    killed "$call" "$ordinal" dir new
    find dir -name '*.[0-9]*-[0-9]*.tmp' -delete
    left=$(cd dir && cksum *)
    [ -z "${seen[$left]-}" ] || continue
    seen[$left]=yes
    held=$(state)
    rm -rf left
    cp -r dir left
    enumerate "" dir third
    while read -r next nth; do
      rm -rf dir
      cp -r left dir
      killed "$next" "$nth" dir third
      expect "$call $ordinal killed, and of the next save $next $nth" "$held" third
      next_save "$call $ordinal killed, and of the next save $next $nth" '*.[0-9]*-[0-9]*.tmp'
    done <<<"$(grep -v "^getpid " <<<"$calls")"
  done <<<"$first"
  [ ${#seen[@]} -ge 5 ] || fault "${#seen[@]} states that a killed save leaves, wanted 5"

  # A load, of a pair at rest and of one whose save was stopped before the config's turn.
  for rest in yes no; do
    fresh old
    [ $rest = yes ] || failed rename 3 EIO dir new
    want=$([ $rest = yes ] && echo old || echo new)
    expect "before loads" $want
    enumerate "openat pread64" dir
    while read -r call ordinal; do
      for error in EIO EACCES EMFILE ENOMEM EINTR; do
        what="loading ($want), $call $ordinal failed with $error"
        failed "$call" "$ordinal" $error dir
        runs=$((runs + 1))
        case "$call:$error:$status:$text" in
          *":0:$want") ;;
          openat:EINTR:* | pread64:EINTR:*) fault "$what: exit $status, $text" ;;
          *:2:Io* | *stat*:2:PairMismatch*) ;;
          *) fault "$what: exit $status, $text" ;;
        esac
      done
    done <<<"$calls"
  done

  # While one saver sleeps before it renames a file, another one waits.
  for ordinal in 1 2 3; do
    fresh old
    what="two savers, one asleep before rename $ordinal"
    strace -o /dev/null -e "inject=rename:delay_enter=300000:when=$ordinal" "$save" dir new &
    sleep 0.15
    "$save" dir third || fault "$what: the other failed"
    wait $! || fault "$what: it failed"
    expect "$what" new third
    only "$what"
  done
fi

# A full disk, of every number of blocks and of files.
rm -rf dir
ln -s full dir
for limit in size=4k size=8k size=12k size=16k size=20k size=24k size=28k size=32k nr_inodes={1,2,3,4,5,6}; do
  for before in old IoOpen; do
    mount_full size=1m,nr_inodes=100 || break 2
    find full -mindepth 1 -delete
    [ $before = IoOpen ] || "$save" dir old
    mount_full $limit 2>/dev/null || continue # not room for what is there
    what="a disk of $limit"
    text=$("$save" dir new)
    status=$?
    told "$what" $before
    [[ $limit == nr_inodes* || $status -eq 0 || $text == IoNoSpace* ]] || fault "$what: $text"
    mount_full size=1m,nr_inodes=100
    next_save "$what"
  done
done
rm -f dir
for blocks in 0 3; do
  fresh old
  text=$(trap '' XFSZ; ulimit -f $blocks; "$save" dir new)
  status=$?
  told "files of at most $blocks KiB" old
  [[ $text == IoNoSpace* ]] || fault "files of at most $blocks KiB: $text"
done

# Two savers again and again.
fresh old
"$save" dir old 1 &
one=$!
"$save" dir new 1 &
wait $one || fault "one of two savers failed"
wait $! || fault "the other of two savers failed"
expect "two savers" old new
only "two savers"

# Devices are neither written nor replaced.
for name in $tensors $config $config.next.tmp; do
  fresh old
  ln -sf /dev/full "dir/$name"
  text=$("$save" dir new)
  [[ $? -eq 2 && $text == NotRegularFile*"'dir/$name': "* ]] || fault "/dev/full as $name: $text"
  [[ -c /dev/full && -L dir/$name ]] || fault "/dev/full as $name: was replaced"
  rm "dir/$name"
  next_save "/dev/full as $name"
done

if step_down; then
  for mode in 555 333 000; do
    fresh old
    chmod $mode dir
    text=$("${down[@]}" "$save" dir new)
    [[ $? -eq 2 && $text == IoOpen* ]] || fault "a folder of mode $mode: $text"
    [ $mode != 000 ] || text=$("${down[@]}" "$save" dir)
    [[ $text == IoOpen* ]] || fault "a folder of mode $mode: $text"
    chmod 777 dir
    expect "a folder of mode $mode" old
    only "a folder of mode $mode"
  done
  for name in $tensors $config; do
    fresh old
    chmod 000 "dir/$name"
    text=$("${down[@]}" "$save" dir)
    [[ $? -eq 2 && $text == IoOpen* ]] || fault "no permission to read $name: $text"
  done
fi

finish "the folder"
