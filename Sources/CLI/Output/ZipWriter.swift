// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// A ZIP archive in memory, whose entries are stored as they are (APPNOTE 6.3.3, no ZIP64). Pure.
///
///     local header │ name │ content      once per entry, §4.3.7
///     central header │ name              once per entry, §4.3.12
///     end of central directory           §4.3.16
package struct ZipWriter {
    /// 4 GiB in all and 65,535 entries are what the format takes; a name is far below its limit.
    package enum Failure: Error, Hashable {
        case tooLarge
        case badName(String)
    }

    /// Local time as DOS kept it: two-second steps from 1980 on.
    package struct Stamp: Hashable, Sendable {
        var date: UInt16
        var time: UInt16

        package init(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int) {
            date = UInt16(clamping: (min(max(year, 1980), 2107) - 1980) << 9 | month << 5 | day)
            time = UInt16(clamping: hour << 11 | minute << 5 | min(second, 58) / 2)
        }
    }

    private var bytes: [UInt8] = []
    private var directory: [UInt8] = []
    private var names: Set<String> = []
    private let stamp: Stamp

    package init(stamp: Stamp) { self.stamp = stamp }

    /// Adds a file; folders are part of its name, with slashes.
    package mutating func add(_ name: String, _ content: [UInt8]) throws(Failure) {
        let path = Array(name.utf8)
        let isSafe = !path.isEmpty && path.count <= 1_024 && !name.hasPrefix("/")
        guard isSafe, !name.split(separator: "/").contains(".."), names.insert(name).inserted else {
            throw .badName(name)
        }
        let size = bytes.count + directory.count + content.count + 2 * path.count + 128
        guard names.count < 65_535, size < Int(UInt32.max) else { throw .tooLarge }
        let offset = UInt32(bytes.count)
        var common: [UInt8] = []
        Self.put(20, 2, &common)  // version needed: 2.0
        Self.put(0x0800, 2, &common)  // names are UTF-8
        Self.put(0, 2, &common)  // stored
        Self.put(UInt32(stamp.time), 2, &common)
        Self.put(UInt32(stamp.date), 2, &common)
        Self.put(STUN.crc32(content.span.bytes), 4, &common)
        Self.put(UInt32(content.count), 4, &common)
        Self.put(UInt32(content.count), 4, &common)
        Self.put(UInt32(path.count), 2, &common)
        Self.put(0, 2, &common)  // extra field
        Self.put(0x0403_4b50, 4, &bytes)
        bytes += common + path + content
        Self.put(0x0201_4b50, 4, &directory)
        Self.put(3 << 8 | 20, 2, &directory)  // made by: Unix
        directory += common
        Self.put(0, 2, &directory)  // comment
        Self.put(0, 2, &directory)  // disk
        Self.put(0, 2, &directory)  // internal attributes
        Self.put(0o100600 << 16, 4, &directory)
        Self.put(offset, 4, &directory)
        directory += path
    }

    /// The whole archive.
    package func finish() -> [UInt8] {
        var result = bytes + directory
        Self.put(0x0605_4b50, 4, &result)
        Self.put(0, 4, &result)  // disks
        Self.put(UInt32(names.count), 2, &result)
        Self.put(UInt32(names.count), 2, &result)
        Self.put(UInt32(directory.count), 4, &result)
        Self.put(UInt32(bytes.count), 4, &result)
        Self.put(0, 2, &result)  // comment
        return result
    }

    /// Little-endian.
    private static func put(_ value: UInt32, _ count: Int, _ target: inout [UInt8]) {
        for index in 0..<count { target.append(UInt8(truncatingIfNeeded: value >> (8 * UInt32(index)))) }
    }
}
