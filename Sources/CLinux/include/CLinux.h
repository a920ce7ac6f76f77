// SPDX-License-Identifier: Apache-2.0
// Linux headers that Swift's Glibc module leaves out, and wrappers of calls that Swift cannot make (variadic
// functions, control messages). No state, no logic.
//
// Never define _GNU_SOURCE here: structures of libc would then differ from those of Swift's Glibc module.
#ifndef CLINUX_H
#define CLINUX_H
#include <sys/epoll.h>
#include "CLinuxLink.h"
#include "CLinuxNet.h"
#include "CLinuxProcess.h"
#include "CLinuxTUN.h"
#include "CLinuxUDP.h"

int clinux_pipe2(int descriptors[2], int flags);
int clinux_eventfd(void);
int clinux_epoll_create(void);

#endif
