/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "entries.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "gate.h"
#include "regions.h"
#include "stage.h"

enum call {
#define CALL(_name, _count) CALL_##_name,
#define BEGINS_CAPTURE CALL
#define ENDS_CAPTURE CALL
#include "calls.h"
};

/* The names of all our functions, those of calls.h first, and the driver's behind them, NULL where it lacks one */
static const char *const names[] = {
#define CALL(_name, _count) #_name,
#define BEGINS_CAPTURE CALL
#define ENDS_CAPTURE CALL
#include "calls.h"
#define OWN(_name) #_name,
	GS_OWN_FUNCTIONS(OWN)
#undef OWN
};

#define NR_ENTRIES (sizeof(names) / sizeof(names[0]))

static void *real_entries[NR_ENTRIES];

static void resolve_entries(void)
{
	for (size_t n = 0; n < NR_ENTRIES; n++)
		real_entries[n] = gs_real_dlsym(gs_driver()->handle, names[n]);
}

static void *const *reals(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, resolve_entries);
	return real_entries;
}

/* --- calls that only pass the gate --- */

/* Their parameters are integers and pointers, so each travels as a word of 64 bits, whatever its type. */
#define PARAMETERS_1 uint64_t a
#define PARAMETERS_2 uint64_t a, uint64_t b
#define PARAMETERS_3 uint64_t a, uint64_t b, uint64_t c
#define PARAMETERS_4 uint64_t a, uint64_t b, uint64_t c, uint64_t d
#define PARAMETERS_5 uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e
#define PARAMETERS_6 uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f
#define PARAMETERS_8 uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h
#define PARAMETERS_9                                                                                                   \
	uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h, uint64_t i
#define PARAMETERS_10                                                                                                  \
	uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h, uint64_t i,    \
		uint64_t j
#define PARAMETERS_11                                                                                                  \
	uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h, uint64_t i,    \
		uint64_t j, uint64_t k
#define ARGUMENTS_1 a
#define ARGUMENTS_2 a, b
#define ARGUMENTS_3 a, b, c
#define ARGUMENTS_4 a, b, c, d
#define ARGUMENTS_5 a, b, c, d, e
#define ARGUMENTS_6 a, b, c, d, e, f
#define ARGUMENTS_8 a, b, c, d, e, f, g, h
#define ARGUMENTS_9 a, b, c, d, e, f, g, h, i
#define ARGUMENTS_10 a, b, c, d, e, f, g, h, i, j
#define ARGUMENTS_11 a, b, c, d, e, f, g, h, i, j, k

static void count_capture(CUresult result)
{
	if (result == CUDA_SUCCESS)
		atomic_fetch_add(&gs_captures, 1);
}

/* A capture ends even where it failed. One whose beginning we did not see does not count. */
static void discount_capture(CUresult result)
{
	int captures = atomic_load(&gs_captures);

	(void)result;
	while (captures > 0 && !atomic_compare_exchange_weak(&gs_captures, &captures, captures - 1))
		;
}

static void do_no_more(CUresult result)
{
	(void)result;
}

#define GATED(_name, _count, _afterwards)                                                                              \
	GS_EXPORT CUresult _name(PARAMETERS_##_count);                                                                 \
	CUresult _name(PARAMETERS_##_count)                                                                            \
	{                                                                                                              \
		CUresult (*real)(PARAMETERS_##_count) = reals()[CALL_##_name];                                         \
		CUresult result;                                                                                       \
                                                                                                                       \
		if (!real)                                                                                             \
			return CUDA_ERROR_NOT_SUPPORTED;                                                               \
		gs_gate_enter();                                                                                       \
		result = real(ARGUMENTS_##_count);                                                                     \
		_afterwards(result);                                                                                   \
		gs_gate_leave();                                                                                       \
		return result;                                                                                         \
	}

#define CALL(_name, _count) GATED(_name, _count, do_no_more)
#define BEGINS_CAPTURE(_name, _count) GATED(_name, _count, count_capture)
#define ENDS_CAPTURE(_name, _count) GATED(_name, _count, discount_capture)
#include "calls.h"

/* --- who looks functions up --- */

/* In the order of their names */
static void *const entries[] = {
#define CALL(_name, _count) _name,
#define BEGINS_CAPTURE CALL
#define ENDS_CAPTURE CALL
#include "calls.h"
#define OWN(_name) _name,
	GS_OWN_FUNCTIONS(OWN)
#undef OWN
};

void *gs_ours_for(const void *real)
{
	for (size_t n = 0; n < NR_ENTRIES && real; n++)
		if (reals()[n] == real)
			return entries[n];
	return NULL;
}

bool gs_is_name_of_ours(const char *name, bool whole)
{
	size_t length = strlen(name);

	for (size_t n = 0; n < NR_ENTRIES; n++)
		if (!strncmp(names[n], name, length) && (!names[n][length] || (!whole && names[n][length] == '_')))
			return true;
	return false;
}

/* Puts ours in the place of what the driver found. A variant of ours that we do not know cannot be guarded. */
static void replace(const char *name, void **found)
{
	void *ours = found ? gs_ours_for(*found) : NULL;

	if (ours)
		*found = ours;
	else if (found && *found && gs_is_name_of_ours(name, false))
		gs_stage_forbid("the program uses a variant of %s that this library does not know", name);
}

CUresult cuGetProcAddress(const char *name, void **found, int version, uint64_t flags)
{
	CUresult result = gs_driver()->cuGetProcAddress(name, found, version, flags);

	if (result == CUDA_SUCCESS)
		replace(name, found);
	return result;
}

CUresult cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status)
{
	CUresult result = gs_driver()->cuGetProcAddress_v2(name, found, version, flags, status);

	if (result == CUDA_SUCCESS)
		replace(name, found);
	return result;
}
