// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import Testing

/// Each limit that Limits.md names has a test that crosses it.
@Suite struct LimitCoverageTests {
    /// By its name in Limits.md; a row without a name in code, by its first words. The tests are
    /// `Target.function`, or `Integration.function`.
    static let coverage: [String: String] = [
        "keyBytesMax": "RaftServiceTests.bytesAreBytes",
        "valueBytesMax": "RaftServiceTests.bytesAreBytes",
        "rpcMessageBytesMax": "RaftServiceTests.aFrameThatIsTooLongEndsTheConnection",
        "batchCountMax": "RaftServiceTests.aScanGivesAllPagesOfOneMoment",
        "scanPageBytesMax": "RaftServiceTests.pagesAndBatchesAreBoundedByBytes",
        "transactionOperationsMax": "KVCoreTests.comparesAndOperationsAreCounted",
        "snapshotChunkBytesMax": "RaftServiceTests.backupsAndPiecesOfARestoreAreBounded",
        "salvageBytesMax": "RaftStorageTests.whatIsTakenIsBounded",
        "windowBytes": "RaftServiceTests.itIsSentOneWindowAndTriedAgainLater",
        "stallTimeout": "RaftServiceTests.itIsSentOneWindowAndTriedAgainLater",
        "partialKept": "RaftServiceTests.whatNobodyGoesOnWithIsRemoved",
        "backups under way": "RaftServiceTests.backupsAndPiecesOfARestoreAreBounded",
        "events kept for `why`": "RaftServiceTests.eventsSurviveTheDaemon",
        "autoVotersMax": "RaftServiceTests.votersAreOddAndNotTooMany",
        "removedEndpointsMax": "RaftServiceTests.whoIsNotAdmittedIsToldWhy",
        "votersMax": "RaftServiceTests.membershipsAreBounded",
        "learnersMax": "RaftCoreTests.membershipsAreBounded",
        "learnerLagThreshold": "RaftServiceTests.aLearnerIsPromotedAndReplacesAVoter",
        "peersMax": "LinkCoreTests.strangersAreLimited",
        "connectionsMax": "Integration.connections_and_watches_have_an_end",
        "streamsPerConnectionMax": "NetServiceTests.streamsThatStallUseBoundedMemory",
        "clientConnectionsMax": "NetServiceTests.moreClientsThanAllowedKeepNoMemberOut",
        "clientConnectionsPerIdentityMax": "NetServiceTests.noClientAndNoAddressTakesAllThereIs",
        "clientConnectionsPerAddressMax": "NetServiceTests.noClientAndNoAddressTakesAllThereIs",
        "clientsWithoutTokenPerAddressMax":
            "NetServiceTests.whoShowsNoTokenFillsNoMoreThanItsAddress",
        "unprovedPerAddressMax": "NetServiceTests.strangersWithoutAProofAreCounted",
        "clientStreamsMax": "NetServiceTests.eachLimitAtTheDoorHasAnAnswer",
        "clientBytesMax": "NetServiceTests.whatClientsHoldHasABudget",
        "clientsWithoutTokenMax": "NetServiceTests.eachLimitAtTheDoorHasAnAnswer",
        "streamsBeforeTokenMax": "NetServiceTests.eachLimitAtTheDoorHasAnAnswer",
        "tokenTimeout": "NetServiceTests.whoSaysNothingIsSentAwayInTime",
        "clientHeadersMax": "NetServiceTests.eachLimitAtTheDoorHasAnAnswer",
        "linksMax": "TokenCoreTests.limitsAreKept",
        "capabilitiesMax": "TokenCoreTests.limitsAreKept",
        "bytesMax": "TokenCoreTests.limitsAreKept",
        "clockSkewMax": "TokenCoreTests.eachThingThatCanBeWrongHasItsName",
        "rootsMax": "RaftServiceTests.rootsAndRevocationsAreBounded",
        "revocationsMax": "RaftServiceTests.rootsAndRevocationsAreBounded",
        "gossipConnectionsMax": "NetServiceTests.theWholeOfThemIsBoundedToo",
        "gossipUnprovedMax": "NetServiceTests.connectionsForGossipAreCounted",
        "gossipUnprovedPerAddressMax": "NetServiceTests.connectionsForGossipAreCounted",
        "gossipStreams": "NetServiceTests.streamsForGossipAreLetInOneAfterTheOther",
        "notices": "NetServiceTests.whatAPeersNetSaysHasARate",
        "learnedMax": "LinkCoreTests.whatIsLearnedIsBounded",
        "unprovedMax": "NetServiceTests.strangersWithoutAProofAreCounted",
        "maxHalfOpen": "QUICTests.aFloodOfFirstPacketsIsBounded",
        "proposalsInFlightMax": "Integration.floods_are_refused_early",
        "readsInFlightMax": "Integration.floods_are_refused_early",
        "requestsMax": "Integration.floods_are_refused_early",
        "requestBytesMax": "Integration.floods_are_refused_early",
        "answersBytesMax": "Integration.answers_that_nobody_reads_wait_unmade",
        "awaitedBytesMax": "Integration.answers_of_transactions_wait_unmade",
        "awaitedBytesHigh": "Integration.answers_of_transactions_wait_unmade",
        "spoolBytesMin": "RaftStorageTests.aSpoolHoldsNoMoreThanItMay",
        "writes of the state that wait for its disk": "RaftStorageTests.whatWaitsIsBounded",
        "reserveBytes": "RaftStorageTests.theReserveIsGivenUpBitByBitAndTakenBack",
        "segmentBytes": "RaftStorageTests.everythingScalesDownWithTheFileSystem",
        "walBytes": "RaftStorageTests.theWALStaysBounded",
        "uncommittedBytes": "RaftCoreTests.uncommittedBytesAreBounded",
        "tight, short, exhausted": "RaftServiceTests.deletesFreeWhatPutsHaveFilled",
        "sessionsMax": "KVCoreTests.theNumberOfSessionsIsLimited",
        "sessionWindowMax": "KVCoreTests.theWindowSlides",
        "leasesMax": "KVCoreTests.limitsAreNamed",
        "leaseTTLMillisecondsMin": "KVCoreTests.limitsAreNamed",
        "leaseTTLMillisecondsMax": "KVCoreTests.limitsAreNamed",
        "leaseKeysMax": "KVCoreTests.limitsAreNamed",
        "leasesExpiredPerEntry": "KVCoreTests.expiryIsBoundedPerEntry",
        "leaseKeysExpiredPerEntry": "KVCoreTests.expiryIsBoundedPerEntry",
        "leaseIDChosenFrom": "KVCoreTests.limitsAreNamed",
        "expiriesInFlightMax": "RaftServiceTests.manyLeasesEndTogether",
        "transactionDeletesMax": "KVCoreTests.rangeDeletesAreCounted",
        "answerBytesMax": "KVCoreTests.answersOfTransactionsAreBounded",
        "historyCountMax": "KVCoreTests.historyComesInPages",
        "countRowsMax": "KVCoreTests.aCountGoesOnInSteps",
        "changePageBytesMax": "KVCoreTests.previousValuesOfOneRevisionHaveABound",
        "batchReadBytesMax": "RaftServiceTests.pagesAndBatchesAreBoundedByBytes",
        "watchesPerConnectionMax": "Integration.connections_and_watches_have_an_end",
        "watchesMax": "Integration.connections_and_watches_have_an_end",
        "WatchConfiguration.ringBytesMax":
            "RaftServiceTests.whoDoesNotReadDisturbsNobodyAndMissesNothing",
        "WatchConfiguration.previousBytesMax":
            "RaftServiceTests.previousValuesThatFillAFrameAreLeftOut",
        "addressesMax": "RaftServiceTests.membershipsAreBounded",
        "ticketEndpointsMax": "AspenWireTests.ticketsRoundTripAndSayWhatIsWrong",
        "connectTimeout": "AspenClientTests.theEndpointThatAnswersIsTaken",
        "streamOpenTimeout": "NetServiceTests.aPeerThatIsNotThereIsUnavailableWithinTheTimeout",
        "readTimeout": "AspenClientTests.theDeadlineHoldsAndSaysWhatIsUnknown",
        "redialGrace": "NetServiceTests.aPeerThatStaysAwayIsReportedDownAfterTheGrace",
        "sessionTimeout": "KVCoreTests.silentSessionsExpire",
        "DNSMessage.bytesMax": "DNSWireTests.hostileBytesAreErrors",
        "DNSMessage.entriesMax": "DNSWireTests.moreEntriesThanAllowedAreRefused",
        "packetsPerSecondMax": "MDNSCoreTests.aFloodIsNotLookedAt",
        "packetsPerSourceMax": "MDNSCoreTests.aFloodIsNotLookedAt",
        "bytesPerSecondMax": "MDNSCoreTests.bytesAreCountedToo",
        "bytesPerSourceMax": "MDNSCoreTests.bytesAreCountedToo",
        "instancesMax": "MDNSCoreTests.instancesAreBoundedInAllAndForOneSource",
        "instancesPerSourceMax": "MDNSCoreTests.instancesAreBoundedInAllAndForOneSource",
        "newInstancesMax": "MDNSCoreTests.ofOnePacketOnlySomeNewInstancesAreTaken",
        "interfacesMax": "MDNSCoreTests.interfacesAreBounded",
        "unicastsMax": "MDNSCoreTests.answersToOneAskerAreBounded",
        "ttlMax": "MDNSCoreTests.recordsAreBelievedForAnHourAndAQuarterAtMost",
        "conflictsMax": "MDNSCoreTests.conflictsAreAnsweredEverMoreSlowly",
        "RouteTable.interfacesMax": "GossipServiceTests.whatTheKernelSaysIsBounded",
        "RouteTable.addressesMax": "GossipServiceTests.whatTheKernelSaysIsBounded",
        "GossipSocketLimits.localConnectionsMax": "GossipServiceTests.connectionsAreBounded",
        "cachedMax": "ResolverCoreTests.everythingHasALimit",
        "recordsMax": "ResolverCoreTests.everythingHasALimit",
        "questionsMax": "ResolverCoreTests.everythingHasALimit",
        "lookUpsMax": "ResolverCoreTests.everythingHasALimit",
        "serversMax": "ResolverCoreTests.everythingHasALimit",
        "attemptsMax": "ResolverCoreTests.silenceIsFollowedByOtherServersAndMorePatience",
        "keptMax": "ResolverCoreTests.everythingHasALimit",
        "absentMax": "ResolverCoreTests.everythingHasALimit",
        "LookUpSchedule.endpointsMax": "GossipServiceTests.endpointsAndLookUpsAreBounded",
        "underWayMax": "GossipServiceTests.endpointsAndLookUpsAreBounded",
        "egress.sock: `requestBytesMax`": "EgressServiceTests.hostileRequestsAreErrors",
        "timeout": "EgressServiceTests.whoAsksNothingIsNotWaitedFor",
        "processesMax": "EgressServiceTests.processesAreBounded",
        "nameServersMax": "EgressServiceTests.theirNumberAndTheFileAreBounded",
        "resolverFileBytesMax": "EgressServiceTests.theirNumberAndTheFileAreBounded",
        "aliasesMax": "ResolverCoreTests.recordsOfOtherNamesAreLeftOutAndAliasesFollowed",
        "membersMax": "GossipCoreTests.membersAreBoundedAndFormerOnesGiveWay",
        "messageBytesMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "announcementBytesMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "addressBytesMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "servicesMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "versionBytesMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "reportsMax": "GossipCoreTests.whatIsTooLongIsLeftOutOrRefused",
        "idsPerMessageMax": "GossipCoreTests.countsAreBounded",
        "shuffleMax": "GossipCoreTests.countsAreBounded",
        "GossipLimits.recordsMax": "GossipCoreTests.countsAreBounded",
        "futureMaxMilliseconds": "GossipCoreTests.clocksAreAllowedToDifferByTheBounds",
        "ageMaxMilliseconds": "GossipCoreTests.clocksAreAllowedToDifferByTheBounds",
        "frames": "GossipCoreTests.framesVerificationsDigestsAndJoinsHaveRates",
        "bytes": "GossipCoreTests.bytesAreCountedAsWellAsMessages",
        "framesPerTurn": "GossipCoreTests.anEndlessFlooderCostsABoundedNumberOfMessages",
        "bytesPerTurn": "GossipCoreTests.bytesAreCountedAsWellAsMessages",
        "floodMax": "GossipCoreTests.whoFloodsForLongIsShunned",
        "verifications": "GossipCoreTests.strangersWithNewKeysStarveNobody",
        "knownVerifications": "GossipCoreTests.signaturesOfAllHaveARate",
        "unknownVerifications": "GossipCoreTests.signaturesOfAllHaveARate",
        "announcements": "GossipCoreTests.oneEndpointIsHeardAtARate",
        "ownAnnouncements":
            "GossipCoreTests.itAnnouncesAtAnIntervalAndAtEachChangeButNotTooOften",
        "digests": "GossipCoreTests.framesVerificationsDigestsAndJoinsHaveRates",
        "joins": "GossipCoreTests.framesVerificationsDigestsAndJoinsHaveRates",
        "reportsOfRefusals": "GossipCoreTests.refusalsAreReportedAtARate",
        "gossip: `linksMax`": "GossipCoreTests.whatIsRememberedIsBounded",
        "dialsMax": "GossipCoreTests.connectionsUnderWayAreBounded",
        "missingMax": "GossipCoreTests.whatIsRememberedIsBounded",
        "missingPerPeerMax": "GossipCoreTests.whatIsRememberedIsBounded",
        "seenMax": "GossipCoreTests.whatIsRememberedIsBounded",
        "tombstonesMax": "GossipCoreTests.membersAreBoundedAndFormerOnesGiveWay",
        "contactsMax": "GossipCoreTests.whatIsRememberedIsBounded",
        "metersMax": "GossipCoreTests.whatIsRememberedIsBounded",
        "activeMax": "GossipCoreTests.aJoinIsAnsweredAndWalksOn",
        "passiveMax": "GossipCoreTests.thePassiveViewIsBounded",
        "PeerBook.entriesMax": "GossipCoreTests.itIsBounded",
        "configuration: `bytesMax`": "ConfigurationTests.bytesThatAreNoTextAreRefused",
        "dropInsMax": "ConfigurationTests.moreDropInsThanTheLimitAreRefused",
        "depthMax": "ConfigurationTests.depthIsBounded",
        "cookie: `bytesMax`":
            "NetServiceTests.aMissingOrPublishedCookieIsRefusedAndAShortOneWarnedAbout",
    ]

    private static func rows() throws -> [(name: String, names: [String])] {
        let page = SourceRulesTests.root.appending(
            path: "Sources/Documentation/Aspen.docc/Limits.md")
        let text = try String(contentsOf: page, encoding: .utf8)
        return text.split(separator: "\n").filter { $0.hasPrefix("| ") }.dropFirst(2).map { line in
            let first = line.split(separator: "|")[0].trimmingCharacters(in: .whitespaces)
            let quoted = first.split(separator: "`", omittingEmptySubsequences: false)
            let names = quoted.enumerated().filter { $0.offset % 2 == 1 }.map { String($0.element) }
            return (first, names)
        }
    }

    @Test func everyLimitOfThePageHasATest() throws {
        let rows = try Self.rows()
        #expect(rows.count > 40)
        var used: Set<String> = []
        for (row, names) in rows {
            let words = Self.coverage.keys.first { row.hasPrefix($0) } ?? ""
            used.insert(words)
            #expect(!words.isEmpty || !names.isEmpty, "nothing names a test for: \(row)")
            for name in names where !words.contains("`\(name)`") {
                used.insert(name)
                #expect(Self.coverage[name] != nil, "no test is named that crosses \(name)")
            }
        }
        for name in Self.coverage.keys where !used.contains(name) {
            Issue.record("Limits.md does not have \(name)")
        }
    }

    @Test func everyTestThatIsNamedExists() {
        for (limit, test) in Self.coverage {
            let parts = test.split(separator: ".")
            let isScript = parts[0] == "Integration"
            let sources = SourceRulesTests.sources(
                under: "Tests/\(parts[0])", suffixes: [isScript ? ".py" : ".swift"])
            let declaration = isScript ? "def \(parts[1])(" : "func \(parts[1])("
            #expect(
                sources.contains { $0.lines.contains { $0.contains(declaration) } },
                "\(test), which is to cross \(limit), is not there")
        }
    }

    /// Limits that all daemons share are in the page, each under its name.
    @Test func everySharedLimitIsOnThePage() throws {
        let names = try Set(Self.rows().flatMap(\.names))
        let sources = SourceRulesTests.sources(under: "Sources/Foundations/AspenTypes")
        let limits = try #require(sources.first { $0.path.hasSuffix("/Limits.swift") })
        let declared = limits.lines.compactMap { line in
            line.split(separator: "static let ").dropFirst().first?
                .prefix { $0.isLetter || $0.isNumber }
        }
        #expect(declared.count > 25)
        for name in declared {
            #expect(names.contains(String(name)), "Limits.md does not have \(name)")
        }
    }
}
