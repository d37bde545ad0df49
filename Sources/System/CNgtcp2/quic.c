/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The only file that knows which version of ngtcp2 is underneath. */
#include "CNgtcp2.h"

#include <ngtcp2/ngtcp2_crypto.h>
#include <stdlib.h>
#include <string.h>

static void fill_callbacks(ngtcp2_callbacks *callbacks, const aspen_quic_events *events) {
    memset(callbacks, 0, sizeof *callbacks);
    callbacks->client_initial = ngtcp2_crypto_client_initial_cb;
    callbacks->recv_client_initial = ngtcp2_crypto_recv_client_initial_cb;
    callbacks->recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb;
    callbacks->encrypt = ngtcp2_crypto_encrypt_cb;
    callbacks->decrypt = ngtcp2_crypto_decrypt_cb;
    callbacks->hp_mask = ngtcp2_crypto_hp_mask_cb;
    callbacks->recv_retry = ngtcp2_crypto_recv_retry_cb;
    callbacks->update_key = ngtcp2_crypto_update_key_cb;
    callbacks->delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb;
    callbacks->delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb;
    callbacks->get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb;
    callbacks->version_negotiation = ngtcp2_crypto_version_negotiation_cb;
    callbacks->handshake_completed = events->handshake_completed;
    callbacks->handshake_confirmed = events->handshake_confirmed;
    callbacks->recv_stream_data = events->stream_data;
    callbacks->acked_stream_data_offset = events->stream_acked;
    callbacks->stream_open = events->stream_opened;
    callbacks->stream_close = events->stream_closed;
    callbacks->stream_reset = events->stream_reset;
    callbacks->stream_stop_sending = events->stream_stopped;
    callbacks->extend_max_stream_data = events->stream_extended;
    callbacks->extend_max_local_streams_bidi = events->streams_allowed;
    callbacks->recv_stateless_reset = events->stateless_reset;
    callbacks->get_new_connection_id = events->connection_id_new;
    callbacks->remove_connection_id = events->connection_id_retired;
    callbacks->dcid_status = events->peer_id_status;
    callbacks->rand = events->random;
}

static void fill_settings(ngtcp2_settings *out, const aspen_quic_settings *settings) {
    ngtcp2_settings_default(out);
    out->cc_algo = NGTCP2_CC_ALGO_CUBIC;
    out->initial_ts = settings->now;
    out->initial_rtt = settings->initial_rtt;
    out->handshake_timeout = settings->handshake_timeout;
    /* An acknowledgement rides on data, if that comes soon (see acknowledgementPatience); not so in
       bulk. Below the ten packets that a sender begins with: it is not to wait for the timer. */
    out->ack_thresh = 8;
}

static void fill_params(ngtcp2_transport_params *out, const aspen_quic_settings *settings) {
    ngtcp2_transport_params_default(out);
    out->initial_max_streams_bidi = settings->streams_max;
    out->initial_max_streams_uni = 0;
    out->initial_max_stream_data_bidi_local = settings->stream_window;
    out->initial_max_stream_data_bidi_remote = settings->stream_window;
    out->initial_max_data = settings->connection_window;
    out->max_idle_timeout = settings->idle_timeout;
}

static ngtcp2_path path_of(const aspen_quic_path *path) {
    ngtcp2_path result = {
        .local = {.addr = (ngtcp2_sockaddr *)path->local, .addrlen = path->local_length},
        .remote = {.addr = (ngtcp2_sockaddr *)path->remote, .addrlen = path->remote_length},
    };
    return result;
}

int aspen_quic_client_new(ngtcp2_conn **conn, const ngtcp2_cid *destination,
                          const ngtcp2_cid *source, const aspen_quic_path *path,
                          const aspen_quic_events *events, const aspen_quic_settings *settings,
                          void *owner) {
    ngtcp2_callbacks callbacks;
    ngtcp2_settings own;
    ngtcp2_transport_params params;
    fill_callbacks(&callbacks, events);
    fill_settings(&own, settings);
    fill_params(&params, settings);
    ngtcp2_path where = path_of(path);
    return ngtcp2_conn_client_new(conn, destination, source, &where, NGTCP2_PROTO_VER_V1,
                                  &callbacks, &own, &params, NULL, owner);
}

int aspen_quic_server_new(ngtcp2_conn **conn, const aspen_quic_initial *initial,
                          const ngtcp2_cid *original, const ngtcp2_cid *source,
                          const uint8_t *reset_token, const aspen_quic_path *path,
                          const aspen_quic_events *events, const aspen_quic_settings *settings,
                          void *owner) {
    ngtcp2_callbacks callbacks;
    ngtcp2_settings own;
    ngtcp2_transport_params params;
    fill_callbacks(&callbacks, events);
    fill_settings(&own, settings);
    fill_params(&params, settings);
    if (original != NULL) {
        /* The token's bytes are copied by ngtcp2_conn_server_new. */
        own.token.base = (uint8_t *)initial->token;
        own.token.len = initial->token_length;
        params.original_dcid = *original;
        params.retry_scid = initial->destination;
        params.retry_scid_present = 1;
    } else {
        params.original_dcid = initial->destination;
    }
    params.stateless_reset_token_present = 1;
    memcpy(params.stateless_reset_token, reset_token, sizeof params.stateless_reset_token);
    ngtcp2_path where = path_of(path);
    return ngtcp2_conn_server_new(conn, &initial->source, source, &where, initial->version,
                                  &callbacks, &own, &params, NULL, owner);
}

int aspen_quic_read(ngtcp2_conn *conn, const aspen_quic_path *path, const uint8_t *packet,
                    size_t length, uint64_t now) {
    ngtcp2_path where = path_of(path);
    ngtcp2_pkt_info info = {0};
    return ngtcp2_conn_read_pkt(conn, &where, &info, packet, length, now);
}

struct aspen_quic_writer {
    ngtcp2_path_storage path;
    ngtcp2_pkt_info info;
};

aspen_quic_writer *aspen_quic_writer_new(void) {
    aspen_quic_writer *writer = calloc(1, sizeof *writer);
    if (writer != NULL) ngtcp2_path_storage_zero(&writer->path);
    return writer;
}

void aspen_quic_writer_free(aspen_quic_writer *writer) { free(writer); }

ngtcp2_ssize aspen_quic_write(aspen_quic_writer *writer, ngtcp2_conn *conn, uint8_t *out,
                              size_t capacity, ngtcp2_ssize *accepted, uint32_t flags,
                              int64_t stream, const ngtcp2_vec *data, size_t count, uint64_t now) {
    *accepted = -1;
    return ngtcp2_conn_writev_stream(conn, &writer->path.path, &writer->info, out, capacity,
                                     accepted, flags, stream, data, count, now);
}

const struct sockaddr *aspen_quic_writer_remote(const aspen_quic_writer *writer,
                                                socklen_t *length) {
    *length = writer->path.path.remote.addrlen;
    return writer->path.path.remote.addr;
}

ngtcp2_ssize aspen_quic_write_close(aspen_quic_writer *writer, ngtcp2_conn *conn, uint8_t *out,
                                    size_t capacity, aspen_close_kind kind, int64_t code,
                                    const uint8_t *reason, size_t reason_length, uint64_t now) {
    ngtcp2_connection_close_error error;
    ngtcp2_connection_close_error_default(&error);
    switch (kind) {
    case ASPEN_CLOSE_TRANSPORT:
        ngtcp2_connection_close_error_set_transport_error(&error, (uint64_t)code, reason,
                                                          reason_length);
        break;
    case ASPEN_CLOSE_APPLICATION:
        ngtcp2_connection_close_error_set_application_error(&error, (uint64_t)code, reason,
                                                            reason_length);
        break;
    case ASPEN_CLOSE_LIBRARY:
        if (code == NGTCP2_ERR_CRYPTO) {
            ngtcp2_connection_close_error_set_transport_error_tls_alert(
                &error, ngtcp2_conn_get_tls_alert(conn), reason, reason_length);
        } else {
            ngtcp2_connection_close_error_set_transport_error_liberr(&error, (int)code, reason,
                                                                     reason_length);
        }
        break;
    }
    return ngtcp2_conn_write_connection_close(conn, &writer->path.path, &writer->info, out,
                                              capacity, &error, now);
}

void aspen_quic_peer_close(ngtcp2_conn *conn, aspen_quic_close *out) {
    ngtcp2_connection_close_error error;
    ngtcp2_conn_get_connection_close_error(conn, &error);
    memset(out, 0, sizeof *out);
    out->application = error.type == NGTCP2_CONNECTION_CLOSE_ERROR_CODE_TYPE_APPLICATION;
    out->code = error.error_code;
    out->reason_length = error.reasonlen < sizeof out->reason ? error.reasonlen
                                                              : sizeof out->reason;
    if (out->reason_length > 0) memcpy(out->reason, error.reason, out->reason_length);
}

uint64_t aspen_quic_smoothed_rtt(ngtcp2_conn *conn) {
    ngtcp2_conn_stat stat;
    ngtcp2_conn_get_conn_stat(conn, &stat);
    return stat.smoothed_rtt;
}

size_t aspen_quic_path_payload(ngtcp2_conn *conn) {
    return ngtcp2_conn_get_path_max_tx_udp_payload_size(conn);
}

socklen_t aspen_quic_remote(ngtcp2_conn *conn, struct sockaddr_storage *out) {
    const ngtcp2_path *path = ngtcp2_conn_get_path(conn);
    if (path == NULL || path->remote.addrlen == 0 || path->remote.addrlen > sizeof *out) return 0;
    memcpy(out, path->remote.addr, path->remote.addrlen);
    return path->remote.addrlen;
}

int aspen_quic_accept(aspen_quic_initial *out, const uint8_t *packet, size_t length) {
    ngtcp2_pkt_hd header;
    int result = ngtcp2_accept(&header, packet, length);
    if (result != 0) return result;
    if (header.type != NGTCP2_PKT_INITIAL) return NGTCP2_ERR_INVALID_ARGUMENT;
    out->version = header.version;
    out->destination = header.dcid;
    out->source = header.scid;
    out->token = header.token.base;
    out->token_length = header.token.len;
    return 0;
}

ngtcp2_ssize aspen_quic_write_version_negotiation(uint8_t *out, size_t capacity, uint8_t random,
                                                  const ngtcp2_version_cid *ids) {
    const uint32_t versions[] = {NGTCP2_PROTO_VER_V1};
    return ngtcp2_pkt_write_version_negotiation(out, capacity, random, ids->scid, ids->scidlen,
                                                ids->dcid, ids->dcidlen, versions, 1);
}

ngtcp2_ssize aspen_quic_write_retry(uint8_t *out, size_t capacity,
                                    const aspen_quic_initial *initial, const ngtcp2_cid *source,
                                    const uint8_t *secret, size_t secret_length,
                                    const struct sockaddr *remote, socklen_t remote_length,
                                    uint64_t now) {
    _Static_assert(NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN <= ASPEN_RETRY_TOKEN_MAX, "token buffer");
    uint8_t token[ASPEN_RETRY_TOKEN_MAX];
    ngtcp2_ssize length = ngtcp2_crypto_generate_retry_token(
        token, secret, secret_length, initial->version, remote, remote_length, source,
        &initial->destination, now);
    if (length < 0) return length;
    return ngtcp2_crypto_write_retry(out, capacity, initial->version, &initial->source, source,
                                     &initial->destination, token, (size_t)length);
}

bool aspen_quic_is_retry_token(const aspen_quic_initial *initial) {
    return initial->token_length > 0 && initial->token[0] == NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY;
}

int aspen_quic_verify_retry(ngtcp2_cid *original, const aspen_quic_initial *initial,
                            const uint8_t *secret, size_t secret_length,
                            const struct sockaddr *remote, socklen_t remote_length,
                            uint64_t lifetime, uint64_t now) {
    return ngtcp2_crypto_verify_retry_token(original, initial->token, initial->token_length,
                                            secret, secret_length, initial->version, remote,
                                            remote_length, &initial->destination, lifetime, now);
}

ngtcp2_ssize aspen_quic_write_refusal(uint8_t *out, size_t capacity,
                                      const aspen_quic_initial *initial, uint64_t code) {
    return ngtcp2_crypto_write_connection_close(out, capacity, initial->version, &initial->source,
                                                &initial->destination, code, NULL, 0);
}

int aspen_quic_reset_token(uint8_t *token, const uint8_t *secret, size_t secret_length,
                           const ngtcp2_cid *cid) {
    return ngtcp2_crypto_generate_stateless_reset_token(token, secret, secret_length, cid);
}
