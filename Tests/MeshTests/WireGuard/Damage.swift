// SPDX-License-Identifier: Apache-2.0

import Mesh

extension SeededGenerator {
    mutating func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &self) }

    /// Some damage: bits, bytes, whole fields of zeros, ones or another's.
    mutating func damaged(_ message: [UInt8], keeps: Int = 0) -> [UInt8] {
        var message = message
        guard message.count > keeps else { return message }
        for _ in 0...pick(3) {
            let place = keeps + pick(message.count - keeps)
            switch pick(5) {
            case 0: message[place] ^= 1 << UInt8(pick(8))
            case 1: message[place] = UInt8(pick(256))
            case 2:
                for index in place..<min(message.count, place + 32) { message[index] = 0 }
            case 3:
                for index in place..<min(message.count, place + 32) { message[index] = 0xff }
            default:
                let other = keeps + pick(message.count - keeps)
                message.swapAt(place, other)
            }
        }
        return message
    }
}

/// Puts the MAC1 for this receiver where it belongs.
func signed(_ message: [UInt8], for receiver: NodePublicKey) -> [UInt8] {
    var hash = BLAKE2s(outputLength: 32)
    (Array("mac1----".utf8) + receiver.bytes).withUnsafeBytes { hash.update($0) }
    var key = [UInt8](repeating: 0, count: 32)
    key.withUnsafeMutableBytes { hash.finish(into: $0) }
    let covered = message.count - 32
    let mac = key.withUnsafeBytes { key in
        message.withUnsafeBytes {
            BLAKE2s.mac(key: key, UnsafeRawBufferPointer(rebasing: $0[..<covered]))
        }
    }
    return Array(message[..<covered]) + mac.bytes + message[(covered + 16)...]
}
