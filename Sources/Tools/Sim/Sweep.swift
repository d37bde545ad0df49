// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import Glibc

/// Deals seeds out to worker processes and reads what they say. Job `j` of `n` takes every `n`th
/// seed; when a worker dies in a seed, another one goes on behind it.
struct Sweep {
    private struct Worker {
        var process: pid_t
        var output: Int32
        var nextSeed: UInt64
        var unread: [UInt8] = []
    }

    let command: SweepCommand

    private var first: UInt64 { command.range?.first ?? 0 }
    private var end: UInt64 { first + (command.range?.count ?? 0) }
    private var stride: UInt64 { UInt64(command.jobs) }

    func run(_ tally: inout Tally) throws {
        var workers: [Worker] = []
        defer { for worker in workers { stop(worker) } }
        for job in 0..<stride where first + job < end {
            workers.append(try start(from: first + job))
        }
        let deadline = command.minutes.map { ContinuousClock.now + .seconds($0 * 60) }
        while !workers.isEmpty {
            var polls = workers.map { pollfd(fd: $0.output, events: Int16(POLLIN), revents: 0) }
            // A look at the clock each second is enough for what is told in minutes.
            let timeout: Int32 = deadline == nil ? -1 : 1000
            guard poll(&polls, nfds_t(polls.count), timeout) >= 0 || errno == EINTR else {
                throw ValidationError("poll: \(String(cString: strerror(errno)))")
            }
            for slot in polls.indices.reversed() where polls[slot].revents != 0 {
                if try hear(&workers[slot], &tally) { continue }
                let ended = workers.remove(at: slot)
                if let heir = try bury(ended, &tally) { workers.append(heir) }
            }
            if let until = command.until, tally.failures >= until { return }
            if let deadline, ContinuousClock.now >= deadline { return }
        }
    }

    // MARK: - Workers

    private func start(from seed: UInt64) throws -> Worker {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else {
            throw ValidationError("pipe: \(String(cString: strerror(errno)))")
        }
        // A worker must not hold the reading ends of the others.
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        let arguments =
            [
                "aspen-sim", "sweep", "--from", String(seed), "--count", String(end - seed),
                "--stride", String(stride),
            ] + (command.once ? ["--once"] : []) + command.options.arguments
        var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) }
        defer { for pointer in pointers { free(pointer) } }
        pointers.append(nil)
        var process = pid_t()
        let result = posix_spawn(&process, "/proc/self/exe", &actions, nil, pointers, environ)
        close(ends[1])
        guard result == 0 else {
            close(ends[0])
            throw ValidationError("cannot start a worker: \(String(cString: strerror(result)))")
        }
        return Worker(process: process, output: ends[0], nextSeed: seed)
    }

    private func stop(_ worker: Worker) {
        kill(worker.process, SIGKILL)
        close(worker.output)
        var status: Int32 = 0
        waitpid(worker.process, &status, 0)
    }

    /// - Returns: false at the end of its output.
    private func hear(_ worker: inout Worker, _ tally: inout Tally) throws -> Bool {
        var chunk = [UInt8](repeating: 0, count: 65_536)
        let count = read(worker.output, &chunk, chunk.count)
        if count < 0, errno == EINTR { return true }
        guard count > 0 else { return false }
        worker.unread += chunk[..<count]
        while let newline = worker.unread.firstIndex(of: 0x0a) {
            let line = String(decoding: worker.unread[..<newline], as: UTF8.self)
            worker.unread.removeFirst(newline + 1)
            take(line, from: &worker, &tally)
        }
        return true
    }

    private func take(_ line: String, from worker: inout Worker, _ tally: inout Tally) {
        let parts = line.split(separator: " ", maxSplits: 6)
        guard parts.count >= 6, let seed = UInt64(parts[0]), let code = Int32(parts[1]),
            let outcome = Outcome(rawValue: code), let events = UInt64(parts[3]),
            let milliseconds = UInt64(parts[4]), let requests = UInt64(parts[5])
        else { return }
        worker.nextSeed = seed + stride
        tally.add(seed: seed, outcome, hash: String(parts[2]))
        tally.add(events: events, milliseconds: milliseconds, requests: requests)
        if outcome != .passed {
            Output.line("seed \(seed) FAILED \(parts.count > 6 ? String(parts[6]) : "")")
        }
    }

    /// A worker that ends before its last seed has crashed in it.
    private func bury(_ worker: Worker, _ tally: inout Tally) throws -> Worker? {
        close(worker.output)
        var status: Int32 = 0
        waitpid(worker.process, &status, 0)
        guard worker.nextSeed < end else { return nil }
        Output.line(
            "seed \(worker.nextSeed) FAILED crash: see `aspen-sim run --seed \(worker.nextSeed)`")
        tally.add(seed: worker.nextSeed, .crash, hash: "crash")
        let next = worker.nextSeed + stride
        return next < end ? try start(from: next) : nil
    }
}
