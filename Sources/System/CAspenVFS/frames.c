/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "vfs_internal.h"

static inline uint64_t load(const unsigned char *p) {
    uint64_t word;
    memcpy(&word, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Folded multiplication over `count` bytes, a multiple of eight, in two lanes so that the processor
   has something to do while a product is on its way. */
static uint64_t hash(uint64_t seed, const unsigned char *p, size_t count) {
    const uint64_t k0 = 0xa0761d6478bd642fULL, k1 = 0xe7037ed1a0b428dbULL;
    const uint64_t k2 = 0x8ebc6af09c88c6e3ULL, k3 = 0x589965cc75374cc3ULL;
    uint64_t a = seed ^ k0, b = seed ^ k1;
    const unsigned char *end = p + count;
    while (end - p >= 32) {
        a = fold(load(p) ^ k2, load(p + 8) ^ a);
        b = fold(load(p + 16) ^ k3, load(p + 24) ^ b);
        p += 32;
    }
    for (; p < end; p += 8) a = fold(load(p) ^ k2, k3 ^ a);
    return fold(a ^ k1, b ^ k0 ^ count);
}

uint64_t aspen_vfs_page_checksum(uint32_t page_number, const void *page) {
    return hash(page_number, page, ASPEN_VFS_PAGE_BYTES - ASPEN_VFS_RESERVED_BYTES);
}

void page_seal(uint32_t page_number, unsigned char *page) {
    uint64_t sum = aspen_vfs_page_checksum(page_number, page);
    for (int i = 0; i < 8; i++)
        page[ASPEN_VFS_PAGE_BYTES - 8 + i] = (unsigned char)(sum >> (8 * i));
}

int page_is_sound(uint32_t page_number, const unsigned char *page) {
    return load(page + ASPEN_VFS_PAGE_BYTES - 8) == aspen_vfs_page_checksum(page_number, page);
}

/* Zero means "not known". */
static uint64_t frame_hash(const void *page) {
    uint64_t sum = hash(0, page, ASPEN_VFS_PAGE_BYTES);
    return sum ? sum : 1;
}

static int grow(shared *s, size_t count) {
    if (count <= s->frame_count) return 1;
    size_t larger = s->frame_count * 2 > count ? s->frame_count * 2 : count + 256;
    uint64_t *frames = realloc(s->frames, larger * sizeof *frames);
    if (!frames) return 0;
    memset(frames + s->frame_count, 0, (larger - s->frame_count) * sizeof *frames);
    s->frames = frames;
    s->frame_count = larger;
    return 1;
}

/* Finds the page in a piece of WAL. 1: there is one whole page; 0: none is touched; -1: anything
   else, which SQLite does not do with synchronous=NORMAL. */
static int locate(const void *bytes, int count, int64_t offset, size_t *frame, const void **page) {
    if (offset + count <= WAL_HEADER_BYTES) return 0;
    int64_t place = offset - WAL_HEADER_BYTES;
    if (place < 0) return -1;
    *frame = (size_t)(place / FRAME_BYTES);
    int64_t within = place % FRAME_BYTES;
    if (within + count <= FRAME_HEADER_BYTES) return 0;
    if (within == 0 && count == FRAME_BYTES) {
        *page = (const char *)bytes + FRAME_HEADER_BYTES;
        return 1;
    }
    if (within == FRAME_HEADER_BYTES && count == ASPEN_VFS_PAGE_BYTES) {
        *page = bytes;
        return 1;
    }
    return -1;
}

int frames_wrote(shared *s, const void *bytes, int count, int64_t offset) {
    size_t frame = 0;
    const void *page = NULL;
    int found = locate(bytes, count, offset, &frame, &page);
    if (found < 0) return SQLITE_IOERR_WRITE;
    if (found == 0) return SQLITE_OK;
    uint64_t sum = frame_hash(page);
    pthread_mutex_lock(&s->mutex);
    int fits = grow(s, frame + 1);
    if (fits) s->frames[frame] = sum;
    pthread_mutex_unlock(&s->mutex);
    return fits ? SQLITE_OK : SQLITE_IOERR_NOMEM;
}

int frames_read(shared *s, const void *bytes, int count, int64_t offset) {
    size_t frame = 0;
    const void *page = NULL;
    int found = locate(bytes, count, offset, &frame, &page);
    if (found < 0) return SQLITE_IOERR_DATA;
    if (found == 0) return SQLITE_OK;
    uint64_t sum = frame_hash(page);
    /* A whole frame is read by recovery, which compares the WAL's own checksum and stops at the
       first frame that does not fit: what it goes on to use is sound. */
    int is_recovery = count == FRAME_BYTES;
    int rc = SQLITE_OK;
    pthread_mutex_lock(&s->mutex);
    if (frame < s->frame_count && s->frames[frame]) {
        if (s->frames[frame] != sum) rc = SQLITE_IOERR_DATA;
    } else if (!is_recovery) {
        rc = SQLITE_IOERR_DATA;
    } else if (grow(s, frame + 1)) {
        s->frames[frame] = sum;
    } else {
        rc = SQLITE_IOERR_NOMEM;
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

void frames_truncated(shared *s, int64_t size) {
    size_t kept = size <= WAL_HEADER_BYTES ? 0 : (size_t)((size - WAL_HEADER_BYTES) / FRAME_BYTES);
    pthread_mutex_lock(&s->mutex);
    if (kept < s->frame_count)
        memset(s->frames + kept, 0, (s->frame_count - kept) * sizeof *s->frames);
    pthread_mutex_unlock(&s->mutex);
}
