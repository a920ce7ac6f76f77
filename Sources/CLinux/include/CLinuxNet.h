// SPDX-License-Identifier: Apache-2.0
// TUN devices, interface addresses, link changes: ioctls and structures that Swift does not import.
#ifndef CLINUX_NET_H
#define CLINUX_NET_H
#include "CLinuxUDP.h"
#include <stdint.h>

struct clinux_interface_address {
    struct clinux_address address;
    char name[17];
    uint8_t is_up, is_loopback;
};

// Moves the calling thread into a new network namespace; 0 or -errno.
int clinux_new_network_namespace(void);
int clinux_interface_set_mtu(const char *name, int mtu);
int clinux_interface_set_up(const char *name);
// Adds an address with its prefix length; 0 or -errno.
int clinux_interface_add_address(const char *name, const struct clinux_address *address, int prefix_bits);
// Fills up to `capacity` addresses of this machine; returns the count or -errno.
int clinux_interface_addresses(struct clinux_interface_address *out, int capacity);
// A netlink socket that hears of links, addresses and routes; descriptor or -errno.
int clinux_link_monitor_open(void);
// Reads all pending messages; returns how many of them concern links, addresses or routes, or -errno.
int clinux_link_monitor_drain(int descriptor);
// Moves the calling thread into the network namespace at the path; 0 or -errno.
int clinux_enter_network_namespace(const char *path);
// epoll_pwait2 with nanoseconds (negative: for ever); falls back to milliseconds where the kernel lacks it.
int clinux_epoll_wait(int descriptor, void *events, int capacity, int64_t nanoseconds);
int clinux_ioctl_int(int descriptor, unsigned long request, int *value);
// 1 stream socket of TCP, 2 other stream socket, 3 datagram or seqpacket socket, 4 pipe, 5 other pollable, 0 error.
int clinux_descriptor_kind(int descriptor);
void clinux_reset_on_close(int descriptor);
void clinux_no_delay(int descriptor);
void clinux_unsent_low_water(int descriptor, int bytes);
void clinux_tcp_patience(int descriptor, int unacknowledged_ms, int idle_seconds);
int clinux_thread_start(void *(*body)(void *), void *argument, const char *name, uint64_t *handle);
void clinux_thread_join(uint64_t handle);
void clinux_thread_detach(uint64_t handle);
// Looks a host name up (blocking); returns the number of addresses, 0 when there is none.
int clinux_resolve(const char *host, uint16_t port, int family, struct clinux_address *out, int capacity);

#endif
