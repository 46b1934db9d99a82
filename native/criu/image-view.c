// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "types.h"
#include "image-view.h"
#include "log.h"
#include "proc_parse.h"
#include "servicefd.h"
#include "switches.h"
#include "util.h"

/* <linux/mount.h> and <sys/mount.h> exclude each other on some distributions. */
#define VIEW_OPEN_TREE_CLONE 1
#define VIEW_ATTR_NOEXEC 0x8

struct view_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

bool image_view_is_executable(int fd)
{
	struct statvfs st;

	return !fstatvfs(fd, &st) && !(st.f_flag & ST_NOEXEC);
}

static int clone_without_noexec(int dfd)
{
	struct view_attr attr = {.attr_clr = VIEW_ATTR_NOEXEC};
	int view, saved;

	view = syscall(__NR_open_tree, dfd, "", AT_EMPTY_PATH | O_CLOEXEC | VIEW_OPEN_TREE_CLONE);
	if (view < 0)
		return -1;
	if (!syscall(__NR_mount_setattr, view, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		return view;
	saved = errno;
	close(view);
	errno = saved;
	return -1;
}

static int fd_path(int fd, char *path, size_t size)
{
	char link[64];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, size - 1);
	if (len < 0 || len == size - 1)
		return -1;
	path[len] = '\0';
	return 0;
}

/* Climbs to the root of the mount; returns a descriptor of it, or -1. */
static int open_mount_root(int dfd)
{
	int at = openat(dfd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC), mount, up_mount;

	if (at < 0 || get_fd_mntid(at, &mount))
		goto err;
	while (1) {
		struct stat here, there;
		int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);

		if (up < 0 || get_fd_mntid(up, &up_mount) || fstat(at, &here) || fstat(up, &there)) {
			close_safe(&up);
			goto err;
		}
		if (up_mount != mount || (here.st_ino == there.st_ino && here.st_dev == there.st_dev)) {
			close(up);
			return at;
		}
		close(at);
		at = up;
	}
err:
	close_safe(&at);
	return -1;
}

int image_view_mountpoint(int dfd, char *path, size_t size)
{
	int root = open_mount_root(dfd), ret;

	if (root < 0)
		return -1;
	ret = fd_path(root, path, size);
	close(root);
	if (!ret && !strcmp(path, "/"))
		path[0] = '\0';
	return ret;
}

/*
 * The image folder, seen through the clone of its mount. The clone starts at the root of the mount, so that the paths
 * of mappings tell where in it their file lies: see link_base().
 */
static int open_executable(int images_dfd)
{
	char mountpoint[PATH_MAX], images[PATH_MAX];
	int root, clone, view = -1;

	root = open_mount_root(images_dfd);
	if (root < 0)
		return -1;
	clone = clone_without_noexec(root);
	if (clone >= 0 && !image_view_mountpoint(images_dfd, mountpoint, sizeof(mountpoint)) &&
	    !fd_path(images_dfd, images, sizeof(images))) {
		const char *inside = images + strlen(mountpoint);

		while (*inside == '/')
			inside++;
		view = openat(clone, *inside ? inside : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	close_safe(&clone);
	close(root);
	return view;
}

void image_view_open(int images_dfd)
{
	int view;

	if (!switches()->mapped_restore || image_view_is_executable(images_dfd))
		return;
	view = open_executable(images_dfd);
	if (view < 0 || install_service_fd(IMG_VIEW_FD_OFF, view) < 0)
		pr_pwarn("gpuckpt: no executable view of the images, which lie on a mount with noexec");
}

void image_view_close(void)
{
	close_service_fd(IMG_VIEW_FD_OFF);
}

int image_view_open_file(const char *name)
{
	int dfd = get_service_fd(IMG_VIEW_FD_OFF);

	if (dfd < 0)
		dfd = get_service_fd(IMG_FD_OFF);
	return openat(dfd, name, O_RDONLY | O_CLOEXEC);
}
