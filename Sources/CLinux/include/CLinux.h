// SPDX-License-Identifier: Apache-2.0
// Linux headers that Swift's Glibc module leaves out, and inline wrappers of calls that Swift cannot make
// (variadic functions, control messages). No state, no logic.
#ifndef CLINUX_H
#define CLINUX_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/types.h>
#include <unistd.h>

static inline int clinux_pipe2(int descriptors[2], int flags) { return pipe2(descriptors, flags); }
static inline int clinux_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }
static inline int clinux_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

#endif
