// swift-tools-version: 6.2
// SPDX-License-Identifier: GPL-2.0-or-later
//
// Read this file as a table of layers. An arrow goes only downwards:
//
//     Executables -> Tools, Services -> System -> Cores, Wire -> Foundations
//     Simulation sits beside System and drives the Cores (and the real storage code).

import PackageDescription

// MARK: - Settings every target shares

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    // The test build carries faults that a run may switch on (see PlantedBug): a release never does.
    .define("ASPEN_TEST_BUILD", .when(configuration: .debug)),
    // Nor does it watch whether an access to a variable overlaps with another while it runs, which the
    // compiler proves for most of them anyway: all tests run with that watch. Without it, in the
    // libraries below as well, a put by a client alone took a tenth less CPU; for those the flag has to
    // be given on the command line, as the Makefile and the packages do.
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release)),
]

/// Pure code is optimised in the test build too, a module as a whole and across modules: a thousand
/// simulated runs are its main customer. Across modules in a release, too: a twentieth fewer instructions
/// of aspend-raft.
let pure: [SwiftSetting] =
    strict + [
        .unsafeFlags(
            ["-O", "-wmo", "-num-threads", "1", "-disable-batch-mode"],
            .when(configuration: .debug)),
        .unsafeFlags(["-cross-module-optimization"]),
    ]

/// The simulator, which is never part of what is installed: an access to a variable is not watched for
/// overlapping with another while it runs, which the compiler proves for most of them anyway.
let simulated: [SwiftSetting] = pure + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

/// Tests of pure code: their own loops are long enough to be worth it.
let pureTests: [SwiftSetting] = strict + [.unsafeFlags(["-O"], .when(configuration: .debug))]

// MARK: - Short names for what comes from elsewhere

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]
let protobuf: Target.Dependency = .product(name: "SwiftProtobuf", package: "swift-protobuf")
let collections: Target.Dependency = .product(name: "DequeModule", package: "swift-collections")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(
    name: "ArgumentParser", package: "swift-argument-parser")

// MARK: - One line per target

func module(
    _ name: String, _ path: String, _ dependencies: [Target.Dependency] = [],
    settings: [SwiftSetting] = strict, exclude: [String] = []
) -> Target {
    .target(
        name: name, dependencies: dependencies, path: "Sources/" + path, exclude: exclude,
        swiftSettings: settings)
}

func program(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(
        name: name, dependencies: dependencies, path: "Sources/Executables/" + name,
        swiftSettings: strict)
}

func tests(
    _ name: String, _ dependencies: [Target.Dependency], settings: [SwiftSetting] = strict,
    exclude: [String] = []
) -> Target {
    .testTarget(
        name: name, dependencies: dependencies, path: "Tests/" + name, exclude: exclude,
        swiftSettings: settings)
}

let foundations: [Target] = [
    module("AspenTypes", "Foundations/AspenTypes", settings: pure),
    module("AspenBytes", "Foundations/AspenBytes", ["AspenTypes"], settings: pure),
]

let cores: [Target] = [
    module("AspenMachine", "Cores/AspenMachine", ["AspenTypes"], settings: pure),
    module(
        "RaftCore", "Cores/RaftCore", ["AspenMachine", "AspenBytes", collections], settings: pure),
    module(
        "ProposalCore", "Cores/ProposalCore", ["AspenMachine", "RaftCore", "AspenTypes"],
        settings: pure),
    module("KVCore", "Cores/KVCore", ["AspenMachine", "AspenBytes"], settings: pure),
    module(
        "WatchCore", "Cores/WatchCore", ["AspenMachine", "KVCore", collections], settings: pure),
    module("LinkCore", "Cores/LinkCore", ["AspenMachine", "AspenBytes"], settings: pure),
    module("TokenCore", "Cores/TokenCore", ["AspenTypes", "AspenBytes"], settings: pure),
    module("DNSWire", "Cores/DNSWire", ["AspenBytes"], settings: pure),
    module(
        "MDNSCore", "Cores/MDNSCore", ["AspenMachine", "DNSWire", "AspenBytes", "AspenTypes"],
        settings: pure),
    module(
        "ResolverCore", "Cores/ResolverCore",
        ["AspenMachine", "DNSWire", "AspenBytes", "AspenTypes"], settings: pure),
    module("GossipCore", "Cores/GossipCore", ["AspenMachine", "AspenBytes"], settings: pure),
]

let wire: [Target] = [
    module(
        "AspenWire", "Wire/AspenWire", ["AspenBytes", "AspenTypes", protobuf], exclude: ["Protos"])
]

let system: [Target] = [
    .target(name: "CAspenSystem", path: "Sources/System/CAspenSystem"),
    .systemLibrary(
        name: "CSQLite", path: "Sources/System/CSQLite", pkgConfig: "sqlite3",
        providers: [.apt(["libsqlite3-dev"])]),
    .systemLibrary(
        name: "CSodium", path: "Sources/System/CSodium", pkgConfig: "libsodium",
        providers: [.apt(["libsodium-dev"])]),
    .systemLibrary(
        name: "CSystemd", path: "Sources/System/CSystemd", pkgConfig: "libsystemd",
        providers: [.apt(["libsystemd-dev"])]),
    .target(
        name: "CNgtcp2", path: "Sources/System/CNgtcp2",
        linkerSettings: [
            .linkedLibrary("ngtcp2"), .linkedLibrary("ngtcp2_crypto_gnutls"),
            .linkedLibrary("gnutls"),
        ]),
    .target(
        name: "CAspenVFS", dependencies: ["CSQLite"], path: "Sources/System/CAspenVFS",
        cSettings: [.define("ASPEN_TEST_BUILD", .when(configuration: .debug))]),
    module("AspenDisk", "System/AspenDisk", ["CAspenSystem", "AspenBytes"], settings: pure),
    module(
        "SQLiteKit", "System/SQLiteKit", ["CSQLite", "CAspenVFS", "AspenTypes"], settings: pure),
    module(
        "QUIC", "System/QUIC",
        nio + ["CNgtcp2", "CSodium", "AspenBytes", "AspenTypes", collections, logging]),
    module("Configuration", "System/Configuration", ["AspenBytes", "AspenTypes"]),
    module(
        "ServiceKit", "System/ServiceKit",
        nio + [
            "CAspenSystem", "CSystemd", "Configuration", "AspenBytes", "AspenTypes", logging,
        ]),
]

let services: [Target] = [
    module("NetClient", "Services/Net/Client", nio + ["AspenWire", "AspenTypes", "ServiceKit"]),
    module(
        "NetService", "Services/Net/Service",
        nio + [
            "AspenTypes", "AspenBytes", "AspenMachine", "AspenWire", "Configuration", "ServiceKit",
            "LinkCore", "TokenCore", "QUIC", "CSodium", "CAspenSystem", collections, logging,
        ]),
    module(
        "EgressClient", "Services/Egress/Client",
        nio + ["AspenWire", "AspenTypes", "AspenBytes", "CAspenSystem"]),
    module(
        "EgressService", "Services/Egress/Service",
        [
            "AspenWire", "AspenTypes", "AspenBytes", "DNSWire", "ServiceKit", "CAspenSystem",
            logging,
        ]),
    module(
        "GossipClient", "Services/Gossip/Client", nio + ["AspenWire", "AspenTypes", "ServiceKit"]),
    module(
        "GossipService", "Services/Gossip/Service",
        nio + [
            "GossipCore", "MDNSCore", "ResolverCore", "DNSWire", "AspenMachine", "NetClient",
            "EgressClient", "Configuration", "AspenWire", "AspenBytes", "AspenTypes", "ServiceKit",
            "CAspenSystem", "CSodium", "AspenDisk", logging,
        ]),
    module(
        "RaftStorage", "Services/Raft/Storage",
        [
            "RaftCore", "KVCore", "AspenDisk", "SQLiteKit", "CAspenVFS", "AspenMachine",
            "AspenTypes",
            "AspenBytes", collections,
        ],
        settings: pure),
    module(
        "RaftService", "Services/Raft/Service",
        nio + [
            "RaftStorage", "RaftCore", "ProposalCore", "KVCore", "WatchCore", "TokenCore",
            "CSodium", "NetClient",
            "AspenWire", "AspenDisk", "AspenMachine", "AspenBytes", "AspenTypes", "ServiceKit",
            "CAspenVFS",
            logging,
            collections, protobuf,
        ]),
    module(
        "AspenClient", "Services/Raft/Client",
        nio + [
            "AspenWire", "QUIC", "TokenCore", "ServiceKit", "AspenTypes", "AspenBytes", protobuf,
            collections,
        ]),
]

let tools: [Target] = [
    module(
        "AspenCLI", "Tools/CLI",
        [
            "AspenClient", "GossipClient", "TokenCore", "AspenWire", "AspenTypes", "AspenBytes",
            "Configuration", arguments,
        ]),
    module("GeneratorTool", "Tools/Generator", ["Configuration", "AspenTypes"]),
    module(
        "AspenBench", "Tools/Bench",
        nio + [
            "AspenCLI", "AspenClient", "AspenMachine", "AspenWire", "AspenTypes", arguments,
            collections,
            .product(name: "Histogram", package: "hdrhistogram-swift"),
        ]),
    module(
        "NodeSupervisor", "Tools/Node",
        ["ServiceKit", "Configuration", "AspenWire", "CAspenSystem", arguments]),
    module(
        "SimTool", "Tools/Sim",
        ["SimChecks", "SimFaults", "SimKit", "RaftCore", "AspenMachine", "AspenTypes", arguments]),
]

let simulation: [Target] = [
    module(
        "SimKit", "Simulation/SimKit", ["AspenMachine", "AspenBytes", "AspenDisk"],
        settings: simulated),
    module(
        "SimFaults", "Simulation/SimFaults",
        [
            "SimKit", "RaftCore", "ProposalCore", "KVCore", "WatchCore", "LinkCore", "GossipCore",
            "AspenWire", "RaftStorage", "SQLiteKit", "AspenDisk", "AspenBytes",
        ],
        settings: simulated),
    module("SimChecks", "Simulation/SimChecks", ["SimFaults"], settings: simulated),
]

let executables: [Target] = [
    program("aspend-net", ["NetService", "ServiceKit"]),
    program("aspend-raft", ["RaftService", "ServiceKit"]),
    program("aspend-gossip", ["GossipService", "ServiceKit"]),
    program("aspend-egress", ["EgressService"]),
    program("aspen-node", ["NodeSupervisor"]),
    program("aspen-cli", ["AspenCLI"]),
    program("aspen-token", ["AspenCLI"]),
    program("aspen-sim", ["SimTool"]),
    program("aspen-bench", ["AspenBench"]),
    program("aspen-generator", ["GeneratorTool"]),
]

/// `make fuzz` builds the decoders of FuzzTests as a program of their own, which libFuzzer drives.
let isUnderLibFuzzer = Context.environment["ASPEN_LIBFUZZER"] != nil
let fuzzed: [Target.Dependency] =
    nio + [
        "NetService", "RaftService", "RaftStorage", "RaftCore", "KVCore", "LinkCore", "TokenCore",
        "DNSWire", "MDNSCore", "ResolverCore", "GossipCore", "EgressService",
        "Configuration", "AspenDisk", "AspenWire", "AspenBytes", "AspenMachine", "AspenTypes",
        protobuf,
    ]

let checks: [Target] = [
    tests("FoundationsTests", ["AspenTypes", "AspenBytes", "AspenMachine"], settings: pureTests),
    tests("SourceRulesTests", []),
    tests(
        "ConfigurationTests",
        [
            "Configuration", "GeneratorTool", "ServiceKit", "AspenMachine", "AspenTypes",
            "AspenBytes", "aspen-generator",
        ]),
    tests(
        "AspenWireTests", ["AspenWire", "AspenBytes", "AspenMachine", "AspenTypes", protobuf]),
    tests(
        "KVCoreTests", ["KVCore", "AspenTypes", "AspenBytes", "AspenMachine"], settings: pureTests),
    tests(
        "RaftStorageTests",
        [
            "RaftStorage", "RaftCore", "KVCore", "AspenDisk", "SQLiteKit", "CAspenVFS",
            "AspenTypes", "AspenBytes", "AspenMachine",
        ], settings: pureTests, exclude: ["Fixtures"]),
    tests(
        "TokenCoreTests",
        ["TokenCore", "QUIC", "AspenMachine", "AspenTypes", "AspenBytes"], settings: pureTests,
        exclude: ["Vectors"]),
    tests(
        "ProposalCoreTests", ["ProposalCore", "RaftCore", "AspenMachine", "AspenTypes"],
        settings: pureTests),
    tests(
        "WatchCoreTests", ["WatchCore", "KVCore", "AspenTypes", "AspenMachine"], settings: pureTests
    ),
    tests("DNSWireTests", ["DNSWire", "AspenBytes", "AspenMachine"], settings: pureTests),
    tests(
        "MDNSCoreTests", ["MDNSCore", "DNSWire", "AspenBytes", "AspenTypes", "AspenMachine"],
        settings: pureTests),
    tests(
        "ResolverCoreTests", ["ResolverCore", "DNSWire", "AspenTypes", "AspenMachine"],
        settings: pureTests),
    tests("LinkCoreTests", ["LinkCore", "AspenTypes", "AspenMachine"], settings: pureTests),
    tests(
        "GossipCoreTests", ["GossipCore", "AspenTypes", "AspenBytes", "AspenMachine"],
        settings: pureTests),
    tests(
        "NetServiceTests",
        nio + [
            "NetService", "NetClient", "TokenCore", "QUIC", "AspenBytes", "AspenMachine",
            "LinkCore",
            "CAspenSystem", "ServiceKit", "aspend-net", logging,
        ]),
    tests(
        "GossipServiceTests",
        nio + [
            "GossipService", "GossipCore", "AspenDisk", "EgressService", "EgressClient",
            "ResolverCore", "MDNSCore", "DNSWire", "AspenMachine", "AspenWire", "AspenTypes",
            "ServiceKit", "CAspenSystem",
            "aspend-gossip", logging,
        ]),
    tests(
        "EgressServiceTests",
        nio + [
            "EgressService", "EgressClient", "DNSWire", "AspenWire", "AspenTypes", "ServiceKit",
            "CAspenSystem", "aspend-egress", logging,
        ]),
    tests(
        "SimulationTests",
        [
            "SimChecks", "SimFaults", "SimKit", "RaftStorage", "RaftCore", "KVCore", "AspenDisk",
            "AspenMachine", "AspenTypes", "aspen-sim",
        ], settings: pureTests, exclude: ["Fixtures"]),
    .target(
        name: "FakeRaftServer",
        dependencies: nio + ["AspenWire", "ServiceKit", "AspenTypes", protobuf],
        path: "Tests/FakeRaftServer", swiftSettings: strict),
    tests(
        "CommandTests",
        nio + [
            "AspenCLI", "AspenBench", "GossipCore", "AspenMachine", "AspenWire", "AspenTypes",
            "AspenBytes", "FakeRaftServer",
        ],
        exclude: ["Manual"]),
    tests(
        "RaftServiceTests",
        nio + [
            "RaftService", "RaftStorage", "RaftCore", "ProposalCore", "KVCore", "TokenCore",
            "WatchCore", "QUIC", "NetClient", "NetService", "SQLiteKit", "CAspenSystem",
            "AspenWire", "AspenDisk", "AspenMachine", "AspenBytes", "AspenTypes", "ServiceKit",
            logging, protobuf,
        ]),
    tests(
        "AspenClientTests",
        nio + ["AspenClient", "AspenTypes", "AspenWire", "QUIC", "FakeRaftServer"]),
    tests("RaftCoreTests", ["RaftCore", "AspenMachine", "AspenBytes"], settings: pureTests),
    isUnderLibFuzzer
        ? .executableTarget(
            name: "aspen-fuzz", dependencies: fuzzed, path: "Tests/FuzzTests",
            exclude: ["Corpus", "FuzzTests.swift", "Mutator.swift"], swiftSettings: pureTests)
        : tests("FuzzTests", fuzzed, settings: pureTests, exclude: ["Corpus", "LibFuzzer"]),
    tests("QUICTests", nio + ["QUIC", "AspenTypes", "AspenBytes", "AspenMachine", "CNgtcp2"]),
]

let package = Package(
    name: "aspen",
    platforms: [.macOS(.v15)],
    products: [.library(name: "AspenClient", targets: ["AspenClient", "AspenTypes"])],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", exact: "2.101.2"),
        .package(url: "https://github.com/apple/swift-protobuf", exact: "1.39.0", traits: []),
        .package(url: "https://github.com/apple/swift-collections", exact: "1.6.0"),
        .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
        .package(url: "https://github.com/apple/swift-argument-parser", exact: "1.8.2"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", exact: "0.2.0"),
    ],
    targets: foundations + cores + wire + system + services + tools + simulation + executables
        + checks
)
