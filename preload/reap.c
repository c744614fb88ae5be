// SPDX-License-Identifier: MIT
/*
 * reap.c - waiting for children, whose use of resources the kernel adds to their parent's.
 *
 * What a child had used on earlier hosts this kernel does not know, so it is added here, to what
 * the wait tells and to what getrusage() and times() say of children.  Every wait asks for the
 * child's use, whether its caller wants to know or not.
 *
 * system(), pclose() and the like wait inside libc, past these functions.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

NEXT(wait4);
NEXT(waitid);

pid_t wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
	struct rusage unasked_usage;
	int unasked_status;
	pid_t ended;

	attach_first();
	if (!status)
		status = &unasked_status;
	if (!usage)
		usage = &unasked_usage;
	ended = next_wait4(pid, status, options, usage);
	if (ended > 0 && (WIFEXITED(*status) || WIFSIGNALED(*status)))
		cpu_child_ended(ended, usage);
	return ended;
}

pid_t wait3(int *status, int options, struct rusage *usage)
{
	return wait4(WAIT_ANY, status, options, usage);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	return wait4(pid, status, options, NULL);
}

pid_t wait(int *status)
{
	return wait4(WAIT_ANY, status, 0, NULL);
}

/*
 * libc's waitid() does not say what the child used, and the system call, which does, is no
 * cancellation point.  So one is for waiting and the other for taking what there is.
 */
int waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	struct rusage usage;
	siginfo_t found;
	long err;

	attach_first();
	if (options & WNOWAIT || !(options & WEXITED))
		return next_waitid(type, id, info, options);
	if (!info)
		info = &found;
	do {
		if (next_waitid(type, id, info, options | WNOWAIT))
			/* a bad address does not keep the kernel from taking the child */
			return errno == EFAULT ? next_waitid(type, id, info, options) : -1;
		if (!info->si_pid) /* WNOHANG */
			return 0;
		err = kernel_call(SYS_waitid, (const long[6]){ P_PID, info->si_pid, (long)info,
							       options | WNOHANG, (long)&usage });
	} while (err == -ECHILD || (!err && !info->si_pid)); /* another thread was faster */
	if (err) {
		errno = (int)-err;
		return -1;
	}
	if (info->si_code == CLD_EXITED || info->si_code == CLD_KILLED ||
	    info->si_code == CLD_DUMPED)
		cpu_child_ended(info->si_pid, &usage);
	return 0;
}
