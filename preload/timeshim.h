/* SPDX-License-Identifier: MIT */
/*
 * timeshim.h - the time stamp counter, for programs and libraries that read it themselves.
 *
 * Nothing has to be linked.  Without the shim, each of these is the plain instruction behind
 * one test of a pointer; with it, the count goes on over migrations at the frequency that
 * the task was launched with.  Safe in signal handlers and at any time in a process's life.
 *
 *     cc $(pkg-config --cflags timeshim) ...
 */
#ifndef TIMESHIM_H
#define TIMESHIM_H

#ifndef __x86_64__
#error "timeshim is for x86-64"
#endif

#include <cpuid.h>
#include <stdint.h>

/*
 * The part of the page (preload/page.h) that is read here.  Should it ever move, it will be
 * found by another name, and programs that know only this one read the hardware's counter.
 */
struct timeshim_epoch_1 {
	unsigned char offsets[64];
	uint64_t tsc_ratio; /* Q4.60 */
	uint64_t tsc_offset;
};

struct timeshim_clocks_1 {
	unsigned char identity[56];
	uint64_t generation;
	struct timeshim_epoch_1 epoch[2];
	uint64_t tsc_hz;
};

/* NULL without the shim.  By the GOT in programs of every kind: plain C would have the linker
   settle the weak symbol for ever when it links an executable that is not PIE. */
static inline const struct timeshim_clocks_1 *timeshim_clocks(void)
{
	const struct timeshim_clocks_1 *const *clocks;

	__asm__(".weak timeshim_clocks_1\n\tmovq timeshim_clocks_1@GOTPCREL(%%rip), %0"
		: "=r"(clocks));
	return __builtin_expect(!!clocks, 0) ? *clocks : 0;
}

static inline uint64_t timeshim_virtual_(const struct timeshim_clocks_1 *clocks, int with_aux,
					 uint32_t *aux)
{
	uint64_t seen, ticks;

	do {
		uint32_t low, high;
		const struct timeshim_epoch_1 *epoch;

		seen = __atomic_load_n(&clocks->generation, __ATOMIC_ACQUIRE);
		epoch = &clocks->epoch[seen & 1];
		/* REX.W changes nothing, and tells the shim to leave these two alone */
		if (with_aux)
			__asm__ volatile(".byte 0x48, 0x0f, 0x01, 0xf9"
					 : "=a"(low), "=d"(high), "=c"(*aux));
		else
			__asm__ volatile(".byte 0x48, 0x0f, 0x31" : "=a"(low), "=d"(high));
		ticks = (uint64_t)high << 32 | low;
		if (__builtin_expect(epoch->tsc_ratio != 1ull << 60, 0))
			ticks = (uint64_t)((unsigned __int128)ticks * epoch->tsc_ratio >> 60);
		ticks += epoch->tsc_offset;
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (__builtin_expect(__atomic_load_n(&clocks->generation, __ATOMIC_RELAXED) != seen,
				  0));
	return ticks;
}

/* RDTSC.  Like the instruction it is not ordered against others: use fences where that matters. */
static inline uint64_t timeshim_rdtsc(void)
{
	const struct timeshim_clocks_1 *clocks = timeshim_clocks();
	uint32_t unused;

	return clocks ? timeshim_virtual_(clocks, 0, &unused) : __builtin_ia32_rdtsc();
}

/* RDTSCP; *aux is what the kernel keeps in IA32_TSC_AUX: the processor's number in bits 0 to 11. */
static inline uint64_t timeshim_rdtscp(uint32_t *aux)
{
	const struct timeshim_clocks_1 *clocks = timeshim_clocks();

	return clocks ? timeshim_virtual_(clocks, 1, aux) : __builtin_ia32_rdtscp(aux);
}

/*
 * The counter's frequency in Hz.  Within a task that of the task, for life.  Without the shim what
 * the processor or the hypervisor tells (CPUID 0x15, 0x40000010), or 0: then it must be measured.
 */
static inline uint64_t timeshim_tsc_hz(void)
{
	const struct timeshim_clocks_1 *clocks = timeshim_clocks();
	uint32_t a, b, c, d;

	if (clocks)
		return clocks->tsc_hz;
	if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
		return (uint64_t)c * b / a;
	__cpuid(1, a, b, c, d);
	if (!(c & 1u << 31)) /* no hypervisor */
		return 0;
	__cpuid(0x40000000, a, b, c, d);
	if (a < 0x40000010)
		return 0;
	__cpuid(0x40000010, a, b, c, d);
	return a * 1000ull;
}

#endif
