#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What `finetune` saves is what it loads and goes on with: finetune_saves.sh FINETUNE CASE [METHOD]
set -euo pipefail
finetune=$1 case=$2 method=${3:-molora}
work=$(mktemp -d "${TMPDIR:-/tmp}/finetune_saves.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1
short=(--rows 2 --context 16 --evaluation-rows 4 --threads 1)

fail() { echo "FAILED: $*" >&2; exit 1; }
# run NAME argument...: ends well; what it prints is kept but for the line with its times.
run() {
  local name=$1
  shift
  "$finetune" --out "out_$name" "$@" >"$name.stdout" 2>"$name.stderr" || fail "$* ended with $?: $(cat "$name.stderr")"
  sed -i '$d' "$name.stdout"
  [ -s "$name.stdout" ] || fail "$*: prints no table"
}
# refused MESSAGE argument...: ends with code 1 and the message as its only line.
refused() {
  local message=$1 code=0
  shift
  "$finetune" --out out_refused "$@" >refused.stdout 2>refused.stderr || code=$?
  [ "$code" = 1 ] || fail "$*: ended with $code, wanted 1"
  [ "$(wc -l <refused.stderr)" = 1 ] || fail "$*: more than one line: $(cat refused.stderr)"
  grep -qF -- "finetune: $message" refused.stderr || fail "$*: $(cat refused.stderr), wanted $message"
}
same() { cmp "$1" "$2" || fail "$1 and $2 differ"; }
same_folders() { diff -r "$1" "$2" || fail "$1 and $2 differ"; }
step_of() { grep -ao '"step":"[0-9]*"' "$1/training_state.safetensors" 2>/dev/null | tr -dc 0-9; }

case $case in
  resumed)  # Stopped half-way by a kill and resumed: every byte of the uninterrupted run.
    steps=64
    run whole "${short[@]}" --method "$method" --steps $steps --save whole --save-every 32
    for attempt in 1 2 3 4 5; do
      rm -rf parts
      "$finetune" --out out_parts "${short[@]}" --method "$method" --steps $steps --save parts --save-every 32 \
        >killed.stdout 2>&1 &
      until [ "$(step_of parts)" = 32 ] || ! kill -0 $! 2>/dev/null; do :; done
      kill -9 $! 2>/dev/null || true
      wait $! 2>/dev/null || true
      [ "$(step_of parts)" = 32 ] && break
    done
    [ "$(step_of parts)" = 32 ] || fail "no run was stopped half-way: $(cat killed.stdout)"
    run parts --save parts --save-every 32 --resume --threads 2
    rm -f parts/*.tmp
    same_folders whole parts
    same whole.stdout parts.stdout
    same_folders out_whole out_parts  # the picture of the losses, and the figures with all their digits
    run again --save parts --resume    # nothing is left to do
    same whole.stdout again.stdout
    run loaded --load parts
    same whole.stdout loaded.stdout
    same <(grep -A99 '"languages"' out_whole/results.json | sed '/"losses"/,$d') \
         <(grep -A99 '"languages"' out_loaded/results.json | sed '/"losses"/,$d')
    ;;
  killed)  # A kill at any change of a folder, file by file, while the second save goes on.
    if ! strace -o /dev/null true 2>/dev/null; then
      echo "SKIPPED: no strace that works here. All tests passed"
      exit 0
    fi
    run whole "${short[@]}" --method "$method" --steps 4 --save whole --save-every 2
    for call in rename fsync; do
      strace -f -o calls -e trace=$call "$finetune" --no-report "${short[@]}" --method "$method" --steps 4 \
        --save counted --save-every 2 >/dev/null 2>&1
      each=$(($(grep -c "$call(" calls) / 3))
      rm -r counted
      [ $each -ge 3 ] || fail "$each calls of $call in a save"
      for nth in $(seq $((each + 1)) $((2 * each + 1))); do
        rm -rf parts
        { strace -f -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$nth "$finetune" --out out_parts \
          "${short[@]}" --method "$method" --steps 4 --save parts --save-every 2; } >/dev/null 2>&1 && fail "was not killed"
        run parts --save parts --save-every 2 --resume --evaluation-rows 4
        rm -f parts/*.tmp
        same_folders whole parts
        same whole.stdout parts.stdout
      done
    done
    ;;
  settings)  # What does not go together is refused by name, and nothing is changed.
    run first "${short[@]}" --steps 2 --method mola --experts 2,3,4,5 --rank 2 --alpha 4 --top-k 1 --targets q,v \
        --save first
    cp -r first kept
    resume=(--save first --resume)
    of="that of the run that is saved in first"
    refused "--method: got lora, wanted mola as in the saved run" "${resume[@]}" --method lora
    refused "--steps: got 3, wanted 2, $of" "${resume[@]}" --steps 3
    refused "--rows: got 3, wanted 2, $of" "${resume[@]}" --rows 3
    refused "--context: got 8, wanted 16, $of" "${resume[@]}" --context 8
    refused "--evaluation-rows: got 5, wanted 4, $of" "${resume[@]}" --evaluation-rows 5
    refused "--lr: got 0.5, wanted 0.01, $of" "${resume[@]}" --lr 0.5
    refused "--replay: got 0.5, wanted 0, $of" "${resume[@]}" --replay 0.5
    refused "--seed: got 1, wanted 0, $of" "${resume[@]}" --seed 1
    refused "--targets: got q,k, wanted q,v, $of" "${resume[@]}" --targets q,k
    refused "--rank: got 4, wanted 2, $of" "${resume[@]}" --rank 4
    refused "--alpha: got 2, wanted 4, $of" "${resume[@]}" --alpha 2
    refused "--dropout: got 0.5, wanted 0.05, $of" "${resume[@]}" --dropout 0.5
    refused "--experts: got 4, wanted 2,3,4,5, $of" "${resume[@]}" --experts 4
    refused "--top-k: got 2, wanted 1, $of" "${resume[@]}" --top-k 2
    refused "--balance: got 0.5, wanted" "${resume[@]}" --balance 0.5
    refused "--route: got mean, wanted token, $of" "${resume[@]}" --route mean
    printf '%s\n' {a..t}{a..e}{b..t}{a..e} >text
    refused "--data: not the one of the run that is saved in first" "${resume[@]}" --data text=text
    run base "${short[@]}" --steps 1 --method full --save base
    refused "--base: not the one of the run that is saved in first" "${resume[@]}" --base base/model.bin
    refused "--base: not the one of the run that is saved in first" --load first --base base/model.bin
    refused "--rank: got 4, wanted 2, $of" --load first --rank 4
    refused "--method: got molora, wanted mola as in the saved run" --load first --method molora
    for option in --save --trace; do
      refused "$option: cannot make the folder text/there" "${short[@]}" --steps 1 $option text/there
    done
    refused "--steps: --load evaluates, without training" --load first --steps 3
    refused "--save: --load evaluates, without training" --load first --save second
    refused "--resume: wanted with --save" --resume
    refused "--save-every: wanted with --save" --save-every 3
    refused "--trace: a run that goes on has no start to write" "${resume[@]}" --trace trace
    refused "--save: first/training_state.safetensors is there already" --save first
    refused "--save: base/training_state.safetensors is there already" --save base
    refused "--resume: no training_state.safetensors in nowhere" --save nowhere --resume
    same_folders first kept
    # Without its training state an adapter is one of anybody's: the command line says what the file does not.
    run loaded --load first
    rm first/training_state.safetensors
    shape=(--method mola --experts 2,3,4,5 --alpha 4 --targets q,v)
    run plain "${short[@]}" --load first "${shape[@]}" --rank 2 --top-k 1
    same first.stdout loaded.stdout
    same first.stdout plain.stdout
    refused "RankMismatch: 'first/adapter_model.safetensors'" --load first "${shape[@]}" --rank 4
    refused "AdapterKind: 'first/adapter_model.safetensors'" --load first --method lora --targets q,v --rank 2
    refused "--save: first/adapter_model.safetensors is there already" --save first
    refused "--resume: no training_state.safetensors in first" "${resume[@]}"
    ;;
  damaged)  # Files that are not as they were written.
    run whole "${short[@]}" --steps 2 --method "$method" --save whole
    start() { rm -rf bad && cp -r whole bad; }
    # flip FILE BYTE: changes its lowest bit.
    flip() {
      local byte
      byte=$(od -An -tu1 -j "$2" -N 1 "$1")
      printf "\\x$(printf %x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
    }
    weights=adapter_model.safetensors
    [ "$method" = full ] && weights=model.bin
    state=bad/training_state.safetensors
    size=$(stat -c %s whole/training_state.safetensors)
    start && flip $state $((size - 1))
    refused "ChecksumMismatch: '$state'" --save bad --resume
    start && flip $state 40
    refused "" --save bad --resume
    start && truncate -s $((size - 4)) $state
    refused "FileTruncated: '$state'" --save bad --resume
    start && : >$state
    refused "HeaderTooSmall: '$state'" --save bad --resume
    start && rm $state && mkdir $state
    refused "NotRegularFile: '$state'" --save bad --resume
    start && rm bad/$weights
    refused "" --save bad --resume
    grep -q "bad/$weights" refused.stderr || fail "$(cat refused.stderr)"
    refused "" --load bad
    grep -q "bad/$weights" refused.stderr || fail "$(cat refused.stderr)"
    # Whole files of two runs.
    run other "${short[@]}" --steps 2 --method "$method" --seed 1 --save other
    start && cp other/$weights bad/
    [ "$method" = full ] || cp other/adapter_config.json bad/
    refused "--resume: the weights in bad are not those that its training state belongs to" --save bad --resume
    start && cp other/$weights $state
    [ "$method" = full ] || refused "$state: has no checksums or no step, wanted a training state" --save bad --resume
    if [ "$method" != full ]; then
      start && flip bad/$weights $(($(stat -c %s bad/$weights) - 1))
      refused "ChecksumMismatch: 'bad/$weights'" --load bad
      start && rm bad/adapter_config.json
      refused "IoOpen: 'bad/adapter_config.json'" --load bad
    fi
    ;;
  *) fail "unknown case $case" ;;
esac
echo "All tests passed"
