// SPDX-License-Identifier: MIT
/*
 * usage.c - uses resources, itself and in children, and reports what getrusage() and waits say.
 *
 * When all have, it prints "ready", and looks at getrusage() again and again.  At SIGTERM its
 * children end, in each of the ways to wait for one.  Then it prints a JSON object:
 *   SELF, THREAD, CHILDREN  how each field went: first, last, backward (how often)
 *   waited                  what the waits that tell a child's use told of it
 *   all, cutime_us          CHILDREN when all have been waited for; and by times()
 *   child_clock_us          what a child had used, by its CPU clock
 *   cpu_sleep_us            how long it slept until 50 ms more of its own CPU time were used
 * and another when it has executed itself:
 *   self, children          getrusage() once more
 * Times in microseconds.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BURN_MS = 150, TOUCH_PAGES = 6000, NAPS = 200, FIELDS = 9 };

static volatile sig_atomic_t enough;

static void stop(int signal)
{
	enough = signal;
}

struct fields {
	int64_t value[FIELDS];
};

static const char *const name[FIELDS] = { "utime",   "stime", "minflt", "majflt", "inblock",
					  "oublock", "nvcsw", "nivcsw", "maxrss" };

static struct fields take(const struct rusage *u)
{
	return (struct fields){ { u->ru_utime.tv_sec * 1000000 + u->ru_utime.tv_usec,
				  u->ru_stime.tv_sec * 1000000 + u->ru_stime.tv_usec, u->ru_minflt,
				  u->ru_majflt, u->ru_inblock, u->ru_oublock, u->ru_nvcsw,
				  u->ru_nivcsw, u->ru_maxrss } };
}

static struct fields of(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return take(&usage);
}

static void print(const struct fields *fields)
{
	for (int i = 0; i < FIELDS; i++)
		printf("%s\"%s\": %ld", i ? ", " : "{", name[i], (long)fields->value[i]);
	printf("}");
}

/* Uses CPU time, page faults, memory and context switches. */
static void use(void)
{
	size_t size = TOUCH_PAGES * 4096;
	struct timespec now;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	madvise(memory, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += 4096)
		memory[i] = 1;
	munmap(memory, size); /* what is left is the record of it */
	for (int i = 0; i < NAPS; i++)
		usleep(100);
	do {
		getppid();
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	} while (now.tv_sec == 0 && now.tv_nsec < BURN_MS * 1000000);
}

static void *nap(void *unused)
{
	for (int i = 0; i < NAPS; i++)
		usleep(100);
	return unused;
}

static int64_t read_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void *burn(void *asleep)
{
	while (*(volatile int *)asleep)
		getppid();
	return NULL;
}

/* Sleeps until the process has used 50 ms more; returns how much more it had used by then. */
static int64_t sleep_on_cpu_time(void)
{
	int64_t start = read_us(CLOCK_PROCESS_CPUTIME_ID), until = start + 50000;
	volatile int asleep = 1;
	pthread_t burner;

	pthread_create(&burner, NULL, burn, (void *)&asleep);
	clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, TIMER_ABSTIME,
			&(struct timespec){ until / 1000000, until % 1000000 * 1000 }, NULL);
	asleep = 0;
	pthread_join(burner, NULL);
	return read_us(CLOCK_PROCESS_CPUTIME_ID) - start;
}

static int done[2]; /* a pipe: a byte of each process that has used what it will */

static void write_byte(void)
{
	if (write(done[1], "", 1) != 1)
		perror("write");
}

static void await_bytes(int count)
{
	for (char byte; count; count--)
		while (read(done[0], &byte, 1) != 1)
			;
}

/* A child that uses resources and then, but for a hasty one, waits for the end of all. */
static pid_t begin(int hasty, int with_child)
{
	pid_t child = fork();

	if (child)
		return child;
	if (with_child)
		begin(0, 0);
	use();
	write_byte();
	while (!hasty && !enough)
		usleep(10000);
	if (with_child)
		wait(NULL);
	_exit(0);
}

static void after_exec(void)
{
	struct fields self = of(RUSAGE_SELF), children = of(RUSAGE_CHILDREN);

	printf("{\"self\": ");
	print(&self);
	printf(", \"children\": ");
	print(&children);
	printf("}\n");
}

int main(int argc, char **argv)
{
	static const int who[] = { RUSAGE_SELF, RUSAGE_THREAD, RUSAGE_CHILDREN };
	static const char *const of_whom[] = { "SELF", "THREAD", "CHILDREN" };
	struct fields first[3], last[3], told[2], all;
	long backward[3][FIELDS] = { 0 };
	pid_t plain, parent, zombie, by_pid;
	int64_t child_clock, cpu_sleep;
	clockid_t clock;
	struct rusage usage;
	siginfo_t info;
	pthread_t thread;
	struct tms tms;

	if (argc > 1) {
		after_exec();
		return 0;
	}
	signal(SIGTERM, stop);
	if (pipe(done))
		return 1;
	waitpid(begin(1, 0), NULL, 0);
	plain = begin(0, 0);
	parent = begin(0, 1);
	by_pid = begin(0, 0);
	zombie = begin(1, 0);
	use();
	pthread_create(&thread, NULL, nap, NULL);
	pthread_join(thread, NULL);
	waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT);
	await_bytes(6);
	printf("ready\n");
	fflush(stdout);

	for (int i = 0; i < 3; i++)
		first[i] = last[i] = of(who[i]);
	while (!enough) {
		for (int i = 0; i < 3; i++) {
			struct fields now = of(who[i]);

			for (int k = 0; k < FIELDS; k++)
				backward[i][k] += now.value[k] < last[i].value[k];
			last[i] = now;
		}
		usleep(500);
	}

	clock_getcpuclockid(plain, &clock);
	child_clock = read_us(clock);
	cpu_sleep = sleep_on_cpu_time();
	kill(0, SIGTERM); /* the reaper as well, which sends it on to us */
	wait4(plain, NULL, 0, &usage);
	told[0] = take(&usage);
	wait4(parent, NULL, 0, &usage);
	told[1] = take(&usage);
	waitid(P_PID, (id_t)zombie, &info, WEXITED);
	waitpid(by_pid, NULL, 0);
	all = of(RUSAGE_CHILDREN);
	times(&tms);

	printf("{");
	for (int i = 0; i < 3; i++) {
		printf("\"%s\": {", of_whom[i]);
		for (int k = 0; k < FIELDS; k++)
			printf("%s\"%s\": {\"first\": %ld, \"last\": %ld, \"backward\": %ld}",
			       k ? ", " : "", name[k], (long)first[i].value[k],
			       (long)last[i].value[k], backward[i][k]);
		printf("}, ");
	}
	printf("\"waited\": [");
	print(&told[0]);
	printf(", ");
	print(&told[1]);
	printf("], \"all\": ");
	print(&all);
	printf(", \"cutime_us\": %ld, \"child_clock_us\": %ld, \"cpu_sleep_us\": %ld}\n",
	       (tms.tms_cutime + tms.tms_cstime) * 10000, (long)child_clock, (long)cpu_sleep);
	fflush(stdout);
	execl(argv[0], argv[0], "again", NULL);
	return 1;
}
