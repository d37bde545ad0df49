// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FakeRaftServer
import NIOConcurrencyHelpers
import Testing

@Suite struct DeleteTests {
    /// Pages that are gone stay gone: whoever reads of the failure must learn that they are.
    @Test func failureHalfWaySaysHowManyWereDeleted() async throws {
        let server = FakeRaftServer()
        try await server.start()
        let shell = Shell(socket: server.path)
        let setUp =
            "for page in 0 1 2 3 4 5 6 7 8 9 10; do aspen-cli kv batch-write "
            + "$(seq -f '%04.0f=v' ${page}00 ${page}99); done >/dev/null"
        #expect(try await shell.run(setUp).status == 0)
        let deletions = NIOLockedValueBox(0)
        server.script { request in
            guard case .transaction = request.request else { return nil }
            let count = deletions.withLockedValue { count in
                count += 1
                return count
            }
            return count > 1 ? .fail(.permissionDenied, .never) : nil
        }
        let (output, status) = try await shell.run("aspen-cli kv delete --from ''")
        let text = String(decoding: output, as: UTF8.self)
        #expect(status == 4)
        #expect(text.contains("1000 keys were deleted"), "\(text)")
        #expect(text.contains("PERMISSION_DENIED"), "\(text)")
        try await shell.remove()
        await server.stop()
    }
}
