// SPDX-License-Identifier: MIT
/*
 * observe.c - brackets a reading between readings of CLOCK_REALTIME.
 *
 * How far a clock is ahead of CLOCK_REALTIME stays the same while nothing moves, but for what a
 * blackout took.  A bracket bounds it from both sides; the bounds of many are narrow, even where
 * a reading is coarse.
 */
#include <stdio.h>
#include <stdlib.h>

#include "beats.h"

const struct observed nothing_observed = {
	.last = INT64_MIN,
	.least_high = INT64_MAX,
	.low = { INT64_MIN, INT64_MIN, INT64_MIN },
	.high = { INT64_MAX, INT64_MAX, INT64_MAX },
};

static void raise_to(int64_t *most, int64_t value)
{
	if (value > *most)
		*most = value;
}

static void lower_to(int64_t *least, int64_t value)
{
	if (value < *least)
		*least = value;
}

void observe(const struct reading *reading, struct observed *observed, enum beat beat)
{
	int64_t before = read_ns(CLOCK_REALTIME), now = reading->read(reading->clock);
	int64_t after = read_ns(CLOCK_REALTIME);
	int64_t low = now - reading->early - after, high = now + reading->late - before;

	if (now == ABSENT)
		return;
	observed->backward += now < observed->last;
	observed->last = now;
	if (observed->least_high != INT64_MAX)
		raise_to(&observed->gained, low - observed->least_high);
	lower_to(&observed->least_high, high);
	raise_to(&observed->low[beat], low);
	lower_to(&observed->high[beat], high);
}

static const char *name_of(clockid_t clock)
{
	switch (clock) {
	case CLOCK_MONOTONIC_RAW:
		return "raw";
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		return "boottime";
	case CLOCK_REALTIME:
	case CLOCK_TAI:
		return "realtime";
	default:
		return "monotonic";
	}
}

void print_observed(const struct reading *reading, const struct observed *seen)
{
	if (seen->last == INT64_MIN) {
		printf("{\"row\": \"%s\", \"kind\": \"absent\"}\n", reading->name);
	} else {
		printf("{\"row\": \"%s\", \"kind\": \"reading\", \"clock\": \"%s\", \"backward\": "
		       "%ld, "
		       "\"gained_ns\": %ld, \"lost_ns\": [%ld, %ld], \"lead_ns\": [%ld, %ld]}\n",
		       reading->name, name_of(reading->clock), seen->backward, seen->gained,
		       seen->low[ARRANGE] - seen->high[ASSERT],
		       seen->high[ARRANGE] - seen->low[ASSERT], seen->low[ARRANGE],
		       seen->high[ARRANGE]);
	}
	fflush(stdout);
}
