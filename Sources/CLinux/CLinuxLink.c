// SPDX-License-Identifier: Apache-2.0
#include "CLinuxLink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TFD_TIMER_CANCEL_ON_SET
#define TFD_TIMER_CANCEL_ON_SET (1 << 1)
#endif

static void set_address(struct clinux_address *out, int is_v4, const void *bytes) {
    const uint8_t *b = bytes;
    memset(out, 0, sizeof *out);
    out->is_v4 = (uint8_t)is_v4;
    if (is_v4) {
        out->low = 0xffff00000000ull | (uint64_t)b[0] << 24 | (uint64_t)b[1] << 16 | (uint64_t)b[2] << 8 | b[3];
        return;
    }
    for (int i = 0; i < 8; i++) {
        out->high = out->high << 8 | b[i];
        out->low = out->low << 8 | b[8 + i];
    }
}

static socklen_t to_name(const struct clinux_address *address, struct sockaddr_storage *out) {
    memset(out, 0, sizeof *out);
    if (address->is_v4) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        v4->sin_port = htons(address->port);
        v4->sin_addr.s_addr = htonl((uint32_t)address->low);
        return sizeof *v4;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address->port);
    for (int i = 0; i < 8; i++) {
        v6->sin6_addr.s6_addr[i] = (uint8_t)(address->high >> (56 - 8 * i));
        v6->sin6_addr.s6_addr[8 + i] = (uint8_t)(address->low >> (56 - 8 * i));
    }
    return sizeof *v6;
}

static void from_name(const struct sockaddr_storage *in, struct clinux_address *out) {
    if (in->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)in;
        set_address(out, 1, &v4->sin_addr);
        out->port = ntohs(v4->sin_port);
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)in;
        set_address(out, 0, &v6->sin6_addr);
        out->port = ntohs(v6->sin6_port);
    }
}

// A default route of the main table in one message; its metric, or UINT64_MAX for anything else.
static uint64_t default_route(
    struct nlmsghdr *message, int is_v4, struct clinux_address *gateway, int *interface_index) {
    struct rtmsg *route = NLMSG_DATA(message);
    uint32_t table = route->rtm_table, metric = 0;
    if (route->rtm_dst_len != 0 || route->rtm_type != RTN_UNICAST) return UINT64_MAX;
    memset(gateway, 0, sizeof *gateway);
    gateway->is_v4 = (uint8_t)is_v4;
    *interface_index = 0;
    int left = (int)RTM_PAYLOAD(message);
    for (struct rtattr *a = RTM_RTA(route); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
        size_t size = RTA_PAYLOAD(a);
        if (a->rta_type == RTA_TABLE && size >= 4) memcpy(&table, RTA_DATA(a), 4);
        if (a->rta_type == RTA_PRIORITY && size >= 4) memcpy(&metric, RTA_DATA(a), 4);
        if (a->rta_type == RTA_OIF && size >= 4) memcpy(interface_index, RTA_DATA(a), 4);
        if (a->rta_type == RTA_GATEWAY && size >= (is_v4 ? 4u : 16u)) set_address(gateway, is_v4, RTA_DATA(a));
    }
    return table == RT_TABLE_MAIN ? metric : UINT64_MAX;
}

int clinux_default_route(int family, struct clinux_address *gateway, int *interface_index) {
    int is_v4 = family == 4;
    int descriptor = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (descriptor < 0) return -errno;
    struct timeval limit = {.tv_sec = 1};
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
    } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETROUTE,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 1},
        .route = {.rtm_family = is_v4 ? AF_INET : AF_INET6, .rtm_table = RT_TABLE_MAIN},
    };
    if (send(descriptor, &request, sizeof request, 0) < 0) {
        int code = errno;
        close(descriptor);
        return -code;
    }
    uint64_t best = UINT64_MAX;
    _Alignas(16) char buffer[32768];
    // A router of the internet has a million routes: enough of them are read to find a default route, which is first.
    for (int rounds = 0; rounds < 64; rounds++) {
        ssize_t got = recv(descriptor, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        unsigned left = (unsigned)got;
        for (struct nlmsghdr *m = (struct nlmsghdr *)buffer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
            if (m->nlmsg_type == NLMSG_DONE || m->nlmsg_type == NLMSG_ERROR) {
                close(descriptor);
                return best != UINT64_MAX;
            }
            if (m->nlmsg_type != RTM_NEWROUTE) continue;
            struct clinux_address found;
            int index;
            uint64_t metric = default_route(m, is_v4, &found, &index);
            if (metric >= best) continue;
            best = metric;
            *gateway = found;
            *interface_index = index;
        }
    }
    close(descriptor);
    return best != UINT64_MAX;
}

int clinux_route_source(const struct clinux_address *remote, struct clinux_address *source) {
    int descriptor = socket(remote->is_v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -errno;
    struct clinux_address target = *remote;
    if (target.port == 0) target.port = 9;
    struct sockaddr_storage storage;
    socklen_t length = to_name(&target, &storage);
    int result = 0;
    if (connect(descriptor, (struct sockaddr *)&storage, length) < 0) result = -errno;
    length = sizeof storage;
    if (result == 0 && getsockname(descriptor, (struct sockaddr *)&storage, &length) < 0) result = -errno;
    close(descriptor);
    if (result == 0) from_name(&storage, source);
    return result;
}

int clinux_clock_watch_open(void) {
    int descriptor = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (descriptor < 0) return -errno;
    // Far away: only the cancelling matters.
    struct itimerspec never = {.it_value = {.tv_sec = 0x7fffffffff}};
    if (timerfd_settime(descriptor, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) < 0) {
        int code = errno;
        close(descriptor);
        return -code;
    }
    return descriptor;
}

int clinux_clock_watch_drain(int descriptor) {
    uint64_t count;
    return read(descriptor, &count, sizeof count) < 0 && errno == ECANCELED;
}

int clinux_udp_send_one(int descriptor, const void *bytes, int length, const struct clinux_address *to) {
    struct sockaddr_storage storage;
    socklen_t size = to_name(to, &storage);
    ssize_t sent = sendto(descriptor, bytes, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&storage, size);
    return sent < 0 ? -errno : (int)sent;
}

int clinux_udp_receive_one(int descriptor, void *bytes, int capacity, struct clinux_address *from) {
    struct sockaddr_storage storage;
    socklen_t size = sizeof storage;
    ssize_t got = recvfrom(descriptor, bytes, (size_t)capacity, MSG_DONTWAIT, (struct sockaddr *)&storage, &size);
    if (got < 0) return -errno;
    from_name(&storage, from);
    return (int)got;
}
