// SPDX-License-Identifier: MIT
/*
 * timer.c - timers that are set to an absolute time on a clock that is shifted.
 *
 * A relative timer needs nothing: the kernel counts it down, and CRIU carries over what is left.
 * An absolute one is handed to the kernel as the kernel's time.  It is set again if the task
 * was moved between the conversion and the system call, for then it was set to another host's.
 *
 * Which clock a timer is on the kernel knows but does not say cheaply; for a timerfd there is
 * /proc/self/fdinfo, and POSIX timers are noted when they are created.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "timespec.h"

NEXT(timer_create);
NEXT(timer_delete);
NEXT(timer_settime);
NEXT(timerfd_settime);

enum { TIMERS = 4096 }; /* a power of two */

/* POSIX timers on shifted clocks, by open addressing; a forked child has no timers. */
static struct {
	void *id; /* timer_t + 1, for the kernel's ids begin at 0; NULL = free */
	clockid_t clock;
} timer[TIMERS];

static void *key_of(timer_t id)
{
	return (char *)id + 1;
}

/* The place of a timer, or of the first free one behind which it could be noted. */
static int place_of(void *key, void *wanted)
{
	for (unsigned int i = 0; i < TIMERS; i++) {
		unsigned int place = ((uintptr_t)key / 16 + (uintptr_t)key + i) % TIMERS;
		void *found = __atomic_load_n(&timer[place].id, __ATOMIC_ACQUIRE);

		if (found == wanted)
			return place;
	}
	return -1;
}

static bool note(timer_t id, clockid_t clock)
{
	void *key = key_of(id);
	int place = place_of(key, key); /* left over from before a fork */

	for (;;) {
		void *expected = NULL;

		if (place < 0)
			place = place_of(key, NULL);
		if (place < 0)
			return false;
		if (timer[place].id == key ||
		    __atomic_compare_exchange_n(&timer[place].id, &expected, key, false,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			break;
		place = -1;
	}
	timer[place].clock = clock;
	return true;
}

int timer_create(clockid_t clock, struct sigevent *event, timer_t *id)
{
	int ret = next_timer_create(clock, event, id);

	if (!ret && clock_index(clock) >= 0 && !note(*id, clock)) {
		next_timer_delete(*id);
		errno = EAGAIN;
		return -1;
	}
	return ret;
}

int timer_delete(timer_t id)
{
	int place = place_of(key_of(id), key_of(id));

	if (place >= 0)
		__atomic_store_n(&timer[place].id, NULL, __ATOMIC_RELEASE);
	return next_timer_delete(id);
}

/* The clock of a timerfd, or CLOCK_REALTIME, which is not shifted, if it cannot be found. */
static clockid_t timerfd_clock(int fd)
{
	char path[sizeof("/proc/self/fdinfo/-2147483648")] = "/proc/self/fdinfo/", info[512];
	char digits[12], *digit = digits + sizeof(digits);
	int file, saved = errno;
	const char *line;
	ssize_t size;

	if (fd < 0)
		return CLOCK_REALTIME;
	*--digit = '\0';
	do
		*--digit = (char)('0' + fd % 10);
	while (fd /= 10);
	strcat(path, digit);
	file = open(path, O_RDONLY | O_CLOEXEC);
	size = file < 0 ? -1 : read(file, info, sizeof(info) - 1);
	if (file >= 0)
		close(file);
	errno = saved;
	if (size < 0)
		return CLOCK_REALTIME;
	info[size] = '\0';
	line = strstr(info, "clockid:");
	return line ? atoi(line + strlen("clockid:")) : CLOCK_REALTIME;
}

static bool zero(const struct timespec *ts)
{
	return !ts->tv_sec && !ts->tv_nsec;
}

/* How a timer is set: the two kinds differ in nothing else. */
struct setting {
	const struct itimerspec *asked;
	struct itimerspec kernel;
	uint64_t seen;
	int index; /* of its clock; -1: to be passed on as it is */
};

static const struct itimerspec *convert(struct setting *setting)
{
	const struct timespec *asked = &setting->asked->it_value;
	struct ts_time kernel;

	setting->seen = generation();
	kernel = ts_kernel_deadline(from_timespec(*asked),
				    epoch_of(setting->seen)->offset[setting->index]);
	/* 0 would disarm the timer instead of letting it expire at once */
	if (!kernel.sec && !kernel.nsec)
		kernel.nsec = 1;
	setting->kernel = *setting->asked;
	setting->kernel.it_value = to_timespec(kernel);
	return &setting->kernel;
}

static bool begin(struct setting *setting, clockid_t clock, const struct itimerspec *asked)
{
	const struct timespec *value = &asked->it_value;

	attach_first();
	setting->asked = asked;
	setting->index = clock_index(clock);
	/* what disarms, or what the kernel has yet to refuse, is not to be converted */
	return setting->index >= 0 && !zero(value) && valid(value);
}

int timer_settime(timer_t id, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	struct setting setting;
	int place, ret;

	if (!(flags & TIMER_ABSTIME) || !new || (place = place_of(key_of(id), key_of(id))) < 0 ||
	    !begin(&setting, timer[place].clock, new))
		return next_timer_settime(id, flags, new, old);
	for (ret = next_timer_settime(id, flags, convert(&setting), old);
	     !ret && !still(setting.seen);)
		ret = next_timer_settime(id, flags, convert(&setting), NULL);
	return ret;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	struct setting setting;
	int ret;

	if (!(flags & TFD_TIMER_ABSTIME) || !new || !begin(&setting, timerfd_clock(fd), new))
		return next_timerfd_settime(fd, flags, new, old);
	for (ret = next_timerfd_settime(fd, flags, convert(&setting), old);
	     !ret && !still(setting.seen);)
		ret = next_timerfd_settime(fd, flags, convert(&setting), NULL);
	return ret;
}
