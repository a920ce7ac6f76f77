// SPDX-License-Identifier: Apache-2.0

/// Headers of a call: protobuf `map<string, string>` in field 1. rpc-transport §4.2.
public enum DRPCMetadata {
    /// Encodes pairs in the order given.
    public static func encode(_ pairs: [(key: String, value: String)]) -> [UInt8] {
        var output: [UInt8] = []
        for (key, value) in pairs {
            var entry: [UInt8] = []
            append(0x0a, key, to: &entry)
            append(0x12, value, to: &entry)
            output.append(0x0a)
            DRPCPacket.appendNumber(UInt64(entry.count), to: &output)
            output += entry
        }
        return output
    }

    /// Decodes strictly: in each entry the key comes first, both are present, and there is nothing else.
    public static func decode(_ bytes: [UInt8]) throws(DRPCError) -> [String: String] {
        var result: [String: String] = [:]
        var rest = bytes[...]
        while !rest.isEmpty {
            var entry = try field(0x0a, of: &rest)
            let key = try field(0x0a, of: &entry)
            let value = try field(0x12, of: &entry)
            guard entry.isEmpty else { throw .malformedMetadata }
            result[String(decoding: key, as: UTF8.self)] = String(decoding: value, as: UTF8.self)
        }
        return result
    }

    private static func append(_ tag: UInt8, _ text: String, to output: inout [UInt8]) {
        output.append(tag)
        DRPCPacket.appendNumber(UInt64(text.utf8.count), to: &output)
        output += text.utf8
    }

    private static func field(
        _ tag: UInt8, of rest: inout ArraySlice<UInt8>
    ) throws(DRPCError) -> ArraySlice<UInt8> {
        guard rest.popFirst() == tag else { throw .malformedMetadata }
        var length: UInt64 = 0
        var shift: UInt64 = 0
        while true {
            guard let byte = rest.popFirst(), shift < 63 else { throw .malformedMetadata }
            length |= UInt64(byte & 0x7f) << shift
            shift += 7
            if byte & 0x80 == 0 { break }
        }
        guard length <= UInt64(rest.count) else { throw .malformedMetadata }
        defer { rest = rest.dropFirst(Int(length)) }
        return rest.prefix(Int(length))
    }
}
