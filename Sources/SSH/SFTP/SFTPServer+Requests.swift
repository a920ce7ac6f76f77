// SPDX-License-Identifier: Apache-2.0

// What each request does, §6. An `SFTPStatus` or `WireError` thrown here becomes the answer.
extension SFTPServer {
    mutating func perform(
        _ type: SFTPMessage, _ id: UInt32, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        switch type {
        case .read: try performRead(id, &request, &fileSystem)
        case .write: try performWrite(id, &request, &fileSystem)
        case .open, .opendir, .close, .readdir: try performHandle(type, id, &request, &fileSystem)
        case .stat, .lstat:
            send(try fileSystem.attributes(of: path(&request), followLinks: type == .stat), id)
        case .fstat: send(try fileSystem.attributes(of: anyHandle(&request)), id)
        case .setstat, .fsetstat, .remove, .mkdir, .rmdir, .rename, .symlink:
            try performChange(type, &request, &fileSystem)
            send(.ok, id)
        case .realpath: send(try fileSystem.realPath(path(&request)), id)
        case .readlink: send(try fileSystem.readLink(path(&request)), id)
        case .extended: try performExtended(id, &request, &fileSystem)
        default: throw SFTPStatus.unsupported
        }
    }

    private mutating func performRead(
        _ id: UInt32, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        let handle = try file(&request)
        let offset = try request.uint64()
        let wanted = min(Int(try request.uint32()), limits.dataBytes)
        let start = output.count
        output.append(UInt32(0))
        output.append(SFTPMessage.data.rawValue)
        output.append(id)
        output.append(UInt32(0))
        let space = unsafe output.space(max(wanted, 1))
        let count = unsafe try fileSystem.read(
            handle, offset: offset, into: UnsafeMutableRawBufferPointer(rebasing: space[..<wanted]))
        guard count > 0 || wanted == 0 else { throw SFTPStatus.endOfFile }
        output.commit(count)
        output.overwrite(UInt32(output.count - start - 4), at: start)
        output.overwrite(UInt32(count), at: start + 9)
    }

    private mutating func performWrite(
        _ id: UInt32, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        let handle = try file(&request)
        let offset = try request.uint64()
        let range = try request.stringRange()
        unsafe try fileSystem.write(handle, offset: offset, request.view(range))
        send(.ok, id)
    }

    private mutating func performHandle(
        _ type: SFTPMessage, _ id: UInt32, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        switch type {
        case .open:
            let path = try path(&request)
            let flags = SFTPOpenFlags(rawValue: try request.uint32())
            let attributes = try SFTPAttributes(&request)
            try checkHandleRoom()
            add(.file(try fileSystem.open(path, flags, attributes)), id)
        case .opendir:
            let path = try path(&request)
            try checkHandleRoom()
            add(.directory(try fileSystem.openDirectory(path)), id)
        case .close:
            let index = try handleIndex(&request)
            let handle = handles[index]
            handles[index] = nil
            switch handle {
            case .file(let handle)?, .directory(let handle)?: try fileSystem.close(handle)
            case nil: break
            }
            send(.ok, id)
        default:
            guard case .directory(let handle)? = handles[try handleIndex(&request)] else {
                throw SFTPStatus.failure
            }
            let entries = try fileSystem.readDirectory(handle, limit: limits.entries)
            guard !entries.isEmpty else { throw SFTPStatus.endOfFile }
            answer(.name) {
                $0.append(id)
                $0.append(UInt32(entries.count))
                for entry in entries {
                    $0.appendString(entry.name)
                    $0.appendString(entry.longName)
                    entry.attributes.write(&$0)
                }
            }
        }
    }

    private mutating func performChange(
        _ type: SFTPMessage, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        switch type {
        case .setstat:
            let path = try path(&request)
            try fileSystem.setAttributes(of: path, SFTPAttributes(&request), followLinks: true)
        case .fsetstat:
            let handle = try anyHandle(&request)
            try fileSystem.setAttributes(of: handle, SFTPAttributes(&request))
        case .remove: try fileSystem.remove(path(&request))
        case .mkdir:
            let path = try path(&request)
            try fileSystem.makeDirectory(path, SFTPAttributes(&request))
        case .rmdir: try fileSystem.removeDirectory(path(&request))
        case .rename:
            let old = try path(&request)
            try fileSystem.rename(old, to: path(&request), replaces: false)
        default:
            // OpenSSH PROTOCOL §4.1: the target comes first, against the draft; all clients follow OpenSSH.
            let target = try path(&request)
            try fileSystem.makeSymbolicLink(at: path(&request), target: target)
        }
    }

    private mutating func performExtended(
        _ id: UInt32, _ request: inout WireReader, _ fileSystem: inout FileSystem
    ) throws {
        switch try request.text(limit: 256) {
        case "posix-rename@openssh.com":
            let old = try path(&request)
            try fileSystem.rename(old, to: path(&request), replaces: true)
            send(.ok, id)
        case "hardlink@openssh.com":
            let target = try path(&request)
            try fileSystem.makeHardLink(at: path(&request), target: target)
            send(.ok, id)
        case "fsync@openssh.com":
            try fileSystem.synchronize(file(&request))
            send(.ok, id)
        case "lsetstat@openssh.com":
            let path = try path(&request)
            try fileSystem.setAttributes(of: path, SFTPAttributes(&request), followLinks: false)
            send(.ok, id)
        case "expand-path@openssh.com":
            send(try fileSystem.expandPath(path(&request)), id)
        case "statvfs@openssh.com":
            sendStatistics(try fileSystem.statistics(of: path(&request)), id)
        case "fstatvfs@openssh.com":
            sendStatistics(try fileSystem.statistics(of: anyHandle(&request)), id)
        case "copy-data":
            let source = try file(&request)
            let from = try request.uint64(), length = try request.uint64()
            let target = try file(&request)
            copying = Copying(
                id: id, source: source, from: from, left: length == 0 ? .max : length, target: target,
                to: try request.uint64())
        case "limits@openssh.com":
            let limits = self.limits
            answer(.extendedReply) {
                $0.append(id)
                $0.append(UInt64(limits.packetBytes))
                $0.append(UInt64(limits.dataBytes))
                $0.append(UInt64(limits.dataBytes))
                $0.append(UInt64(limits.handles))
            }
        default: throw SFTPStatus.unsupported
        }
    }

    /// One turn of a copy. True: it is over and answered.
    mutating func goOnCopying(_ fileSystem: inout FileSystem) -> Bool {
        guard var copy = copying else { return true }
        do throws(SFTPStatus) {
            let count = try fileSystem.copy(
                copy.source, copy.from, limit: copy.left, to: copy.target, copy.to)
            copy.left -= min(count, copy.left)
            guard count > 0, copy.left > 0 else {
                copying = nil
                send(.ok, copy.id)
                return true
            }
            let (from, to) = (
                copy.from.addingReportingOverflow(count), copy.to.addingReportingOverflow(count)
            )
            guard !from.overflow, !to.overflow else { throw SFTPStatus.failure }
            (copy.from, copy.to) = (from.partialValue, to.partialValue)
            copying = copy
            return false
        } catch {
            copying = nil
            failures += 1
            send(error, copy.id)
            return true
        }
    }

    private mutating func sendStatistics(_ statistics: SFTPFileSystemStatistics, _ id: UInt32) {
        answer(.extendedReply) {
            $0.append(id)
            for value in statistics.values { $0.append(value) }
        }
    }
}
