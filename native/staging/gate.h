/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The gate that the program's driver calls pass. While it is closed, nothing new reaches the GPU from any thread.
 *
 * Who passes counts itself in and out, on a counter that it shares with few other threads. Who closes the gate raises a
 * flag and waits until all counters are zero. Threads that come later wait here, outside of the driver.
 */
#ifndef GPUCKPT_STAGING_GATE_H
#define GPUCKPT_STAGING_GATE_H

#include <stdatomic.h>
#include <stdbool.h>

#define GS_GATE_COUNTERS 64 /* a power of two */

struct gs_gate_counter {
	_Alignas(128) atomic_uint inside; /* cache lines of their own, so that threads do not slow one another */
};

extern struct gs_gate_counter gs_gate_counters[GS_GATE_COUNTERS];
extern atomic_bool gs_gate_closed;
extern _Thread_local struct gs_gate_counter *gs_gate_own;

struct gs_gate_counter *gs_gate_join(void);
void gs_gate_wait(struct gs_gate_counter *own);

/* Every call is paired with gs_gate_leave on the same thread. Not to be nested. */
static inline void gs_gate_enter(void)
{
	struct gs_gate_counter *own = gs_gate_own ?: gs_gate_join();

	atomic_fetch_add(&own->inside, 1);
	if (__builtin_expect(atomic_load(&gs_gate_closed), 0))
		gs_gate_wait(own);
}

static inline void gs_gate_leave(void)
{
	atomic_fetch_sub(&gs_gate_own->inside, 1);
}

/* Closes it and waits for the calls that are under way. False, and open again, when they do not end in time. */
bool gs_gate_close(unsigned int limit_ms);
void gs_gate_open(void);

/* In a child after a fork: nobody but the calling thread is left. */
void gs_gate_reset(void);

#endif
