// SPDX-License-Identifier: Apache-2.0
// TUN devices with segmentation offload, and what `coder wireguard` sets and reads of their link.
#ifndef CLINUX_TUN_H
#define CLINUX_TUN_H
#include <stdint.h>

#define CLINUX_TUN_HEADER 1
#define CLINUX_TUN_TCP 2
#define CLINUX_TUN_UDP 4

// Opens /dev/net/tun as `name` with what of the wanted features the kernel grants, which comes back in `features`:
// a virtio_net_hdr of 10 bytes before each packet, TCP and UDP super-packets. Descriptor or -errno.
int clinux_tun_open_offload(char name[16], int *features);
// The device's name as it is now; 0 or -errno.
int clinux_tun_name(int descriptor, char name[16]);
// The network namespace that the device is in now: a descriptor, or -errno (EINVAL before Linux 5.2).
int clinux_tun_namespace(int descriptor);
// What tells namespaces apart; 0 for none.
uint64_t clinux_namespace_number(int descriptor);
// Opens sockets in a namespace (a descriptor, or -1 for the caller's): one that asks for and sets links there,
// whoever uses it, and one that hears of changes. 0 or -errno.
int clinux_open_link_sockets(int space, int *control, int *monitor);
// Through such a socket: 1 up, 0 down, or -errno (the device is gone).
int clinux_link_is_up(int control, const char *name);
int clinux_link_mtu(int control, const char *name);
int clinux_link_set_queue_length(int control, const char *name, int packets);
// Most segments and bytes of a super-packet that the kernel hands to the device; 0 or -errno.
int clinux_link_set_gso_limits(int control, const char *name, uint32_t segments, uint32_t bytes);
// Waits until the descriptor is readable; returns at once on errors.
void clinux_wait_readable(int descriptor);
// Asks for short turns of the processor for the calling thread (EEVDF, Linux 6.12; nothing before), so that it is
// served sooner, and for the niceness, if that is allowed. 0 or -errno.
// Above 19: the niceness stays.
int clinux_thread_short_turns(uint64_t nanoseconds, int niceness);
// Path MTU discovery as the system's default has it, instead of "never fragment".
int clinux_udp_may_fragment(int descriptor, int is_v4);

#endif
