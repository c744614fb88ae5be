// SPDX-License-Identifier: MIT
/*
 * supervise.c - reads clocks, begins epochs and corrects slots, for Python.
 *
 * C, because the moment between reading the destination's clocks and thawing the task is
 * part of what the task would see as a jump, and because the arithmetic exists once.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "arith.h"
#include "supervise.h"

#ifndef TFD_IOC_SET_TICKS /* linux/timerfd.h, which does not go together with libc's header */
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

static int64_t read_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * TS_NSEC_PER_SEC + ts.tv_nsec;
}

void ts_read_clocks(struct ts_clocks *best)
{
	/* Of a few attempts the one that was least disturbed by interrupts. */
	for (int attempt = 0; attempt < 5; attempt++) {
		struct ts_clocks now;

		now.time[TS_MONOTONIC] = read_ns(CLOCK_MONOTONIC);
		now.tsc = __rdtsc();
		now.time[TS_RAW] = read_ns(CLOCK_MONOTONIC_RAW);
		now.time[TS_BOOTTIME] = read_ns(CLOCK_BOOTTIME);
		now.coarse = read_ns(CLOCK_MONOTONIC_COARSE);
		now.realtime = read_ns(CLOCK_REALTIME);
		now.spread = read_ns(CLOCK_MONOTONIC) - now.time[TS_MONOTONIC];
		if (!attempt || now.spread < best->spread)
			*best = now;
	}
}

void ts_to_virtual(struct ts_clocks *clocks, const struct ts_epoch *epoch)
{
	struct ts_time coarse = ts_add(ts_from_ns(clocks->coarse), epoch->offset[TS_MONOTONIC]);

	if (ts_before(coarse, epoch->coarse_floor))
		coarse = epoch->coarse_floor;
	clocks->coarse = ts_to_ns(coarse);
	for (int i = 0; i < TS_CLOCKS; i++)
		clocks->time[i] = ts_to_ns(ts_add(ts_from_ns(clocks->time[i]), epoch->offset[i]));
	clocks->tsc = ts_virtual_tsc(clocks->tsc, epoch->tsc_ratio, epoch->tsc_offset);
}

void ts_begin_epoch(struct ts_epoch *epoch, const struct ts_clocks *resume,
		    const struct ts_clocks *kernel, uint64_t tsc_ratio)
{
	for (int i = 0; i < TS_CLOCKS; i++) {
		int64_t offset;

		if (__builtin_sub_overflow(resume->time[i], kernel->time[i], &offset))
			offset = resume->time[i] < 0 ? INT64_MIN : INT64_MAX;
		epoch->offset[i] = ts_from_ns(offset);
	}
	epoch->coarse_floor = ts_from_ns(resume->coarse);
	epoch->tsc_ratio = tsc_ratio;
	epoch->tsc_offset = ts_tsc_offset(resume->tsc, kernel->tsc, tsc_ratio);
}

void ts_publish(struct ts_clock_area *area, const struct ts_epoch *epoch)
{
	uint64_t next = area->generation + 1;

	/*
	 * The generation before this one first, or a reader that still holds this copy does
	 * not notice (the first smp_wmb() of the kernel's write_seqcount_latch_begin()).
	 */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	area->epoch[next & 1] = *epoch;
	__atomic_store_n(&area->generation, next, __ATOMIC_RELEASE);
}

size_t ts_correct_slots(struct ts_slot *slot, size_t count, const struct ts_epoch *epoch)
{
	size_t corrected = 0;

	for (; count; slot++, count--) {
		if (!slot->owner || !slot->armed || slot->clock >= TS_CLOCKS ||
		    slot->deadline.nsec < 0 || slot->deadline.nsec >= TS_NSEC_PER_SEC)
			continue;
		slot->kernel = ts_kernel_deadline(slot->deadline, epoch->offset[slot->clock]);
		corrected++;
	}
	return corrected;
}

int ts_cpuid(uint32_t leaf, uint32_t *reg)
{
	/* __get_cpuid() does not know the hypervisor's range, 0x40000000 and up. */
	if (leaf >= 0x40000000 && leaf < 0x80000000) {
		__cpuid(1, reg[0], reg[1], reg[2], reg[3]);
		if (!(reg[2] & 1u << 31))
			return 0;
		__cpuid(0x40000000, reg[0], reg[1], reg[2], reg[3]);
		if (reg[0] < leaf)
			return 0;
		__cpuid(leaf, reg[0], reg[1], reg[2], reg[3]);
		return 1;
	}
	return __get_cpuid(leaf, &reg[0], &reg[1], &reg[2], &reg[3]);
}

double ts_perf_tsc_hz(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY,
		.exclude_kernel = 1,
		.exclude_hv = 1,
	};
	struct perf_event_mmap_page *page;
	double hz = 0;
	int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd < 0)
		return 0;
	page = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED) {
		/* ns = cycles * time_mult >> time_shift */
		if (page->cap_user_time && page->time_mult)
			hz = 1e9 * (double)(1ull << page->time_shift) / page->time_mult;
		munmap(page, sysconf(_SC_PAGESIZE));
	}
	close(fd);
	return hz;
}

uint64_t ts_robust_list(int thread)
{
	uint64_t head = 0;
	size_t length;

	return syscall(SYS_get_robust_list, thread, &head, &length) ? 0 : head;
}

int ts_borrow_descriptor(int pid, int fd)
{
	int process = (int)syscall(SYS_pidfd_open, pid, 0), borrowed;

	if (process < 0)
		return -1;
	borrowed = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
	close(process);
	return borrowed;
}

void ts_forward_timer(int fd)
{
	struct itimerspec setting;

	timerfd_gettime(fd, &setting);
}

void ts_set_timer(int fd, bool absolute, int64_t value, int64_t interval, uint64_t ticks)
{
	struct itimerspec setting = {
		.it_value = { value / TS_NSEC_PER_SEC, value % TS_NSEC_PER_SEC },
		.it_interval = { interval / TS_NSEC_PER_SEC, interval % TS_NSEC_PER_SEC },
	};

	timerfd_settime(fd, absolute ? TFD_TIMER_ABSTIME : 0, &setting, NULL);
	if (ticks)
		ioctl(fd, TFD_IOC_SET_TICKS, &ticks);
}

int ts_unshare(int flags)
{
	return unshare(flags) ? errno : 0;
}

int ts_setns(int fd, int type)
{
	return setns(fd, type) ? errno : 0;
}

int ts_mount(const char *source, const char *target, const char *type, unsigned long flags)
{
	return mount(source, target, type, flags, NULL) ? errno : 0;
}
