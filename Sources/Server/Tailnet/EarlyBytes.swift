// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Bytes that came before anybody could read them; given out once.
final class EarlyBytes: Sendable {
    private let bytes: Mutex<[UInt8]>

    init(_ bytes: [UInt8]) { self.bytes = Mutex(bytes) }

    /// The bytes, or nil when there are none (left).
    func take() -> [UInt8]? {
        bytes.withLock { bytes in
            defer { bytes = [] }
            return bytes.isEmpty ? nil : bytes
        }
    }
}
