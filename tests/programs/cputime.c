// SPDX-License-Identifier: MIT
/*
 * cputime.c - uses the CPU in two threads and in a child, then looks at every measure of it until
 * SIGTERM, and reports how each went.
 *
 * Prints one JSON object: for each measure what it was last, the largest step forward between two
 * looks, and how often it went back; in microseconds.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t enough;
static clockid_t helper_clock;
static pthread_barrier_t burnt;

static void stop(int signal)
{
	enough = signal;
}

static int64_t read_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void burn(int milliseconds)
{
	while (read_us(CLOCK_THREAD_CPUTIME_ID) < milliseconds * 1000)
		getppid(); /* some of it in the kernel */
}

static void *help(void *unused)
{
	burn(150);
	pthread_barrier_wait(&burnt);
	for (;;)
		pause();
	return unused;
}

static int64_t usage(int who, int system)
{
	struct rusage usage;

	getrusage(who, &usage);
	return system ? usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec
		      : usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec;
}

static struct tms ticks(void)
{
	struct tms now;

	times(&now);
	return now;
}

enum { MEASURES = 16 };

static const char *const name[MEASURES] = {
	"process clock", "thread clock",  "clock()",         "helper's clock",
	"getcpuclockid", "self user",     "self system",     "thread user",
	"thread system", "children user", "children system", "tms_utime",
	"tms_stime",     "tms_cutime",    "tms_cstime",      "self total",
};

static void look(int64_t now[MEASURES])
{
	struct tms tms = ticks();
	clockid_t process;

	clock_getcpuclockid(0, &process);
	now[0] = read_us(CLOCK_PROCESS_CPUTIME_ID);
	now[1] = read_us(CLOCK_THREAD_CPUTIME_ID);
	now[2] = clock();
	now[3] = read_us(helper_clock);
	now[4] = read_us(process);
	now[5] = usage(RUSAGE_SELF, 0);
	now[6] = usage(RUSAGE_SELF, 1);
	now[7] = usage(RUSAGE_THREAD, 0);
	now[8] = usage(RUSAGE_THREAD, 1);
	now[9] = usage(RUSAGE_CHILDREN, 0);
	now[10] = usage(RUSAGE_CHILDREN, 1);
	now[11] = tms.tms_utime * 10000;
	now[12] = tms.tms_stime * 10000;
	now[13] = tms.tms_cutime * 10000;
	now[14] = tms.tms_cstime * 10000;
	now[15] = now[5] + now[6];
}

int main(void)
{
	int64_t last[MEASURES], step[MEASURES] = { 0 };
	long back[MEASURES] = { 0 };
	pthread_t helper;

	signal(SIGTERM, stop);
	if (!fork()) {
		burn(150);
		_exit(0);
	}
	wait(NULL);
	pthread_barrier_init(&burnt, NULL, 2);
	pthread_create(&helper, NULL, help, NULL);
	pthread_getcpuclockid(helper, &helper_clock);
	burn(150);
	pthread_barrier_wait(&burnt);

	look(last);
	while (!enough) {
		int64_t now[MEASURES];

		look(now);
		for (int i = 0; i < MEASURES; i++) {
			back[i] += now[i] < last[i];
			if (now[i] - last[i] > step[i])
				step[i] = now[i] - last[i];
			last[i] = now[i];
		}
		usleep(500);
	}

	printf("{");
	for (int i = 0; i < MEASURES; i++)
		printf("%s\"%s\": {\"us\": %ld, \"largest_step_us\": %ld, \"backward\": %ld}",
		       i ? ", " : "", name[i], (long)last[i], (long)step[i], back[i]);
	printf("}\n");
	return 0;
}
