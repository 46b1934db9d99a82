/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_SPAN_H
#define GPUCKPT_SPAN_H

/*
 * One log line for each stretch of work, for programs to read. This header serves CRIU and the restorer blob, whose
 * printf knows neither precision nor zero padding.
 */
#include <time.h>

#include "log.h"

#ifdef CR_NOGLIBC
#define span_clock(id, ts) sys_clock_gettime(id, ts)
#else
#define span_clock(id, ts) clock_gettime(id, ts)
#endif

#define SPAN_TIME_LEN 32

/*
 * The node's monotonic clock minus its wall clock. A task being restored is in a time namespace, where the monotonic
 * clock is that of its first life. Only the wall clock is the node's everywhere.
 */
extern long span_clock_offset_us;

static inline unsigned long span_clock_us(clockid_t id)
{
	struct timespec ts = {};

	span_clock(id, &ts);
	return ts.tv_sec * 1000000UL + ts.tv_nsec / 1000;
}

/* Microseconds of the node's monotonic clock. */
static inline unsigned long span_now_us(void)
{
	return span_clock_us(CLOCK_REALTIME) + span_clock_offset_us;
}

static inline const char *span_format(unsigned long us, char text[SPAN_TIME_LEN])
{
	char *p = text + SPAN_TIME_LEN - 1;
	int digit;

	*p = '\0';
	for (digit = 0; us || digit < 7; digit++) {
		if (digit == 6)
			*--p = '.';
		*--p = '0' + us % 10;
		us /= 10;
	}
	return p;
}

static inline void span_log(const char *name, int pid, unsigned long start_us, unsigned long end_us,
			    unsigned long bytes, const char *note)
{
	char start[SPAN_TIME_LEN], end[SPAN_TIME_LEN];

	pr_info("gpuckpt: span name=%s pid=%d start=%s end=%s bytes=%lu note=%s\n", name, pid,
		span_format(start_us, start), span_format(end_us, end), bytes, note);
}

#endif
