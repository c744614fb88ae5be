// SPDX-License-Identifier: MIT
/*
 * slots.c - waits that end, or are left, in unusual ways; whoever runs this looks at the
 * task's slots between the steps.
 *
 *     slots cancel|nest|jump GO
 *
 * After each line that it prints it goes on when a file appears: GO1, GO2 and so forth.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000ll
#define FAR (3600 * NSEC)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t never, inner;
static pthread_t main_thread;
static const char *go;
static int step;

static struct timespec ahead(long long ns)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	ns += ts.tv_nsec;
	return (struct timespec){ ts.tv_sec + ns / NSEC, ns % NSEC };
}

/* A sleep would take a slot itself. */
static void doze(void)
{
	poll(NULL, 0, 2);
}

static void say(const char *what)
{
	char path[4096];

	printf("%s\n", what);
	fflush(stdout);
	snprintf(path, sizeof(path), "%s%d", go, ++step);
	while (access(path, F_OK))
		doze();
}

/* Returns once a thread is inside the futex or clock_nanosleep system call. */
static void await_blocked(pid_t tid)
{
	char path[64], line[64];

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
	for (;; doze()) {
		FILE *file = fopen(path, "r");
		int nr = -1;

		if (file && fgets(line, sizeof(line), file))
			nr = atoi(line);
		if (file)
			fclose(file);
		if (nr == SYS_futex || nr == SYS_clock_nanosleep)
			return;
	}
}

/* Cancellation ------------------------------------------------------------------------ */

static void unlock(void *locked)
{
	pthread_mutex_unlock(locked);
}

static void in_sleep(void)
{
	struct timespec until = ahead(FAR);

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void in_cond(void)
{
	struct timespec until = ahead(FAR);

	pthread_mutex_lock(&mutex);
	pthread_cleanup_push(unlock, &mutex);
	pthread_cond_clockwait(&cond, &mutex, CLOCK_MONOTONIC, &until);
	pthread_cleanup_pop(1);
}

static void in_sem(void)
{
	struct timespec until = ahead(FAR);

	sem_clockwait(&never, CLOCK_MONOTONIC, &until);
}

static void in_join(void)
{
	struct timespec until = ahead(FAR);

	pthread_clockjoin_np(main_thread, NULL, CLOCK_MONOTONIC, &until);
}

static void (*const blocking[])(void) = { in_sleep, in_cond, in_sem, in_join };
#define BLOCKING (sizeof(blocking) / sizeof(blocking[0]))

static pid_t tid[BLOCKING];

static void *block(void *number)
{
	__atomic_store_n(&tid[(size_t)number], gettid(), __ATOMIC_RELEASE);
	blocking[(size_t)number]();
	return NULL;
}

static void cancel(void)
{
	pthread_t thread[BLOCKING];

	for (size_t i = 0; i < BLOCKING; i++)
		pthread_create(&thread[i], NULL, block, (void *)i);
	for (size_t i = 0; i < BLOCKING; i++) {
		while (!__atomic_load_n(&tid[i], __ATOMIC_ACQUIRE))
			doze();
		await_blocked(tid[i]);
	}
	say("waiting");
	for (size_t i = 0; i < BLOCKING; i++) {
		void *result;

		pthread_cancel(thread[i]);
		pthread_join(thread[i], &result);
		if (result != PTHREAD_CANCELED)
			abort();
	}
	say("cancelled");
}

/* A handler that waits itself --------------------------------------------------------- */

static void *disturb(void *unused)
{
	await_blocked(getpid());
	pthread_kill(main_thread, SIGUSR1);
	return unused;
}

static void wait_in_handler(int signal)
{
	struct timespec until = ahead(FAR);

	(void)signal;
	sem_clockwait(&inner, CLOCK_MONOTONIC, &until);
}

static void *look(void *unused)
{
	disturb(NULL);
	doze();
	await_blocked(getpid());
	say("nested");
	sem_post(&inner);
	return unused;
}

static struct timespec asked, ended;

static void sleep_in_handler(int signal)
{
	(void)signal;
	asked = ahead(NSEC / 20);
	if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &asked, NULL))
		abort();
	clock_gettime(CLOCK_MONOTONIC, &ended);
}

static long long after(struct timespec later, struct timespec earlier)
{
	return (later.tv_sec - earlier.tv_sec) * NSEC + later.tv_nsec - earlier.tv_nsec;
}

static void nest(void)
{
	struct timespec until, now;
	pthread_t thread;
	int err;

	signal(SIGUSR1, wait_in_handler);
	until = ahead(NSEC / 10);
	pthread_create(&thread, NULL, look, NULL);
	pthread_mutex_lock(&mutex);
	err = pthread_cond_clockwait(&cond, &mutex, CLOCK_MONOTONIC, &until);
	pthread_join(thread, NULL);
	if (err != ETIMEDOUT)
		abort();
	say("unwound");

	signal(SIGUSR1, sleep_in_handler);
	until = ahead(NSEC / 2);
	pthread_create(&thread, NULL, disturb, NULL);
	err = pthread_cond_clockwait(&cond, &mutex, CLOCK_MONOTONIC, &until);
	clock_gettime(CLOCK_MONOTONIC, &now);
	pthread_join(thread, NULL);
	printf("%d %lld %lld\n", err, after(ended, asked), after(now, until));
}

/* Leaving by longjmp() ---------------------------------------------------------------- */

static sigjmp_buf back;

static void leave(int signal)
{
	siglongjmp(back, signal);
}

static void jump(void)
{
	for (volatile int i = 0; i < 20; i++) {
		pthread_t thread;

		signal(SIGUSR1, leave);
		pthread_create(&thread, NULL, disturb, NULL);
		if (!sigsetjmp(back, 1))
			in_sem();
		pthread_join(thread, NULL);
	}
	say("left");
	signal(SIGUSR1, SIG_IGN);
	for (int i = 0; i < 20; i++) {
		struct timespec until = ahead(NSEC / 1000);

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	}
	say("waited");
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	go = argv[2];
	main_thread = pthread_self();
	sem_init(&never, 0, 0);
	sem_init(&inner, 0, 0);
	if (!strcmp(argv[1], "cancel"))
		cancel();
	else if (!strcmp(argv[1], "nest"))
		nest();
	else
		jump();
	return 0;
}
