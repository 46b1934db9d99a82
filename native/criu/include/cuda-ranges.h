/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A file of the image folder that the CUDA plugin writes and the memory plan reads. It says where the driver parked the
 * GPU data of one process. It is named by the number that the process itself sees, which survives a restore.
 */
#ifndef GPUCKPT_CUDA_RANGES_FILE_H
#define GPUCKPT_CUDA_RANGES_FILE_H

#define CUDA_RANGES_FILE "cuda-ranges-%d.txt"
/* One line a range: start and end as unsigned long. */
#define CUDA_RANGES_LINE "%lx-%lx"

#endif
