// SPDX-License-Identifier: Apache-2.0

internal import CPQ
internal import Dispatch
internal import Glibc

/// Runs an actor's jobs on a serial queue of its own, so that blocking calls never hold a thread of the shared pool.
final class QueueExecutor: SerialExecutor {
    private let queue: DispatchQueue

    init(label: String) { queue = DispatchQueue(label: label) }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}

/// One connection to PostgreSQL with libpq's blocking calls. Owned by a pool, which hands it to one task at a time.
actor PostgresConnection: SQLRunner {
    private let executor: QueueExecutor
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    private let conninfo: String
    private var handle: OpaquePointer?
    /// Names of the statements prepared on this connection, by their text.
    private var prepared: [String: String] = [:]

    /// Statements kept prepared per connection: ours are constants, so this is never reached.
    private static let maximumPrepared = 500

    init(conninfo: String) {
        self.conninfo = conninfo
        executor = QueueExecutor(label: "postgres")
    }

    isolated deinit { if let handle { PQfinish(handle) } }

    /// Opens the connection if it is not open.
    func open() throws(DatabaseError) {
        if let handle, PQstatus(handle) == CONNECTION_OK, !Self.hasEnded(handle) { return }
        close()
        guard let new = Self.connect(conninfo) else {
            throw DatabaseError(sqlState: "", message: "out of memory", constraint: "", isDisconnected: true)
        }
        guard PQstatus(new) == CONNECTION_OK else {
            let message = String(cString: PQerrorMessage(new))
            PQfinish(new)
            throw DatabaseError(sqlState: "", message: message, constraint: "", isDisconnected: true)
        }
        PQsetNoticeProcessor(new, { _, _ in }, nil)
        handle = new
        try command(
            """
            SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; SET bytea_output = 'hex';
            SET statement_timeout = '60s'; SET lock_timeout = '30s'
            """)
    }

    /// Limits for a server that hangs; what `conninfo` says itself comes later and wins.
    private static func connect(_ conninfo: String) -> OpaquePointer? {
        let settings = [
            ("connect_timeout", "5"), ("tcp_user_timeout", "30000"), ("keepalives_idle", "30"),
            ("dbname", conninfo),
        ]
        return withCStrings(settings.map(\.0) + [nil]) { names in
            withCStrings(settings.map(\.1) + [nil]) { values in PQconnectdbParams(names, values, 1) }
        }
    }

    /// Whether the server closed a connection between two statements: it sends a farewell then, and nothing else.
    private static func hasEnded(_ handle: OpaquePointer) -> Bool {
        guard PQtransactionStatus(handle) == PQTRANS_IDLE else { return false }
        var state = pollfd(fd: PQsocket(handle), events: Int16(POLLIN), revents: 0)
        guard poll(&state, 1, 0) > 0 else { return false }
        // Something other than a farewell, such as a changed setting, leaves it usable.
        guard PQconsumeInput(handle) == 1, PQstatus(handle) == CONNECTION_OK else { return true }
        state.revents = 0
        return poll(&state, 1, 0) > 0
    }

    /// Closes the connection; the next statement opens it again.
    func close() {
        if let handle { PQfinish(handle) }
        handle = nil
        prepared = [:]
    }

    /// Runs one or more statements without parameters and ignores their rows.
    func command(_ sql: String) throws(DatabaseError) {
        try open()
        guard let handle, let result = PQexec(handle, sql) else { throw failure(nil) }
        defer { PQclear(result) }
        guard [PGRES_COMMAND_OK, PGRES_TUPLES_OK].contains(PQresultStatus(result)) else {
            throw failure(result)
        }
    }

    func query(_ sql: String, _ parameters: [SQLValue]) async throws -> [Row] {
        try open()
        let name = try prepare(sql, parameterCount: parameters.count)
        guard let handle else { throw failure(nil) }
        let texts: [String?] = parameters.map(Self.text)
        let result = Self.withCStrings(texts) { pointers in
            PQexecPrepared(handle, name, Int32(texts.count), pointers, nil, nil, 0)
        }
        guard let result else { throw failure(nil) }
        defer { PQclear(result) }
        guard [PGRES_COMMAND_OK, PGRES_TUPLES_OK].contains(PQresultStatus(result)) else {
            throw failure(result)
        }
        return Self.rows(result)
    }

    private func prepare(_ sql: String, parameterCount: Int) throws(DatabaseError) -> String {
        if let name = prepared[sql] { return name }
        guard let handle else { throw failure(nil) }
        if prepared.count >= Self.maximumPrepared {
            try command("DEALLOCATE ALL")
            prepared = [:]
        }
        let name = "s\(prepared.count)"
        guard let result = PQprepare(handle, name, sql, Int32(parameterCount), nil) else {
            throw failure(nil)
        }
        defer { PQclear(result) }
        guard PQresultStatus(result) == PGRES_COMMAND_OK else { throw failure(result) }
        prepared[sql] = name
        return name
    }

    private func failure(_ result: OpaquePointer?) -> DatabaseError {
        func field(_ code: Int32) -> String {
            result.flatMap { PQresultErrorField($0, code) }.map { String(cString: $0) } ?? ""
        }
        let isGone = handle.map { PQstatus($0) != CONNECTION_OK } ?? true
        let message = field(Int32(UInt8(ascii: "M")))
        let general = handle.map { String(cString: PQerrorMessage($0)) } ?? "not connected"
        if isGone { close() }
        return DatabaseError(
            sqlState: field(Int32(UInt8(ascii: "C"))), message: message.isEmpty ? general : message,
            constraint: field(Int32(UInt8(ascii: "n"))), isDisconnected: isGone)
    }

    // MARK: Values

    private static func text(_ value: SQLValue) -> String? {
        switch value {
        case .null: return nil
        // PostgreSQL's texts cannot hold a zero byte: it would end the parameter early.
        case .text(let text): return text.utf8.contains(0) ? text.split(separator: "\0").joined() : text
        case .bytes(let bytes):
            let digits = Array("0123456789abcdef".utf8)
            var out = Array("\\x".utf8)
            for byte in bytes { out += [digits[Int(byte >> 4)], digits[Int(byte & 15)]] }
            return String(decoding: out, as: UTF8.self)
        }
    }

    private static func withCStrings<R>(
        _ texts: [String?], _ body: (UnsafePointer<UnsafePointer<CChar>?>?) -> R
    ) -> R {
        let copies = texts.map { text in
            text.map { text -> UnsafeMutablePointer<CChar> in
                let bytes = text.utf8CString
                let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
                for (index, byte) in bytes.enumerated() { copy[index] = byte }
                return copy
            }
        }
        defer { for copy in copies { copy?.deallocate() } }
        let pointers: [UnsafePointer<CChar>?] = copies.map { $0.map { UnsafePointer($0) } }
        return pointers.withUnsafeBufferPointer { body($0.baseAddress) }
    }

    private static func rows(_ result: OpaquePointer) -> [Row] {
        let count = PQnfields(result)
        let columns = Row.ColumnNames((0..<count).map { String(cString: PQfname(result, $0)) })
        return (0..<PQntuples(result)).map { row in
            Row(
                columns: columns,
                values: (0..<count).map { column in
                    guard PQgetisnull(result, row, column) == 0 else { return nil }
                    let bytes = UnsafeRawBufferPointer(
                        start: PQgetvalue(result, row, column), count: Int(PQgetlength(result, row, column)))
                    return String(decoding: bytes, as: UTF8.self)
                })
        }
    }
}
