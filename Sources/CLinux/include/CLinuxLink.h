// SPDX-License-Identifier: Apache-2.0
// The machine's place in the network: default routes, own address towards another, and jumps of the clocks.
#ifndef CLINUX_LINK_H
#define CLINUX_LINK_H
#include "CLinuxUDP.h"

// Default route of the family (4 or 6) with the lowest metric: its gateway (zero when there is none) and interface.
// Returns 1, 0 when there is no default route, or -errno.
int clinux_default_route(int family, struct clinux_address *gateway, int *interface_index);
// The local address that packets to `remote` leave from; 0 or -errno.
int clinux_route_source(const struct clinux_address *remote, struct clinux_address *source);
// A descriptor that becomes readable when the wall clock was set, or the machine woke up; or -errno.
int clinux_clock_watch_open(void);
// Takes the readiness away; 1 when the clock jumped.
int clinux_clock_watch_drain(int descriptor);
// One datagram, without waiting: its length, or -errno.
int clinux_udp_send_one(int descriptor, const void *bytes, int length, const struct clinux_address *to);
int clinux_udp_receive_one(int descriptor, void *bytes, int capacity, struct clinux_address *from);

#endif
