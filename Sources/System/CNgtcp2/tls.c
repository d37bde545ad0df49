/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "CNgtcp2.h"

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <stdlib.h>
#include <string.h>

/*
 * AES-128-GCM first: ChaCha20-Poly1305 in nettle is several times slower. Only TLS 1.3, only raw
 * public keys on both sides, only Ed25519.
 */
static const char priorities[] =
    "NONE:+VERS-TLS1.3:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:+AEAD:+SHA256:+SHA384:"
    "+GROUP-X25519:+GROUP-SECP256R1:+ECDHE-ECDSA:+SIGN-EDDSA-ED25519:+COMP-NULL:"
    "+CTYPE-CLI-RAWPK:+CTYPE-SRV-RAWPK:%DISABLE_TLS13_COMPAT_MODE";

/* SubjectPublicKeyInfo and PKCS #8 of Ed25519 (RFC 8410), before the 32 bytes of the key. */
static const uint8_t spki_prefix[12] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03,
                                        0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};
static const uint8_t pkcs8_prefix[16] = {0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06,
                                         0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20};

struct aspen_tls_context {
    gnutls_certificate_credentials_t credentials;
    gnutls_priority_t priorities;
};

struct aspen_tls_session {
    ngtcp2_crypto_conn_ref reference; /* GnuTLS holds its address */
    gnutls_session_t tls;
    ngtcp2_conn *conn;
    aspen_tls_verify verify;
    void *owner;
};

aspen_tls_context *aspen_tls_context_new(const uint8_t *seed, const uint8_t *public_key) {
    aspen_tls_context *context = calloc(1, sizeof *context);
    if (context == NULL) return NULL;
    uint8_t spki[sizeof spki_prefix + ASPEN_KEY_LENGTH];
    uint8_t pkcs8[sizeof pkcs8_prefix + ASPEN_KEY_LENGTH];
    memcpy(spki, spki_prefix, sizeof spki_prefix);
    memcpy(spki + sizeof spki_prefix, public_key, ASPEN_KEY_LENGTH);
    memcpy(pkcs8, pkcs8_prefix, sizeof pkcs8_prefix);
    memcpy(pkcs8 + sizeof pkcs8_prefix, seed, ASPEN_KEY_LENGTH);
    gnutls_datum_t spki_datum = {.data = spki, .size = sizeof spki};
    gnutls_datum_t pkcs8_datum = {.data = pkcs8, .size = sizeof pkcs8};
    bool good =
        gnutls_certificate_allocate_credentials(&context->credentials) == 0 &&
        gnutls_certificate_set_rawpk_key_mem(context->credentials, &spki_datum, &pkcs8_datum,
                                             GNUTLS_X509_FMT_DER, NULL,
                                             GNUTLS_KEY_DIGITAL_SIGNATURE, NULL, 0, 0) == 0 &&
        gnutls_priority_init(&context->priorities, priorities, NULL) == 0;
    gnutls_memset(pkcs8, 0, sizeof pkcs8);
    if (good) return context;
    aspen_tls_context_free(context);
    return NULL;
}

void aspen_tls_context_free(aspen_tls_context *context) {
    if (context == NULL) return;
    if (context->credentials != NULL) gnutls_certificate_free_credentials(context->credentials);
    if (context->priorities != NULL) gnutls_priority_deinit(context->priorities);
    free(context);
}

static ngtcp2_conn *connection_of(ngtcp2_crypto_conn_ref *reference) {
    return ((aspen_tls_session *)reference->user_data)->conn;
}

static int read_peer_key(gnutls_session_t tls, uint8_t *key) {
    if (gnutls_certificate_type_get2(tls, GNUTLS_CTYPE_PEERS) != GNUTLS_CRT_RAWPK) return -1;
    unsigned int count = 0;
    const gnutls_datum_t *list = gnutls_certificate_get_peers(tls, &count);
    if (list == NULL || count != 1) return -1;
    if (list[0].size != sizeof spki_prefix + ASPEN_KEY_LENGTH) return -1;
    if (memcmp(list[0].data, spki_prefix, sizeof spki_prefix) != 0) return -1;
    memcpy(key, list[0].data + sizeof spki_prefix, ASPEN_KEY_LENGTH);
    return 0;
}

static int verify_peer(gnutls_session_t tls) {
    ngtcp2_crypto_conn_ref *reference = gnutls_session_get_ptr(tls);
    aspen_tls_session *session = reference->user_data;
    uint8_t key[ASPEN_KEY_LENGTH];
    if (read_peer_key(tls, key) != 0) return -1;
    return session->verify(session->owner, key) == 0 ? 0 : -1;
}

#define PROTOCOLS_MAX 16

static int set_protocols(gnutls_session_t tls, bool server, const uint8_t *names, size_t count) {
    gnutls_datum_t list[PROTOCOLS_MAX];
    if (count == 0 || count > PROTOCOLS_MAX) return -1;
    for (size_t index = 0; index < count; index++) {
        list[index].size = names[0];
        list[index].data = (unsigned char *)names + 1;
        names += 1 + names[0];
    }
    unsigned int flags = GNUTLS_ALPN_MANDATORY | (server ? GNUTLS_ALPN_SERVER_PRECEDENCE : 0);
    return gnutls_alpn_set_protocols(tls, list, (unsigned int)count, flags);
}

aspen_tls_session *aspen_tls_session_new(aspen_tls_context *context, bool server,
                                         const uint8_t *protocols, size_t count,
                                         aspen_tls_verify verify, void *owner) {
    aspen_tls_session *session = calloc(1, sizeof *session);
    if (session == NULL) return NULL;
    session->verify = verify;
    session->owner = owner;
    session->reference.get_conn = connection_of;
    session->reference.user_data = session;
    unsigned int flags = (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_ENABLE_RAWPK |
                         GNUTLS_NO_TICKETS;
    if (gnutls_init(&session->tls, flags) != 0) {
        free(session);
        return NULL;
    }
    gnutls_session_set_ptr(session->tls, &session->reference);
    gnutls_session_set_verify_function(session->tls, verify_peer);
    if (server) gnutls_certificate_server_set_request(session->tls, GNUTLS_CERT_REQUIRE);
    int (*configure)(gnutls_session_t) = server ? ngtcp2_crypto_gnutls_configure_server_session
                                                : ngtcp2_crypto_gnutls_configure_client_session;
    if (gnutls_priority_set(session->tls, context->priorities) != 0 ||
        gnutls_credentials_set(session->tls, GNUTLS_CRD_CERTIFICATE, context->credentials) != 0 ||
        set_protocols(session->tls, server, protocols, count) != 0 ||
        configure(session->tls) != 0) {
        aspen_tls_session_free(session);
        return NULL;
    }
    return session;
}

void aspen_tls_session_free(aspen_tls_session *session) {
    if (session == NULL) return;
    gnutls_deinit(session->tls);
    free(session);
}

void aspen_tls_session_attach(aspen_tls_session *session, ngtcp2_conn *conn) {
    session->conn = conn;
    ngtcp2_conn_set_tls_native_handle(conn, session->tls);
}

int aspen_tls_peer_key(aspen_tls_session *session, uint8_t *key) {
    return read_peer_key(session->tls, key);
}

size_t aspen_tls_protocol(aspen_tls_session *session, uint8_t *name) {
    gnutls_datum_t selected;
    if (gnutls_alpn_get_selected_protocol(session->tls, &selected) != 0) return 0;
    if (selected.size > 255) return 0;
    memcpy(name, selected.data, selected.size);
    return selected.size;
}

int aspen_tls_export(aspen_tls_session *session, const char *label, size_t label_length,
                     const uint8_t *context, size_t context_length, uint8_t *out, size_t length) {
    return gnutls_prf_rfc5705(session->tls, label_length, label, context_length,
                              (const char *)context, length, (char *)out);
}

const char *aspen_tls_alert_name(uint8_t alert) {
    return gnutls_alert_get_name((gnutls_alert_description_t)alert);
}
