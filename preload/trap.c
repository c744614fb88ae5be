// SPDX-License-Identifier: MIT
/*
 * trap.c - stands in for every instruction that reads the TSC, wherever it is: --tsc=trap.
 *
 * With prctl(PR_SET_TSC, PR_TSC_SIGSEGV) the instruction raises SIGSEGV in user mode, also in code
 * that was generated a moment ago, in libc, and in the vDSO.  The setting is a thread's; threads
 * and processes inherit it from the one that makes them, and programs from the one before.  It
 * would be the rewritten instructions' too: so under a trap nothing is rewritten.
 *
 * The handler is a system call away from the counter itself: it lifts the trap, reads, and sets it
 * again.  Meanwhile all signals are blocked that could bring code of the application's.  A thread
 * that is frozen in between goes on elsewhere with the trap as it was (timeshim/alarms.py); should
 * it be set all the same, the handler's own instruction faults and is stood in for.
 *
 * Those who apply the page to what they read have the hardware's counter: instructions with a REX.W
 * prefix, which are timeshim.h's and the handler's own; and the vDSO, whose clocks the shim adds
 * its offsets to.
 */
#include <sys/prctl.h>
#include <ucontext.h>

#include "trap.h"

#define LOWEST_KERNEL (1ull << 47) /* no code of a process is there */

static bool set_trap(int setting)
{
	return !kernel_call(SYS_prctl, (const long[6]){ PR_SET_TSC, setting });
}

void begin_trap(void)
{
	if (!shim.clocks->tsc_trap)
		return;
	take_sigsegv();
	/* each of the vDSO's readings would cost a signal */
	shim.kernel_clock = kernel_clock_gettime;
	set_trap(PR_TSC_SIGSEGV);
}

void pause_trap(void)
{
	if (trapping())
		set_trap(PR_TSC_ENABLE);
}

void resume_trap(void)
{
	if (trapping())
		set_trap(PR_TSC_SIGSEGV);
}

struct reading {
	uint64_t ticks;
	uint32_t aux;
};

/* False if a seccomp filter forbids to lift the trap. */
static bool read_hardware(struct reading *reading, bool with_aux)
{
	uint32_t low, high;

	if (!set_trap(PR_TSC_ENABLE))
		return false;
	/* behind a system call no earlier instruction is under way */
	if (with_aux)
		__asm__ volatile(".byte 0x48, 0x0f, 0x01, 0xf9"
				 : "=a"(low), "=d"(high), "=c"(reading->aux));
	else
		__asm__ volatile(".byte 0x48, 0x0f, 0x31" : "=a"(low), "=d"(high));
	reading->ticks = (uint64_t)high << 32 | low;
	return set_trap(PR_TSC_SIGSEGV);
}

static bool read_virtual(struct reading *reading, bool with_aux)
{
	const struct ts_epoch *epoch;
	uint64_t seen, ticks;

	do {
		seen = generation();
		epoch = epoch_of(seen);
		if (!read_hardware(reading, with_aux))
			return false;
		ticks = (uint64_t)((unsigned __int128)reading->ticks * epoch->tsc_ratio >>
				   TS_RATIO_SHIFT) +
			epoch->tsc_offset;
	} while (!still(seen));
	reading->ticks = ticks;
	return true;
}

bool stand_in(const siginfo_t *info, ucontext_t *context)
{
	greg_t *regs = context->uc_mcontext.gregs;
	uint64_t rip = (uint64_t)regs[REG_RIP];
	const uint8_t *at = (const uint8_t *)rip;
	bool marked, with_aux;
	struct reading reading;

	/* a general protection fault, which has no address; one at an address that is none has too
	 */
	if (info->si_code != SI_KERNEL || info->si_addr || rip >= LOWEST_KERNEL)
		return false;
	marked = *at == 0x48;
	at += marked;
	if (*at++ != 0x0f)
		return false;
	with_aux = *at == 0x01;
	if (with_aux ? *++at != 0xf9 : *at != 0x31)
		return false;
	at++;

	if (!(marked || in_vdso(rip) ? read_hardware : read_virtual)(&reading, with_aux))
		return false;
	regs[REG_RAX] = (uint32_t)reading.ticks;
	regs[REG_RDX] = (greg_t)(reading.ticks >> 32);
	if (with_aux)
		regs[REG_RCX] = reading.aux;
	regs[REG_RIP] = (greg_t)(uint64_t)at;
	return true;
}
