// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

int clinux_pipe2(int descriptors[2], int flags) { return pipe2(descriptors, flags); }
int clinux_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }
int clinux_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }
