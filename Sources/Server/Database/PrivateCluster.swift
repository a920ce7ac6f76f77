// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Logging

/// A PostgreSQL of our own: the installed programs, a data directory below the config directory, a unix socket in a
/// directory that only its owner may enter, and no TCP. Runs as an unprivileged user when we are root.
actor PrivateCluster {
    /// Why it could not be started.
    struct StartError: Error, CustomStringConvertible {
        var description: String
    }

    private let layout: Layout
    private let programs: String
    private let account: Account?
    private let logger: Logger
    private var process: ChildProcess?
    private var isStopping = false
    private var supervisor: Task<Void, Never>?

    /// Where things are.
    struct Layout: Sendable {
        /// Everything below is ours.
        var root: String
        var data: String { root + "/data" }
        var log: String { root + "/postgres.log" }
        /// Directory of the socket: its path must fit into 107 bytes with the socket's name.
        var runtime: String
        /// libpq's connection text.
        var conninfo: String { "host=\(runtime) port=5432 user=coder dbname=coder connect_timeout=5" }
    }

    private init(layout: Layout, programs: String, account: Account?, logger: Logger) {
        self.layout = layout
        self.programs = programs
        self.account = account
        self.logger = logger
    }

    /// libpq's connection text of the running cluster.
    nonisolated var conninfo: String { layout.conninfo }
    /// Where its data is, for the line that says so.
    nonisolated var directory: String { layout.root }

    /// Finds the programs, makes the cluster if there is none, and starts it. Returns when it takes connections.
    static func start(configDirectory: String, logger: Logger) async throws -> PrivateCluster {
        let programs = try PostgresPrograms.find()
        let account = getuid() == 0 ? try Account.unprivileged() : nil
        let layout = try prepareDirectories(configDirectory, account)
        let cluster = PrivateCluster(layout: layout, programs: programs, account: account, logger: logger)
        do {
            try await cluster.initialise()
            try await cluster.launch()
        } catch {
            await cluster.stop()
            throw error
        }
        return cluster
    }

    /// Stops it: clients are disconnected, data is flushed. Returns within about 8 s.
    func stop() async {
        isStopping = true
        supervisor?.cancel()
        guard let process else { return }
        // SIGINT is PostgreSQL's fast shutdown, SIGQUIT the immediate one that needs recovery at the next start.
        for (signal, patience) in [(SIGINT, 6.0), (SIGQUIT, 2.0), (SIGKILL, 1.0)] {
            process.signal(signal)
            if await process.waitForEnd(seconds: patience) { break }
        }
        self.process = nil
    }

    // MARK: Start

    private static func prepareDirectories(_ config: String, _ account: Account?) throws -> Layout {
        var root = config + "/postgres"
        if let account, !account.canReach(config) {
            if access(root + "/data", F_OK) == 0 {
                // Here it was reachable once, and here it stays.
                guard chmod(config, 0o711) == 0 else { throw SystemError(call: "chmod \(config)") }
            } else {
                // The home of root is closed to everybody else: the data goes where its user can reach it.
                root = "/var/lib/coder/postgres-" + Digest.hex(Digest.sha1(Array(config.utf8))).prefix(12)
            }
        }
        // sun_path has 108 bytes; the socket's name takes 16 of them and its lock file 5 more.
        let short = "/tmp/coder-pg-" + Digest.hex(Digest.sha1(Array(root.utf8))).prefix(12)
        let runtime = root.utf8.count + 8 <= 85 ? root + "/runtime" : short
        try Directory.makeOwn(root, mode: account == nil ? 0o700 : 0o711, account: account)
        try Directory.makeOwn(runtime, mode: 0o700, account: account)
        return Layout(root: root, runtime: runtime)
    }

    private func initialise() async throws {
        if FileReader.text(layout.data + "/PG_VERSION") != nil {
            try checkVersion()
            try await endOrphan()
            return
        }
        // Made under another name first, so that an interrupted initdb leaves no half of a cluster behind.
        let fresh = layout.data + ".new"
        try Directory.removeTree(fresh)
        let process = try spawn(
            programs + "/initdb",
            [
                "-D", fresh, "-U", "coder", "-E", "UTF8", "--locale=C", "--auth-local=trust",
                "--auth-host=reject",
                "--no-instructions", "--data-checksums",
            ])
        guard await process.waitForEnd(seconds: 120), process.exitStatus == 0 else {
            process.signal(SIGKILL)
            throw StartError(description: "initdb failed: \(logTail())")
        }
        guard rename(fresh, layout.data) == 0 else { throw SystemError(call: "rename") }
    }

    private func checkVersion() throws {
        let data = (FileReader.text(layout.data + "/PG_VERSION") ?? "").trimmingLine()
        guard let own = PostgresPrograms.majorVersion(programs), own != data else { return }
        guard let other = PostgresPrograms.find(major: data) else {
            throw StartError(
                description:
                    "the data in \(layout.data) was made by PostgreSQL \(data), installed is \(own): "
                    + "install postgresql-\(data), or use pg_upgrade")
        }
        throw StartError(description: "the data in \(layout.data) needs the programs in \(other)")
    }

    /// Ends a PostgreSQL that a crashed server left behind. A stale pid file alone is PostgreSQL's own business.
    private func endOrphan() async throws {
        guard let text = FileReader.text(layout.data + "/postmaster.pid"),
            let line = text.split(separator: "\n").first,
            let pid = Int32(line), pid > 1,
            let command = FileReader.text("/proc/\(pid)/cmdline"), command.contains(layout.data)
        else { return }
        logger.notice("ending the PostgreSQL of an earlier run", metadata: ["pid": "\(pid)"])
        for (signal, patience) in [(SIGINT, 10.0), (SIGQUIT, 5.0), (SIGKILL, 2.0)] {
            kill(pid, signal)
            for _ in 0..<Int(patience * 20) {
                if kill(pid, 0) != 0 { return }
                try await Task.sleep(for: .milliseconds(50))
            }
        }
    }

    private func launch() async throws {
        let process = try spawn(
            programs + "/postgres",
            [
                "-D", layout.data, "-c", "listen_addresses=", "-c",
                "unix_socket_directories=\(layout.runtime)",
                "-c", "unix_socket_permissions=0700", "-c", "port=5432", "-c", "max_connections=50",
                "-c", "shared_buffers=32MB", "-c", "logging_collector=off",
            ])
        self.process = process
        try await waitUntilReady(process)
        supervisor = Task { await self.supervise() }
    }

    private func waitUntilReady(_ process: ChildProcess) async throws {
        let maintenance = "host=\(layout.runtime) port=5432 user=coder dbname=postgres connect_timeout=5"
        let connection = PostgresConnection(conninfo: maintenance)
        for _ in 0..<1200 {
            guard process.isRunning else {
                throw StartError(description: "PostgreSQL did not start: \(logTail())")
            }
            do {
                let exists = try await connection.query("SELECT 1 FROM pg_database WHERE datname = 'coder'")
                if exists.isEmpty { try await connection.command("CREATE DATABASE coder") }
                await connection.close()
                return
            } catch let error as DatabaseError where error.isDisconnected || error.sqlState == "57P03" {
                try await Task.sleep(for: .milliseconds(50))
            }
        }
        throw StartError(description: "PostgreSQL takes no connections after a minute: \(logTail())")
    }

    /// Starts PostgreSQL again when it ends although nobody asked it to.
    private func supervise() async {
        while !isStopping {
            do {
                try await Task.sleep(for: .seconds(1))
                shortenLog()
                guard !isStopping, let process, !process.isRunning else { continue }
                logger.error(
                    "PostgreSQL ended; starting it again", metadata: ["status": "\(process.exitStatus)"])
                try await launch()
                return
            } catch is CancellationError {
                return
            } catch {
                logger.error("PostgreSQL could not be started again", metadata: ["error": "\(error)"])
            }
        }
    }

    private func spawn(_ program: String, _ arguments: [String]) throws -> ChildProcess {
        var command = [program] + arguments
        if let account {
            let switcher = try PostgresPrograms.require("setpriv", package: "util-linux")
            command =
                [switcher, "--reuid=\(account.user)", "--regid=\(account.group)", "--clear-groups", "--"]
                + command
        }
        return try ChildProcess(command, directory: layout.root, log: layout.log)
    }

    /// Empties a log that has become long: it is appended to, so that the next line is at its beginning.
    private func shortenLog() {
        let number = open(layout.log, O_WRONLY | O_NOFOLLOW | O_CLOEXEC)
        guard number >= 0 else { return }
        defer { close(number) }
        var info = stat()
        if fstat(number, &info) == 0, info.st_size > 16 << 20 { ftruncate(number, 0) }
    }

    private func logTail() -> String {
        let lines = (FileReader.text(layout.log) ?? "").split(separator: "\n")
        return lines.suffix(4).joined(separator: " | ") + " (\(layout.log))"
    }
}

extension String {
    /// Without line ends and spaces at both ends.
    func trimmingLine() -> String {
        String(drop { $0.isWhitespace }.reversed().drop { $0.isWhitespace }.reversed())
    }
}
