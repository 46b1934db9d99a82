/* SPDX-License-Identifier: GPL-2.0-only */
/* The context pool as CRIU sees it: a process next to the restore that initialises the driver meanwhile. */
#ifndef GPUCKPT_CUDA_POOL_H
#define GPUCKPT_CUDA_POOL_H

#include <stdbool.h>

/* Starts gpuckpt-pool. Never fails: without a pool the restore is only slower. */
void gc_pool_start(void);

/* Waits until the pool is ready, has failed, or wait_s seconds went by. */
void gc_pool_wait(unsigned int wait_s);

/* Lets the pool go and waits shortly for it, so that its GPU memory is free. True if there was one to let go. */
bool gc_pool_release(void);

/* Lets it go without waiting: giving up a context takes the driver 80 ms, and the restored tasks run already. */
void gc_pool_let_go(void);

#endif
