// SPDX-License-Identifier: Apache-2.0

/// What lies between the bytes of a connection and its socket, such as TLS. No I/O; used by the relay's thread alone
/// from `adopt` on.
public protocol RelayCipher: AnyObject, Sendable {
    /// Whether nothing comes and nothing can be sent any more.
    var isOver: Bool { get }

    /// Takes all of `sealed`, writes what it says to `plain`, and returns how many bytes that is; appends what the
    /// peer must be answered to `output`. `plain` has room for `Relay.cipherRoom` bytes more than there are.
    func receive(
        _ sealed: UnsafeRawBufferPointer, into plain: UnsafeMutableRawBufferPointer, output: inout [UInt8]
    ) -> Int

    /// Appends the sealed form of `plain` to `output`. False when the connection is over.
    func seal(_ plain: UnsafeRawBufferPointer, output: inout [UInt8]) -> Bool

    /// Appends what tells the peer that nothing more comes, if it can be told.
    func end(output: inout [UInt8])
}

extension Relay {
    /// Bytes that a cipher may keep of what it took, to give them later.
    public static let cipherRoom = 20 << 10
}
