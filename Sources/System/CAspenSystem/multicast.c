/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "CAspenSystem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif

static int is_six(int fd) {
    int domain = 0;
    socklen_t length = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0) return -errno;
    return domain == AF_INET6 ? 1 : domain == AF_INET ? 0 : -EAFNOSUPPORT;
}

int aspen_bind_shared_datagram(int six, uint16_t port) {
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    int on = 1;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0 ||
        (six && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(fd, six ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4,
             six ? sizeof v6 : sizeof v4) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int aspen_prepare_multicast(int fd) {
    int six = is_six(fd);
    if (six < 0) return six;
    int on = 1, off = 0, far = 255, result;
    if (six) {
        result = setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) |
                 setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, &on, sizeof on) |
                 setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &far, sizeof far) |
                 setsockopt(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, &far, sizeof far);
        if (result == 0) setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, &off, sizeof off);
    } else {
        result = setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) |
                 setsockopt(fd, IPPROTO_IP, IP_MULTICAST_LOOP, &on, sizeof on) |
                 setsockopt(fd, IPPROTO_IP, IP_MULTICAST_TTL, &far, sizeof far) |
                 setsockopt(fd, IPPROTO_IP, IP_TTL, &far, sizeof far) |
                 setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off);
    }
    return result == 0 ? six : -errno;
}

int aspen_change_group(int fd, uint32_t interface, int join) {
    int six = is_six(fd);
    if (six < 0) return six;
    int result;
    if (six) {
        struct ipv6_mreq group = {.ipv6mr_interface = interface};
        inet_pton(AF_INET6, "ff02::fb", &group.ipv6mr_multiaddr);
        result = setsockopt(fd, IPPROTO_IPV6, join ? IPV6_ADD_MEMBERSHIP : IPV6_DROP_MEMBERSHIP,
                            &group, sizeof group);
    } else {
        struct ip_mreqn group = {.imr_ifindex = (int)interface};
        inet_pton(AF_INET, "224.0.0.251", &group.imr_multiaddr);
        result = setsockopt(fd, IPPROTO_IP, join ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP, &group,
                            sizeof group);
    }
    /* It is a member there already, or not any more. */
    if (result == 0 || (errno == EADDRINUSE && join) || (errno == EADDRNOTAVAIL && !join)) return 0;
    return -errno;
}

int aspen_send_by_interface(int fd, const void *bytes, size_t count, const uint8_t *address,
                            uint16_t port, uint32_t interface, const uint8_t *source) {
    int six = is_six(fd);
    if (six < 0) return six;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    control.header.cmsg_level = six ? IPPROTO_IPV6 : IPPROTO_IP;
    control.header.cmsg_type = six ? IPV6_PKTINFO : IP_PKTINFO;
    if (six) {
        struct in6_pktinfo info = {.ipi6_ifindex = interface};
        memcpy(&v6.sin6_addr, address, sizeof v6.sin6_addr);
        if (source != NULL) memcpy(&info.ipi6_addr, source, sizeof info.ipi6_addr);
        message.msg_name = &v6;
        message.msg_namelen = sizeof v6;
        message.msg_controllen = CMSG_SPACE(sizeof info);
        control.header.cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(&control.header), &info, sizeof info);
    } else {
        struct in_pktinfo info = {.ipi_ifindex = (int)interface};
        memcpy(&v4.sin_addr, address, sizeof v4.sin_addr);
        if (source != NULL) memcpy(&info.ipi_spec_dst, source, sizeof info.ipi_spec_dst);
        message.msg_name = &v4;
        message.msg_namelen = sizeof v4;
        message.msg_controllen = CMSG_SPACE(sizeof info);
        control.header.cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(&control.header), &info, sizeof info);
    }
    ssize_t sent;
    do {
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

int aspen_open_route_socket(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
    if (fd < 0) return -errno;
    struct sockaddr_nl address = {
        .nl_family = AF_NETLINK,
        .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR,
    };
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int aspen_request_routes(int fd, int addresses, uint32_t sequence) {
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } request = {
        .header =
            {
                .nlmsg_len = NLMSG_LENGTH(sizeof(struct rtgenmsg)),
                .nlmsg_type = addresses ? RTM_GETADDR : RTM_GETLINK,
                .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                .nlmsg_seq = sequence,
            },
        .body = {.rtgen_family = AF_UNSPEC},
    };
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    ssize_t sent = sendto(fd, &request, request.header.nlmsg_len, 0, (struct sockaddr *)&kernel,
                          sizeof kernel);
    return sent < 0 ? -errno : 0;
}

ssize_t aspen_receive_routes(int fd, void *buffer, size_t size) {
    for (;;) {
        struct sockaddr_nl sender = {0};
        socklen_t length = sizeof sender;
        ssize_t count =
            recvfrom(fd, buffer, size, 0, (struct sockaddr *)&sender, &length);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        /* Only the kernel is believed. */
        if (length == sizeof sender && sender.nl_pid == 0) return count;
    }
}
