// SPDX-License-Identifier: MIT
/*
 * timer.c - timers that are set to an absolute time, and what the supervisor must know of timers.
 *
 * An absolute time on a clock that is shifted is handed to the kernel as the kernel's time.  It is
 * set again if the task was moved between the conversion and the system call, for then it was set
 * to another host's.  Which clock a timer is on the kernel knows but does not say cheaply; for a
 * timerfd there is /proc/self/fdinfo, and POSIX timers are noted when they are created.
 *
 * That timers in flight ring at the right time after a migration is the supervisor's work: it takes
 * down what is left of each.  Two things it cannot see from outside, so they are in the page:
 * whether any process has set an interval timer, and which timers on CLOCK_REALTIME are set to a
 * time instead of a span.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "timer.h"
#include "timespec.h"

NEXT(alarm);
NEXT(setitimer);
NEXT(timer_create);
NEXT(timer_delete);
NEXT(timer_settime);
NEXT(timerfd_settime);
NEXT(ualarm);

/* Untouched places cost nothing; a process may have as many timers as signals queued, ulimit -i. */
enum { TIMERS = 65536, PROBES = 1024 };

/* POSIX timers, by open addressing; a forked child has none, and an exec leaves none. */
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
	for (unsigned int i = 0; i < PROBES; i++) {
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

/*
 * The kernel's id of a timer.  In glibc that is the timer_t itself, unless a thread is to be
 * started: then it is the address, shifted to the right below a sign bit, of a struct that begins
 * with the id. Before 2.34 it is the address of a struct whose second member is the id
 * (sysdeps/unix/sysv/linux/kernel-posix-timers.h).
 */
static uint32_t kernel_id(timer_t id)
{
	intptr_t value = (intptr_t)id;

	if (value < 0)
		return *(uint32_t *)((uintptr_t)value << 1);
	return value <= INT_MAX ? (uint32_t)value : ((uint32_t *)value)[1];
}

/* Has the page say of a timer on CLOCK_REALTIME whether it is set to an absolute time. */
static void declare_absolute(timer_t id, bool is)
{
	const uint32_t process = (uint32_t)kernel_call(SYS_getpid, (const long[6]){ 0 });
	const uint32_t number = kernel_id(id);
	const uint64_t entry = (uint64_t)process << 32 | number;
	uint64_t *row = shim.task->absolute_timer[(process + number) % TS_TIMER_ROWS];

	/* also entries of an earlier program, or process, of that id */
	for (int i = 0; i < TS_TIMER_WAYS; i++) {
		if (__atomic_load_n(&row[i], __ATOMIC_RELAXED) != entry)
			continue;
		if (is)
			return;
		__atomic_store_n(&row[i], 0, __ATOMIC_RELAXED);
	}
	for (int i = 0; is && i < TS_TIMER_WAYS; i++) {
		uint64_t taken = __atomic_load_n(&row[i], __ATOMIC_RELAXED);

		if ((!taken || is_dead((uint32_t)(taken >> 32))) &&
		    __atomic_compare_exchange_n(&row[i], &taken, entry, false, __ATOMIC_RELAXED,
						__ATOMIC_RELAXED))
			return;
	}
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

int timer_create(clockid_t clock, struct sigevent *event, timer_t *id)
{
	int ret;

	attach_first();
	ret = next_timer_create(clock, event, id);
	if (!ret && !note_timer(*id, clock)) {
		next_timer_delete(*id);
		errno = EAGAIN;
		return -1;
	}
	return ret;
}

bool note_timer(timer_t id, clockid_t clock)
{
	if (!note(id, clock))
		return false;
	if (clock == CLOCK_REALTIME)
		declare_absolute(id, false);
	return true;
}

void forget_timer(timer_t id)
{
	int place = place_of(key_of(id), key_of(id));

	if (place < 0)
		return;
	if (timer[place].clock == CLOCK_REALTIME)
		declare_absolute(id, false);
	__atomic_store_n(&timer[place].id, NULL, __ATOMIC_RELEASE);
}

int timer_delete(timer_t id)
{
	attach_first();
	forget_timer(id);
	return next_timer_delete(id);
}

int set_timer(settime_fn *set, timer_t id, int flags, const struct itimerspec *new,
	      struct itimerspec *old)
{
	struct setting setting;
	bool absolute = flags & TIMER_ABSTIME;
	int place, ret;

	attach_first();
	if (!new || (place = place_of(key_of(id), key_of(id))) < 0)
		return set(id, flags, new, old);
	if (timer[place].clock == CLOCK_REALTIME)
		declare_absolute(id, absolute && !zero(&new->it_value));
	if (!absolute || !begin(&setting, timer[place].clock, new))
		return set(id, flags, new, old);
	for (ret = set(id, flags, convert(&setting), old); !ret && !still(setting.seen);)
		ret = set(id, flags, convert(&setting), NULL);
	return ret;
}

int timer_settime(timer_t id, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	attach_first();
	return set_timer(next_timer_settime, id, flags, new, old);
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

void declare_interval_timer(void)
{
	attach_first();
	__atomic_store_n(&shim.task->interval_timers, 1, __ATOMIC_RELAXED);
}

int setitimer(__itimer_which_t which, const struct itimerval *new, struct itimerval *old)
{
	declare_interval_timer();
	return next_setitimer(which, new, old);
}

unsigned int alarm(unsigned int seconds)
{
	declare_interval_timer();
	return next_alarm(seconds);
}

useconds_t ualarm(useconds_t value, useconds_t interval)
{
	declare_interval_timer();
	return next_ualarm(value, interval);
}
