#!/bin/sh
# The fuzz targets of the C side, under ASan and UBSan.
#
#   fuzz.sh replay      the inputs that are kept, once, built with $CC (gcc)
#   fuzz.sh coverage    the same built for gcov: lines of each C file that they reach; fails below 80 %
#   fuzz.sh run         the same, then FUZZ_SECONDS (20) of fuzzing for each target; needs clang and libFuzzer
#   fuzz.sh grow        as run, and what is new goes into the corpus, of which only what adds coverage stays
#   fuzz.sh one TARGET FILE   one input, built with $CC
#
# Kept are corpus/TARGET, which `grow` makes, and regressions/TARGET, one file for each defect that was there.
# Prints each input that fails as hex. TARGETS= chooses targets.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
csrc=$(cd "$here/../../tunstack/native/csrc" && pwd)
mode=${1:?replay, coverage, run, grow or one}
least=80
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

warnings='-std=gnu99 -g -O2 -fno-omit-frame-pointer -Wall -Wextra -Wshadow -Werror'
sanitizers='-fsanitize=address,undefined -fno-sanitize-recover=all'
export UBSAN_OPTIONS=print_stacktrace=1

# The C files that a target is built of.
subjects() {
  case $1 in
    checksum) echo checksum ;;
    coalesce) echo coalesce checksum ;;
    segment) echo segment checksum ;;
    fast | brief | udp | stream | switch | shape)
      echo fast_table fast_brief fast_door fast_isn fast_queue fast_input fast_output fast_udp_table fast_udp_up fast_udp_down fast_assembly \
        fast_stream fast_message fast_switch fast_shape \
        fast_loop pipeline queues segment checksum
      ;;
  esac
}

# Those of them that it is for.
aims() {
  case $1 in
    fast) subjects fast | sed 's/ fast_brief fast_door fast_isn//; s/ fast_udp_table.*fast_assembly//; s/ fast_stream.*fast_loop/ fast_loop/; s/ pipeline.* checksum/ checksum/' ;;
    brief) echo fast_brief fast_door fast_isn ;;
    udp) echo fast_udp_table fast_udp_up fast_udp_down fast_assembly ;;
    stream) echo fast_stream ;;
    switch) echo fast_message fast_switch ;;
    shape) echo fast_shape pipeline queues ;;
    *) subjects "$1" ;;
  esac
}

# without_coverage FLAGS...: the flags that do not instrument for coverage or for the fuzzer.
without_coverage() {
  for flag in "$@"; do
    case $flag in *fuzzer* | --coverage) ;; *) echo "$flag" ;; esac
  done
}

# build TARGET COMPILER FLAGS...: the program $work/TARGET.
# shellcheck disable=SC2046,SC2086
build() {
  target=$1 compiler=$2
  shift 2
  mkdir -p "$work/$target.o"
  (
    cd "$work/$target.o"
    faults=""
    parts=$target
    case $target in
      fast | udp)
        faults="-include faults.h"
        parts="$target ${target}_checks faults"
        ;;
      brief | stream | switch | shape)
        faults="-include faults.h"
        parts="$target faults"
        ;;
    esac
    case " $* " in *fuzzer*) ;; *) parts="$parts replay" ;; esac
    for name in $(subjects "$target"); do
      "$compiler" $warnings "$@" -D_GNU_SOURCE= -I "$csrc" -I "$here" $faults -c "$csrc/$name.c"
    done
    for part in $parts; do # what steers the fuzzer is the C side alone
      "$compiler" $warnings $(without_coverage "$@") -D_GNU_SOURCE= -I "$csrc" -I "$here" -c "$here/$part.c" \
        -o "part.$part.o"
    done
    "$compiler" $warnings "$@" ./*.o -lm -o "../$target"
  )
}

# kept TARGET: the names of the inputs, each with a zero behind it.
kept() {
  find "$here/corpus/$1" "$here/regressions/$1" -type f -print0 2>/dev/null || true
}

# show FILE...: inputs as hex.
show() {
  for file in "$@"; do
    [ -e "$file" ] || continue
    echo "input that fails ($(basename "$file")), hex; for 'tests/fuzz/fuzz.sh one TARGET FILE':"
    od -An -v -tx1 "$file" | tr -d ' \n'
    echo
  done
}

# replay TARGET: all inputs in one process, and if that fails each in its own.
replay() {
  if kept "$1" | xargs -0 timeout 300 "$work/$1"; then
    echo "$1: $(kept "$1" | tr -dc '\0' | wc -c) inputs replayed"
    return 0
  fi
  kept "$1" | tr '\0' '\n' | while read -r file; do
    timeout 10 "$work/$1" "$file" >/dev/null 2>&1 || show "$file"
  done
  return 1
}

# coverage TARGET: lines of its C files that the inputs reach.
coverage() {
  kept "$1" | xargs -0 timeout 300 "$work/$1"
  (cd "$work/$1.o" && for name in $(aims "$1"); do gcov -n "$name.gcda" 2>/dev/null; done) |
    awk -v target="$1" -v wanted=" $(aims "$1") " -v least=$least '
      /^File/ { name = $0; sub(/\047$/, "", name); sub(/.*[\/\047]/, "", name); is_c = sub(/\.c$/, "", name) }
      /^Lines executed/ && is_c && index(wanted, " " name " ") && !(name in seen) {
        seen[name] = 1
        part = $0; sub(/.*:/, "", part); sub(/% of.*/, "", part)
        total = $0; sub(/.* of /, "", total)
        printf "%-9s %-13s %6.2f %% of %d lines\n", target, name ".c", part, total
        found++
        if (part + 0 < least) low = 1
      }
      END { if (found != split(wanted, unused, " ")) { print target ": a file is missing"; low = 1 } exit low }'
}

# fuzz TARGET: what is new goes to $work/new.TARGET.
fuzz() {
  mkdir -p "$work/found.$1" "$work/new.$1" "$here/corpus/$1" "$here/regressions/$1"
  result=0
  "$work/$1" -max_total_time="${FUZZ_SECONDS:-20}" -max_len=1024 -timeout=10 -rss_limit_mb=2048 -entropic=0 \
    -verbosity=0 -print_final_stats=1 -artifact_prefix="$work/found.$1/" \
    "$work/new.$1" "$here/corpus/$1" "$here/regressions/$1" >"$work/log" 2>&1 || result=1
  if [ $result -ne 0 ]; then
    cat "$work/log"
    show "$work/found.$1"/*
  fi
  echo "$1: $(sed -n 's/stat::number_of_executed_units: *//p' "$work/log") inputs tried," \
    "$(find "$work/new.$1" -type f | wc -l) of them new"
  return $result
}

# keep TARGET: the corpus is what reaches something of its own, of what was there and what is new.
keep() {
  mkdir "$work/merged.$1"
  "$work/$1" -merge=1 -use_counters="${FUZZ_COUNTERS:-1}" "$work/merged.$1" "$here/corpus/$1" "$work/new.$1" \
    >"$work/log" 2>&1 || { cat "$work/log"; return 1; }
  rm -rf "$here/corpus/$1"
  cp -r "$work/merged.$1" "$here/corpus/$1"
}

status=0
for target in ${TARGETS:-checksum coalesce segment fast brief udp stream switch shape}; do
  case $mode in
    # shellcheck disable=SC2086
    replay | one) [ "$mode" = one ] && target=$2; build "$target" "${CC:-gcc}" $sanitizers ;;
    coverage) build "$target" gcc --coverage ;;
    # shellcheck disable=SC2086
    run | grow) build "$target" clang -fsanitize=fuzzer $sanitizers ;;
  esac
  case $mode in
    replay) replay "$target" || status=1 ;;
    coverage) coverage "$target" || { echo "$target: less than $least % of a file" >&2; status=1; } ;;
    run) fuzz "$target" || status=1 ;;
    grow) fuzz "$target" && keep "$target" || status=1 ;;
    one) "$work/$target" "$3"; exit ;;
    *) echo "unknown mode $mode" >&2; exit 2 ;;
  esac
done
exit $status
