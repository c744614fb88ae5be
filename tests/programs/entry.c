// SPDX-License-Identifier: MIT
/*
 * entry.c - reads CLOCK_MONOTONIC in places where little works.
 *
 * Prints, as a JSON object, by how many seconds each reading differs from the kernel's.  With
 * wrapper.c preloaded, also what that read in its constructor, and how many reads went through it.
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((weak)) extern struct timespec wrapper_constructed;
__attribute__((weak)) long wrapper_calls(void);

/* The kernel's, by no function that anybody could stand in front of. */
static long kernel_seconds(void)
{
	struct timespec ts;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(SYS_clock_gettime), "D"(CLOCK_MONOTONIC), "S"(&ts)
			 : "rcx", "r11", "memory");
	return ts.tv_sec;
}

static long shift(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec - kernel_seconds();
}

static volatile long in_constructor, in_handler, in_vfork_child, in_small_thread, in_key_destructor,
	in_cleanup_handler, in_fork_child;

static void __attribute__((constructor)) construct(void)
{
	in_constructor = shift();
}

static void handle(int signal)
{
	(void)signal;
	in_handler = shift();
}

static void destroy(void *unused)
{
	(void)unused;
	in_key_destructor = shift();
}

static void clean_up(void *unused)
{
	(void)unused;
	in_cleanup_handler = shift();
}

static void *small_thread(void *key)
{
	pthread_setspecific(*(pthread_key_t *)key, key);
	in_small_thread = shift();
	pthread_cleanup_push(clean_up, NULL);
	pthread_exit(NULL);
	pthread_cleanup_pop(0);
	return NULL;
}

static void at_exit(void)
{
	printf("\"atexit\": %ld}\n", shift());
}

int main(void)
{
	char *stack = aligned_alloc(4096, 1 << 16);
	stack_t alternate = { .ss_sp = stack, .ss_size = MINSIGSTKSZ };
	struct sigaction action = { .sa_handler = handle, .sa_flags = SA_ONSTACK };
	pthread_attr_t small;
	pthread_key_t key;
	pthread_t thread;
	int status;
	pid_t pid;

	atexit(at_exit);
	sigaltstack(&alternate, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);

	pid = vfork();
	if (!pid) {
		in_vfork_child = shift();
		_exit(0);
	}
	waitpid(pid, &status, 0);

	pid = fork();
	if (!pid)
		_exit(shift() == 86400 ? 0 : 1);
	waitpid(pid, &status, 0);
	in_fork_child = status ? 0 : 86400;

	pthread_key_create(&key, destroy);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN);
	pthread_create(&thread, &small, small_thread, &key);
	pthread_join(thread, NULL);

	printf("{\"main\": %ld, \"constructor\": %ld, \"handler\": %ld, \"vfork child\": %ld, "
	       "\"fork child\": %ld, \"small thread\": %ld, \"key destructor\": %ld, "
	       "\"cleanup handler\": %ld, ",
	       shift(), in_constructor, in_handler, in_vfork_child, in_fork_child, in_small_thread,
	       in_key_destructor, in_cleanup_handler);
	if (&wrapper_constructed)
		printf("\"wrapper's constructor\": %ld, \"wrapped\": %ld, ",
		       (long)wrapper_constructed.tv_sec - kernel_seconds(), wrapper_calls());
	return 0;
}
