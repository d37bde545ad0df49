// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct ClusterBackup: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup", abstract: "Write one consistent copy of everything to a file.",
        usage: "aspen-cli cluster backup [--verify] FILE [OPTIONS]",
        discussion: """
            The cluster goes on serving. The file has a checksum and appears under its name only when \
            it is whole and on the disk. What has that name must be a regular file, which is replaced; \
            a symbolic link is followed. --verify checks such a file, and says what it shows; a damaged \
            one is exit status 1.

            EXAMPLES
              aspen-cli cluster backup /srv/backup/aspen.backup
              aspen-cli cluster backup --verify /srv/backup/aspen.backup
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The file to write, or to check.")
    var file: String

    @Flag(help: "Check a backup that was made before; no cluster is needed.")
    var verify = false

    var local: (any LocalCommand)? {
        guard verify else { return nil }
        var check = BackupCheck()
        check.file = file
        check.json = global.isJSON
        return check
    }

    func prepare() throws { _ = try BackupPlace(file) }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let sink = try BackupSink(path: file)
        sink.unlinkOnInterruption()
        let summary = try await context.client.backup { try sink.write($0) }
        try sink.commit()
        context.write(summary)
        return .done
    }
}

/// `cluster backup --verify`: no cluster is needed.
struct BackupCheck: LocalCommand {
    static let configuration = CommandConfiguration(commandName: "verify")

    var file = ""
    var json = false

    var isJSON: Bool { json }

    func run(_ output: Output) throws -> ExitStatus {
        let source = try BackupSource(path: file)
        let summary = try BackupSummary.verify { count throws(AspenError) in try source.read(count)
        }
        summary.write(to: output, isJSON: json)
        return .done
    }
}

struct ClusterRestore: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Begin a new cluster from a backup.",
        usage: "aspen-cli cluster restore FILE [OPTIONS]",
        discussion: """
            The node asked must have an empty data directory. It becomes the first node of a new \
            cluster with all that the backup shows; other nodes then join it as usual.

            EXAMPLES
              aspen-cli cluster restore /srv/backup/aspen.backup
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The backup.")
    var file: String

    func run(_ context: CommandContext) async throws -> ExitStatus {
        // Before anything is sent: a damaged file is better found here.
        let check = try BackupSource(path: file)
        _ = try BackupSummary.verify { count throws(AspenError) in try check.read(count) }
        let source = try BackupSource(path: file)
        let result = try await context.client.restore { count throws(AspenError) in
            try source.read(count)
        }
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("success", .bool(true)), ("cluster_id", .string(result.clusterID)),
                    ("revision", .number(result.revision.rawValue)),
                ]).text + "\n"
                : "cluster \(result.clusterID) begins with revision \(result.revision)\n")
        return .done
    }
}

struct ClusterRecover: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "recover",
        abstract: "Make the node asked the only voter, when a majority is lost for good.",
        usage:
            "aspen-cli cluster recover --cluster-id ID --yes-i-know-the-others-are-gone [OPTIONS]",
        discussion: """
            Writes that only the lost nodes had are lost. Ask the node that has most, by "last entry" in \
            `cluster metrics` of each: the higher term, and of equal terms the higher number. The \
            cluster gets a new id; the other old nodes must never be started again with the data that \
            they have: empty their data directories and add them.

            EXAMPLES
              aspen-cli cluster recover --cluster-id ID --yes-i-know-the-others-are-gone
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: "The cluster's id, so that nobody says this to the wrong one.")
    var clusterId: String

    @Flag(help: "Required.")
    var yesIKnowTheOthersAreGone = false

    func prepare() throws {
        guard yesIKnowTheOthersAreGone else {
            throw CommandFailure.usage(
                "this throws away what only the lost nodes had, and two clusters will exist if the "
                    + "others still live: say --yes-i-know-the-others-are-gone")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let logID = try await context.client.recoverQuorum(clusterID: clusterId)
        let cluster = try await context.client.nodeInfo().clusterID
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("success", .bool(true)), ("cluster_id", .string(cluster)),
                    ("log_id", .logID(logID)),
                ]).text + "\n" : "this node is now the only voter of cluster \(cluster)\n")
        return .done
    }
}

extension BackupSummary {
    func write(to output: Output, isJSON: Bool) {
        output.write(
            isJSON
                ? JSON.object([
                    ("cluster_id", .string(clusterID)), ("revision", .number(revision.rawValue)),
                    ("bytes", .number(byteCount)), ("wall_time_ms", .number(wallMilliseconds)),
                ]).text + "\n"
                : "cluster \(Display.oneLine(clusterID)), revision \(revision), "
                    + "\(Display.size(byteCount))\n")
    }
}

extension CommandContext {
    func write(_ summary: BackupSummary) { summary.write(to: output, isJSON: isJSON) }
}
