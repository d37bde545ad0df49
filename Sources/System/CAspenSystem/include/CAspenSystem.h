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

/* Sends `count` bytes and, with the first of them, one descriptor. Never waits. 0, or -errno. */
int aspen_send_with_fd(int socket, const void *bytes, size_t count, int fd);
/* Receives up to `size` bytes and a descriptor that came with them (close-on-exec; -1 none; of several the
 * first, the rest is closed). The count, 0 at the end of the stream, or -errno. */
ssize_t aspen_receive_with_fd(int socket, void *buffer, size_t size, int *fd);

/* Opens a socket (close-on-exec, not blocking) to an IPv4 or IPv6 address in network order, 4 or 16 bytes,
 * and a port: a stream, or UDP, whose port on this side the kernel draws. A stream is not connected yet
 * (connect(2), EINPROGRESS): wait until it can be written, then ask aspen_socket_error. The
 * descriptor, or -errno. */
int aspen_begin_connect(const uint8_t *address, size_t count, uint16_t port, int is_stream);
/* The error that waits at a socket (SO_ERROR): 0, or -errno. */
int aspen_socket_error(int fd);
/* Accepts connections at a listening socket, each in a child of its own, at most `max` at a time; further
 * callers wait. Returns the connection in each child, and in the parent, when it cannot go on,
 * -errno. Children die with their parent. Call while the process has one thread. */
int aspen_accept_in_children(int listener, int max);

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

/* From here on this process can start no program (execve, execveat: EPERM), whatever it becomes. Call
 * while it has one thread; children inherit it. 0, or -errno. */
int aspen_forbid_exec(void);
/* Large blocks go back to the system when they are freed. glibc's threshold grows with what was freed
 * before: after a recovery that reads a log of 16 MiB segments it would keep all of that. */
void aspen_return_large_blocks(void);
/* What was freed goes back to the system now: malloc_trim(3). */
void aspen_return_free_memory(void);
/* No core dump, whoever collects them, and no debugger but root's. */
void aspen_forbid_dumps(void);
/* No core file of this process, nor of what it starts: its memory holds secrets. */
void aspen_forbid_core_files(void);
/* A crash ends this process at once. Handlers of a language's runtime are removed: they would start a
 * program that prints a backtrace, which this process may not, and a signal from outside would be lost. */
void aspen_crash_plainly(void);

/* Starts a child that dies with this thread's process. Descriptor fds[i] becomes 3 + i in the child;
 * `error` becomes 1 and 2; everything else is closed. The signal mask is cleared. The pid, or -errno.
 * Call only while the process has one thread. */
pid_t aspen_spawn(const char *path, char *const arguments[], char *const environment[],
                  const int *fds, int count, int error);
/* A sealed memory file (0600) that holds `bytes`; the descriptor, or -errno. */
int aspen_memory_file(const char *name, const void *bytes, size_t count);
/* 1 if the descriptor is a memory file that nobody can change any more, else 0. */
int aspen_is_sealed(int fd);
/* Overwrites the text of argv[index] with 'x', so that no process listing shows it. */
void aspen_wipe_argument(char **arguments, int index);
/* Overwrites the value of an environment variable where the kernel shows it, and removes it. */
void aspen_wipe_environment(const char *name);
/* Binds a UDP socket to "host" (numeric) and port, with packet info and large buffers. */
int aspen_bind_datagram(const char *host, uint16_t port);
/* Binds a UDP socket to every address of IPv4, or of IPv6 if `six`, and to a port that others may
 * have bound in the same way (SO_REUSEADDR, SO_REUSEPORT). */
int aspen_bind_shared_datagram(int six, uint16_t port);
/* Makes a UDP socket fit for multicast DNS (RFC 6762 section 11): it tells by which interface a packet
 * comes, hears its own machine, sends with TTL 255, and hears only the groups that it has joined
 * itself. 1 for IPv6, 0 for IPv4, or -errno. */
int aspen_prepare_multicast(int fd);
/* Joins or leaves 224.0.0.251 or ff02::fb on an interface; either may be repeated. 0, or -errno. */
int aspen_change_group(int fd, uint32_t interface, int join);
/* Sends one datagram by an interface. Addresses are in network order, 4 bytes for a socket of IPv4, 16
 * for IPv6; `source` may be NULL: the kernel chooses. Never waits. 0, or -errno. */
int aspen_send_by_interface(int fd, const void *bytes, size_t count, const uint8_t *address,
                            uint16_t port, uint32_t interface, const uint8_t *source);
/* A netlink socket that hears of changes of interfaces and of their addresses. */
int aspen_open_route_socket(void);
/* Asks the kernel for all interfaces, or all addresses. One at a time. 0, or -errno. */
int aspen_request_routes(int fd, int addresses, uint32_t sequence);
/* Waits for what the kernel says next on such a socket: the length; -EAGAIN if the socket does not block; -ENOBUFS when
 * something was lost. */
ssize_t aspen_receive_routes(int fd, void *buffer, size_t size);
/* Binds a listening Unix stream socket (0600 before anybody can connect), replacing a dead one. */
int aspen_listen_unix(const char *path);
/* Binds a Unix datagram socket that tells who sends. The descriptor, or -errno. */
int aspen_bind_unix_datagram(const char *path);
/* Takes one message of sd_notify(3) from such a socket: its first `size` bytes, the pid of its
 * sender (0 unknown) and a descriptor that came along (close-on-exec; -1 none). The length, or
 * -errno. */
ssize_t aspen_receive_notification(int socket, void *buffer, size_t size, pid_t *sender, int *fd);
/* A descriptor that becomes readable when one of SIGTERM, SIGINT, SIGCHLD, SIGHUP is pending; the
 * signals are blocked. */
int aspen_signal_descriptor(void);
/* The next pending signal of that descriptor, or -errno. */
int aspen_next_signal(int fd);

#endif
