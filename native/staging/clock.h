/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef GPUCKPT_STAGING_CLOCK_H
#define GPUCKPT_STAGING_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Milliseconds of the monotonic clock. */
static inline uint64_t gs_clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000UL + now.tv_nsec / 1000000;
}

#endif
