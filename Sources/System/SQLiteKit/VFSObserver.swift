// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenVFS

/// One thing that SQLite does to a file.
package struct VFSEvent {
    package enum Kind: Sendable, CaseIterable {
        case read, write, sync, truncate, create, delete, syncDirectory, rename, allocate
    }

    package var kind: Kind
    /// Absolute; of the directory for `syncDirectory`.
    package var path: String
    /// The new path in `rename`, else empty.
    package var target: String
    /// Where to read, write or allocate; the new size in `truncate`.
    package var offset: UInt64
    /// Bytes read, written or allocated.
    package var count: UInt64
    /// What is written, checksums included; valid during the call only.
    package var bytes: UnsafeRawBufferPointer

    fileprivate init?(_ event: UnsafePointer<aspen_vfs_event>?) {
        guard let event = event?.pointee else { return nil }
        switch event.kind {
        case ASPEN_VFS_READ: kind = .read
        case ASPEN_VFS_WRITE: kind = .write
        case ASPEN_VFS_SYNC: kind = .sync
        case ASPEN_VFS_TRUNCATE: kind = .truncate
        case ASPEN_VFS_CREATE: kind = .create
        case ASPEN_VFS_DELETE: kind = .delete
        case ASPEN_VFS_SYNC_DIRECTORY: kind = .syncDirectory
        case ASPEN_VFS_RENAME: kind = .rename
        case ASPEN_VFS_ALLOCATE: kind = .allocate
        default: return nil
        }
        path = String(cString: event.path)
        target = event.to.map { String(cString: $0) } ?? ""
        offset = UInt64(clamping: event.offset)
        count = UInt64(clamping: event.count)
        bytes = UnsafeRawBufferPointer(
            start: event.bytes, count: event.bytes == nil ? 0 : Int(event.count))
    }
}

/// Sees what SQLite does to the files whose path begins with `prefix`, in order, as long as the
/// observer lives; and may make it fail. For tests and for recording what a power cut would leave.
/// The closures are called from whatever thread uses the database, one call at a time.
package final class VFSObserver {
    private final class Hooks: Sendable {
        let before: @Sendable (VFSEvent) -> Int32
        let after: @Sendable (VFSEvent) -> Void

        init(
            before: @escaping @Sendable (VFSEvent) -> Int32,
            after: @escaping @Sendable (VFSEvent) -> Void
        ) {
            self.before = before
            self.after = after
        }
    }

    private let hooks: Hooks
    private let number: Int32

    /// - Parameters:
    ///   - before: an errno value other than zero makes the operation fail with it, undone.
    ///   - after: the operation has succeeded; not called for reads and allocations.
    package init(
        prefix: String, before: @escaping @Sendable (VFSEvent) -> Int32 = { _ in 0 },
        after: @escaping @Sendable (VFSEvent) -> Void = { _ in }
    ) {
        hooks = Hooks(before: before, after: after)
        let callbacks = aspen_vfs_observer(
            before: { context, event in
                guard let context, let event = VFSEvent(event) else { return 0 }
                return Unmanaged<Hooks>.fromOpaque(context).takeUnretainedValue().before(event)
            },
            after: { context, event in
                guard let context, let event = VFSEvent(event) else { return }
                Unmanaged<Hooks>.fromOpaque(context).takeUnretainedValue().after(event)
            })
        number = aspen_vfs_observe(prefix, callbacks, Unmanaged.passUnretained(hooks).toOpaque())
        precondition(number >= 0, "at most \(ASPEN_VFS_OBSERVERS_MAX) observers at a time")
    }

    deinit { aspen_vfs_unobserve(number) }

    #if ASPEN_TEST_BUILD
        /// A bug in the check of a page that is read from a database.
        package enum PlantedBug: Sendable {
            /// What is sound as some other page passes.
            case misdirectedPagePasses
            /// Everything passes.
            case tornPagePasses
        }

        /// Plants a bug in the databases that it observes.
        package func plant(_ bug: PlantedBug) {
            switch bug {
            case .misdirectedPagePasses:
                aspen_vfs_plant(number, ASPEN_VFS_MISDIRECTED_PAGE_PASSES)
            case .tornPagePasses: aspen_vfs_plant(number, ASPEN_VFS_TORN_PAGE_PASSES)
            }
        }
    #endif
}
