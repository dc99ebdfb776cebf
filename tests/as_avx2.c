/*
 * Loaded before a program (LD_PRELOAD), it hides AVX-512, VNNI and AMX from it, so that libraries that choose their
 * kernels by the CPUID instruction, ONNX Runtime's among them, take those for AVX2. For Linux on x86 processors that can
 * fault on CPUID (`cpuid_fault` in /proc/cpuinfo): each CPUID raises SIGSEGV, and is answered here. Who else wants that
 * signal, such as Python's faulthandler, gets what is left of it.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static void let_cpuid_run(int yes) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

static struct sigaction others; /* what the program wants to be done about its own faults */

static int real_sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  static int (*real)(int, const struct sigaction *, struct sigaction *);
  if (!real) real = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
  return real(number, new, old);
}

int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  if (number != SIGSEGV) return real_sigaction(number, new, old);
  if (old) *old = others;
  if (new) others = *new;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction new, old;
  memset(&new, 0, sizeof new);
  new.sa_handler = handler;
  new.sa_flags = SA_RESTART;
  return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
  (void)info;
  if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID but a fault of the program, which happens again */
    real_sigaction(number, &others, 0);
    return;
  }
  let_cpuid_run(1);
  __cpuid_count(leaf, part, a, b, c, d);
  let_cpuid_run(0);
  if (leaf == 7 && part == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 F to VL */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                 /* VBMI, VNNI, ... */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));              /* AMX, FP16, ... */
  }
  if (leaf == 7 && part == 1) { /* AVX-VNNI and its kin */
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
    d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));
  }
  if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) a = b = c = d = 0; /* AMX tiles, AVX10 */
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction(SIGSEGV, &action, 0);
  let_cpuid_run(0);
}
