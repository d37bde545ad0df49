/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>
