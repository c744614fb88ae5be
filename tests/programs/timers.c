// SPDX-License-Identifier: MIT
/*
 * timers.c - has every kind of timer in flight at once and reports each ring.
 *
 *     timers MILLISECONDS        single timers ring then, the others every TENTH of it, ten times
 *
 * Prints a JSON object a ring: by which clock the timer goes, when it should have rung and when it
 * did, by that clock and by CLOCK_REALTIME, since it was set; which ring this is, of a timer with
 * an interval, and how many the kernel says were missed; and what the timer's own functions said
 * was left, compared with the clock.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000ll
#define RINGS 10

static int64_t span, period;
static char output[1 << 20]; /* printed at the end, on the host on which that comes */

enum how { SIGNAL, HANDLER, THREAD, THREAD_ID, NONE, RAW, DESCRIPTOR, SETITIMER, ALARM, UALARM };

struct test {
	const char *name;
	enum how how;
	clockid_t clock;
	bool absolute, repeated;
	/* while it runs */
	int number;
	timer_t id;
	int fd;
	int64_t start, start_real, due;
	int64_t error; /* of what was said to be left: the largest ever */
	pthread_mutex_t mutex;
	pthread_cond_t rung;
	int rings, missed;
	int64_t at, at_real;
};

static struct test tests[] = {
	{ .name = "MONOTONIC absolute", .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "MONOTONIC relative", .clock = CLOCK_MONOTONIC },
	{ .name = "MONOTONIC absolute interval",
	  .clock = CLOCK_MONOTONIC,
	  .absolute = true,
	  .repeated = true },
	{ .name = "MONOTONIC relative interval", .clock = CLOCK_MONOTONIC, .repeated = true },
	{ .name = "BOOTTIME absolute", .clock = CLOCK_BOOTTIME, .absolute = true },
	{ .name = "BOOTTIME relative", .clock = CLOCK_BOOTTIME },
	{ .name = "BOOTTIME absolute interval",
	  .clock = CLOCK_BOOTTIME,
	  .absolute = true,
	  .repeated = true },
	{ .name = "REALTIME absolute", .clock = CLOCK_REALTIME, .absolute = true },
	{ .name = "REALTIME relative", .clock = CLOCK_REALTIME },
	{ .name = "REALTIME absolute interval",
	  .clock = CLOCK_REALTIME,
	  .absolute = true,
	  .repeated = true },
	{ .name = "TAI absolute", .clock = CLOCK_TAI, .absolute = true },
	{ .name = "SIGEV_THREAD", .how = THREAD, .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "SIGEV_THREAD REALTIME absolute",
	  .how = THREAD,
	  .clock = CLOCK_REALTIME,
	  .absolute = true },
	{ .name = "SIGEV_THREAD interval",
	  .how = THREAD,
	  .clock = CLOCK_MONOTONIC,
	  .repeated = true },
	{ .name = "SIGEV_THREAD_ID", .how = THREAD_ID, .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "SIGEV_THREAD_ID interval",
	  .how = THREAD_ID,
	  .clock = CLOCK_MONOTONIC,
	  .repeated = true },
	{ .name = "SIGEV_NONE", .how = NONE, .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "SIGEV_NONE BOOTTIME", .how = NONE, .clock = CLOCK_BOOTTIME },
	{ .name = "a handler", .how = HANDLER, .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "a handler interval",
	  .how = HANDLER,
	  .clock = CLOCK_MONOTONIC,
	  .repeated = true },
	{ .name = "syscall", .how = RAW, .clock = CLOCK_MONOTONIC, .absolute = true },
	{ .name = "timerfd", .how = DESCRIPTOR, .clock = CLOCK_MONOTONIC, .absolute = true },
	/* of these a process has but one */
	{ .name = "setitimer", .how = SETITIMER, .clock = CLOCK_MONOTONIC },
	{ .name = "setitimer interval",
	  .how = SETITIMER,
	  .clock = CLOCK_MONOTONIC,
	  .repeated = true },
	{ .name = "alarm", .how = ALARM, .clock = CLOCK_MONOTONIC },
	{ .name = "ualarm", .how = UALARM, .clock = CLOCK_MONOTONIC, .repeated = true },
};
enum { TESTS = sizeof(tests) / sizeof(tests[0]) };

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ ns / NSEC, ns % NSEC };
}

static struct timeval to_timeval(int64_t ns)
{
	return (struct timeval){ ns / NSEC, ns % NSEC / 1000 };
}

static void fail(const struct test *test, const char *what)
{
	fprintf(stderr, "timers: %s: %s: %s\n", test->name, what, strerror(errno));
	_exit(1);
}

/* What the timer's own function says is left; 0 once it has rung for good. */
static int64_t left_of(const struct test *test)
{
	struct itimerspec left = { 0 };
	struct itimerval left_val;

	switch (test->how) {
	case SETITIMER:
	case ALARM:
	case UALARM:
		getitimer(ITIMER_REAL, &left_val);
		return left_val.it_value.tv_sec * NSEC + left_val.it_value.tv_usec * 1000;
	case DESCRIPTOR:
		timerfd_gettime(test->fd, &left);
		break;
	case RAW:
		syscall(SYS_timer_gettime, test->id, &left);
		break;
	default:
		timer_gettime(test->id, &left);
	}
	return left.it_value.tv_sec * NSEC + left.it_value.tv_nsec;
}

/* The clock says before what is left is asked, and after, when it must be due. */
static void compare_left(struct test *test)
{
	/* the kernel counts a span on CLOCK_REALTIME by MONOTONIC */
	int64_t before = read_ns(test->clock), left = left_of(test), after = read_ns(test->clock);
	int64_t due = test->due, error = 0;

	if (!left || (test->clock == CLOCK_REALTIME && !test->absolute))
		return;
	if (test->repeated && due < after)
		due += (after - due + period - 1) / period * period;
	if (left + after < due)
		error = left + after - due;
	else if (left + before > due + 1000)
		error = left + before - due;
	if (test->repeated && llabs(error) > period / 2)
		return; /* it rang in between */
	if (llabs(error) > llabs(test->error))
		test->error = error;
}

static void report(struct test *test, int64_t at, int64_t at_real, int missed)
{
	const int64_t interval = test->repeated ? period : 0;

	printf("{\"timer\": \"%s\", \"clock\": %d, \"absolute\": %s, \"ring\": %d, "
	       "\"asked_ns\": %ld, \"took_ns\": %ld, \"real_ns\": %ld, \"at_ns\": %ld, "
	       "\"period_ns\": %ld, \"missed\": %d, \"left_error_ns\": %ld}\n",
	       test->name, test->clock, test->absolute ? "true" : "false", test->rings,
	       (long)(test->due - test->start + test->rings * interval), (long)(at - test->start),
	       (long)(at_real - test->start_real), (long)at_real, (long)interval, missed,
	       (long)test->error);
	test->rings += 1 + missed;
}

/* From a handler, or a thread that libc starts. */
static void note(struct test *test)
{
	test->at_real = read_ns(CLOCK_REALTIME);
	test->at = read_ns(test->clock);
	test->missed = test->how == SETITIMER ? 0 : timer_getoverrun(test->id);
}

static void rang_in_thread(union sigval value)
{
	struct test *test = value.sival_ptr;

	pthread_mutex_lock(&test->mutex);
	note(test);
	report(test, test->at, test->at_real, test->missed);
	pthread_cond_signal(&test->rung);
	pthread_mutex_unlock(&test->mutex);
}

static volatile sig_atomic_t handled[TESTS];

static void handler(int signal, siginfo_t *info, void *context)
{
	struct test *test = info->si_value.sival_ptr;

	(void)signal, (void)context;
	note(test);
	handled[test - tests]++;
}

static void create(struct test *test, int signal)
{
	struct sigevent event = { .sigev_signo = signal, .sigev_value.sival_ptr = test };
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	int raw;

	switch (test->how) {
	case THREAD:
		event.sigev_notify = SIGEV_THREAD;
		event.sigev_notify_function = rang_in_thread;
		break;
	case THREAD_ID:
		event.sigev_notify = SIGEV_THREAD_ID;
		event._sigev_un._tid = gettid();
		break;
	case NONE:
		event.sigev_notify = SIGEV_NONE;
		break;
	case HANDLER:
		sigaction(signal, &action, NULL);
		break;
	case DESCRIPTOR:
		test->fd = timerfd_create(test->clock, TFD_CLOEXEC);
		return;
	case RAW:
		if (syscall(SYS_timer_create, test->clock, &event, &raw))
			fail(test, "timer_create");
		test->id = (timer_t)(long)raw;
		return;
	case SETITIMER:
	case ALARM:
	case UALARM:
		return;
	default:
		break;
	}
	if (timer_create(test->clock, &event, &test->id))
		fail(test, "timer_create");
}

static void set(struct test *test)
{
	int64_t first = test->repeated ? period : span;
	struct itimerspec setting = { .it_interval = to_timespec(test->repeated ? period : 0) };
	struct itimerval setting_val = { to_timeval(test->repeated ? period : 0),
					 to_timeval(first) };
	int ret = 0;

	test->start_real = read_ns(CLOCK_REALTIME);
	test->start = read_ns(test->clock);
	test->due = test->start + first;
	setting.it_value = to_timespec(test->absolute ? test->due : first);
	switch (test->how) {
	case DESCRIPTOR:
		ret = timerfd_settime(test->fd, test->absolute * TFD_TIMER_ABSTIME, &setting, NULL);
		break;
	case RAW:
		ret = (int)syscall(SYS_timer_settime, test->id, test->absolute * TIMER_ABSTIME,
				   &setting, NULL);
		break;
	case SETITIMER:
		ret = setitimer(ITIMER_REAL, &setting_val, NULL);
		break;
	case ALARM:
		alarm((unsigned int)(first / NSEC));
		break;
	case UALARM:
		ualarm((useconds_t)(first / 1000), (useconds_t)(period / 1000));
		break;
	default:
		ret = timer_settime(test->id, test->absolute * TIMER_ABSTIME, &setting, NULL);
	}
	if (ret)
		fail(test, "set");
	/* a span is counted from a moment after the clock was read */
	if (!test->absolute)
		test->due = read_ns(test->clock) + left_of(test);
}

static bool is_over(const struct test *test)
{
	return test->rings >= (test->repeated ? RINGS : 1);
}

/* Waits for all rings of a timer, in short waits so that what is left is asked all the time. */
static void await(struct test *test, int signal)
{
	const struct timespec moment = { .tv_nsec = 2000000 };
	siginfo_t info;
	sigset_t set;
	uint64_t count;
	struct timespec until;

	sigemptyset(&set);
	sigaddset(&set, signal);
	while (!is_over(test)) {
		compare_left(test);
		switch (test->how) {
		case THREAD:
			pthread_mutex_lock(&test->mutex);
			until = to_timespec(read_ns(CLOCK_REALTIME) + moment.tv_nsec);
			if (!is_over(test))
				pthread_cond_timedwait(&test->rung, &test->mutex, &until);
			pthread_mutex_unlock(&test->mutex);
			break;
		case HANDLER:
			nanosleep(&moment, NULL);
			if (handled[test - tests]) {
				handled[test - tests] = 0;
				report(test, test->at, test->at_real, test->missed);
			}
			break;
		case NONE:
			nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
			if (!left_of(test))
				report(test, read_ns(test->clock), read_ns(CLOCK_REALTIME), 0);
			break;
		case DESCRIPTOR:
			if (read(test->fd, &count, sizeof(count)) == sizeof(count))
				report(test, read_ns(test->clock), read_ns(CLOCK_REALTIME),
				       (int)count - 1);
			break;
		default:
			if (sigtimedwait(&set, &info, &moment) == signal)
				report(test, read_ns(test->clock), read_ns(CLOCK_REALTIME),
				       info.si_code == SI_TIMER ? info.si_overrun : 0);
		}
	}
}

static void *perform(void *arg)
{
	struct test *test = arg;
	int signal = test->how >= SETITIMER ? SIGALRM : SIGRTMIN + 1 + test->number;
	sigset_t own;

	pthread_mutex_init(&test->mutex, NULL);
	pthread_cond_init(&test->rung, NULL);
	if (test->how == HANDLER) {
		sigemptyset(&own);
		sigaddset(&own, signal);
		pthread_sigmask(SIG_UNBLOCK, &own, NULL);
	}
	create(test, signal);
	set(test);
	await(test, signal);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[TESTS];
	int children = 0, threads = 0;
	sigset_t all;

	span = (argc > 1 ? atoll(argv[1]) : 2000) * 1000000;
	period = span / RINGS;
	setvbuf(stdout, output, _IOFBF, sizeof(output));
	sigfillset(&all);
	sigdelset(&all, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (int i = 0; i < TESTS; i++) {
		tests[i].number = i;
		if (tests[i].how >= SETITIMER) {
			if (!fork()) {
				perform(&tests[i]);
				return 0;
			}
			children++;
		}
	}
	for (int i = 0; i < TESTS; i++) {
		if (tests[i].how < SETITIMER)
			pthread_create(&thread[threads++], NULL, perform, &tests[i]);
	}
	while (threads--)
		pthread_join(thread[threads], NULL);
	while (children--)
		wait(NULL);
	return 0;
}
