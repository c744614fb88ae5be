// SPDX-License-Identifier: MIT
/*
 * segv.c - the application's SIGSEGV, while the real one is the trap's (trap.c).
 *
 * What it asks for is kept, answered when it asks, and done when a SIGSEGV comes that is not the
 * trap's: null checks of Java, Go's panics, crash reports.  Two things differ from what the kernel
 * does.  SIGSEGV cannot be blocked, as SIGKILL never can: an instruction that faults while it is
 * would end the process.  And its handler runs on the alternate stack if there is one.
 *
 * Without a trap all of this is libc's own affair.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/select.h>
#include <ucontext.h>
#include <unistd.h>

#include "trap.h"

extern __typeof__(sigaction) __sigaction;
extern __sighandler_t __sysv_signal(int number, __sighandler_t handler);
extern int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);

NEXT(__ppoll_chk);
NEXT(ppoll);
NEXT(pselect);
NEXT(pthread_attr_setsigmask_np);
NEXT(pthread_sigmask);
NEXT(sigaction);
NEXT(signal);
NEXT(sigprocmask);
NEXT(sigsuspend);
NEXT(sysv_signal);

/*
 * What the application wants done.  A new action is written beside the one in force: a lock could
 * be held by a thread that a fork leaves behind, or that a handler has interrupted.
 */
#define ACTIONS 256 /* a power of two */

static struct sigaction action[ACTIONS];
static uint64_t in_force; /* index, modulo ACTIONS */
static uint64_t written; /* as in_force: the last that was begun */

static struct sigaction copy_in_force(uint64_t *index)
{
	struct sigaction copy;

	do {
		*index = __atomic_load_n(&in_force, __ATOMIC_ACQUIRE);
		copy = action[*index % ACTIONS];
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (__atomic_load_n(&written, __ATOMIC_RELAXED) - *index >= ACTIONS);
	return copy;
}

static uint64_t write_down(const struct sigaction *wanted)
{
	uint64_t index = __atomic_add_fetch(&written, 1, __ATOMIC_ACQ_REL);

	action[index % ACTIONS] = *wanted;
	return index;
}

static void replace(const struct sigaction *wanted, struct sigaction *old)
{
	struct sigaction before;
	uint64_t index, ours = write_down(wanted);

	do
		before = copy_in_force(&index);
	while (!__atomic_compare_exchange_n(&in_force, &index, ours, false, __ATOMIC_ACQ_REL,
					    __ATOMIC_RELAXED));
	if (old)
		*old = before;
}

/* Returns the action for a signal that has come: SA_RESETHAND is for one only. */
static struct sigaction take(void)
{
	static const struct sigaction none = { .sa_handler = SIG_DFL };
	struct sigaction taken;
	uint64_t index;

	do
		taken = copy_in_force(&index);
	while (taken.sa_flags & (int)SA_RESETHAND && taken.sa_handler != SIG_DFL &&
	       !__atomic_compare_exchange_n(&in_force, &index, write_down(&none), false,
					    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	return taken;
}

static void set_mask(uint64_t mask)
{
	kernel_call(SYS_rt_sigprocmask,
		    (const long[6]){ SIG_SETMASK, (long)&mask, 0, sizeof(mask) });
}

static uint64_t bits(const sigset_t *set)
{
	uint64_t mask;

	memcpy(&mask, set, sizeof(mask));
	return mask;
}

/* What ends a process says how: the kernel does it, as it would have. */
static void end(siginfo_t *info)
{
	static const struct sigaction none = { .sa_handler = SIG_DFL };

	next_sigaction(SIGSEGV, &none, NULL);
	/* a fault comes again by itself */
	if (info->si_code <= 0)
		kernel_call(SYS_rt_tgsigqueueinfo,
			    (const long[6]){ getpid(),
					     kernel_call(SYS_gettid, (const long[6]){ 0 }), SIGSEGV,
					     (long)info });
}

static void on_sigsegv(int number, siginfo_t *info, void *context)
{
	ucontext_t *at = context;
	struct sigaction wanted;

	if (stand_in(info, at))
		return;
	wanted = take();
	if (wanted.sa_handler == SIG_IGN && info->si_code <= 0)
		return;
	if (wanted.sa_handler == SIG_IGN || wanted.sa_handler == SIG_DFL)
		return end(info);
	set_mask((bits(&at->uc_sigmask) | bits(&wanted.sa_mask)) & ~(1ull << (SIGSEGV - 1)));
	/* three arguments also without SA_SIGINFO, as the kernel does */
	wanted.sa_sigaction(number, info, context);
}

void take_sigsegv(void)
{
	struct sigaction ours = { .sa_sigaction = on_sigsegv,
				  .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART };
	const uint64_t sigsegv = 1ull << (SIGSEGV - 1);

	/* libc's own signals too, which sigfillset() leaves out */
	memset(&ours.sa_mask, 0xff, sizeof(ours.sa_mask));
	sigdelset(&ours.sa_mask, SIGSEGV);
	next_sigaction(SIGSEGV, &ours, &action[0]);
	kernel_call(SYS_rt_sigprocmask,
		    (const long[6]){ SIG_UNBLOCK, (long)&sigsegv, 0, sizeof(sigsegv) });
}

const sigset_t *blockable(const sigset_t *set, sigset_t *room)
{
	if (!set || !trapping() || sigismember(set, SIGSEGV) != 1)
		return set;
	*room = *set;
	sigdelset(room, SIGSEGV);
	return room;
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *old)
{
	struct sigaction changed;
	uint64_t index;

	if (!trapping())
		return next_sigaction(number, wanted, old);
	if (wanted) {
		changed = *wanted;
		sigdelset(&changed.sa_mask, SIGSEGV);
		wanted = &changed;
	}
	if (number != SIGSEGV)
		return next_sigaction(number, wanted, old);
	if (wanted)
		replace(wanted, old);
	else if (old)
		*old = copy_in_force(&index);
	return 0;
}

int __sigaction(int number, const struct sigaction *wanted, struct sigaction *old)
	__attribute__((alias("sigaction"), copy(sigaction)));

static __sighandler_t set_handler(__sighandler_t handler, int flags)
{
	const struct sigaction wanted = { .sa_handler = handler, .sa_flags = flags };
	struct sigaction old;

	replace(&wanted, &old);
	return old.sa_handler;
}

__sighandler_t signal(int number, __sighandler_t handler)
{
	if (number != SIGSEGV || handler == SIG_ERR || !trapping()) {
		attach_first();
		return next_signal(number, handler);
	}
	return set_handler(handler, SA_RESTART);
}

__sighandler_t bsd_signal(int number, __sighandler_t handler)
	__attribute__((alias("signal"), copy(signal)));
__sighandler_t ssignal(int number, __sighandler_t handler)
	__attribute__((alias("signal"), copy(signal)));

__sighandler_t sysv_signal(int number, __sighandler_t handler)
{
	if (number != SIGSEGV || handler == SIG_ERR || !trapping()) {
		attach_first();
		return next_sysv_signal(number, handler);
	}
	return set_handler(handler, (int)SA_RESETHAND | SA_NODEFER);
}

__sighandler_t __sysv_signal(int number, __sighandler_t handler)
	__attribute__((alias("sysv_signal"), copy(sysv_signal)));

/* Without SIGSEGV ---------------------------------------------------------------------------- */

int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	sigset_t room;

	attach_first();
	return next_sigprocmask(how, how == SIG_UNBLOCK ? set : blockable(set, &room), old);
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	sigset_t room;

	attach_first();
	return next_pthread_sigmask(how, how == SIG_UNBLOCK ? set : blockable(set, &room), old);
}

int pthread_attr_setsigmask_np(pthread_attr_t *attr, const sigset_t *set)
{
	sigset_t room;

	attach_first();
	return next_pthread_attr_setsigmask_np(attr, blockable(set, &room));
}

int sigsuspend(const sigset_t *set)
{
	sigset_t room;

	attach_first();
	return next_sigsuspend(blockable(set, &room));
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *set)
{
	sigset_t room;

	attach_first();
	return next_ppoll(fds, count, timeout, blockable(set, &room));
}

int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
		const sigset_t *set, size_t size)
{
	sigset_t room;

	attach_first();
	return next___ppoll_chk(fds, count, timeout, blockable(set, &room), size);
}

int pselect(int count, fd_set *reads, fd_set *writes, fd_set *others,
	    const struct timespec *timeout, const sigset_t *set)
{
	sigset_t room;

	attach_first();
	return next_pselect(count, reads, writes, others, timeout, blockable(set, &room));
}

long raw_sigaction(const long *arg)
{
	struct {
		__sighandler_t handler;
		unsigned long flags;
		void (*restorer)(void);
		uint64_t mask;
	} *wanted = (void *)arg[1], *old = (void *)arg[2];
	struct sigaction from = { .sa_handler = SIG_DFL }, to = { .sa_handler = SIG_DFL };
	int ret;

	if (wanted) {
		from.sa_handler = wanted->handler;
		from.sa_flags = (int)wanted->flags;
		memcpy(&from.sa_mask, &wanted->mask, sizeof(wanted->mask));
	}
	ret = sigaction((int)arg[0], wanted ? &from : NULL, &to);
	if (!ret && old) {
		old->handler = to.sa_handler;
		old->flags = (unsigned long)to.sa_flags;
		old->mask = bits(&to.sa_mask);
		old->restorer = to.sa_restorer;
	}
	return ret;
}

long raw_sigprocmask(const long *arg)
{
	uint64_t *old = (uint64_t *)arg[2];
	sigset_t set, before;
	int ret;

	sigemptyset(&set);
	if (arg[1])
		memcpy(&set, (const void *)arg[1], sizeof(*old));
	ret = sigprocmask((int)arg[0], arg[1] ? &set : NULL, &before);
	if (!ret && old)
		*old = bits(&before);
	return ret;
}
