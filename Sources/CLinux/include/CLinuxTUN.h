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
// 1 up, 0 down, or -errno (the device is gone).
int clinux_interface_is_up(const char *name);
int clinux_interface_mtu(const char *name);
int clinux_interface_set_queue_length(const char *name, int packets);
// Most segments and bytes of a super-packet that the kernel hands to the device; 0 or -errno.
int clinux_interface_set_gso_limits(const char *name, uint32_t segments, uint32_t bytes);
// Waits until the descriptor is readable; returns at once on errors.
void clinux_wait_readable(int descriptor);
// Asks for short turns of the processor for the calling thread (EEVDF, Linux 6.12; nothing before), so that it is
// served sooner, and for the niceness, if that is allowed. 0 or -errno.
// Above 19: the niceness stays.
int clinux_thread_short_turns(uint64_t nanoseconds, int niceness);
// Path MTU discovery as the system's default has it, instead of "never fragment".
int clinux_udp_may_fragment(int descriptor, int is_v4);

#endif
