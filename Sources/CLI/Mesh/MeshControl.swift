// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// The control socket of a mesh node: a unix socket for its owner alone (mode 0600). A request is one line of words,
/// the last of which may be JSON; an answer is one line of JSON, `{"error": …}` for a failure.
final class MeshControl: Sendable {
    /// Connections at once; each has a thread.
    private static let connectionLimit = 64
    /// Bytes of one request: some thousand peers.
    static let lineLimit = 8 << 20

    private let path: String
    private let listener: OwnedDescriptor

    /// Opens the socket; takes the place of one that nobody listens on any more.
    init(path: String) throws {
        let bytes = Array(path.utf8)
        guard !bytes.contains(0), 1...107 ~= bytes.count else {
            throw CommandError("a socket's path has 1 to 107 bytes")
        }
        do {
            listener = try StreamSocket.listen(onPath: bytes)
        } catch {
            guard error.code == EADDRINUSE, !Self.isAlive(bytes) else {
                throw CommandError("cannot listen on \(path): \(error)")
            }
            unlink(path)
            listener = try StreamSocket.listen(onPath: bytes)
        }
        self.path = path
    }

    private static func isAlive(_ path: [UInt8]) -> Bool { (try? StreamSocket.connect(toPath: path)) != nil }

    /// Takes connections until cancelled. `answer` gets the words of one request.
    func run(_ answer: @escaping @Sendable ([String]) async -> JSON) async {
        let (connections, continuation) = AsyncStream.makeStream(
            of: Connection.self, bufferingPolicy: .bufferingOldest(Self.connectionLimit))
        // A second descriptor for the thread, which may outlive this object.
        guard let copy = try? listener.duplicate().release() else { return }
        let isOver = Flag()
        let thread = try? DedicatedThread(name: "mesh-control") {
            let listener = OwnedDescriptor(taking: copy)
            var wait = pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0)
            while !isOver.isSet {
                _ = poll(&wait, 1, 200)
                while let accepted = StreamSocket.accept(listener.number) {
                    continuation.yield(Connection(accepted.take()))
                }
            }
            continuation.finish()
        }
        await withTaskCancellationHandler {
            await withDiscardingTaskGroup { group in
                for await connection in connections {
                    group.addTask { await connection.run(answer) }
                }
                group.cancelAll()
            }
        } onCancel: {
            isOver.set()
        }
        thread?.join()
        unlink(path)
    }

    /// Splits a line into words; from the first word on that begins JSON the rest is one word.
    static func words(_ line: String) -> [String] {
        var words: [String] = []
        var rest = line.drop { $0 == " " }
        while !rest.isEmpty {
            if rest.first == "{" || rest.first == "[", (try? JSON.parse(rest.utf8)) != nil {
                return words + [String(rest)]
            }
            let word = rest.prefix { $0 != " " }
            words.append(String(word))
            rest = rest[word.endIndex...].drop { $0 == " " }
        }
        return words
    }

    /// Asks a node and returns its answer, or throws what it complains about. The waiting is done on a thread of
    /// its own.
    static func ask(path: String, _ words: [String]) async throws -> JSON {
        try await withCheckedThrowingContinuation { continuation in
            do {
                try DedicatedThread(name: "mesh-ask") {
                    continuation.resume(with: Result { try exchange(path: path, words) })
                }.detach()
            } catch {
                continuation.resume(throwing: error)
            }
        }
    }

    private static func exchange(path: String, _ words: [String]) throws -> JSON {
        let connected: OwnedDescriptor
        do {
            connected = try StreamSocket.connect(toPath: Array(path.utf8))
        } catch {
            throw CommandError("no mesh node listens on \(path): \(error)")
        }
        let socket = try MeshSocket(connected)
        try socket.say(words.joined(separator: " "))
        socket.finishWriting()
        var bytes: [UInt8] = []
        while let piece = try socket.read() { bytes += piece }
        guard !bytes.isEmpty else { throw CommandError("the mesh node ended without an answer") }
        let answer = try JSON.parse(bytes)
        if let error = answer["error"].string { throw CommandError(error) }
        return answer
    }

    private final class Flag: Sendable {
        private let value = Atomic(false)
        var isSet: Bool { value.load(ordering: .acquiring) }
        func set() { value.store(true, ordering: .releasing) }
    }

    /// One client. Its thread reads lines; its task answers them, one after the other.
    private final class Connection: Sendable {
        private let descriptor: OwnedDescriptor

        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }

        func run(_ answer: @Sendable ([String]) async -> JSON) async {
            let (lines, continuation) = AsyncStream.makeStream(
                of: String.self, bufferingPolicy: .bufferingOldest(1_024))
            guard let copy = try? descriptor.duplicate() else { return }
            let number = copy.release()
            let thread = try? DedicatedThread(name: "mesh-client") {
                if let socket = try? MeshSocket(OwnedDescriptor(taking: number)) {
                    Self.readLines(socket) { continuation.yield($0) }
                }
                continuation.finish()
            }
            guard let thread else { return OwnedDescriptor(taking: number).close() }
            thread.detach()
            await withTaskCancellationHandler {
                for await line in lines {
                    let words = MeshControl.words(line)
                    guard !words.isEmpty else { continue }
                    let text = await answer(words).compact + "\n"
                    let isWritten: Void? = try? Array(text.utf8).withUnsafeBytes {
                        try Descriptor.writeAll(descriptor.number, $0)
                    }
                    if isWritten == nil { break }
                }
            } onCancel: {
                shutdown(descriptor.number, Int32(SHUT_RDWR))
            }
            shutdown(descriptor.number, Int32(SHUT_RDWR))
        }

        private static func readLines(_ socket: borrowing MeshSocket, _ body: (String) -> Void) {
            var bytes: [UInt8] = []
            while bytes.count <= MeshControl.lineLimit, let piece = (try? socket.read()) ?? nil {
                bytes += piece
                while let end = bytes.firstIndex(of: 10) {
                    body(String(decoding: bytes[..<end], as: UTF8.self))
                    bytes.removeSubrange(...end)
                }
            }
        }
    }
}
