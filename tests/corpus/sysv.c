// SPDX-License-Identifier: MIT
/*
 * sysv.c - waits for System V semaphores.
 */
#include <sys/sem.h>

#include "beats.h"

static int semaphore;

static void prepare(void)
{
	semaphore = semget(IPC_PRIVATE, 1, 0600);
}

static int timed(struct asked *asked)
{
	struct sembuf down = { .sem_op = -1 };
	int id = semget(IPC_PRIVATE, 1, 0600);
	int err = error_of(semtimedop(id, &down, 1, &asked->time));

	semctl(id, 0, IPC_RMID);
	return err;
}

static int forever(struct asked *asked)
{
	struct sembuf down = { .sem_op = -1 };

	(void)asked;
	if (semop(semaphore, &down, 1))
		return errno;
	semctl(semaphore, 0, IPC_RMID); /* the last that waits for it: nobody interrupted this */
	return 0;
}

static void raise_it(pthread_t waiter)
{
	struct sembuf up = { .sem_op = 1 };

	(void)waiter;
	semop(semaphore, &up, 1);
}

static const struct wait waits[] = {
	{ .name = "semtimedop",
	  .clock = CLOCK_MONOTONIC,
	  .call = timed,
	  .expected = EAGAIN,
	  .interruptible = true },
	{ .name = "semop", .call = forever, .interruptible = true, .end = raise_it },
	{ 0 },
};

const struct family sysv = { .name = "sysv", .prepare = prepare, .waits = waits };
