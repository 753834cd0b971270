#!/bin/sh
# Builds the C helper with ASan and UBSan into a temporary directory and runs tests/native and the tests of the fast path against it.
# Exits non-zero on any finding. PYTHON and CC may be set; arguments go to pytest.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
cc=${CC:-gcc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r "$root/tunstack" "$root/setup.py" "$root/pyproject.toml" "$work"
for file in README.md LICENSE; do [ ! -e "$root/$file" ] || cp "$root/$file" "$work"; done
find "$work" -name '*.so' -delete

cd "$work"
flags='-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
CC=$cc CFLAGS=$flags LDFLAGS=$flags TUNSTACK_STRICT_BUILD=1 \
  "$python" setup.py -q build_ext --inplace

runtime=$("$cc" -print-file-name=libasan.so)
case $runtime in /*) ;; *) runtime=$("$cc" -print-file-name=libclang_rt.asan-x86_64.so) ;; esac
runtime=$(readlink -f "$runtime")
# With malloc under each object a read beyond a bytes object is seen.
sanitized() {
  LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0:log_path=$work/finding \
    UBSAN_OPTIONS=print_stacktrace=1:log_path=$work/finding PYTHONMALLOC=malloc \
    PYTHONPATH=$work PYTHONDONTWRITEBYTECODE=1 TUNSTACK_PURE=0 TUNSTACK_EXPECT_UNDER=$work "$python" "$@"
}

# First that a finding is one: reading beyond a buffer must end the process.
if sanitized -c 'from tunstack.native.accelerated import _lib; _lib.ts_ones_sum(b"1234", 4096, 0)'; then
  echo "a read beyond a buffer was not found: the sanitizer does not work" >&2
  exit 1
fi
grep -q 'AddressSanitizer: heap-buffer-overflow' "$work"/finding.*
rm "$work"/finding.*
sanitized -c 'from tunstack import native; assert native.implementation == "c"'

status=0
tests() {
  sanitized -bb -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q -m 'not slow' "$@" || status=$?
}
tests "$root/tests/native" "$@"
# Beside the Python stack, which is slow here; how much was compared is counted without a sanitizer.
export HYPOTHESIS_PROFILE=brief
tests "$root/tests/nat/test_fast.py" "$root/tests/nat/test_fast_borders.py" "$root/tests/nat/test_fast_brief.py" "$root/tests/nat/test_fast_brief_borders.py" "$root/tests/nat/test_fast_udp.py" "$root/tests/nat/test_fast_udp_borders.py" "$root/tests/link/test_lent_stream.py" -k 'not went_back_and_forth' "$@"
# pytest swallows what a dying process writes; the findings are in files of their own.
for finding in "$work"/finding.*; do
  [ ! -e "$finding" ] || { cat "$finding" >&2; status=1; }
done
exit "$status"
