// SPDX-License-Identifier: MIT
/*
 * slot.c - taking, arming and giving back the slots in which deadlines lie.
 *
 * A slot is taken with one compare-and-swap on a place that the thread id picks, so
 * threads meet only when there are more of them than slots.  There is no per-thread
 * state: what a thread left behind by longjmp() it recognises by the stack pointer, and what
 * a thread left behind by dying (SIGKILL, or another thread's exec) whoever needs the place.
 */
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "slot.h"
#include "timespec.h"

/* How many taken places a wait looks at more closely; then the table is full of the living. */
#define CLOSE_LOOKS 8

static bool on_alternate_stack(void)
{
	stack_t stack;

	return !sigaltstack(NULL, &stack) && (stack.ss_flags & SS_ONSTACK);
}

/*
 * A slot of this thread whose frame is below the current one belongs to a call that no
 * longer exists.  One above belongs to a wait that a signal handler interrupted.  On an
 * alternate signal stack addresses say nothing, so there everything counts as alive.
 */
static bool left_behind(const struct ts_slot *slot, uint64_t frame)
{
	return slot->frame && slot->frame <= frame && !on_alternate_stack();
}

static struct ts_slot *take(uint64_t frame)
{
	uint32_t self = (uint32_t)kernel_call(SYS_gettid, (const long[6]){ 0 });

	for (uint32_t i = 0; i < TS_SLOTS; i++) {
		struct ts_slot *slot = &shim.task->slot[(self + i) % TS_SLOTS];
		uint32_t owner = __atomic_load_n(&slot->owner, __ATOMIC_RELAXED);
		bool free = !owner;

		if (owner == self)
			free = left_behind(slot, frame);
		else if (owner && i < CLOSE_LOOKS)
			free = is_dead(owner);
		if (!free || !__atomic_compare_exchange_n(&slot->owner, &owner, self, false,
							  __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&slot->armed, 0, __ATOMIC_RELEASE);
		slot->frame = frame;
		return slot;
	}
	__atomic_fetch_add(&shim.task->slots_exhausted, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void set_kernel_deadline(struct wait *wait)
{
	struct ts_time kernel;

	/*
	 * Frozen before the store, a thread overwrites the supervisor's correction with a
	 * deadline of the old host.  It finds out here, before the kernel does.
	 */
	do {
		wait->seen = generation();
		kernel = ts_kernel_deadline(wait->deadline,
					    epoch_of(wait->seen)->offset[wait->index]);
		if (wait->slot)
			*(volatile struct ts_time *)&wait->slot->kernel = kernel;
		else
			wait->unslotted = to_timespec(kernel);
	} while (!still(wait->seen));
}

const struct timespec *wait_begin(struct wait *wait, clockid_t id, const struct timespec *abstime)
{
	struct ts_slot *slot;

	attach_first();
	wait->slot = NULL;
	wait->id = id;
	wait->index = clock_index(id);
	wait->seen = generation();
	if (wait->index < 0 || !abstime || !valid(abstime)) {
		wait->index = -1;
		return abstime;
	}

	wait->deadline = from_timespec(*abstime);
	slot = take((uint64_t)__builtin_frame_address(0));
	wait->slot = slot;
	if (slot) {
		slot->clock = wait->index;
		slot->deadline = wait->deadline;
		__atomic_store_n(&slot->armed, 1, __ATOMIC_RELEASE);
	}
	set_kernel_deadline(wait);
	return slot ? (const struct timespec *)&slot->kernel : &wait->unslotted;
}

bool wait_again(struct wait *wait, int err)
{
	switch (err) {
	case EINTR:
		if (generation() == wait->seen || signalled_since(wait->seen))
			return false;
		wait->seen = generation();
		break;
	case ETIMEDOUT:
		if (wait->index < 0 || !ts_before(read_clock(wait->id), wait->deadline))
			return false;
		break;
	default:
		return false;
	}
	if (wait->index >= 0)
		set_kernel_deadline(wait);
	return true;
}

void wait_end(void *arg)
{
	struct ts_slot *slot = ((struct wait *)arg)->slot;

	if (!slot)
		return;
	__atomic_store_n(&slot->armed, 0, __ATOMIC_RELEASE);
	/* before the owner: a handler in between must not take this slot for left behind */
	__atomic_store_n(&slot->frame, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&slot->owner, 0, __ATOMIC_RELEASE);
}
