// SPDX-License-Identifier: MIT
/*
 * bypass.c - compares what the kernel says of time with what libc says, that is, the shim.
 *
 * Until SIGTERM; then prints, as a JSON object,
 *   boottime_apart_ns   the most that BOOTTIME by an inline system call was apart from libc's
 *   monotonic_ahead_ns  the most that MONOTONIC was ahead of libc's, and
 *   monotonic_behind_ns the most that it was behind
 *   uptime_apart_ms, btime_apart_s, sysinfo_apart_s  the same of /proc/uptime, of btime in
 *                       /proc/stat (with CLOCK_REALTIME as the other end) and of sysinfo
 *   backward            how often one of them went back
 *   age_s               how old this process is, by /proc/uptime and its start time
 *
 * The application must not be able to take a moment of delay for a difference, so each value lies
 * between two readings of libc's; a difference is how far it is outside of them.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

static const int64_t NSEC = 1000000000;

static volatile sig_atomic_t enough;

static void stop(int signal)
{
	enough = signal;
}

static long inline_call(long number, long a, long b)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(a), "S"(b)
			 : "rcx", "r11", "memory");
	return ret;
}

static int64_t libc_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

static int64_t kernel_ns(clockid_t id)
{
	struct timespec ts;

	inline_call(SYS_clock_gettime, id, (long)&ts);
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

static const char *contents(const char *path)
{
	static char text[1 << 20];
	int fd = open(path, O_RDONLY);
	size_t length = 0;
	ssize_t got;

	while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)got;
	close(fd);
	text[length] = 0;
	return text;
}

static int64_t uptime_ns(void)
{
	return (int64_t)(strtod(contents("/proc/uptime"), NULL) * 100 + 0.5) * (NSEC / 100);
}

static int64_t boot_seconds(void)
{
	return atoll(strstr(contents("/proc/stat"), "\nbtime ") + 7);
}

static int64_t started_ns(void)
{
	const char *field = strrchr(contents("/proc/self/stat"), ')');

	for (int i = 0; i < 20; i++)
		field = strchr(field + 1, ' ');
	return atoll(field) * (NSEC / 100);
}

struct span {
	int64_t ahead, behind, last;
	long backward;
};

/* Takes note of a value that is truth rounded down to a multiple of unit. */
static void compare(struct span *span, int64_t from, int64_t value, int64_t to, int64_t unit)
{
	if (value > to && value - to > span->ahead)
		span->ahead = value - to;
	if (value + unit <= from && from - value - unit > span->behind)
		span->behind = from - value - unit;
	span->backward += value < span->last;
	span->last = value;
}

static int64_t apart(const struct span *span)
{
	return span->ahead > span->behind ? span->ahead : span->behind;
}

int main(void)
{
	struct span boottime = { 0 }, monotonic = { 0 }, uptime = { 0 }, sys = { 0 };
	int64_t btime_apart = 0, age;

	signal(SIGTERM, stop);
	while (!enough) {
		int64_t from = libc_ns(CLOCK_BOOTTIME), value = kernel_ns(CLOCK_BOOTTIME), off;
		struct sysinfo info;

		compare(&boottime, from, value, libc_ns(CLOCK_BOOTTIME), 0);
		from = libc_ns(CLOCK_MONOTONIC);
		value = kernel_ns(CLOCK_MONOTONIC);
		compare(&monotonic, from, value, libc_ns(CLOCK_MONOTONIC), 0);
		from = libc_ns(CLOCK_BOOTTIME);
		value = uptime_ns();
		compare(&uptime, from, value, libc_ns(CLOCK_BOOTTIME), NSEC / 100);
		from = libc_ns(CLOCK_BOOTTIME);
		inline_call(SYS_sysinfo, (long)&info, 0);
		/* rounded up */
		compare(&sys, from, (info.uptime - 1) * NSEC, libc_ns(CLOCK_BOOTTIME), NSEC);
		off = boot_seconds() - (libc_ns(CLOCK_REALTIME) - libc_ns(CLOCK_BOOTTIME)) / NSEC;
		off = off < 0 ? -off : off;
		btime_apart = off > btime_apart ? off : btime_apart;
		usleep(500);
	}
	age = uptime_ns() - started_ns();
	printf("{\"boottime_apart_ns\": %ld, \"monotonic_ahead_ns\": %ld, "
	       "\"monotonic_behind_ns\": %ld, \"uptime_apart_ms\": %ld, \"sysinfo_apart_s\": %ld, "
	       "\"btime_apart_s\": %ld, \"backward\": %ld, \"age_s\": %ld}\n",
	       (long)apart(&boottime), (long)monotonic.ahead, (long)monotonic.behind,
	       (long)(apart(&uptime) / 1000000), (long)(apart(&sys) / NSEC), (long)btime_apart,
	       boottime.backward + monotonic.backward + uptime.backward + sys.backward,
	       (long)(age / NSEC));
	return 0;
}
