/* SPDX-License-Identifier: MIT */
/*
 * timer.h - timers that are reached past libc's functions for them, by syscall().
 *
 * There they are known by the kernel's ids; in glibc a timer_t is that id too, or it is an address.
 */
#ifndef TIMESHIM_TIMER_H
#define TIMESHIM_TIMER_H

#include "shim.h"

typedef int settime_fn(timer_t, int, const struct itimerspec *, struct itimerspec *);

/* A timer was created on a clock; false if there is no room for more. */
bool note_timer(timer_t id, clockid_t clock);

/* It is about to be deleted. */
void forget_timer(timer_t id);

/* timer_settime() by way of set. */
int set_timer(settime_fn *set, timer_t id, int flags, const struct itimerspec *new,
	      struct itimerspec *old);

/* An interval timer is about to be set. */
void declare_interval_timer(void);

#endif
