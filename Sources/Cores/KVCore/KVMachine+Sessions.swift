// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

// Client sessions (Ongaro's thesis §6.3): a request that is sent again under the same number is
// applied once and answered alike. A client may have up to `Limits.sessionWindowMax` requests
// without an acknowledged answer, in any order.

extension KVMachine {
    package var sessionCount: UInt64 { meta.sessionCount }

    mutating func openSession() throws(Tables.Failure) -> CommandResult {
        guard meta.sessionCount < bounds.sessionsMax else {
            return .failed(
                code: .resourceExhausted,
                message: "the cluster has \(bounds.sessionsMax) sessions, its limit; close some")
        }
        let id = SessionID(meta.appliedIndex.rawValue)
        meta.sessionCount += 1
        put(SessionRow(id: id, lastActive: meta.time))
        return .sessionOpened(id)
    }

    mutating func keepSessionAlive(_ id: SessionID) throws(Tables.Failure) -> CommandResult {
        guard var session = try session(id) else { return expired(id) }
        session.lastActive = meta.time
        put(session)
        return .done
    }

    mutating func closeSession(_ id: SessionID) throws(Tables.Failure) -> CommandResult {
        guard let session = try session(id) else { return expired(id) }
        try remove(session)
        return .done
    }

    mutating func expireSessions() throws(Tables.Failure) -> CommandResult {
        let timeout = sessionTimeoutMilliseconds
        guard meta.time.milliseconds > timeout else { return .done }
        try writeBackSessions()
        let deadline = ClusterTime(milliseconds: meta.time.milliseconds - timeout)
        for id in try tables.sessions(lastActiveBefore: deadline) {
            guard let session = try session(id) else {
                preconditionFailure("a listed session exists")
            }
            try remove(session)
        }
        return .done
    }

    /// When a session will be due for `expireSessions` if it stays silent; nil without sessions. A
    /// leader proposes the command when its cluster time passes this, and not otherwise.
    package func nextSessionExpiry() throws(Tables.Failure) -> ClusterTime? {
        guard let oldest = try tables.oldestSessionActivity() else { return nil }
        let timeout = sessionTimeoutMilliseconds
        return ClusterTime(milliseconds: oldest.milliseconds + timeout + 1)
    }

    mutating func apply(
        _ command: Command, under request: SessionRequest
    ) throws(Tables.Failure) -> CommandResult {
        guard var session = try session(request.session) else {
            if has(.executeExpiredSession) { return try carryOut(command, within: .max) }
            return expired(request.session)
        }
        session.lastActive = meta.time
        guard request.acknowledgedBelow <= request.number else {
            put(session)
            return .failed(
                code: .invalidArgument,
                message: "request \(request.number) acknowledges its own answer")
        }
        try forget(below: request.acknowledgedBelow, in: &session)
        if let refusal = refusal(of: request, in: session) {
            put(session)
            return .failed(code: refusal.code, message: refusal.message)
        }
        if let answer = try answer(to: request.number, in: session), !has(.applyRetryTwice) {
            put(session)
            return answer
        }
        let result = try carryOut(command, within: answerRoom(in: session))
        try keep(result, for: request.number, in: &session)
        put(session)
        return result
    }

    // MARK: Steps of a request

    private func expired(_ id: SessionID) -> CommandResult {
        .failed(
            code: .sessionExpired,
            message: "session \(id) has ended or never was; open a new one")
    }

    private func refusal(of request: SessionRequest, in session: SessionRow) -> Refusal? {
        guard request.number >= session.acknowledgedBelow else {
            return Refusal(
                .invalidArgument,
                "request \(request.number) has been answered, and the answer acknowledged")
        }
        guard request.number - session.acknowledgedBelow < Limits.sessionWindowMax else {
            return Refusal(
                .resourceExhausted,
                "request \(request.number) is \(Limits.sessionWindowMax) or more beyond the last"
                    + " acknowledged answer; acknowledge earlier answers first")
        }
        return nil
    }

    private func answer(
        to number: UInt64, in session: SessionRow
    ) throws(Tables.Failure) -> CommandResult? {
        guard let stored = session.answers.first(where: { $0.number == number }) else { return nil }
        let bytes: [UInt8]?
        if let inline = stored.bytes {
            bytes = inline
        } else {
            bytes = try tables.answer(of: session.id, number: number)
        }
        guard let bytes, let result = try? ResultCodec.decode(bytes) else {
            preconditionFailure("a stored answer can be read")
        }
        return result
    }

    /// Bytes that the answer to the next request may have.
    private func answerRoom(in session: SessionRow) -> Int {
        let kept = session.answers.reduce(0) { $0 + $1.byteCount }
        let here = bounds.sessionAnswersBytesMax - kept
        let everywhere = bounds.storedAnswersBytesMax - Int(meta.storedAnswerBytes)
        // What fits the session's row is always taken: the window bounds how many those are.
        return max(min(here, everywhere), bounds.inlineAnswerBytesMax)
    }

    mutating func carryOut(
        _ transaction: Transaction, within room: Int
    ) throws(Tables.Failure) -> CommandResult {
        switch try plan(transaction) {
        case .failure(let refusal): return .failed(code: refusal.code, message: refusal.message)
        case .success(let plan):
            guard plan.answerBytes <= room else {
                return .failed(
                    code: .resourceExhausted,
                    message: "no room to keep the answer for a retry; acknowledge earlier answers"
                        + " or ask for less")
            }
            return try carryOut(plan)
        }
    }

    private mutating func keep(
        _ result: CommandResult, for number: UInt64, in session: inout SessionRow
    ) throws(Tables.Failure) {
        let bytes = ResultCodec.encode(result)
        let isInline = bytes.count <= bounds.inlineAnswerBytesMax
        if !isInline {
            let answer = AnswerRow(session: session.id, number: number, bytes: bytes)
            try tables.store(answer)
            meta.rowHash &+= RowHash.of(answer)
            meta.storedAnswerBytes += UInt64(bytes.count)
        }
        let answer = SessionRow.Answer(
            number: number, byteCount: bytes.count, bytes: isInline ? bytes : nil)
        if has(.applyRetryTwice) { session.answers.removeAll { $0.number == number } }
        let place = session.answers.firstIndex { $0.number > number } ?? session.answers.count
        session.answers.insert(answer, at: place)
    }

    /// Drops answers that the client has received.
    private mutating func forget(
        below number: UInt64, in session: inout SessionRow
    ) throws(Tables.Failure) {
        guard number > session.acknowledgedBelow else { return }
        session.acknowledgedBelow = number
        let count = session.answers.firstIndex { $0.number >= number } ?? session.answers.count
        for answer in session.answers[..<count] where answer.bytes == nil {
            try forget(answer, of: session.id)
        }
        session.answers.removeFirst(count)
    }

    private mutating func forget(
        _ answer: SessionRow.Answer, of session: SessionID
    ) throws(Tables.Failure) {
        guard let bytes = try tables.answer(of: session, number: answer.number) else {
            preconditionFailure("a stored answer is there until it is forgotten")
        }
        meta.rowHash &-= RowHash.of(
            AnswerRow(session: session, number: answer.number, bytes: bytes))
        meta.storedAnswerBytes -= UInt64(bytes.count)
        try tables.removeAnswer(of: session, number: answer.number)
    }

    // MARK: Rows

    private mutating func session(_ id: SessionID) throws(Tables.Failure) -> SessionRow? {
        if let cached = sessions[id] { return cached.row }
        guard let row = try tables.session(id) else { return nil }
        sessions[id] = CachedSession(row: row, storedHash: RowHash.of(row), isDirty: false)
        return row
    }

    private mutating func put(_ session: SessionRow) {
        let cached = sessions[session.id]
        if cached?.isDirty != true { dirtySessions.append(session.id) }
        sessions[session.id] = CachedSession(
            row: session, storedHash: cached?.storedHash ?? 0, isDirty: true)
    }

    private mutating func remove(_ session: SessionRow) throws(Tables.Failure) {
        for answer in session.answers where answer.bytes == nil {
            try forget(answer, of: session.id)
        }
        if let cached = sessions.removeValue(forKey: session.id) {
            if cached.isDirty { dirtySessions.removeAll { $0 == session.id } }
            meta.rowHash &-= cached.storedHash
        }
        try tables.removeSession(session.id)
        meta.sessionCount -= 1
    }

    mutating func writeBackSessions() throws(Tables.Failure) {
        for id in dirtySessions {
            guard var cached = sessions[id] else {
                preconditionFailure("a changed session is kept until it is written")
            }
            try tables.store(cached.row)
            let hash = RowHash.of(cached.row)
            meta.rowHash &+= hash &- cached.storedHash
            cached.storedHash = hash
            cached.isDirty = false
            sessions[id] = cached
        }
        dirtySessions.removeAll(keepingCapacity: true)
    }
}
