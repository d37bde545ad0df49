/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What Aspen needs of ngtcp2, GnuTLS and the UDP socket, in a form that Swift can call.
 *
 * Written for ngtcp2 0.12 (Debian 12). All that differs in 1.x (close errors, statistics, tokens,
 * transport parameters) is behind the functions below, in quic.c: moving to 1.x changes that file only.
 */
#ifndef ASPEN_NGTCP2_H
#define ASPEN_NGTCP2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <ngtcp2/ngtcp2.h>

/* ---- TLS: raw Ed25519 keys (RFC 7250), mutual, TLS 1.3 without tickets ---------------------- */

#define ASPEN_KEY_LENGTH 32

typedef struct aspen_tls_context aspen_tls_context;
typedef struct aspen_tls_session aspen_tls_session;

/* Judges the key that the peer claims; its proof is checked after this. 0 accepts. */
typedef int (*aspen_tls_verify)(void *owner, const uint8_t *key);

/* NULL when GnuTLS refuses the key pair. */
aspen_tls_context *aspen_tls_context_new(const uint8_t *seed, const uint8_t *public_key);
void aspen_tls_context_free(aspen_tls_context *context);

/*
 * `protocols` holds `count` ALPN names one after the other, each behind its length in one byte.
 * NULL when GnuTLS refuses. The session has a stable address and refers to `owner`, unretained.
 */
aspen_tls_session *aspen_tls_session_new(aspen_tls_context *context, bool server,
                                         const uint8_t *protocols, size_t count,
                                         aspen_tls_verify verify, void *owner);
void aspen_tls_session_free(aspen_tls_session *session);
/* Joins the session and the connection: call once, before the first packet. */
void aspen_tls_session_attach(aspen_tls_session *session, ngtcp2_conn *conn);
/* The peer's key as it stands in the session; 0, or -1 when there is none. */
int aspen_tls_peer_key(aspen_tls_session *session, uint8_t *key);
/* The protocol agreed on: its length (0 when none); at most 255 bytes are written. */
size_t aspen_tls_protocol(aspen_tls_session *session, uint8_t *name);
/* The exporter of RFC 8446 section 7.5; 0, or a GnuTLS error. */
int aspen_tls_export(aspen_tls_session *session, const char *label, size_t label_length,
                     const uint8_t *context, size_t context_length, uint8_t *out, size_t length);
/* The name of a TLS alert, or NULL. */
const char *aspen_tls_alert_name(uint8_t alert);

/* ---- One QUIC connection -------------------------------------------------------------------- */

#define ASPEN_CID_LENGTH 8
#define ASPEN_RESET_TOKEN_LENGTH 16
#define ASPEN_RETRY_TOKEN_MAX 128

typedef struct {
    ngtcp2_handshake_completed handshake_completed;
    ngtcp2_handshake_confirmed handshake_confirmed;
    ngtcp2_recv_stream_data stream_data;
    ngtcp2_acked_stream_data_offset stream_acked;
    ngtcp2_stream_open stream_opened;
    ngtcp2_stream_close stream_closed;
    ngtcp2_stream_reset stream_reset;
    ngtcp2_stream_stop_sending stream_stopped;
    ngtcp2_extend_max_stream_data stream_extended;
    ngtcp2_extend_max_streams streams_allowed;
    ngtcp2_recv_stateless_reset stateless_reset;
    ngtcp2_get_new_connection_id connection_id_new;
    ngtcp2_remove_connection_id connection_id_retired;
    ngtcp2_connection_id_status peer_id_status;
    ngtcp2_rand random;
} aspen_quic_events;

typedef struct {
    uint64_t now; /* nanoseconds of one monotonic clock, like all times here */
    uint64_t handshake_timeout;
    uint64_t idle_timeout;
    uint64_t initial_rtt;
    uint64_t streams_max;
    uint64_t stream_window;     /* bytes */
    uint64_t connection_window; /* bytes */
} aspen_quic_settings;

typedef struct {
    const struct sockaddr *local;
    socklen_t local_length;
    const struct sockaddr *remote;
    socklen_t remote_length;
} aspen_quic_path;

/* What a client's first packet says. */
typedef struct {
    uint32_t version;
    ngtcp2_cid destination;
    ngtcp2_cid source;
    const uint8_t *token; /* inside the packet */
    size_t token_length;
} aspen_quic_initial;

int aspen_quic_client_new(ngtcp2_conn **conn, const ngtcp2_cid *destination,
                          const ngtcp2_cid *source, const aspen_quic_path *path,
                          const aspen_quic_events *events, const aspen_quic_settings *settings,
                          void *owner);
/* `original`: the destination id before our Retry, or NULL when none was sent. */
int aspen_quic_server_new(ngtcp2_conn **conn, const aspen_quic_initial *initial,
                          const ngtcp2_cid *original, const ngtcp2_cid *source,
                          const uint8_t *reset_token, const aspen_quic_path *path,
                          const aspen_quic_events *events, const aspen_quic_settings *settings,
                          void *owner);

int aspen_quic_read(ngtcp2_conn *conn, const aspen_quic_path *path, const uint8_t *packet,
                    size_t length, uint64_t now);

/* Where packets are written, with the address each is for. */
typedef struct aspen_quic_writer aspen_quic_writer;
aspen_quic_writer *aspen_quic_writer_new(void);
void aspen_quic_writer_free(aspen_quic_writer *writer);
/*
 * ngtcp2_conn_writev_stream. `stream` -1 for none. `accepted` is -1 when no stream frame was written.
 * The flags are ASPEN_WRITE_*.
 */
ngtcp2_ssize aspen_quic_write(aspen_quic_writer *writer, ngtcp2_conn *conn, uint8_t *out,
                              size_t capacity, ngtcp2_ssize *accepted, uint32_t flags,
                              int64_t stream, const ngtcp2_vec *data, size_t count, uint64_t now);
/* The destination of the packet just written. */
const struct sockaddr *aspen_quic_writer_remote(const aspen_quic_writer *writer,
                                                socklen_t *length);

typedef enum {
    ASPEN_CLOSE_TRANSPORT,   /* code is a QUIC transport error */
    ASPEN_CLOSE_APPLICATION, /* code is the application's */
    ASPEN_CLOSE_LIBRARY,     /* code is a negative ngtcp2 error */
} aspen_close_kind;
/* Writes CONNECTION_CLOSE; the length, 0 when nothing may be sent, or a negative error. */
ngtcp2_ssize aspen_quic_write_close(aspen_quic_writer *writer, ngtcp2_conn *conn, uint8_t *out,
                                    size_t capacity, aspen_close_kind kind, int64_t code,
                                    const uint8_t *reason, size_t reason_length, uint64_t now);

/* How the peer closed. */
typedef struct {
    bool application;
    uint64_t code;
    uint8_t reason[256];
    size_t reason_length;
} aspen_quic_close;
void aspen_quic_peer_close(ngtcp2_conn *conn, aspen_quic_close *out);

uint64_t aspen_quic_smoothed_rtt(ngtcp2_conn *conn);
size_t aspen_quic_path_payload(ngtcp2_conn *conn); /* what the path is known to carry, in bytes */
/* The address that the peer is at now; the length, 0 when unknown. */
socklen_t aspen_quic_remote(ngtcp2_conn *conn, struct sockaddr_storage *out);

/* ---- Packets without a connection ----------------------------------------------------------- */

/* 0: a client's first packet of version 1. Negative: none. */
int aspen_quic_accept(aspen_quic_initial *out, const uint8_t *packet, size_t length);
ngtcp2_ssize aspen_quic_write_version_negotiation(uint8_t *out, size_t capacity, uint8_t random,
                                                  const ngtcp2_version_cid *ids);
/* Answers a client's first packet with a Retry whose source id is `source`. */
ngtcp2_ssize aspen_quic_write_retry(uint8_t *out, size_t capacity,
                                    const aspen_quic_initial *initial, const ngtcp2_cid *source,
                                    const uint8_t *secret, size_t secret_length,
                                    const struct sockaddr *remote, socklen_t remote_length,
                                    uint64_t now);
bool aspen_quic_is_retry_token(const aspen_quic_initial *initial);
/* 0 when the token is ours, fresh and for that address; `original` is then set. */
int aspen_quic_verify_retry(ngtcp2_cid *original, const aspen_quic_initial *initial,
                            const uint8_t *secret, size_t secret_length,
                            const struct sockaddr *remote, socklen_t remote_length,
                            uint64_t lifetime, uint64_t now);
/* Refuses a client's first packet without keeping state. */
ngtcp2_ssize aspen_quic_write_refusal(uint8_t *out, size_t capacity,
                                      const aspen_quic_initial *initial, uint64_t code);
int aspen_quic_reset_token(uint8_t *token, const uint8_t *secret, size_t secret_length,
                           const ngtcp2_cid *cid);

/* ---- Names that the importer does not see --------------------------------------------------- */

static const uint32_t ASPEN_WRITE_MORE = NGTCP2_WRITE_STREAM_FLAG_MORE;
static const uint32_t ASPEN_WRITE_FIN = NGTCP2_WRITE_STREAM_FLAG_FIN;

/* ---- The UDP socket ------------------------------------------------------------------------- */

/* A bound, non-blocking, close-on-exec UDP socket, or -errno. An IPv6 wildcard takes IPv4 too. */
int aspen_udp_open(const struct sockaddr *address, socklen_t length);
/* Buffers of `bytes` each (as far as the kernel allows), and no fragmentation on the way. */
void aspen_udp_configure(int fd, int bytes);
/* Whether the kernel takes UDP_SEGMENT. */
bool aspen_udp_has_segmentation(int fd);
/*
 * Sends one datagram, or several of `segment` bytes each (the last may be shorter) when segment > 0.
 * `source`: the local address to send from, or NULL. 0, or -errno.
 */
int aspen_udp_send(int fd, const uint8_t *bytes, size_t length, uint16_t segment,
                   const struct sockaddr *remote, socklen_t remote_length,
                   const struct sockaddr *source);

#endif
