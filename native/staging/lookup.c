/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Our dlsym, in a file of its own: programs that have the library linked in do without it. */
#include <string.h>

#include "entries.h"

GS_EXPORT void *dlsym(void *handle, const char *name);
void *dlsym(void *handle, const char *name)
{
	void *found;

	/* A call in tail position: what RTLD_NEXT means depends on who calls. */
	if (strncmp(name, "cu", 2) || !gs_is_name_of_ours(name, true))
		return gs_real_dlsym(handle, name);
	found = gs_real_dlsym(handle, name);
	return gs_ours_for(found) ?: found;
}
