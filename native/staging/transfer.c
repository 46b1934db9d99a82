/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#define XXH_INLINE_ALL
#include "transfer.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "driver.h"

#define BUFFERS 2 /* of a thread */

struct team {
	const struct gs_transfer *transfer;
	atomic_bool failed;
	pthread_mutex_t lock;
	char *why;
};

/* The threads of one GPU, and what they have carried. */
struct crew {
	struct team *team;
	struct gs_lane lane;
	atomic_size_t next; /* index of a piece */
};

struct buffer {
	unsigned char *memory;
	CUstream stream;
	struct gs_piece *piece; /* which it holds, or NULL */
};

struct carrier {
	struct crew *crew;
	unsigned char *memory; /* of all its buffers, pinned */
	pthread_t thread;
	bool started;
};

static bool __attribute__((format(printf, 2, 3))) fail(struct team *team, const char *format, ...)
{
	va_list arguments;

	pthread_mutex_lock(&team->lock);
	if (!atomic_exchange(&team->failed, true)) {
		va_start(arguments, format);
		vsnprintf(team->why, GS_WHY, format, arguments);
		va_end(arguments);
	}
	pthread_mutex_unlock(&team->lock);
	return false;
}

static bool check(struct team *team, const char *call, CUresult result)
{
	return result == CUDA_SUCCESS || fail(team, "%s failed: %s", call, gs_driver_error(result));
}

static struct gs_piece *next_piece(struct crew *crew)
{
	const struct gs_transfer *transfer = crew->team->transfer;
	size_t index;

	while ((index = atomic_fetch_add(&crew->next, 1)) < transfer->count)
		if (transfer->pieces[index].device == crew->lane.device)
			return &transfer->pieces[index];
	return NULL;
}

static bool is_zeros(const unsigned char *memory, size_t bytes)
{
	/* Equal to itself, moved by one, and the first is zero: the C library compares many bytes at a time. */
	return !memory[0] && (bytes == 1 || !memcmp(memory, memory + 1, bytes - 1));
}

static bool whole(struct team *team, const struct gs_piece *piece, bool to_file, void *memory)
{
	int file = team->transfer->file;
	size_t done = 0;

	while (done < piece->bytes) {
		char *at = (char *)memory + done;
		size_t left = piece->bytes - done;
		ssize_t moved = to_file ? pwrite(file, at, left, piece->offset + done)
					: pread(file, at, left, piece->offset + done);

		if (moved < 0 && errno == EINTR)
			continue;
		if (moved < 0)
			return fail(team, "the staging file cannot be %s: %s", to_file ? "written" : "read",
				    strerror(errno));
		if (!moved)
			return fail(team, "the staging file ends early");
		done += moved;
	}
	return true;
}

/* --- from the GPU --- */

static bool begin_fetch(struct team *team, struct buffer *buffer, struct gs_piece *piece)
{
	buffer->piece = piece;
	return !piece ||
	       check(team, "cuMemcpyDtoHAsync",
		     gs_driver()->cuMemcpyDtoHAsync_v2(buffer->memory, piece->address, piece->bytes, buffer->stream));
}

static bool store(struct team *team, struct buffer *buffer)
{
	struct gs_piece *piece = buffer->piece;

	buffer->piece = NULL;
	if (!piece)
		return true;
	if (!check(team, "cuStreamSynchronize", gs_driver()->cuStreamSynchronize(buffer->stream)))
		return false;
	piece->zeros = is_zeros(buffer->memory, piece->bytes);
	if (piece->zeros)
		return true;
	piece->digest = XXH3_64bits(buffer->memory, piece->bytes);
	return whole(team, piece, true, buffer->memory);
}

static void fetch_pieces(struct crew *crew, struct buffer *buffers)
{
	struct gs_piece *piece;
	unsigned int turn = 0;

	do {
		piece = next_piece(crew);
		if (!begin_fetch(crew->team, &buffers[turn], piece))
			break;
		turn = (turn + 1) % BUFFERS;
		if (!store(crew->team, &buffers[turn]))
			break;
	} while (piece && !atomic_load(&crew->team->failed));
}

/* --- to the GPU --- */

static bool load(struct team *team, const struct gs_piece *piece, void *memory)
{
	if (!whole(team, piece, false, memory))
		return false;
	return XXH3_64bits(memory, piece->bytes) == piece->digest ||
	       fail(team, "the staging file is damaged at offset %lu, or belongs to another checkpoint",
		    (unsigned long)piece->offset);
}

static bool deliver(struct team *team, struct buffer *buffer, const struct gs_piece *piece)
{
	const struct gs_transfer *transfer = team->transfer;

	if (!check(team, "cuStreamSynchronize", gs_driver()->cuStreamSynchronize(buffer->stream)))
		return false;
	if (!piece->zeros && !load(team, piece, buffer->memory))
		return false;
	if (!transfer->await_region(transfer->context, piece->region))
		return fail(team, "memory of the GPU is missing");
	if (piece->zeros)
		return check(team, "cuMemsetD8Async",
			     gs_driver()->cuMemsetD8Async(piece->address, 0, piece->bytes, buffer->stream));
	return check(team, "cuMemcpyHtoDAsync",
		     gs_driver()->cuMemcpyHtoDAsync_v2(piece->address, buffer->memory, piece->bytes, buffer->stream));
}

static void deliver_pieces(struct crew *crew, struct buffer *buffers)
{
	struct gs_piece *piece;

	for (unsigned int turn = 0; (piece = next_piece(crew)) && !atomic_load(&crew->team->failed);
	     turn = (turn + 1) % BUFFERS)
		if (!deliver(crew->team, &buffers[turn], piece))
			break;
}

/* --- threads --- */

static void *carry(void *argument)
{
	struct carrier *carrier = argument;
	struct crew *crew = carrier->crew;
	struct team *team = crew->team;
	const struct gs_driver *real = gs_driver();
	struct buffer buffers[BUFFERS] = {};
	bool ready = check(team, "cuCtxSetCurrent", real->cuCtxSetCurrent(crew->lane.context));

	for (size_t n = 0; n < BUFFERS; n++) {
		buffers[n].memory = carrier->memory + n * GS_PIECE;
		ready = ready &&
			check(team, "cuStreamCreate", real->cuStreamCreate(&buffers[n].stream, CU_STREAM_NON_BLOCKING));
	}
	if (ready && team->transfer->to_gpu)
		deliver_pieces(crew, buffers);
	else if (ready)
		fetch_pieces(crew, buffers);
	/* A buffer must not go while the bus still uses it. */
	for (size_t n = 0; n < BUFFERS; n++)
		if (buffers[n].stream) {
			check(team, "cuStreamSynchronize", real->cuStreamSynchronize(buffers[n].stream));
			real->cuStreamDestroy_v2(buffers[n].stream);
		}
	return NULL;
}

static void run(struct team *team, struct carrier *carriers, size_t count)
{
	for (size_t n = 0; n < count; n++) {
		int error = pthread_create(&carriers[n].thread, NULL, carry, &carriers[n]);

		carriers[n].started = !error;
		if (error)
			fail(team, "no thread can be started: %s", strerror(error));
	}
	for (size_t n = 0; n < count; n++)
		if (carriers[n].started)
			pthread_join(carriers[n].thread, NULL);
}

/* Pinned memory for all carriers. It lasts for one transfer: a checkpoint would carry it. */
static unsigned char *pin(struct team *team, CUcontext context, size_t bytes)
{
	unsigned char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		fail(team, "no memory for %zu bytes of buffers", bytes);
		return NULL;
	}
	madvise(memory, bytes, MADV_HUGEPAGE);
	if (check(team, "cuCtxSetCurrent", gs_driver()->cuCtxSetCurrent(context)) &&
	    check(team, "cuMemHostRegister",
		  gs_driver()->cuMemHostRegister_v2(memory, bytes, CU_MEMHOSTREGISTER_PORTABLE)))
		return memory;
	munmap(memory, bytes);
	return NULL;
}

bool gs_transfer(const struct gs_transfer *transfer, const struct gs_lane *lanes, size_t nr_lanes, unsigned int threads,
		 char why[GS_WHY])
{
	struct team team = {.transfer = transfer, .lock = PTHREAD_MUTEX_INITIALIZER, .why = why};
	size_t count = nr_lanes * threads, bytes = count * BUFFERS * GS_PIECE;
	struct carrier *carriers = calloc(count + 1, sizeof(*carriers));
	struct crew *crews = calloc(nr_lanes + 1, sizeof(*crews));
	unsigned char *memory = NULL;

	if (!nr_lanes || !carriers || !crews)
		goto out;
	memory = pin(&team, lanes[0].context, bytes);
	for (size_t n = 0; n < nr_lanes; n++)
		crews[n] = (struct crew){.team = &team, .lane = lanes[n]};
	for (size_t n = 0; n < count; n++)
		carriers[n] = (struct carrier){
			.crew = &crews[n % nr_lanes],
			.memory = memory + n * BUFFERS * GS_PIECE,
		};
	if (memory)
		run(&team, carriers, count);
out:
	if (nr_lanes && (!carriers || !crews))
		fail(&team, "no memory for threads");
	if (memory) {
		gs_driver()->cuMemHostUnregister(memory);
		munmap(memory, bytes);
	}
	free(carriers);
	free(crews);
	return !atomic_load(&team.failed);
}
