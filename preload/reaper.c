// SPDX-License-Identifier: MIT
/*
 * reaper.c - the root process of every task.
 *
 * CRIU dumps a tree, and processes whose parent has died leave the tree unless somebody
 * in it adopts them.  The reaper is that somebody (PR_SET_CHILD_SUBREAPER, which CRIU
 * keeps); it starts the application, passes signals on to it, and ends with its status
 * once the last process of the task is gone.  It moves from host to host with the task
 * and reads no clock, so it runs without the shim.
 *
 *     reaper PRELOAD COMMAND [ARGUMENT...]       PRELOAD "" = none
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

static void start(const char *preload, char **command)
{
	const char *before = getenv("LD_PRELOAD");
	char *both = NULL;
	int err;

	if (*preload) {
		/* ours last: other preloads then find the shim's clocks with RTLD_NEXT */
		if (asprintf(&both, "%s%s%s", before ? before : "", before ? ":" : "", preload) < 0)
			_exit(EXIT_NOT_EXECUTABLE);
		setenv("LD_PRELOAD", both, 1);
	}
	execvp(command[0], command);
	err = errno;
	fprintf(stderr, "timeshim: cannot start %s: %s\n", command[0], strerror(err));
	_exit(err == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

int main(int argc, char **argv)
{
	sigset_t all, inherited;
	int status = 0;
	pid_t app;

	if (argc < 3)
		return EXIT_NOT_EXECUTABLE;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &inherited);

	app = fork();
	if (app < 0) {
		perror("timeshim: fork");
		return EXIT_NOT_EXECUTABLE;
	}
	if (!app) {
		sigprocmask(SIG_SETMASK, &inherited, NULL);
		start(argv[1], argv + 2);
	}

	for (;;) {
		int how, signal = sigwaitinfo(&all, NULL); /* fails with EINTR at a migration */
		pid_t pid;

		if (signal > 0 && signal != SIGCHLD)
			kill(app > 0 ? app : -1, signal);
		while ((pid = waitpid(-1, &how, WNOHANG)) > 0) {
			if (pid == app) {
				app = 0;
				status = WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
			}
		}
		if (pid < 0 && errno == ECHILD)
			return status;
	}
}
