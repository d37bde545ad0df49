/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The note beside a WAL: 32 bytes in one sector, so that a power cut leaves the old or the new one.
 *
 *      0 "ASPENCKP"      8 the salts of the WAL     16 u32 frames     20 zero     24 u64 checksum
 *
 * SQLite has synced the WAL when a checkpoint writes its first page, and nobody commits meanwhile:
 * that many frames are durable, and stay so until the WAL is started over under other salts. The
 * note costs one sync a checkpoint.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs_internal.h"

#define NOTE_BYTES 32

static const char magic[8] = "ASPENCKP";

static int beside(const char *path, const char *suffix, char *out, size_t size) {
    return snprintf(out, size, "%s%s", path, suffix) < (int)size;
}

static uint64_t checksum(const unsigned char *note) {
    /* FNV-1a: of 24 bytes, against single faults. */
    uint64_t sum = 0xcbf29ce484222325ULL;
    for (int i = 0; i < NOTE_BYTES - 8; i++) sum = (sum ^ note[i]) * 0x100000001b3ULL;
    return sum;
}

/* ---- Writing ---- */

static int write_once(const char *path, const unsigned char *note) {
    aspen_vfs_event event = {.kind = ASPEN_VFS_CREATE, .path = path};
    int is_new = access(path, F_OK) != 0;
    int failure = is_new ? observe_before(&event) : 0;
    if (failure) return failure;
    int descriptor = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor < 0) return errno;
    if (is_new) observe_after(&event);
    event = (aspen_vfs_event){
        .kind = ASPEN_VFS_WRITE, .path = path, .bytes = note, .count = NOTE_BYTES};
    failure = observe_before(&event);
    if (!failure) {
        ssize_t written = pwrite(descriptor, note, NOTE_BYTES, 0);
        if (written != NOTE_BYTES) failure = written < 0 ? errno : ENOSPC;
    }
    if (!failure) observe_after(&event);
    close(descriptor);
    /* Else the next attempt would find its name and not make that durable. */
    if (failure && is_new) aspen_vfs_remove(path);
    if (failure) return failure;
    /* Full or not: what a failed sync leaves is not known. */
    if (aspen_vfs_sync_file(path)) return EIO;
    if (!is_new) return 0;
    return sync_directory_of(path) ? EIO : 0;
}

int note_write(shared *s, const unsigned char *note) {
    char path[4096];
    if (!beside(s->path, "-checkpoint", path, sizeof path)) return ENAMETOOLONG;
    int failure = 0;
    do failure = write_once(path, note);
    while (failure == ENOSPC && relieve(path));
    return failure;
}

int note_checkpoint(aspen_file *f) {
    wal_standing now = shared_standing(f->shared);
    /* Without a WAL, as a snapshot is taken in, there is nothing to go wrong. */
    if (now.frames == 0 || memcmp(&now, &f->shared->noted, sizeof now) == 0) return SQLITE_OK;
    unsigned char note[NOTE_BYTES] = {0};
    memcpy(note, magic, sizeof magic);
    memcpy(note + 8, now.salts, sizeof now.salts);
    for (int i = 0; i < 4; i++) note[16 + i] = (unsigned char)(now.frames >> (8 * i));
    uint64_t sum = checksum(note);
    for (int i = 0; i < 8; i++) note[24 + i] = (unsigned char)(sum >> (8 * i));
    int is_deferred = 0;
    int rc = deferral_note(f->shared, note, NOTE_BYTES, &is_deferred);
    int failure = is_deferred ? 0 : note_write(f->shared, note);
    if (failure) rc = failure == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    if (rc == SQLITE_OK) f->shared->noted = now;
    return rc;
}

/* ---- Reading ---- */

static ssize_t read_start(const char *path, unsigned char *bytes, size_t count) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return -1;
    ssize_t found = pread(descriptor, bytes, count, 0);
    close(descriptor);
    return found;
}

static int read_note(const char *database, wal_standing *standing) {
    unsigned char note[NOTE_BYTES];
    char path[4096];
    if (!beside(database, "-checkpoint", path, sizeof path)) return 0;
    if (read_start(path, note, sizeof note) != NOTE_BYTES) return 0;
    uint64_t sum = 0;
    for (int i = 7; i >= 0; i--) sum = sum << 8 | note[24 + i];
    /* A note that is damaged itself says nothing: one fault at a time is what this is for. */
    if (memcmp(note, magic, sizeof magic) != 0 || sum != checksum(note)) return 0;
    memcpy(standing->salts, note + 8, sizeof standing->salts);
    standing->frames = 0;
    for (int i = 3; i >= 0; i--) standing->frames = standing->frames << 8 | note[16 + i];
    return 1;
}

/* The checksum over a WAL's header (sqlite.org/fileformat2.html#walformat): words in the order that
   the magic number says. */
static int is_sound_header(const unsigned char *header) {
    uint32_t word[8], big[8];
    for (int i = 0; i < 8; i++) {
        const unsigned char *p = header + 4 * i;
        big[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        word[i] = (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
    }
    if ((big[0] & 0xfffffffe) != 0x377f0682) return 0;
    const uint32_t *words = big[0] & 1 ? big : word;
    uint32_t a = 0, b = 0;
    for (int i = 0; i < 6; i += 2) {
        a += words[i] + b;
        b += words[i + 1] + a;
    }
    return a == big[6] && b == big[7];
}

int aspen_vfs_wal_falls_short(const char *path, uint32_t *found, uint32_t *copied) {
    wal_standing noted, now;
    unsigned char start[WAL_HEADER_BYTES + FRAME_HEADER_BYTES];
    char wal[4096];
    if (!shared_standing_of(path, &now) || !read_note(path, &noted)) return 0;
    if (!beside(path, "-wal", wal, sizeof wal)) return 0;
    /* Cut off after a complete checkpoint, or never used. */
    if (read_start(wal, start, sizeof start) != sizeof start) return 0;
    /* A damaged header says nothing; then the first frame names the WAL that it belongs to. */
    const unsigned char *salts =
        is_sound_header(start) ? start + 16 : start + WAL_HEADER_BYTES + 8;
    if (memcmp(salts, noted.salts, sizeof noted.salts) != 0) return 0;
    *found = now.frames;
    *copied = noted.frames;
    return now.frames < noted.frames;
}
