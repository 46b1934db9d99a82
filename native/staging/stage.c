/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "stage.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "driver.h"
#include "gate.h"
#include "regions.h"
#include "settings.h"
#include "transfer.h"

#define HEADER_BYTES 4096
#define FILE_MAGIC "gpuckpt staged 1"
#define MAX_LANES 64
#define CAPTURE_POLL_MS 5

/* What the file begins with. The nonce tells the files of two checkpoints of one program apart. */
struct header {
	char magic[sizeof(FILE_MAGIC)];
	unsigned char nonce[16];
	uint64_t bytes; /* of the whole file */
};

/* How far the memory of regions is back, while threads fill it. */
struct return_of_memory {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	size_t ready; /* regions below this index are there */
	bool failed;
};

static bool staged;
static struct header written;
static struct gs_piece *pieces;
static size_t nr_pieces;
static char forbidden[GS_WHY];
static atomic_bool is_forbidden;

static bool __attribute__((format(printf, 2, 3))) refuse(struct gs_answer *answer, const char *format, ...)
{
	va_list arguments;

	answer->refused = 1;
	va_start(arguments, format);
	vsnprintf(answer->text, sizeof(answer->text), format, arguments);
	va_end(arguments);
	return false;
}

void gs_stage_forbid(const char *format, ...)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	va_list arguments;

	pthread_mutex_lock(&lock);
	va_start(arguments, format);
	if (!atomic_load(&is_forbidden))
		vsnprintf(forbidden, sizeof(forbidden), format, arguments);
	va_end(arguments);
	atomic_store(&is_forbidden, true);
	pthread_mutex_unlock(&lock);
}

/* --- quiet --- */

/* Waits for the GPU on a thread of its own, which may never end. */
struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t done;
	bool is_done, is_left;
	CUresult result;
};

static void *wait_for_gpu(void *argument)
{
	struct waiter *waiter = argument;
	CUresult result = gs_regions_synchronize();
	bool is_left;

	pthread_mutex_lock(&waiter->lock);
	waiter->result = result;
	waiter->is_done = true;
	is_left = waiter->is_left;
	pthread_cond_signal(&waiter->done);
	pthread_mutex_unlock(&waiter->lock);
	if (is_left)
		free(waiter);
	return NULL;
}

static bool synchronize(unsigned int limit_ms, struct gs_answer *answer)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	pthread_condattr_t monotonic;
	struct timespec deadline;
	pthread_t thread;
	CUresult result;
	bool is_done;

	if (!waiter)
		return refuse(answer, "no memory");
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&waiter->lock, NULL);
	pthread_cond_init(&waiter->done, &monotonic);
	if (pthread_create(&thread, NULL, wait_for_gpu, waiter)) {
		free(waiter);
		return refuse(answer, "no thread can be started");
	}
	pthread_detach(thread);
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += limit_ms / 1000;
	deadline.tv_nsec += limit_ms % 1000 * 1000000L;
	if (deadline.tv_nsec >= 1000000000L) {
		deadline.tv_sec++;
		deadline.tv_nsec -= 1000000000L;
	}

	pthread_mutex_lock(&waiter->lock);
	while (!waiter->is_done && !pthread_cond_timedwait(&waiter->done, &waiter->lock, &deadline))
		;
	is_done = waiter->is_done;
	result = waiter->result;
	waiter->is_left = !is_done;
	pthread_mutex_unlock(&waiter->lock);
	if (!is_done)
		return refuse(answer, "work on the GPU does not end within %u ms", limit_ms);
	free(waiter);
	return result == CUDA_SUCCESS || refuse(answer, "the GPU reports %s", gs_driver_error(result));
}

/* Closes the gate at a moment without a capture: nothing may wait for the GPU during one. */
static bool close_gate(uint64_t deadline_ms, struct gs_answer *answer)
{
	const struct timespec pause = {.tv_nsec = CAPTURE_POLL_MS * 1000000L};

	for (;;) {
		uint64_t now = gs_clock_ms();

		if (!gs_gate_close(now < deadline_ms ? deadline_ms - now : 0))
			return refuse(answer, "a driver call of the program does not end in time");
		if (!atomic_load(&gs_captures))
			return true;
		gs_gate_open();
		if (gs_clock_ms() >= deadline_ms)
			return refuse(answer, "the program is capturing a graph");
		nanosleep(&pause, NULL);
	}
}

/* --- pieces and lanes --- */

static size_t pieces_of(const struct gs_region *region)
{
	return region->dropped ? 0 : (region->bytes + GS_PIECE - 1) / GS_PIECE;
}

static bool lay_out(const struct gs_region *regions, size_t count, struct gs_answer *answer)
{
	uint64_t offset = HEADER_BYTES;
	size_t total = 0;

	for (size_t n = 0; n < count; n++)
		total += pieces_of(&regions[n]);
	free(pieces);
	nr_pieces = 0;
	pieces = calloc(total + 1, sizeof(*pieces));
	if (!pieces)
		return refuse(answer, "no memory for %zu pieces", total);

	for (size_t n = 0; n < count; n++)
		for (size_t done = 0; !regions[n].dropped && done < regions[n].bytes; done += GS_PIECE) {
			size_t left = regions[n].bytes - done, bytes = left < GS_PIECE ? left : GS_PIECE;

			pieces[nr_pieces++] = (struct gs_piece){
				.address = regions[n].address + done,
				.offset = offset,
				.bytes = bytes,
				.region = n,
				.device = regions[n].device,
			};
			offset += bytes;
		}
	written.bytes = offset;
	return true;
}

static size_t lanes_of(const struct gs_region *regions, size_t count, struct gs_lane lanes[MAX_LANES])
{
	size_t found = 0, at;

	for (size_t n = 0; n < count; n++) {
		for (at = 0; at < found && lanes[at].device != regions[n].device; at++)
			;
		if (at == found && found < MAX_LANES)
			lanes[found++] = (struct gs_lane){regions[n].device, regions[n].context};
	}
	return found;
}

static void count_bytes(struct gs_answer *answer)
{
	gs_regions_count(&answer->bytes, &answer->dropped_bytes);
	for (size_t n = 0; n < nr_pieces; n++)
		answer->zero_bytes += pieces[n].zeros ? pieces[n].bytes : 0;
}

/* --- out --- */

/* Memory that the driver keeps for later allocations would travel with the checkpoint. */
static void trim_pools(const struct gs_lane *lanes, size_t count)
{
	const struct gs_driver *real = gs_driver();
	CUmemoryPool pool;

	for (size_t n = 0; n < count && real->cuDeviceGetDefaultMemPool && real->cuMemPoolTrimTo; n++)
		if (real->cuDeviceGetDefaultMemPool(&pool, lanes[n].device) == CUDA_SUCCESS)
			real->cuMemPoolTrimTo(pool, 0);
}

static bool write_header(int file, struct gs_answer *answer)
{
	memcpy(written.magic, FILE_MAGIC, sizeof(FILE_MAGIC));
	if (getrandom(written.nonce, sizeof(written.nonce), 0) != sizeof(written.nonce))
		return refuse(answer, "no random numbers: %s", strerror(errno));
	if (ftruncate(file, written.bytes) || pwrite(file, &written, sizeof(written), 0) != sizeof(written))
		return refuse(answer, "the staging file cannot be written: %s", strerror(errno));
	return true;
}

static bool write_all(int file, const struct gs_lane *lanes, size_t nr_lanes, struct gs_answer *answer)
{
	const struct gs_transfer transfer = {.pieces = pieces, .count = nr_pieces, .file = file};
	char why[GS_WHY] = "";

	return gs_transfer(&transfer, lanes, nr_lanes, gs_settings()->threads, why) || refuse(answer, "%s", why);
}

static bool take_all(struct gs_region *regions, size_t count, struct gs_answer *answer)
{
	for (size_t n = 0; n < count; n++) {
		CUresult result = gs_region_take(&regions[n]);

		if (result != CUDA_SUCCESS)
			return refuse(answer, "memory of the GPU cannot be given back: %s", gs_driver_error(result));
	}
	return true;
}

void gs_stage(int file, unsigned int limit_ms, struct gs_answer *answer)
{
	uint64_t deadline_ms = gs_clock_ms() + limit_ms;
	struct gs_lane lanes[MAX_LANES];
	struct gs_region *regions;
	size_t count, nr_lanes;

	if (staged) {
		answer->staged = 1;
		refuse(answer, "it is staged already");
		return;
	}
	if (atomic_load(&is_forbidden)) {
		refuse(answer, "%s", forbidden);
		return;
	}
	if (!close_gate(deadline_ms, answer))
		return;

	regions = gs_regions(&count);
	nr_lanes = lanes_of(regions, count, lanes);
	if (!synchronize(limit_ms, answer) || !lay_out(regions, count, answer) || !write_header(file, answer) ||
	    !write_all(file, lanes, nr_lanes, answer)) {
		/* Its space is needed: by the driver's share of the checkpoint, and by the log that tells of this. */
		if (ftruncate(file, 0))
			gs_say("the staging file cannot be emptied: %s", strerror(errno));
		gs_gate_open();
		return;
	}
	gs_regions_settle();
	trim_pools(lanes, nr_lanes);
	staged = true;
	if (!take_all(regions, count, answer)) {
		struct gs_answer undone = {};

		/* What it says of itself is worse than why it was tried. */
		gs_bring_back(file, &undone);
		if (undone.refused)
			*answer = undone;
	}
	answer->staged = staged;
	count_bytes(answer);
}

/* --- back --- */

static bool check_file(int file, struct gs_answer *answer)
{
	struct header found;
	struct stat status;

	if (file < 0)
		return refuse(answer, "its staging file is missing");
	if (fstat(file, &status) || pread(file, &found, sizeof(found), 0) != sizeof(found) ||
	    memcmp(found.magic, FILE_MAGIC, sizeof(FILE_MAGIC)))
		return refuse(answer, "its staging file is none");
	if (memcmp(found.nonce, written.nonce, sizeof(found.nonce)))
		return refuse(answer, "the staging file belongs to another checkpoint");
	if ((uint64_t)status.st_size != written.bytes)
		return refuse(answer, "the staging file has %lu bytes instead of %lu", (unsigned long)status.st_size,
			      (unsigned long)written.bytes);
	return true;
}

static bool await_region(void *context, uint32_t region)
{
	struct return_of_memory *memory = context;
	bool is_there;

	pthread_mutex_lock(&memory->lock);
	while (memory->ready <= region && !memory->failed)
		pthread_cond_wait(&memory->changed, &memory->lock);
	is_there = memory->ready > region;
	pthread_mutex_unlock(&memory->lock);
	return is_there;
}

struct mapping {
	struct return_of_memory memory;
	struct gs_region *regions;
	size_t count;
	struct gs_answer *answer;
};

/* Makes memory for one region after another, while other threads fill those that are there. */
static void *put_regions(void *argument)
{
	struct mapping *mapping = argument;
	struct return_of_memory *memory = &mapping->memory;
	CUresult result = gs_driver()->cuCtxSetCurrent(mapping->regions[0].context);

	for (size_t n = 0; n < mapping->count && result == CUDA_SUCCESS; n++) {
		if (!mapping->regions[n].present)
			result = gs_region_put(&mapping->regions[n]);
		pthread_mutex_lock(&memory->lock);
		if (result == CUDA_SUCCESS)
			memory->ready = n + 1;
		pthread_cond_broadcast(&memory->changed);
		pthread_mutex_unlock(&memory->lock);
	}
	if (result != CUDA_SUCCESS) {
		refuse(mapping->answer, "memory of the GPU cannot be made anew: %s", gs_driver_error(result));
		pthread_mutex_lock(&memory->lock);
		memory->failed = true;
		pthread_cond_broadcast(&memory->changed);
		pthread_mutex_unlock(&memory->lock);
	}
	return NULL;
}

static bool put_and_fill(int file, struct gs_answer *answer)
{
	struct mapping mapping = {
		.memory = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER},
		.answer = answer,
	};
	struct gs_transfer transfer = {
		.pieces = pieces,
		.count = nr_pieces,
		.file = file,
		.to_gpu = true,
		.await_region = await_region,
		.context = &mapping.memory,
	};
	struct gs_lane lanes[MAX_LANES];
	char why[GS_WHY] = "";
	pthread_t thread;
	size_t nr_lanes;
	bool filled;

	mapping.regions = gs_regions(&mapping.count);
	if (!mapping.count)
		return true;
	nr_lanes = lanes_of(mapping.regions, mapping.count, lanes);
	if (pthread_create(&thread, NULL, put_regions, &mapping))
		return refuse(answer, "no thread can be started");
	filled = gs_transfer(&transfer, lanes, nr_lanes, gs_settings()->threads, why);
	pthread_join(thread, NULL);
	return !answer->refused && (filled || refuse(answer, "%s", why));
}

void gs_bring_back(int file, struct gs_answer *answer)
{
	if (!staged)
		return;
	answer->staged = 1;
	if (!check_file(file, answer) || !put_and_fill(file, answer))
		return;
	count_bytes(answer);
	staged = false;
	answer->staged = 0;
	free(pieces);
	pieces = NULL;
	nr_pieces = 0;
	gs_gate_open();
}

void gs_ask(struct gs_answer *answer)
{
	answer->staged = staged;
	count_bytes(answer);
}
