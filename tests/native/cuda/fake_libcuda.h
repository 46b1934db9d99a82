/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the parts of the fake driver know of each other; fake_libcuda.c tells what it is. */
#ifndef FAKE_LIBCUDA_H
#define FAKE_LIBCUDA_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_types.h"
#include "gpuckpt_cuda_abi.h"

#define MAX_ALLOCATIONS 4096
#define MAX_RESERVATIONS 4096
#define MAX_MAPPINGS 4096
#define MAX_GPUS 16
#define EXPORT __attribute__((visibility("default")))

/* Results that only the fake gives. */
enum {
	CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
	CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
	CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
	CUDA_ERROR_INVALID_HANDLE = 400,
	CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
	CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
};

enum allocation_kind {
	KIND_OWN,      /* of cuMemAlloc */
	KIND_ORDERED,  /* of cuMemAllocAsync */
	KIND_PHYSICAL, /* of cuMemCreate: without an address of its own */
};

/* Physical memory: a file, or what a checkpoint made of it. */
struct allocation {
	uint64_t bytes; /* 0: free */
	void *parked;
	uint32_t generation; /* part of the handle, so that an old one is wrong */
	uint32_t handles, mappings;
	int32_t device;
	int32_t kind;
	bool is_exportable;
	bool is_shared; /* with another process */
	bool is_pooled; /* freed, and kept for later allocations */
};

/* Physical memory at addresses of the virtual memory interface. */
struct mapping {
	uint64_t address;
	uint64_t bytes;   /* 0: free */
	int32_t index;    /* of the allocation */
	uint32_t devices; /* a bit for each GPU that may use it */
};

/* Lives in the target; the caller reads and writes it from outside. */
struct block {
	uint64_t magic;
	int32_t pid; /* as the target sees it */
	int32_t tid;
	int32_t state;
	int32_t command;
	uint32_t asked;    /* number of commands so far */
	uint32_t answered; /* number of answers so far */
	int32_t result;
	int32_t device_fd;
	int32_t changing; /* whether a call changes what a checkpoint carries */
	int32_t work;     /* pieces of work that are not done */
	uint64_t total_bytes;
	/* Callers need nothing of what follows. */
	char folder[512];
	char device[128];
	uint64_t pool_keeps[MAX_GPUS]; /* bytes, when somebody waits */
	uint32_t peers[MAX_GPUS];      /* a bit for each GPU whose memory this one may use */
	struct allocation allocations[MAX_ALLOCATIONS];
	uint64_t reserved_bytes[MAX_RESERVATIONS]; /* 0: free */
	struct mapping mappings[MAX_MAPPINGS];
};

extern struct block *block;

void sleep_ms(long ms);

/* Calls of a locked process wait, and after an illegal access all fail; then faults of the script. */
CUresult enter(void);
CUresult enter_call(const char *name);
CUresult need_context(const char *name); /* and there must be a current context */
void break_for_good(CUresult result);

/* Around every change of what a checkpoint carries. The driver's lock waits for its end. */
void begin_change(void);
void end_change(void);

int gpu_count(void);
int device_of(CUcontext context); /* -1: of none */
CUcontext context_of(CUdevice device);
CUcontext current_context(void);

/* What a context takes of a GPU: a file that is empty. */
void context_path(char *path, size_t size, CUdevice device);

/* Memory. Its lock is held during work, too. */
extern pthread_mutex_t memory_lock;
uint64_t used_bytes(CUdevice device); /* that live processes hold */
uint64_t total_bytes(void);
CUresult park_all(void);
CUresult unpark_all(void);
void forget_memory_of(CUdevice device); /* with its context */
void release_pooled(CUdevice device, uint64_t bytes_to_keep);
bool free_allocation(uint64_t address);

/* Reads or writes memory as a GPU does; is_copy: by its copy engine. False where it may not. */
bool use_memory(uint64_t address, void *memory, size_t bytes, bool to_gpu, CUdevice device, bool is_copy);

/* Work */
void drain(void); /* waits for all of it */
CUresult submit_free(uint64_t address, CUstream stream);

#endif
