/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef ASPEN_NGTCP2_H
#define ASPEN_NGTCP2_H

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#endif
