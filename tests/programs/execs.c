// SPDX-License-Identifier: MIT
/*
 * execs.c - starts itself in every way that libc knows, with environments that lack the shim.
 *
 *     execs              do so, in vfork children of a thread with the smallest stack
 *     execs report       what is started: print whether the shim is here, and the environment
 *
 * Prints a JSON object for each way and environment.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MANY = 2000 };

static const char *self;
static char *report[] = { "execs", "report", NULL };

static char *none[] = { NULL };
static char *others[] = { "A=1", "LD_PRELOAD=libm.so.6", "B=2", NULL };
static char *two[] = { "LD_PRELOAD=libm.so.6", "LD_PRELOAD=libdl.so.2", NULL };
static char *many[MANY + 1];
static char *large[2];
static char *inherited[64];

static const struct {
	const char *name;
	char **list;
} environments[] = {
	{ "none", none }, { "null", NULL },   { "others", others },       { "two", two },
	{ "many", many }, { "large", large }, { "inherited", inherited },
};

/* On success these do not return; environ is what they take from there. */
static void try_execve(char **env)
{
	execve(self, report, env);
}

static void try_execveat(char **env)
{
	execveat(AT_FDCWD, self, report, env, 0);
}

static void try_fexecve(char **env)
{
	fexecve(open(self, O_RDONLY | O_CLOEXEC), report, env);
}

static void try_execvpe(char **env)
{
	execvpe(self, report, env);
}

static void try_execv(char **env)
{
	environ = env;
	execv(self, report);
}

static void try_execvp(char **env)
{
	environ = env;
	execvp(self, report);
}

static void try_execl(char **env)
{
	environ = env;
	execl(self, "execs", "report", NULL);
}

static void try_execlp(char **env)
{
	environ = env;
	execlp(self, "execs", "report", NULL);
}

static void try_execle(char **env)
{
	execle(self, "execs", "report", NULL, env);
}

static const struct {
	const char *name;
	void (*try)(char **);
} ways[] = {
	{ "execve", try_execve },   { "execveat", try_execveat }, { "fexecve", try_fexecve },
	{ "execvpe", try_execvpe }, { "execv", try_execv },       { "execvp", try_execvp },
	{ "execl", try_execl },     { "execlp", try_execlp },     { "execle", try_execle },
};
enum { WAYS = sizeof(ways) / sizeof(ways[0]) };

static void announce(const char *way, const char *environment)
{
	dprintf(STDOUT_FILENO, "{\"way\": \"%s\", \"environment\": \"%s\", ", way, environment);
}

static void conclude(int err)
{
	if (err)
		dprintf(STDOUT_FILENO, "\"error\": \"%s\"}\n", strerrorname_np(err));
}

static void *in_vfork_children(void *unused)
{
	for (size_t e = 0; e < sizeof(environments) / sizeof(environments[0]); e++) {
		for (int i = 0; i < WAYS; i++) {
			char **saved = environ;
			volatile int err = 0;
			pid_t pid;

			announce(ways[i].name, environments[e].name);
			pid = vfork();
			if (!pid) {
				ways[i].try(environments[e].list);
				err = errno;
				_exit(0);
			}
			waitpid(pid, NULL, 0);
			environ = saved;
			conclude(err);
		}
	}
	return unused;
}

static void through_libc(void)
{
	static const char *const how[] = { "posix_spawn", "posix_spawnp", "system", "popen" };
	char command[PATH_MAX + 32];

	snprintf(command, sizeof(command), "exec %s report", self);
	for (size_t e = 0; e < sizeof(environments) / sizeof(environments[0]); e++) {
		for (int i = 0; i < 4; i++) {
			char **env = environments[e].list, **saved = environ, line[512];
			int err = 0;
			pid_t pid;
			FILE *pipe;

			announce(how[i], environments[e].name);
			if (i < 2) {
				err = i ? posix_spawnp(&pid, self, NULL, NULL, report, env)
					: posix_spawn(&pid, self, NULL, NULL, report, env);
				if (!err)
					waitpid(pid, NULL, 0);
				conclude(err);
				continue;
			}
			environ = env;
			if (i == 2) {
				if (system(command))
					err = errno;
			} else if (!(pipe = popen(command, "r"))) {
				err = errno;
			} else {
				line[0] = 0;
				if (fgets(line, sizeof(line), pipe))
					dprintf(STDOUT_FILENO, "%s", line);
				err = pclose(pipe) && !line[0] ? E2BIG : 0; /* 127: not started */
			}
			environ = saved;
			conclude(err);
		}
	}
}

static int print_report(void)
{
	const char *preload = getenv("LD_PRELOAD");
	char line[PATH_MAX + 100];
	FILE *maps = fopen("/proc/self/maps", "r");
	bool shim = false;
	int variables = 0;

	while (fgets(line, sizeof(line), maps))
		shim |= strstr(line, "libtimeshim") != NULL;
	while (environ && environ[variables])
		variables++;
	printf("\"shim\": %s, \"variables\": %d, \"preload\": \"%s\"}\n", shim ? "true" : "false",
	       variables, preload ? preload : "");
	return 0;
}

int main(int argc, char **argv)
{
	static char variable[MANY][16];
	pthread_attr_t small;
	pthread_t thread;

	if (argc > 1 && !strcmp(argv[1], "report"))
		return print_report();

	self = argv[0];
	for (int i = 0; i < MANY; i++) {
		snprintf(variable[i], sizeof(variable[i]), "V%d=%d", i, i);
		many[i] = variable[i];
	}
	large[0] = memset(calloc(1, 1 << 20), 'x', (1 << 20) - 1); /* MAX_ARG_STRLEN is 128 KB */
	for (int i = 0; environ[i] && i < 63; i++)
		inherited[i] = environ[i];

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN);
	pthread_create(&thread, &small, in_vfork_children, NULL);
	pthread_join(thread, NULL);
	through_libc();
	return 0;
}
