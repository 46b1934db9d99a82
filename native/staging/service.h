/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The library's thread in the program: it waits for requests (gpuckpt_cuda_staging_wire.h) and carries them out. */
#ifndef GPUCKPT_STAGING_SERVICE_H
#define GPUCKPT_STAGING_SERVICE_H

/* Starts it, once in a process. What goes wrong is told on standard error: the driver then keeps all memory itself. */
void gs_service_start(void);

#endif
