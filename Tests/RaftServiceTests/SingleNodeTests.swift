// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import Testing

@testable import RaftService

@Suite struct SingleNodeTests {
    @Test(.timeLimit(.minutes(1))) func writesAndReads() async throws {
        let cluster = TestCluster(1)
        try await cluster.form()
        let client = try await cluster.client(of: NodeID(1))
        let first = try await client.put("greeting", Array("hello world".utf8)).get()
        #expect(first.failure == nil)
        #expect(first.writeKey.version == 1)
        #expect(first.writeKey.revision > 0)
        #expect(first.writeKey.logID.index > 0)
        let second = try await client.put("greeting", []).get()
        #expect(second.writeKey.version == 2)
        let read = try await client.get("greeting")
        #expect(read.readKey.hasEntry)
        #expect(read.readKey.entry.value.isEmpty)
        #expect(read.readKey.entry.version == 2)
        #expect(try await client.get("absent").readKey.hasEntry == false)
        #expect(try await client.get("greeting", stale: true).readKey.entry.version == 2)
        try await cluster.stop()
    }
}
