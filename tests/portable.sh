#!/bin/sh
# Runs the tests, or those that are named, as other processors run them; goes on after a failure, and fails in the end.
#
# ATEN_CPU_CAPABILITY picks PyTorch's own kernels, DNNL_MAX_CPU_ISA those of oneDNN, which PyTorch's convolutions and
# matrix products may use. ONNX Runtime has no such variable: its kernels go by the processor alone. Where the processor
# can be made to hide what it has (as_avx2.c), the last run is on AVX2 for all three libraries; elsewhere
# tests/onnx/test_integers.py stands for ONNX Runtime on other processors.
set -u
here=$(dirname "$0")
python=${PYTHON:-python}
failed=""

run() {
  echo "== $*"
  env "$@" "$python" -m pytest -n "$workers" --maxprocesses 4 $tests || failed="$failed
  $*"
}

tests=${*:-tests}
levels="default avx2"
grep -qsw avx512f /proc/cpuinfo && levels="$levels avx512"
for threads in 1 4; do
  # Four threads in each of several processes only wait for each other.
  workers=logical
  [ $threads = 4 ] && workers=0
  for level in $levels; do
    run OMP_NUM_THREADS=$threads ATEN_CPU_CAPABILITY=$level
  done
  for level in SSE41 AVX2; do
    run OMP_NUM_THREADS=$threads DNNL_MAX_CPU_ISA=$level
  done
  if grep -qsw cpuid_fault /proc/cpuinfo && command -v cc >/dev/null; then
    folder=$(mktemp -d)
    cc -O2 -shared -fPIC -o "$folder/as_avx2.so" "$here/as_avx2.c" &&
      run OMP_NUM_THREADS=$threads LD_PRELOAD="$folder/as_avx2.so"
    rm -r "$folder"
  else
    echo "== this processor cannot pretend to have no more than AVX2, or there is no C compiler: that run is left out"
  fi
done
[ -z "$failed" ] || { echo "failed with:$failed"; exit 1; }
