// SPDX-License-Identifier: Apache-2.0

import Mesh

/// A device that draws recorded numbers, in hexadecimal text.
final class RecordedDevice {
    var device: WireGuard.Device
    let peer: WireGuard.PeerIndex
    private var buffer = [UInt8](repeating: 0, count: 2048)

    init(device: consuming WireGuard.Device, peer: WireGuard.PeerIndex) {
        self.device = device
        self.peer = peer
    }

    var hasOutput: Bool { device.hasOutput }
    var nextDeadline: Instant { device.nextDeadline }
    var counters: WireGuard.Counters { device.counters }
    func statistics(of index: WireGuard.PeerIndex, now: Instant) -> WireGuard.PeerStatistics? {
        device.statistics(of: index, now: now)
    }

    func output() -> String? {
        let wall = WireGuard.WallTime(seconds: 1_770_000_000, nanoseconds: 123_456_789)
        let output = buffer.withUnsafeMutableBytes {
            device.nextOutput(into: $0, now: .start, wallTime: wall)
        }
        return output.map { Hex.text(buffer[..<$0.length]) }
    }

    func receive(_ hex: String) throws -> (WireGuard.Received, String) {
        var copy = try bytes(hex)
        let result = receive(&copy)
        guard case .packet(_, let range) = result else { return (result, "") }
        return (result, Hex.text(copy[range]))
    }

    func receive(_ datagram: inout [UInt8]) -> WireGuard.Received {
        let source = WireGuard.Source.address(SocketAddress("192.0.2.1:51820")!)
        return datagram.withUnsafeMutableBytes { device.receive($0, from: source, now: .start) }
    }

    func seal(_ hex: String) throws -> String? { seal(try bytes(hex)).map { Hex.text($0) } }

    func seal(_ packet: [UInt8]) -> [UInt8]? {
        buffer.replaceSubrange(16..<(16 + packet.count), with: packet)
        let outcome = buffer.withUnsafeMutableBytes {
            device.seal(peer, in: $0, payloadLength: packet.count, now: .start)
        }
        guard case .sealed(let length) = outcome else { return nil }
        return Array(buffer[..<length])
    }
}

extension WireGuardVectors {
    private func node(
        _ secret: String, peer: String, psk: String, script: [UInt64]
    ) throws -> RecordedDevice {
        var device = WireGuard.Device(
            privateKey: try PrivateKey(bytes: bytes(secret)), randomness: .scripted([0] + script))
        let zero = String(repeating: "0", count: 64)
        let index = try device.addPeer(
            WireGuard.PeerConfiguration(
                publicKey: NodePublicKey(hex: peer),
                presharedKey: psk == zero ? nil : WireGuard.PresharedKey(bytes: bytes(psk)),
                allowedIPs: [IPPrefix("0.0.0.0/0")!, IPPrefix("::/0")!]),
            now: .start)
        return RecordedDevice(device: device, peer: index)
    }

    /// Whoever begins the recorded handshake.
    func initiator(_ handshake: Handshake) throws -> RecordedDevice {
        let ephemeral = try WireGuard.Bytes32(hex: initiator_ephemeral_private)
        return try node(
            initiator_static_private, peer: responder_static_public, psk: handshake.psk,
            script: ephemeral.script + [UInt64(initiator_index)])
    }

    /// Whoever answers it.
    func responder(_ handshake: Handshake) throws -> RecordedDevice {
        let ephemeral = try WireGuard.Bytes32(hex: responder_ephemeral_private)
        return try node(
            responder_static_private, peer: initiator_static_public, psk: handshake.psk,
            script: [UInt64(responder_index)] + ephemeral.script)
    }

    /// Both after the recorded handshake and its confirmation.
    func session(_ handshake: Handshake) throws -> (initiator: RecordedDevice, responder: RecordedDevice) {
        let (a, b) = (try initiator(handshake), try responder(handshake))
        a.device.initiateHandshake(a.peer, now: .start)
        _ = try b.receive(a.output() ?? "")
        _ = try a.receive(b.output() ?? "")
        _ = try b.receive(a.output() ?? "")
        return (a, b)
    }
}
