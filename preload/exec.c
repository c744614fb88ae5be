// SPDX-License-Identifier: MIT
/*
 * exec.c - a program that a task starts has the shim, whatever its environment says.
 *
 * Daemons, sudo and `env -i` start programs with an environment of their own making, in
 * which nothing tells the dynamic linker to load the shim.  So whoever hands an
 * environment to the kernel hands over one whose LD_PRELOAD ends with this library.  It is the
 * last, next to the libc that it stands for: what the application preloads itself is called
 * before it, and reaches it with RTLD_NEXT.  An environment that is right already, as nearly all
 * are, is passed on as it is.
 *
 * All but system() and popen() may run in a vfork child, on a small stack, and in a signal
 * handler: what they write, they write on the stack.
 */
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "trap.h"

NEXT(execv);
NEXT(execve);
NEXT(execveat);
NEXT(execvp);
NEXT(execvpe);
NEXT(fexecve);
NEXT(popen);
NEXT(posix_spawn);
NEXT(posix_spawnp);
NEXT(system);

#define VARIABLE "LD_PRELOAD="
#define VARIABLE_LENGTH (sizeof(VARIABLE) - 1)

/*
 * In bytes.  A larger environment is built in memory of its own, which an exec in a vfork child
 * leaves behind in the parent; on a stack of PTHREAD_STACK_MIN it would not fit.
 */
#define MOST_ON_STACK 4096

struct environment {
	char *const *given;
	size_t count; /* of its variables */
	size_t preload; /* index of LD_PRELOAD; count if it has none */
	size_t room; /* bytes that one with the shim needs; 0: it has the shim already */
};

static bool ends_with_shim(const char *value)
{
	size_t length = strlen(value), ours = strlen(shim.library);

	return length >= ours && !strcmp(value + length - ours, shim.library) &&
	       (length == ours || strchr(": ", value[length - ours - 1]));
}

/* After a chroot(), say, the dynamic linker would only complain. */
static bool out_of_reach(void)
{
	int saved = errno;
	bool no = faccessat(AT_FDCWD, shim.library, R_OK, AT_EACCESS);

	errno = saved;
	return no;
}

static void look_at(struct environment *env, char *const *given)
{
	attach_first();

	*env = (struct environment){ .given = given };
	while (given && given[env->count])
		env->count++;
	/* the last of several is the one that the dynamic linker goes by */
	for (env->preload = env->count; env->preload--;) {
		if (!strncmp(given[env->preload], VARIABLE, VARIABLE_LENGTH)) {
			if (ends_with_shim(given[env->preload] + VARIABLE_LENGTH))
				return;
			break;
		}
	}
	if (out_of_reach())
		return;
	env->room = (env->count + 2) * sizeof(char *) + sizeof(VARIABLE) + strlen(shim.library);
	if (env->preload < env->count)
		env->room += 1 + strlen(given[env->preload] + VARIABLE_LENGTH);
	else
		env->preload = env->count;
}

/* Copies a list of libraries, but for this one, each with a colon behind it. */
static char *copy_others(char *to, const char *value)
{
	for (size_t length; *value; value += length + (value[length] != 0)) {
		length = strcspn(value, ": ");
		if (length && (strncmp(value, shim.library, length) || shim.library[length])) {
			to = mempcpy(to, value, length);
			*to++ = ':';
		}
	}
	return to;
}

static char *const *with_shim(const struct environment *env, void *room)
{
	bool added = env->preload == env->count;
	char **list = room, *variable = (char *)(list + env->count + 2);

	memcpy(list, env->given, env->count * sizeof(*list));
	list[env->preload] = variable;
	list[env->count + added] = NULL;
	variable = stpcpy(variable, VARIABLE);
	if (!added)
		variable = copy_others(variable, env->given[env->preload] + VARIABLE_LENGTH);
	strcpy(variable, shim.library);
	return list;
}

/* Evaluates call with envp standing for an environment, made from passed, that has the shim. */
#define WITH_SHIM(envp, passed, call)                                                              \
	({                                                                                         \
		struct environment env;                                                            \
		char *const *envp = passed;                                                        \
		void *mapped = MAP_FAILED;                                                         \
		int returned;                                                                      \
                                                                                                   \
		look_at(&env, envp);                                                               \
		if (env.room > MOST_ON_STACK)                                                      \
			mapped = mmap(NULL, env.room, PROT_READ | PROT_WRITE,                      \
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);                         \
		if (mapped != MAP_FAILED)                                                          \
			envp = with_shim(&env, mapped);                                            \
		else if (env.room && env.room <= MOST_ON_STACK)                                    \
			envp = with_shim(&env, alloca(env.room));                                  \
		pause_trap();                                                                      \
		returned = (call);                                                                 \
		resume_trap();                                                                     \
		if (mapped != MAP_FAILED)                                                          \
			munmap(mapped, env.room);                                                  \
		returned;                                                                          \
	})

int execve(const char *path, char *const argv[], char *const environment[])
{
	return WITH_SHIM(envp, environment, next_execve(path, argv, envp));
}

int execveat(int dir, const char *path, char *const argv[], char *const environment[], int flags)
{
	return WITH_SHIM(envp, environment, next_execveat(dir, path, argv, envp, flags));
}

int fexecve(int fd, char *const argv[], char *const environment[])
{
	/* unlike the others it refuses one that is missing, which must stay its own affair */
	return WITH_SHIM(envp, environment, next_fexecve(fd, argv, environment ? envp : NULL));
}

int execvpe(const char *file, char *const argv[], char *const environment[])
{
	return WITH_SHIM(envp, environment, next_execvpe(file, argv, envp));
}

int execv(const char *path, char *const argv[])
{
	return WITH_SHIM(envp, environ,
			 envp == environ ? next_execv(path, argv) : next_execve(path, argv, envp));
}

int execvp(const char *file, char *const argv[])
{
	return WITH_SHIM(envp, environ,
			 envp == environ ? next_execvp(file, argv)
					 : next_execvpe(file, argv, envp));
}

/* Evaluates call with argv standing for the arguments from arg on, and rest for what follows. */
#define GATHERED(argv, rest, arg, call)                                                            \
	({                                                                                         \
		va_list rest, again;                                                               \
		size_t count = 1;                                                                  \
		int result;                                                                        \
                                                                                                   \
		va_start(rest, arg);                                                               \
		va_copy(again, rest);                                                              \
		while (va_arg(again, char *))                                                      \
			count++;                                                                   \
		va_end(again);                                                                     \
                                                                                                   \
		char *argv[count + 1];                                                             \
                                                                                                   \
		argv[0] = (char *)(arg);                                                           \
		for (size_t i = 1; i <= count; i++)                                                \
			argv[i] = va_arg(rest, char *);                                            \
		result = (call);                                                                   \
		va_end(rest);                                                                      \
		result;                                                                            \
	})

int execl(const char *path, const char *arg, ...)
{
	return GATHERED(argv, rest, arg, execv(path, argv));
}

int execlp(const char *file, const char *arg, ...)
{
	return GATHERED(argv, rest, arg, execvp(file, argv));
}

int execle(const char *path, const char *arg, ...)
{
	return GATHERED(argv, rest, arg, execve(path, argv, va_arg(rest, char **)));
}

int posix_spawn(pid_t *restrict pid, const char *restrict path,
		const posix_spawn_file_actions_t *restrict actions,
		const posix_spawnattr_t *restrict attributes, char *const argv[restrict],
		char *const environment[restrict])
{
	return WITH_SHIM(envp, environment,
			 next_posix_spawn(pid, path, actions, attributes, argv, envp));
}

int posix_spawnp(pid_t *restrict pid, const char *restrict file,
		 const posix_spawn_file_actions_t *restrict actions,
		 const posix_spawnattr_t *restrict attributes, char *const argv[restrict],
		 char *const environment[restrict])
{
	return WITH_SHIM(envp, environment,
			 next_posix_spawnp(pid, file, actions, attributes, argv, envp));
}

/*
 * system() and popen() pass environ on from inside libc.  To change environ, even for a moment,
 * would be seen by other threads; so the shell, which itself goes without, sets the variable for
 * all that it starts.  NULL if there is no need, or no memory: then libc has none either.
 */
static char *command_with_shim(const char *command)
{
	struct environment env;
	char *longer;

	look_at(&env, environ);
	if (!command || !env.room ||
	    asprintf(&longer, "export " VARIABLE "${LD_PRELOAD:+$LD_PRELOAD:}'%s'; %s",
		     shim.library, command) < 0)
		return NULL;
	return longer;
}

static void started(void *longer)
{
	resume_trap();
	free(longer);
}

int system(const char *command)
{
	char *longer = command_with_shim(command);
	int status;

	pthread_cleanup_push(started, longer);
	pause_trap();
	status = next_system(longer ? longer : command);
	pthread_cleanup_pop(1);
	return status;
}

FILE *popen(const char *command, const char *mode)
{
	char *longer = command_with_shim(command);
	FILE *pipe;

	pause_trap();
	pipe = next_popen(longer ? longer : command, mode);
	started(longer);
	return pipe;
}
