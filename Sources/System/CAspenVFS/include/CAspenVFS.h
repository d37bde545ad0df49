/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef ASPEN_VFS_H
#define ASPEN_VFS_H
#endif
