/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef ASPEN_SYSTEM_H
#define ASPEN_SYSTEM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Sends one descriptor over a connected Unix socket. 0, or -errno. */
int aspen_send_fd(int socket, int fd);
/* Receives one descriptor (close-on-exec). The descriptor; -errno; -EPIPE at the end of the stream. */
int aspen_receive_fd(int socket);

/* Who is at the other end of a Unix socket. 0, or -errno. */
typedef struct {
    pid_t pid;
    uid_t uid;
    gid_t gid;
} aspen_peer;
int aspen_peer_credentials(int socket, aspen_peer *peer);
/* Supplementary groups of the peer: the count (at most `max` are written), or -errno. */
int aspen_peer_groups(int socket, gid_t *groups, size_t max);
/* 1 if the descriptor is a listening socket, else 0. */
int aspen_is_listening(int fd);
/* Where an IPv4 or IPv6 socket is bound: a numeric host, zero-terminated, and a port. 0, or -errno. */
int aspen_bound_address(int fd, char *host, size_t size, uint16_t *port);

#endif
