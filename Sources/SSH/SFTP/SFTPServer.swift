// SPDX-License-Identifier: Apache-2.0

/// The server of SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, over any file
/// system. Pure: the file system does what I/O there is.
///
///     uint32 length │ byte type │ uint32 request id │ fields
///
/// Drive it like this: hand in what came (`receive`), call `serve` until it returns false, send `outgoing`
/// and call `consumeOutgoing`. Requests are answered in order; a client may send many before it reads one
/// answer. While `outgoing` is full the rest of the requests waits.
public struct SFTPServer<FileSystem: SFTPFileSystem>: ~Copyable {
    /// Bounds on what a client can grow.
    public struct Limits: Sendable {
        /// One request or answer. OpenSSH's SFTP_MAX_MSG_LENGTH.
        public var packetBytes = 256 * 1024
        /// Data in one read or write: a packet less 1 KiB for its header, as OpenSSH.
        public var dataBytes = 255 * 1024
        /// Open files and directories. OpenSSH: the soft limit of descriptors.
        public var handles = 512
        /// A path. PATH_MAX.
        public var pathBytes = 4096
        /// Unsent answers at which no further request is served.
        public var outgoingBytes = 1024 * 1024
        /// Entries of a directory in one answer.
        public var entries = 128

        /// The defaults.
        public init() {}
    }

    let limits: Limits
    var incoming = ByteQueue()
    var output = ByteQueue()
    var handles: [Handle?] = []
    var isInitialized = false
    /// A copy that is under way; the requests behind it wait.
    var copying: Copying?
    /// Requests served, and those answered by an error other than the end of a file.
    public private(set) var requests: UInt64 = 0
    public internal(set) var failures: UInt64 = 0

    enum Handle {
        case file(FileSystem.Handle)
        case directory(FileSystem.Handle)
    }

    struct Copying {
        var id: UInt32
        var source: FileSystem.Handle
        var from: UInt64
        /// Bytes still to copy; `.max`: up to the end.
        var left: UInt64
        var target: FileSystem.Handle
        var to: UInt64
    }

    /// A server without open files.
    public init(limits: Limits = Limits()) { self.limits = limits }

    /// Takes bytes from the client, split in any way. Its caller bounds them by the channel's window.
    public mutating func receive(_ bytes: UnsafeRawBufferPointer) { unsafe incoming.append(bytes) }

    /// Bytes taken in and not yet served.
    public var incomingCount: Int { incoming.count }
    /// Bytes to send. Valid until the next mutating call.
    public var outgoing: UnsafeRawBufferPointer { unsafe output.bytes }
    /// How many bytes are to be sent.
    public var outgoingCount: Int { output.count }
    /// Drops the first `count` bytes of `outgoing`, which have been sent.
    public mutating func consumeOutgoing(_ count: Int) { output.consume(count) }

    /// Whether a long request goes on with the next `serve`, which should not wait for anything.
    public var isBusy: Bool { copying != nil }

    /// Serves the next request. False: it has not come whole, or `outgoing` must be drained first, or a long one has
    /// used up its turn (`isBusy`).
    ///
    /// Throws when the client breaks the protocol; the session should end then.
    public mutating func serve(_ fileSystem: inout FileSystem) throws(WireError) -> Bool {
        if copying != nil { return goOnCopying(&fileSystem) }
        guard output.count <= limits.outgoingBytes, incoming.count >= 4 else { return false }
        var reader = unsafe WireReader(incoming.bytes)
        let length = Int(try reader.uint32())
        guard length >= 1, length <= limits.packetBytes else {
            throw .tooLong(length: length, limit: limits.packetBytes)
        }
        guard length <= reader.remaining else { return false }
        var request = unsafe WireReader(reader.view(4..<4 + length))
        try dispatch(&request, &fileSystem)
        incoming.consume(4 + length)
        requests += 1
        return copying == nil
    }

    /// Closes what the client left open.
    public mutating func closeAll(_ fileSystem: inout FileSystem) {
        copying = nil
        for index in handles.indices {
            switch handles[index] {
            case .file(let handle)?, .directory(let handle)?:
                do { try fileSystem.close(handle) } catch { failures += 1 }
            case nil: break
            }
            handles[index] = nil
        }
    }

    private mutating func dispatch(
        _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws(WireError) {
        let type = SFTPMessage(rawValue: try request.byte())
        guard type != .initialize else {
            _ = try request.uint32()
            isInitialized = true
            return sendVersion()
        }
        let id = try request.uint32()
        guard isInitialized, let type else { return send(.unsupported, id) }
        let start = output.count
        do {
            try perform(type, id, &request, &fileSystem)
        } catch let error as SFTPStatus {
            output.truncate(to: start)
            if error != .endOfFile { failures += 1 }
            send(error, id)
        } catch {
            // A request whose fields do not parse has still got its length right: answer it and go on.
            output.truncate(to: start)
            failures += 1
            send(.badMessage, id)
        }
    }

    // MARK: Answers

    private mutating func sendVersion() {
        answer(.version) {
            $0.append(UInt32(3))
            for (name, value) in SFTPMessage.extensions {
                $0.appendString(name)
                $0.appendString(value)
            }
        }
    }

    mutating func send(_ status: SFTPStatus, _ id: UInt32) {
        answer(.status) {
            $0.append(id)
            $0.append(status.rawValue)
            $0.appendString(status.message)
            $0.appendString("")
        }
    }

    mutating func send(_ attributes: SFTPAttributes, _ id: UInt32) {
        answer(.attributes) {
            $0.append(id)
            attributes.write(&$0)
        }
    }

    /// A NAME answer with one path.
    mutating func send(_ path: ByteString, _ id: UInt32) {
        answer(.name) {
            $0.append(id)
            $0.append(UInt32(1))
            $0.appendString(path)
            $0.appendString(path)
            SFTPAttributes().write(&$0)
        }
    }

    mutating func answer(_ type: SFTPMessage, _ write: (inout ByteQueue) -> Void) {
        let start = output.count
        output.append(UInt32(0))
        output.append(type.rawValue)
        write(&output)
        output.overwrite(UInt32(output.count - start - 4), at: start)
    }

    // MARK: Handles

    mutating func add(_ handle: Handle, _ id: UInt32) {
        let index = handles.firstIndex { $0 == nil } ?? handles.count
        if index == handles.count { handles.append(handle) } else { handles[index] = handle }
        answer(.handle) {
            $0.append(id)
            $0.append(UInt32(4))
            $0.append(UInt32(index))
        }
    }

    func checkHandleRoom() throws(SFTPStatus) {
        guard handles.count < limits.handles || handles.contains(where: { $0 == nil }) else { throw .failure }
    }

    func handleIndex(_ reader: inout WireReader) throws -> Int {
        let bytes = try reader.bytes(limit: 256)
        guard bytes.count == 4 else { throw SFTPStatus.failure }
        let index = bytes.reduce(0) { $0 << 8 | Int($1) }
        guard index < handles.count, handles[index] != nil else { throw SFTPStatus.failure }
        return index
    }

    func file(_ reader: inout WireReader) throws -> FileSystem.Handle {
        guard case .file(let handle)? = handles[try handleIndex(&reader)] else { throw SFTPStatus.failure }
        return handle
    }

    func anyHandle(_ reader: inout WireReader) throws -> FileSystem.Handle {
        switch handles[try handleIndex(&reader)] {
        case .file(let handle)?, .directory(let handle)?: return handle
        case nil: throw SFTPStatus.failure
        }
    }

    func path(_ reader: inout WireReader) throws -> ByteString {
        let path = try reader.byteString(limit: limits.pathBytes)
        guard path.isCString else { throw SFTPStatus.noSuchFile }
        return path
    }
}

/// Packet types of §3.
enum SFTPMessage: UInt8 {
    case initialize = 1
    case version = 2
    case open = 3
    case close = 4
    case read = 5
    case write = 6
    case lstat = 7
    case fstat = 8
    case setstat = 9
    case fsetstat = 10
    case opendir = 11
    case readdir = 12
    case remove = 13
    case mkdir = 14
    case rmdir = 15
    case realpath = 16
    case stat = 17
    case rename = 18
    case readlink = 19
    case symlink = 20
    case status = 101
    case handle = 102
    case data = 103
    case name = 104
    case attributes = 105
    case extended = 200
    case extendedReply = 201

    /// Names and versions in our VERSION, OpenSSH PROTOCOL §4.
    static let extensions = [
        ("posix-rename@openssh.com", "1"), ("statvfs@openssh.com", "2"), ("fstatvfs@openssh.com", "2"),
        ("hardlink@openssh.com", "1"), ("fsync@openssh.com", "1"), ("lsetstat@openssh.com", "1"),
        ("limits@openssh.com", "1"), ("expand-path@openssh.com", "1"),
        ("copy-data", "1"),
    ]
}
