// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"
#include "CLinuxTUN.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/resource.h>
#include <unistd.h>

// linux/if_tun.h and linux/if_link.h of older systems lack these.
#define OFFLOAD_USO4 0x20
#define OFFLOAD_USO6 0x40
#define GET_DEVICE_NAMESPACE _IO('T', 227)
#define ATTRIBUTE_GSO_MAX_SEGS 40
#define ATTRIBUTE_GSO_MAX_SIZE 41
#define ATTRIBUTE_GSO_IPV4_MAX_SIZE 63

static int attach(const char name[16], short flags, char actual[16]) {
    int descriptor = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return -errno;
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, name, 15);
    request.ifr_flags = flags;
    if (ioctl(descriptor, TUNSETIFF, &request) < 0) {
        int code = errno;
        close(descriptor);
        return -code;
    }
    memcpy(actual, request.ifr_name, 16);
    return descriptor;
}

int clinux_tun_open_offload(char name[16], int *features) {
    int wanted = *features;
    *features = 0;
    if (wanted & CLINUX_TUN_HEADER) {
        int descriptor = attach(name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, name);
        if (descriptor >= 0) {
            unsigned tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
            *features = CLINUX_TUN_HEADER;
            if ((wanted & CLINUX_TUN_TCP) && ioctl(descriptor, TUNSETOFFLOAD, tcp) == 0) {
                *features |= CLINUX_TUN_TCP;
                unsigned both = tcp | OFFLOAD_USO4 | OFFLOAD_USO6;
                if ((wanted & CLINUX_TUN_UDP) && ioctl(descriptor, TUNSETOFFLOAD, both) == 0)
                    *features |= CLINUX_TUN_UDP;
            }
            return descriptor;
        }
        if (descriptor != -EINVAL) return descriptor;
    }
    return attach(name, IFF_TUN | IFF_NO_PI, name);
}

int clinux_tun_name(int descriptor, char name[16]) {
    struct ifreq request = {0};
    if (ioctl(descriptor, TUNGETIFF, &request) < 0) return -errno;
    memcpy(name, request.ifr_name, 16);
    return 0;
}

int clinux_tun_namespace(int descriptor) {
    int space = ioctl(descriptor, GET_DEVICE_NAMESPACE);
    return space < 0 ? -errno : space;
}

uint64_t clinux_namespace_number(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) < 0 ? 0 : status.st_ino;
}

struct link_sockets { int space, control, monitor, result; };

// On a thread of its own, which alone changes its namespace.
static void *open_link_sockets(void *argument) {
    struct link_sockets *sockets = argument;
    if (sockets->space >= 0 && setns(sockets->space, CLONE_NEWNET) < 0) {
        sockets->result = -errno;
        return NULL;
    }
    sockets->control = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    sockets->result = sockets->control < 0 ? -errno : 0;
    if (sockets->control < 0) return NULL;
    sockets->monitor = clinux_link_monitor_open();
    if (sockets->monitor >= 0) return NULL;
    sockets->result = sockets->monitor;
    close(sockets->control);
    return NULL;
}

int clinux_open_link_sockets(int space, int *control, int *monitor) {
    struct link_sockets sockets = {.space = space};
    pthread_t thread;
    if (space < 0) {
        open_link_sockets(&sockets);
    } else {
        int code = pthread_create(&thread, NULL, open_link_sockets, &sockets);
        if (code != 0) return -code;
        pthread_join(thread, NULL);
    }
    *control = sockets.control;
    *monitor = sockets.monitor;
    return sockets.result;
}

// A netlink socket passes on what it does not know to the devices of its namespace, as every socket does.
static int with_link(int control, const char *name, unsigned long call, struct ifreq *request) {
    snprintf(request->ifr_name, sizeof request->ifr_name, "%s", name);
    return ioctl(control, call, request) < 0 ? -errno : 0;
}

int clinux_link_is_up(int control, const char *name) {
    struct ifreq request = {0};
    int result = with_link(control, name, SIOCGIFFLAGS, &request);
    return result < 0 ? result : (request.ifr_flags & IFF_UP) != 0;
}

int clinux_link_mtu(int control, const char *name) {
    struct ifreq request = {0};
    int result = with_link(control, name, SIOCGIFMTU, &request);
    return result < 0 ? result : request.ifr_mtu;
}

int clinux_link_set_queue_length(int control, const char *name, int packets) {
    struct ifreq request = {0};
    request.ifr_qlen = packets;
    return with_link(control, name, SIOCSIFTXQLEN, &request);
}

int clinux_link_set_gso_limits(int control, const char *name, uint32_t segments, uint32_t bytes) {
    struct ifreq request = {0};
    int index = with_link(control, name, SIOCGIFINDEX, &request);
    if (index < 0) return index;
    struct {
        struct nlmsghdr header;
        struct ifinfomsg message;
        char attributes[64];
    } packet;
    memset(&packet, 0, sizeof packet);
    packet.header.nlmsg_type = RTM_NEWLINK;
    packet.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    packet.message.ifi_family = AF_UNSPEC;
    packet.message.ifi_index = request.ifr_ifindex;
    unsigned used = NLMSG_LENGTH(sizeof packet.message);
    const struct { unsigned short kind; uint32_t value; } wanted[] = {
        {ATTRIBUTE_GSO_MAX_SEGS, segments}, {ATTRIBUTE_GSO_MAX_SIZE, bytes}, {ATTRIBUTE_GSO_IPV4_MAX_SIZE, bytes}};
    for (unsigned i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        struct rtattr *attribute = (struct rtattr *)((char *)&packet + NLMSG_ALIGN(used));
        attribute->rta_type = wanted[i].kind;
        attribute->rta_len = (unsigned short)RTA_LENGTH(sizeof(uint32_t));
        memcpy(RTA_DATA(attribute), &wanted[i].value, sizeof(uint32_t));
        used = NLMSG_ALIGN(used) + RTA_ALIGN(attribute->rta_len);
    }
    packet.header.nlmsg_len = used;
    struct { struct nlmsghdr header; struct nlmsgerr error; char rest[512]; } reply;
    memset(&reply, 0, sizeof reply);
    int result = 0;
    if (send(control, &packet, used, 0) < 0 || recv(control, &reply, sizeof reply, 0) < 0) result = -errno;
    else if (reply.header.nlmsg_type == NLMSG_ERROR) result = reply.error.error;
    return result;
}

void clinux_wait_readable(int descriptor) {
    struct pollfd wait = {.fd = descriptor, .events = POLLIN};
    while (poll(&wait, 1, -1) < 0 && errno == EINTR) {}
}

int clinux_thread_short_turns(uint64_t nanoseconds, int niceness) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.size = sizeof attributes;
    attributes.nice = niceness > 19 ? getpriority(PRIO_PROCESS, 0) : niceness;
    attributes.runtime = nanoseconds;
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return 0;
    attributes.nice = getpriority(PRIO_PROCESS, 0);
    return syscall(SYS_sched_setattr, 0, &attributes, 0) < 0 ? -errno : 0;
}

int clinux_udp_may_fragment(int descriptor, int is_v4) {
    int value = is_v4 ? IP_PMTUDISC_DONT : IPV6_PMTUDISC_DONT;
    int level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6, option = is_v4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER;
    return setsockopt(descriptor, level, option, &value, sizeof value) < 0 ? -errno : 0;
}
