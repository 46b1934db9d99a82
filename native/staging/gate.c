/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "clock.h"

#define POLL_NS 20000

struct gs_gate_counter gs_gate_counters[GS_GATE_COUNTERS];
atomic_bool gs_gate_closed;
_Thread_local struct gs_gate_counter *gs_gate_own;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;

struct gs_gate_counter *gs_gate_join(void)
{
	static atomic_uint threads;

	gs_gate_own = &gs_gate_counters[atomic_fetch_add(&threads, 1) % GS_GATE_COUNTERS];
	return gs_gate_own;
}

void gs_gate_wait(struct gs_gate_counter *own)
{
	do {
		atomic_fetch_sub(&own->inside, 1);
		pthread_mutex_lock(&lock);
		while (atomic_load(&gs_gate_closed))
			pthread_cond_wait(&opened, &lock);
		pthread_mutex_unlock(&lock);
		atomic_fetch_add(&own->inside, 1);
	} while (atomic_load(&gs_gate_closed));
}

static bool anybody_inside(void)
{
	for (size_t n = 0; n < GS_GATE_COUNTERS; n++)
		if (atomic_load(&gs_gate_counters[n].inside))
			return true;
	return false;
}

bool gs_gate_close(unsigned int limit_ms)
{
	const struct timespec pause = {.tv_nsec = POLL_NS};
	uint64_t deadline = gs_clock_ms() + limit_ms;

	atomic_store(&gs_gate_closed, true);
	while (anybody_inside()) {
		if (gs_clock_ms() >= deadline) {
			gs_gate_open();
			return false;
		}
		nanosleep(&pause, NULL);
	}
	return true;
}

void gs_gate_open(void)
{
	pthread_mutex_lock(&lock);
	atomic_store(&gs_gate_closed, false);
	pthread_cond_broadcast(&opened);
	pthread_mutex_unlock(&lock);
}

void gs_gate_reset(void)
{
	pthread_mutex_init(&lock, NULL);
	pthread_cond_init(&opened, NULL);
	memset(gs_gate_counters, 0, sizeof(gs_gate_counters));
	atomic_store(&gs_gate_closed, false);
}
