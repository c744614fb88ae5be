// SPDX-License-Identifier: MIT
/*
 * sysv.c - System V shared memory, semaphores and a message queue, across a migration.
 *
 * A child waits for each in turn: in semtimedop(), semop() and msgrcv(), each begun WAIT_MS
 * before it ends.  The parent raises the semaphore, and sends the message, when SIGUSR1 comes.
 * Prints, as JSON, how long the timed wait took, what the others returned, and what the child
 * found in the shared memory and in the queue.
 *
 *     sysv WAIT_MS
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TIMED, RAISED, SEMAPHORES };

struct message {
	long type;
	char text[16];
};

static int semaphores, queue;

static void check(const char *what, long result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static const char *answer(long result)
{
	return result < 0 ? strerrorname_np(errno) : "0";
}

static void wait_timed(long ms)
{
	struct sembuf down = { .sem_num = TIMED, .sem_op = -1 };
	struct timespec timeout = { ms / 1000, ms % 1000 * 1000000 };
	long long began = now();
	long result = semtimedop(semaphores, &down, 1, &timeout);

	printf("{\"wait\": \"semtimedop\", \"returned\": \"%s\", \"late_ns\": %lld}\n",
	       answer(result), now() - began - ms * 1000000);
}

static void wait_raised(void)
{
	struct sembuf down = { .sem_num = RAISED, .sem_op = -1 };

	printf("{\"wait\": \"semop\", \"returned\": \"%s\"}\n",
	       answer(semop(semaphores, &down, 1)));
}

static void receive(void)
{
	struct message message = { .text = "" };
	long result = msgrcv(queue, &message, sizeof(message.text), 0, 0);

	printf("{\"wait\": \"msgrcv\", \"returned\": \"%s\", \"text\": \"%s\"}\n",
	       result < 0 ? answer(result) : "0", message.text);
}

int main(int argc, char **argv)
{
	struct sembuf up = { .sem_num = RAISED, .sem_op = 1 };
	struct message message = { 1, "sent later" };
	int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600), signo;
	sigset_t set;
	char *memory;

	semaphores = semget(IPC_PRIVATE, SEMAPHORES, IPC_CREAT | 0600);
	queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	check("shmget", segment);
	check("semget", semaphores);
	check("msgget", queue);
	memory = shmat(segment, NULL, 0);
	strcpy(memory, "kept");
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);

	for (int i = 0; i < 3; i++) {
		if (fork())
			continue;
		if (i == 0)
			wait_timed(atol(argv[argc - 1]));
		else if (i == 1)
			wait_raised();
		else
			receive();
		exit(0);
	}
	check("sigwait", sigwait(&set, &signo) ? -1 : 0);
	check("semop", semop(semaphores, &up, 1));
	check("msgsnd", msgsnd(queue, &message, sizeof(message.text), 0));
	while (wait(NULL) > 0)
		;
	printf("{\"memory\": \"%s\", \"semaphore\": %d}\n", memory,
	       semctl(semaphores, RAISED, GETVAL));
	shmctl(segment, IPC_RMID, NULL);
	semctl(semaphores, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	return 0;
}
