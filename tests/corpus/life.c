// SPDX-License-Identifier: MIT
/*
 * life.c - processes that begin in every way there is, with nothing in their environment.
 *
 * Each begins before the move, watches CLOCK_MONOTONIC over it, and then goes on in a process that
 * begins in the same way; what was observed so far is handed on as an argument.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "beats.h"

enum { STACK = 1 << 16 };
enum { ROUNDS = 40, ROUND_NS = 4 * NS_PER_MS, WORDS = sizeof(struct observed) / sizeof(int64_t) };

static char *none[] = { NULL };

/*
 * The stage of such a life, as the arguments of its next program: "continue", index of the way,
 * beats that are over, descriptor to say "ready" to, GO, and what was observed.
 */
static char *argument[8];
static char text[WORDS * 21 + 1];

/* On success the exec calls do not return. */
static void by_execve(void)
{
	execve(self, argument, none);
}

static void by_execveat(void)
{
	execveat(AT_FDCWD, self, argument, none, 0);
}

static void by_fexecve(void)
{
	fexecve(open(self, O_RDONLY | O_CLOEXEC), argument, none);
}

static void by_execvpe(void)
{
	execvpe(self, argument, none);
}

static void by_execv(void)
{
	environ = none;
	execv(self, argument);
}

static void by_execvp(void)
{
	environ = none;
	execvp(self, argument);
}

static void by_execl(void)
{
	environ = none;
	execl(self, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5],
	      argument[6], NULL);
}

static void by_execlp(void)
{
	environ = none;
	execlp(self, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5],
	       argument[6], NULL);
}

static void by_execle(void)
{
	execle(self, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5],
	       argument[6], NULL, none);
}

static void by_env(void)
{
	char *env[10] = { "env", "-i", self };

	memcpy(env + 3, argument + 1, 7 * sizeof(*env));
	execvp("env", env);
}

/* The others leave a process behind that waits for the new one. */
static void await(pid_t pid)
{
	waitpid(pid, NULL, 0);
	_exit(0);
}

static void by_vfork(void)
{
	pid_t pid = vfork();

	if (!pid) {
		execve(self, argument, none);
		_exit(1);
	}
	await(pid);
}

static void by_posix_spawn(void)
{
	pid_t pid;

	if (!posix_spawn(&pid, self, NULL, NULL, argument, none))
		await(pid);
}

static void by_posix_spawnp(void)
{
	pid_t pid;

	if (!posix_spawnp(&pid, self, NULL, NULL, argument, none))
		await(pid);
}

static char *command(void)
{
	char *line;

	if (asprintf(&line, "exec %s %s %s %s %s %s '%s'", self, argument[1], argument[2],
		     argument[3], argument[4], argument[5], argument[6]) < 0)
		abort();
	environ = none;
	return line;
}

static void by_system(void)
{
	if (system(command()))
		return;
	_exit(0);
}

static void by_popen(void)
{
	FILE *pipe = popen(command(), "w");

	if (pipe && !pclose(pipe))
		_exit(0);
}

static int go_on(void *unused);

static void by_fork(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(go_on(NULL));
	await(pid);
}

static void by_clone(void)
{
	char *stack = malloc(STACK);

	await(clone(go_on, stack + STACK, SIGCHLD, NULL));
}

static const struct life ways[] = {
	{ "fork", by_fork },
	{ "clone", by_clone },
	{ "vfork and execve", by_vfork },
	{ "posix_spawn", by_posix_spawn },
	{ "posix_spawnp", by_posix_spawnp },
	{ "system", by_system },
	{ "popen", by_popen },
	{ "execve", by_execve },
	{ "execveat", by_execveat },
	{ "fexecve", by_fexecve },
	{ "execvpe", by_execvpe },
	{ "execv", by_execv },
	{ "execvp", by_execvp },
	{ "execl", by_execl },
	{ "execlp", by_execlp },
	{ "execle", by_execle },
	{ "env -i", by_env },
	{ 0 },
};

static void hand_on(int way, const char *stage, int ready, const struct observed *observed)
{
	static char number[2][12];
	const int64_t *word = (const int64_t *)observed;
	char *end = text;

	for (int i = 0; i < (int)WORDS; i++)
		end += sprintf(end, "%ld ", word[i]);
	snprintf(number[0], sizeof(number[0]), "%d", way);
	snprintf(number[1], sizeof(number[1]), "%d", ready);
	argument[0] = self;
	argument[1] = "continue";
	argument[2] = number[0];
	argument[3] = (char *)stage;
	argument[4] = number[1];
	argument[5] = (char *)go;
	argument[6] = text;
	ways[way].begin();
	_exit(1);
}

int continue_life(char **argv)
{
	int way = atoi(argv[0]), ready = atoi(argv[2]);
	struct reading clock = { ways[way].name, CLOCK_MONOTONIC, read_ns, 0, 0, false };
	struct observed observed;
	char *at = argv[4];

	go = argv[3];
	for (int i = 0; i < (int)WORDS; i++)
		((int64_t *)&observed)[i] = strtol(at, &at, 10);
	if (!strcmp(argv[1], "first")) {
		for (int i = 0; i < ROUNDS; i++, doze(ROUND_NS))
			observe(&clock, &observed, ARRANGE);
		if (write(ready, "", 1) != 1)
			return 1;
		for (; !moved(); doze(ROUND_NS))
			observe(&clock, &observed, MEANWHILE);
		hand_on(way, "last", ready, &observed);
	}
	for (int i = 0; i < ROUNDS; i++, doze(ROUND_NS))
		observe(&clock, &observed, ASSERT);
	print_observed(&clock, &observed);
	return 0;
}

static int go_on(void *unused)
{
	(void)unused;
	return continue_life(argument + 2);
}

void begin_life(const struct life *begun, int ready)
{
	if (!fork())
		hand_on((int)(begun - ways), "first", ready, &nothing_observed);
}

const struct family life = { .name = "life", .lives = ways };
