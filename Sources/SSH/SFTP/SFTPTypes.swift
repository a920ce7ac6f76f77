// SPDX-License-Identifier: Apache-2.0

/// Result codes of SFTP version 3, draft-ietf-secsh-filexfer-02 §7.
public enum SFTPStatus: UInt32, Error, Hashable, Sendable {
    case ok = 0
    case endOfFile = 1
    case noSuchFile = 2
    case permissionDenied = 3
    case failure = 4
    case badMessage = 5
    case noConnection = 6
    case connectionLost = 7
    case unsupported = 8

    var message: String {
        switch self {
        case .ok: "Success"
        case .endOfFile: "End of file"
        case .noSuchFile: "No such file"
        case .permissionDenied: "Permission denied"
        case .failure: "Failure"
        case .badMessage: "Bad message"
        case .noConnection: "No connection"
        case .connectionLost: "Connection lost"
        case .unsupported: "Operation unsupported"
        }
    }
}

/// Attributes of a file, §5: each group is there or not.
///
///     uint32 flags │ [uint64 size] │ [uint32 uid, gid] │ [uint32 permissions]
///     │ [uint32 atime, mtime] │ [extended]
public struct SFTPAttributes: Hashable, Sendable {
    /// Bytes.
    public var size: UInt64?
    /// Owner; comes with `group`.
    public var user: UInt32?, group: UInt32?
    /// `st_mode`, type bits included.
    public var permissions: UInt32?
    /// Seconds since 1970; come together.
    public var accessTime: UInt32?, modificationTime: UInt32?

    /// Nothing known.
    public init() {}

    static let sizeFlag: UInt32 = 1, ownerFlag: UInt32 = 2, permissionsFlag: UInt32 = 4, timesFlag: UInt32 = 8
    static let extendedFlag: UInt32 = 0x8000_0000

    init(_ reader: inout WireReader) throws(WireError) {
        let flags = try reader.uint32()
        if flags & Self.sizeFlag != 0 { size = try reader.uint64() }
        if flags & Self.ownerFlag != 0 {
            user = try reader.uint32()
            group = try reader.uint32()
        }
        if flags & Self.permissionsFlag != 0 { permissions = try reader.uint32() }
        if flags & Self.timesFlag != 0 {
            accessTime = try reader.uint32()
            modificationTime = try reader.uint32()
        }
        guard flags & Self.extendedFlag != 0 else { return }
        let count = try reader.uint32()
        guard count <= 64 else { throw .tooLong(length: Int(count), limit: 64) }
        for _ in 0..<count {
            _ = try reader.stringRange()
            _ = try reader.stringRange()
        }
    }

    func write(_ queue: inout ByteQueue) {
        var flags: UInt32 = 0
        if size != nil { flags |= Self.sizeFlag }
        if user != nil, group != nil { flags |= Self.ownerFlag }
        if permissions != nil { flags |= Self.permissionsFlag }
        if accessTime != nil, modificationTime != nil { flags |= Self.timesFlag }
        queue.append(flags)
        if let size { queue.append(size) }
        if let user, let group {
            queue.append(user)
            queue.append(group)
        }
        if let permissions { queue.append(permissions) }
        if let accessTime, let modificationTime {
            queue.append(accessTime)
            queue.append(modificationTime)
        }
    }
}

/// How a file is opened, §6.3.
public struct SFTPOpenFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Open for reading.
    public static let read = SFTPOpenFlags(rawValue: 1)
    /// Open for writing.
    public static let write = SFTPOpenFlags(rawValue: 2)
    /// Each write goes to the end.
    public static let append = SFTPOpenFlags(rawValue: 4)
    /// Make the file if there is none.
    public static let create = SFTPOpenFlags(rawValue: 8)
    /// Empty it.
    public static let truncate = SFTPOpenFlags(rawValue: 16)
    /// With `create`: there must be none.
    public static let exclusive = SFTPOpenFlags(rawValue: 32)
}

/// An entry of a directory.
public struct SFTPEntry: Sendable {
    /// Name inside the directory.
    public var name: ByteString
    /// A line as of `ls -l`, for people.
    public var longName: ByteString
    /// Its attributes, not followed through links.
    public var attributes: SFTPAttributes

    /// An entry of a directory.
    public init(name: ByteString, longName: ByteString, attributes: SFTPAttributes) {
        self.name = name
        self.longName = longName
        self.attributes = attributes
    }
}

/// Room in a file system, in the order of OpenSSH PROTOCOL §4.4 (`statvfs@openssh.com`).
public struct SFTPFileSystemStatistics: Sendable {
    /// f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_fsid, f_flag, f_namemax
    public var values: [UInt64]

    /// The eleven values.
    public init(values: [UInt64]) {
        precondition(values.count == 11)
        self.values = values
    }
}

/// What the server serves. Paths come as the client sent them, relative ones included. Each call answers at
/// once; `Handle`s are the file system's own.
public protocol SFTPFileSystem {
    /// An open file or directory.
    associatedtype Handle

    mutating func open(
        _ path: ByteString, _ flags: SFTPOpenFlags, _ attributes: SFTPAttributes
    ) throws(SFTPStatus) -> Handle
    mutating func openDirectory(_ path: ByteString) throws(SFTPStatus) -> Handle
    mutating func close(_ handle: Handle) throws(SFTPStatus)
    /// Reads into `buffer` and returns how much; 0 at the end of the file.
    mutating func read(
        _ handle: Handle, offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(SFTPStatus) -> Int
    /// Writes all of `bytes`.
    mutating func write(_ handle: Handle, offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(SFTPStatus)
    /// Some further entries, at most `limit`; empty at the end.
    mutating func readDirectory(_ handle: Handle, limit: Int) throws(SFTPStatus) -> [SFTPEntry]
    mutating func attributes(of path: ByteString, followLinks: Bool) throws(SFTPStatus) -> SFTPAttributes
    mutating func attributes(of handle: Handle) throws(SFTPStatus) -> SFTPAttributes
    mutating func setAttributes(
        of path: ByteString, _ attributes: SFTPAttributes, followLinks: Bool
    ) throws(SFTPStatus)
    mutating func setAttributes(of handle: Handle, _ attributes: SFTPAttributes) throws(SFTPStatus)
    mutating func remove(_ path: ByteString) throws(SFTPStatus)
    mutating func makeDirectory(_ path: ByteString, _ attributes: SFTPAttributes) throws(SFTPStatus)
    mutating func removeDirectory(_ path: ByteString) throws(SFTPStatus)
    /// The canonical absolute path, whether or not its last part exists.
    mutating func realPath(_ path: ByteString) throws(SFTPStatus) -> ByteString
    /// As `realPath`, with `~` and `~user` expanded first.
    mutating func expandPath(_ path: ByteString) throws(SFTPStatus) -> ByteString
    /// Renames; an existing target is an error unless `replaces`.
    mutating func rename(_ old: ByteString, to new: ByteString, replaces: Bool) throws(SFTPStatus)
    mutating func readLink(_ path: ByteString) throws(SFTPStatus) -> ByteString
    mutating func makeSymbolicLink(at path: ByteString, target: ByteString) throws(SFTPStatus)
    mutating func makeHardLink(at path: ByteString, target: ByteString) throws(SFTPStatus)
    mutating func synchronize(_ handle: Handle) throws(SFTPStatus)
    mutating func statistics(of path: ByteString) throws(SFTPStatus) -> SFTPFileSystemStatistics
    mutating func statistics(of handle: Handle) throws(SFTPStatus) -> SFTPFileSystemStatistics
    /// Copies bytes between two open files, at most `limit` and not more than takes a moment; returns how many, 0 at
    /// the end of the source. draft-ietf-secsh-filexfer-extensions-00 §7.
    mutating func copy(
        _ source: Handle, _ from: UInt64, limit: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) -> UInt64
}

extension SFTPFileSystem {
    /// Not every file system can.
    public mutating func copy(
        _ source: Handle, _ from: UInt64, limit: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) -> UInt64 {
        throw .unsupported
    }
}
