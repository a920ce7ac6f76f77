// SPDX-License-Identifier: Apache-2.0
// libpq, and two calls for starting PostgreSQL that libc declares only under _GNU_SOURCE.
#ifndef CPQ_SHIM_H
#define CPQ_SHIM_H
#include <libpq-fe.h>
#include <spawn.h>

int posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t *actions, const char *path);
int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *actions, int from);

#endif
