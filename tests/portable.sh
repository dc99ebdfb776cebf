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
  env "$@" "$python" -m pytest -n logical --maxprocesses 4 --dist worksteal $tests || failed="$failed
  $*"
}

tests=${*:-tests}
# Every kernel of one library meets every one of the other, and every number of threads.
run OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41
run OMP_NUM_THREADS=4 ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=AVX2
run OMP_NUM_THREADS=4 ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=SSE41
run OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2
if grep -qsw avx512f /proc/cpuinfo; then
  run OMP_NUM_THREADS=4 ATEN_CPU_CAPABILITY=avx512
fi
if grep -qsw cpuid_fault /proc/cpuinfo && command -v cc >/dev/null; then
  folder=$(mktemp -d)
  cc -O2 -shared -fPIC -o "$folder/as_avx2.so" "$here/as_avx2.c" &&
    run OMP_NUM_THREADS=1 LD_PRELOAD="$folder/as_avx2.so"
  rm -r "$folder"
else
  echo "== this processor cannot pretend to have no more than AVX2, or there is no C compiler: that run is left out"
fi
[ -z "$failed" ] || { echo "failed with:$failed"; exit 1; }
