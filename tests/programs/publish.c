// SPDX-License-Identifier: MIT
/*
 * publish.c - publishes two epochs in turn, in quick succession, until it is killed.
 *
 *     publish PAGE SEC NSEC
 *
 * In pairs: the second of a pair is written to the copy that a reader took just before the
 * first.  With pauses: readers that find no moment of quiet would not return at all.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "supervise.h"

int main(int argc, char **argv)
{
	struct ts_epoch epoch[2] = { 0 };
	struct ts_clock_area *area;
	unsigned int random = 1;

	if (argc != 4)
		return 2;
	area = mmap(NULL, TS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[1], O_RDWR),
		    0);
	if (area == MAP_FAILED)
		return 1;
	for (int i = 0; i < TS_CLOCKS; i++)
		epoch[1].offset[i] = (struct ts_time){ atoll(argv[2]), atoll(argv[3]) };

	for (unsigned int n = 0;; n++) {
		/* which epoch lies in which copy must vary, or both of a mix were the same */
		int which = rand_r(&random) & 1;

		ts_publish(area, &epoch[which]);
		ts_publish(area, &epoch[!which]);
		ts_publish(area, &epoch[n & 1]);
		for (volatile int pause = rand_r(&random) % 500; pause; pause--)
			;
	}
}
