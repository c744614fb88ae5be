/* SPDX-License-Identifier: MIT */
/*
 * shim.h - what the files of libtimeshim.so share.
 *
 * The rules of this library, which lives in other people's processes:
 *  - libc is its only dependency, and only the names in libtimeshim.map are visible;
 *  - a clock read takes no lock, allocates nothing, uses no thread-local variable and
 *    leaves errno alone: it may run in a signal handler, in a vfork child, on a stack of
 *    a few hundred bytes, and before any constructor;
 *  - a thread may be frozen between any two instructions and go on under another kernel,
 *    whose clocks read otherwise.  Whatever was computed from a clock or an offset is
 *    used only after the generation has been seen unchanged, or lies in a slot;
 *  - what cannot be virtualized ends the process with one sentence, before main().
 */
#ifndef TIMESHIM_SHIM_H
#define TIMESHIM_SHIM_H

#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>

#include "arith.h"
#include "page.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

typedef int clock_gettime_fn(clockid_t, struct timespec *);

/* Set by attach(), before anything else of the shim runs; constant ever after. */
struct shim {
	const struct ts_clock_area *clocks;
	struct ts_task_area *task;
	struct ts_cpu_area *cpu;
	const struct ts_signal_area *signals;
	clock_gettime_fn *kernel_clock; /* 0 or -errno, as the vDSO returns it */
	/* where a pthread_cond_t says that it is on CLOCK_MONOTONIC: a 32-bit word, and its bit */
	size_t cond_word;
	uint32_t cond_monotonic;
	char library[PATH_MAX]; /* this library's own path */
};

extern __attribute__((visibility("hidden"))) struct shim shim;

/*
 * NEXT(name) declares next_name, the definition that the shim's own name() stands in front of,
 * normally libc's.  attach() finds all of them; one that this libc does not have stays NULL.
 */
#define NEXT(name)                                                                                 \
	static __typeof__(name) *next_##name;                                                      \
	static const struct next_symbol next_symbol_##name                                         \
		__attribute__((section("next_symbols"), used)) = { #name, (void **)&next_##name }

struct next_symbol {
	const char *name;
	void **address;
};

/* attach.c: maps the page and fills shim; ends the process if it cannot.  Idempotent. */
void attach(void);

/* For every function that an application can call: another constructor may come before ours. */
static inline void attach_first(void)
{
	if (unlikely(!shim.clocks))
		attach();
}

/*
 * lookup.c: finds libc's dlsym(), false if it cannot; and then a name of the shim's behind the
 * shim, NULL if there is none.
 */
bool find_dlsym(void);
void *find_next(const char *name);

/* vdso.c: the kernel's own clock_gettime, without the dynamic linker's help. */
clock_gettime_fn *vdso_clock_gettime(void);

/* vdso.c: the same by way of the system call; and is an address in the vDSO, or where it is now? */
clock_gettime_fn kernel_clock_gettime;
bool in_vdso(uint64_t address);

/* vdso.c: has those who look for the vDSO in this auxiliary vector find the shim's; 0 or errno. */
int hide_vdso(Elf64_auxv_t *auxv);

/* clock.c: the virtual clocks, called and answering as the vDSO is. */
clock_gettime_fn virtual_clock;

/* cpu.c: the same for the clocks that are not shifted; those of CPU time go on over migrations. */
clock_gettime_fn cpu_clock;

/* cpu.c: adds to the times of the calling process and its children what they used elsewhere. */
struct tms;
void cpu_add_times(struct tms *times);

/* cpu.c: what of an absolute time on a clock of CPU time was used on other hosts, in nanoseconds.
 */
int64_t cpu_used_elsewhere(clockid_t id);

/*
 * cpu.c: takes note of a child that was waited for, and adds to what the kernel says of its use
 * what it used elsewhere.
 */
struct rusage;
void cpu_child_ended(pid_t child, struct rusage *usage);

/* cpu.c: at the start of a program: exec keeps what children had used. */
void cpu_begin(void);

/*
 * interrupted.c: had the calling thread a signal to handle when a generation after the one seen
 * began?  Then an EINTR since is a handler's.
 */
bool signalled_since(uint64_t seen);

/* A system call of up to six arguments, past libc and past our own syscall(): the result or -errno.
 */
static inline long kernel_call(long number, const long arg[6])
{
	register long r10 __asm__("r10") = arg[3];
	register long r8 __asm__("r8") = arg[4];
	register long r9 __asm__("r9") = arg[5];
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(arg[0]), "S"(arg[1]), "d"(arg[2]), "r"(r10), "r"(r8),
			   "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* Is there no thread, nor process, of that id? */
static inline bool is_dead(uint32_t thread)
{
	/* of threads as well, kill(2) says */
	return kernel_call(SYS_kill, (const long[6]){ (long)thread, 0 }) == -ESRCH;
}

/* Index of a clock in ts_epoch.offset, or -1 for one that is not shifted. */
static inline int clock_index(clockid_t id)
{
	static const signed char index[] = {
		[CLOCK_REALTIME] = -1,
		[CLOCK_MONOTONIC] = TS_MONOTONIC,
		[CLOCK_PROCESS_CPUTIME_ID] = -1,
		[CLOCK_THREAD_CPUTIME_ID] = -1,
		[CLOCK_MONOTONIC_RAW] = TS_RAW,
		[CLOCK_REALTIME_COARSE] = -1,
		[CLOCK_MONOTONIC_COARSE] = TS_MONOTONIC,
		[CLOCK_BOOTTIME] = TS_BOOTTIME,
		[CLOCK_REALTIME_ALARM] = -1,
		[CLOCK_BOOTTIME_ALARM] = TS_BOOTTIME,
	};

	return (unsigned int)id < sizeof(index) ? index[id] : -1;
}

static inline uint64_t generation(void)
{
	return __atomic_load_n(&shim.clocks->generation, __ATOMIC_ACQUIRE);
}

/* True if nothing moved since the caller saw the generation seen. */
static inline bool still(uint64_t seen)
{
	/* what was read from the page and the clock must have been read before this */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return likely(__atomic_load_n(&shim.clocks->generation, __ATOMIC_RELAXED) == seen);
}

/* Has any socket of the task ever been given a time-out?  See socket.c. */
static inline bool socket_timeouts_in_use(void)
{
	attach_first();
	return unlikely(__atomic_load_n(&shim.task->socket_timeouts, __ATOMIC_RELAXED));
}

static inline const struct ts_epoch *epoch_of(uint64_t seen)
{
	return &shim.clocks->epoch[seen & 1];
}

#endif
