// SPDX-License-Identifier: GPL-2.0-or-later
//
// The example of the documentation's page on the client library, which must be the text below.

import AspenClient
import AspenTypes

/// A worker's claim on jobs: each is taken by one worker at a time, and free again when the worker
/// has not been heard of for `ttl`.
struct Claims {
    let client: AspenClient
    let worker: String
    let lease: LeaseID

    init(_ client: AspenClient, worker: String, ttl: Duration = .seconds(10)) async throws {
        self.client = client
        self.worker = worker
        lease = try await client.grantLease(ttl: ttl).lease
    }

    /// Keeps all claims alive until the task is cancelled; throws `notFound` when it was too late.
    func hold() async throws { try await client.holdLease(lease) }

    /// True if the job is this worker's now. Of any number of workers that ask, one gets it.
    func claim(_ job: String) async throws -> Bool {
        let key = Array("jobs/\(job)".utf8)
        let result = try await client.transaction(
            if: [Compare(key, .equal, .exists(false))],
            then: [.put(key: key, value: Array(worker.utf8), lease: lease)])
        return result.succeeded
    }

    /// Tells of each job that becomes free from now on, as it happens.
    func free(_ each: (String) async throws -> Void) async throws {
        var revision = Revision.zero
        for try await page in client.scan(prefix: Array("jobs/".utf8), keysOnly: true) {
            revision = page.revision
        }
        // Nothing between the scan and the watch is missed.
        let changes = client.watch(
            KeyRange(prefix: "jobs/"), from: revision.next, WatchOptions(kinds: .deletes))
        for try await update in changes {
            for event in update.events {
                try await each(String(decoding: event.entry.key.dropFirst(5), as: UTF8.self))
            }
        }
    }
}
