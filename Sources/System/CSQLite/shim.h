/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <sqlite3.h>

/* Swift cannot call functions with variable arguments. */

static inline int aspen_sqlite_no_checkpoint_on_close(sqlite3 *db) {
    int now = 0;
    int rc = sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, &now);
    return rc == SQLITE_OK && !now ? SQLITE_ERROR : rc;
}
