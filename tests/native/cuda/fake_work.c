/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Work of the fake GPUs: streams, and threads that work them off. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_libcuda.h"

#define NR_ENGINES 4
#define MAX_STREAMS 1024
#define LEGACY_STREAM ((CUstream)1)
#define PER_THREAD_STREAM ((CUstream)2)

enum work_kind { WORK_TO_GPU, WORK_TO_HOST, WORK_BETWEEN, WORK_SET, WORK_ADD, WORK_FREE };

struct CUstream_st {
	CUdevice device;
	bool is_default; /* others wait for it, and it for them */
	bool is_alone;   /* but for those that wait for none */
};

/* In the order of submission. A piece stays in the list until it is done. */
struct work {
	struct work *next;
	enum work_kind kind;
	struct CUstream_st *stream, order; /* the stream itself may go before its work is done */
	bool is_under_way;
	uint64_t address, from;
	void *memory;
	size_t bytes;
	unsigned char byte;
};

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static struct work *first_work;
static struct CUstream_st *streams[MAX_STREAMS];
static struct CUstream_st default_streams[MAX_GPUS];
static _Thread_local struct CUstream_st own_stream;

/* --- doing it --- */

static bool do_with_copy(const struct work *work, unsigned char *copy)
{
	CUdevice device = work->order.device;
	bool is_copy = work->kind != WORK_ADD;

	if (work->kind == WORK_SET)
		memset(copy, work->byte, work->bytes);
	else if (!use_memory(work->kind == WORK_ADD ? work->address : work->from, copy, work->bytes, false, device,
			     is_copy))
		return false;
	for (size_t n = 0; n < work->bytes && work->kind == WORK_ADD; n++)
		copy[n] += work->byte;
	return use_memory(work->address, copy, work->bytes, true, device, is_copy);
}

static bool do_work(const struct work *work)
{
	unsigned char *copy;
	bool done;

	if (work->kind == WORK_FREE)
		return free_allocation(work->address);
	if (work->kind == WORK_TO_GPU || work->kind == WORK_TO_HOST)
		return use_memory(work->address, work->memory, work->bytes, work->kind == WORK_TO_GPU,
				  work->order.device, true);
	copy = malloc(work->bytes);
	done = copy && do_with_copy(work, copy);
	free(copy);
	return done;
}

/* Whether one piece of work must wait for an earlier one. */
static bool is_behind(const struct work *work, const struct work *earlier)
{
	if (work->stream == earlier->stream)
		return true;
	if (work->order.device != earlier->order.device || work->order.is_alone || earlier->order.is_alone)
		return false;
	return work->order.is_default || earlier->order.is_default;
}

static struct work *next_work(void)
{
	for (struct work *work = first_work; work; work = work->next) {
		struct work *earlier = first_work;

		if (work->is_under_way)
			continue;
		while (earlier != work && !is_behind(work, earlier))
			earlier = earlier->next;
		if (earlier == work)
			return work;
	}
	return NULL;
}

static void take_out(struct work *work)
{
	struct work **link = &first_work;

	while (*link != work)
		link = &(*link)->next;
	*link = work->next;
	free(work);
}

static bool is_quick(const struct work *work)
{
	return work->order.is_alone && (work->kind == WORK_TO_GPU || work->kind == WORK_TO_HOST);
}

static void *work_off(void *unused)
{
	const char *text = getenv("GPUCKPT_FAKE_WORK_MS");
	long delay_ms = text ? atol(text) : 0;

	for (;;) {
		struct work *work;
		bool done;

		pthread_mutex_lock(&queue_lock);
		while (!(work = next_work()))
			pthread_cond_wait(&queue_changed, &queue_lock);
		work->is_under_way = true;
		pthread_mutex_unlock(&queue_lock);

		if (delay_ms && !is_quick(work))
			sleep_ms(delay_ms);
		pthread_mutex_lock(&memory_lock);
		done = do_work(work);
		pthread_mutex_unlock(&memory_lock);
		if (!done)
			break_for_good(CUDA_ERROR_ILLEGAL_ADDRESS);

		pthread_mutex_lock(&queue_lock);
		take_out(work);
		__atomic_sub_fetch(&block->work, 1, __ATOMIC_SEQ_CST);
		pthread_cond_broadcast(&queue_changed);
		pthread_mutex_unlock(&queue_lock);
	}
	return unused;
}

static void start_engines(void)
{
	pthread_t thread;

	for (int n = 0; n < NR_ENGINES; n++)
		if (pthread_create(&thread, NULL, work_off, NULL))
			abort();
}

/* --- giving and awaiting it --- */

/* What a program means by a stream, or NULL. */
static struct CUstream_st *resolve(CUstream stream)
{
	CUdevice device = device_of(current_context());

	if (stream == PER_THREAD_STREAM) {
		own_stream.device = device;
		return &own_stream;
	}
	if (!stream || stream == LEGACY_STREAM) {
		default_streams[device] = (struct CUstream_st){.device = device, .is_default = true};
		return &default_streams[device];
	}
	for (int n = 0; n < MAX_STREAMS; n++)
		if (streams[n] == stream)
			return stream;
	return NULL;
}

static void append(struct work *work)
{
	struct work **link = &first_work;

	while (*link)
		link = &(*link)->next;
	*link = work;
}

/* Between the lock and the unlock of the driver's checkpoint nothing is taken on. */
static void count_work(void)
{
	for (;;) {
		__atomic_add_fetch(&block->work, 1, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&block->state, __ATOMIC_SEQ_CST) == CU_PROCESS_STATE_RUNNING)
			return;
		__atomic_sub_fetch(&block->work, 1, __ATOMIC_SEQ_CST);
		sleep_ms(1);
	}
}

static CUresult submit(CUstream stream, const struct work *what)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct work *work = malloc(sizeof(*work));

	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_once(&once, start_engines);
	*work = *what;
	count_work();
	pthread_mutex_lock(&queue_lock);
	work->stream = resolve(stream);
	if (work->stream) {
		work->order = *work->stream;
		append(work);
		pthread_cond_broadcast(&queue_changed);
	} else {
		__atomic_sub_fetch(&block->work, 1, __ATOMIC_SEQ_CST);
	}
	pthread_mutex_unlock(&queue_lock);
	if (work->stream)
		return CUDA_SUCCESS;
	free(work);
	return CUDA_ERROR_INVALID_HANDLE;
}

CUresult submit_free(uint64_t address, CUstream stream)
{
	return submit(stream, &(struct work){.kind = WORK_FREE, .address = address});
}

/* With the queue's lock held. */
static bool is_busy(const struct CUstream_st *stream, CUdevice device)
{
	for (struct work *work = first_work; work; work = work->next)
		if (stream ? work->stream == stream : (device < 0 || work->order.device == device))
			return true;
	return false;
}

static void await(const struct CUstream_st *stream, CUdevice device)
{
	pthread_mutex_lock(&queue_lock);
	while (is_busy(stream, device))
		pthread_cond_wait(&queue_changed, &queue_lock);
	pthread_mutex_unlock(&queue_lock);
}

void drain(void)
{
	await(NULL, -1);
}

/* Freed memory goes back when somebody waits, but for what the pool may keep. */
static CUresult after_waiting(void)
{
	CUdevice device = device_of(current_context());

	begin_change();
	release_pooled(device, block->pool_keeps[device]);
	end_change();
	return enter();
}

static CUresult find_stream(CUstream stream, struct CUstream_st **found)
{
	pthread_mutex_lock(&queue_lock);
	*found = resolve(stream);
	pthread_mutex_unlock(&queue_lock);
	return *found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* --- streams --- */

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	CUresult result = need_context("cuStreamCreate");
	struct CUstream_st *made;
	int n = 0;

	if (result != CUDA_SUCCESS || flags > CU_STREAM_NON_BLOCKING)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	made = malloc(sizeof(*made));
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*made = (struct CUstream_st){
		.device = device_of(current_context()),
		.is_alone = flags == CU_STREAM_NON_BLOCKING,
	};
	pthread_mutex_lock(&queue_lock);
	while (n < MAX_STREAMS && streams[n])
		n++;
	if (n < MAX_STREAMS)
		*stream = streams[n] = made;
	pthread_mutex_unlock(&queue_lock);
	if (n == MAX_STREAMS)
		free(made);
	return n < MAX_STREAMS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream)
{
	CUresult result = enter_call("cuStreamDestroy");
	int n = 0;

	if (result != CUDA_SUCCESS || !stream)
		return result ?: CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&queue_lock);
	while (n < MAX_STREAMS && streams[n] != stream)
		n++;
	if (n < MAX_STREAMS)
		streams[n] = NULL;
	pthread_mutex_unlock(&queue_lock);
	if (n == MAX_STREAMS)
		return CUDA_ERROR_INVALID_HANDLE;
	await(stream, -1);
	free(stream);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
	struct CUstream_st *found;
	CUresult result = need_context("cuStreamSynchronize") ?: find_stream(stream, &found);

	if (result != CUDA_SUCCESS)
		return result;
	await(found, -1);
	return after_waiting();
}

EXPORT CUresult cuStreamQuery(CUstream stream)
{
	struct CUstream_st *found;
	CUresult result = need_context("cuStreamQuery") ?: find_stream(stream, &found);
	bool busy;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&queue_lock);
	busy = is_busy(found, -1);
	pthread_mutex_unlock(&queue_lock);
	return busy ? CUDA_ERROR_NOT_READY : enter();
}

/* --- captures: nothing is recorded, but nobody may wait for the GPU meanwhile --- */

static int captures;
static bool is_capture_broken;

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode)
{
	(void)stream;
	(void)mode;
	if (!__atomic_fetch_add(&captures, 1, __ATOMIC_ACQ_REL))
		__atomic_store_n(&is_capture_broken, false, __ATOMIC_RELEASE);
	return enter();
}

EXPORT CUresult cuStreamEndCapture(CUstream stream, void **graph)
{
	(void)stream;
	*graph = NULL;
	__atomic_sub_fetch(&captures, 1, __ATOMIC_ACQ_REL);
	return enter()
		       ?: (__atomic_load_n(&is_capture_broken, __ATOMIC_ACQUIRE) ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
										 : CUDA_SUCCESS);
}

EXPORT CUresult cuCtxSynchronize(void)
{
	CUresult result = need_context("cuCtxSynchronize");

	if (result != CUDA_SUCCESS)
		return result;
	if (__atomic_load_n(&captures, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&is_capture_broken, true, __ATOMIC_RELEASE);
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	await(NULL, device_of(current_context()));
	return after_waiting();
}

/* --- copies, fills, kernels --- */

static CUresult copy_to_gpu(uint64_t address, const void *memory, size_t bytes, CUstream stream)
{
	return submit(stream, &(struct work){
				      .kind = WORK_TO_GPU,
				      .address = address,
				      .memory = (void *)memory,
				      .bytes = bytes,
			      });
}

static CUresult copy_to_host(void *memory, uint64_t address, size_t bytes, CUstream stream)
{
	return submit(stream,
		      &(struct work){.kind = WORK_TO_HOST, .address = address, .memory = memory, .bytes = bytes});
}

static CUresult copy_between(uint64_t address, uint64_t from, size_t bytes, CUstream stream)
{
	return submit(stream, &(struct work){.kind = WORK_BETWEEN, .address = address, .from = from, .bytes = bytes});
}

static CUresult fill(uint64_t address, unsigned char byte, size_t bytes, CUstream stream)
{
	return submit(stream, &(struct work){.kind = WORK_SET, .address = address, .byte = byte, .bytes = bytes});
}

/* Waits for the stream of the work that was submitted. */
static CUresult finish(CUresult result, CUstream stream)
{
	struct CUstream_st *found;

	result = result ?: find_stream(stream, &found);
	if (result != CUDA_SUCCESS)
		return result;
	await(found, -1);
	return enter();
}

/* The variants of one function: for the default stream of all, and for that of each thread. */
#define VARIANTS(_name, _ending, _parameters, _call)                                                                   \
	EXPORT CUresult _name _parameters                                                                              \
	{                                                                                                              \
		CUstream other = NULL;                                                                                 \
                                                                                                                       \
		return _call;                                                                                          \
	}                                                                                                              \
	EXPORT CUresult _name##_ending _parameters                                                                     \
	{                                                                                                              \
		CUstream other = PER_THREAD_STREAM;                                                                    \
                                                                                                                       \
		return _call;                                                                                          \
	}

VARIANTS(cuMemcpyHtoD_v2, _ptds, (uint64_t address, const void *memory, size_t bytes),
	 finish(need_context("cuMemcpyHtoD") ?: copy_to_gpu(address, memory, bytes, other), other))
VARIANTS(cuMemcpyDtoH_v2, _ptds, (void *memory, uint64_t address, size_t bytes),
	 finish(need_context("cuMemcpyDtoH") ?: copy_to_host(memory, address, bytes, other), other))
VARIANTS(cuMemcpyDtoD_v2, _ptds, (uint64_t address, uint64_t from, size_t bytes),
	 need_context("cuMemcpyDtoD") ?: copy_between(address, from, bytes, other))
VARIANTS(cuMemsetD8_v2, _ptds, (uint64_t address, unsigned char byte, size_t bytes),
	 need_context("cuMemsetD8") ?: fill(address, byte, bytes, other))
VARIANTS(cuMemcpyHtoDAsync_v2, _ptsz, (uint64_t address, const void *memory, size_t bytes, CUstream stream),
	 need_context("cuMemcpyHtoDAsync") ?: enter_call("copy") ?: copy_to_gpu(address, memory, bytes, stream ?: other))
VARIANTS(cuMemcpyDtoHAsync_v2, _ptsz, (void *memory, uint64_t address, size_t bytes, CUstream stream),
	 need_context("cuMemcpyDtoHAsync") ?: copy_to_host(memory, address, bytes, stream ?: other))
VARIANTS(cuMemcpyDtoDAsync_v2, _ptsz, (uint64_t address, uint64_t from, size_t bytes, CUstream stream),
	 need_context("cuMemcpyDtoDAsync") ?: copy_between(address, from, bytes, stream ?: other))
VARIANTS(cuMemsetD8Async, _ptsz, (uint64_t address, unsigned char byte, size_t bytes, CUstream stream),
	 need_context("cuMemsetD8Async") ?: fill(address, byte, bytes, stream ?: other))

/* The only kernel there is adds a number to bytes: its parameters are where, how many, and which number. */
EXPORT CUresult cuLaunchKernel(void *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
			       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
			       CUstream stream, void **parameters, void **extra)
{
	CUresult result = need_context("cuLaunchKernel");

	(void)function;
	if (result != CUDA_SUCCESS || !grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z || shared ||
	    extra)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	return submit(stream, &(struct work){
				      .kind = WORK_ADD,
				      .address = *(uint64_t *)parameters[0],
				      .bytes = *(size_t *)parameters[1],
				      .byte = *(unsigned char *)parameters[2],
			      });
}
